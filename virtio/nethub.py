"""A hub: what comes in at one port goes out at all others.  A port leads to a network card or to another netdev."""

from collections import deque

from virtio.needs import Needs
from virtio.netdev import Frame, Netdev

WAITING = 512  # frames kept for a card that does not take them; further ones are lost
AT_ONCE = 64  # frames passed on before others have their turn


class HubPort(Netdev):
    """A port of a hub, which is the list of its ports.  Nothing is left to do in a hub's frames."""

    def __init__(self, name: str, ports: list["HubPort"], uplink: Netdev | None = None) -> None:
        self.name, self.ports, self.uplink = name, ports, uplink
        self.waiting: deque[bytes] = deque()
        ports.append(self)

    def send(self, queue: int, frames: list[Frame]) -> int:
        copies = [b"".join(frame.parts) for frame in frames]
        for port in self.ports:
            if port is not self:
                port.take(copies)
        return len(frames)

    def take(self, frames: list[bytes]) -> None:
        """Frames of another port; what does not fit is lost."""
        if self.uplink:
            self.uplink.send(0, [Frame([memoryview(frame)]) for frame in frames])
        else:
            self.waiting.extend(frames[: WAITING - len(self.waiting)])

    def receive(self, queue: int) -> Frame | None:
        return Frame([memoryview(self.waiting.popleft())]) if self.waiting else None

    # With an uplink the event loop watches the port itself.

    def poll(self) -> bool:
        for count in range(AT_ONCE):
            frame = self.uplink.receive(0) if self.uplink else None
            if frame is None:
                return count > 0
            self.send(0, [frame])
        return True

    def needs(self) -> Needs:
        return self.uplink.needs() if self.uplink else Needs()

    def start(self) -> None:
        if self.uplink:
            self.uplink.start()

    def interest(self) -> dict[int, int]:
        return self.uplink.interest() if self.uplink else {}

    def ready(self, fd: int, events: int) -> None:
        if self.uplink:
            self.uplink.ready(fd, events)

    def flush(self) -> None:
        if self.uplink:
            self.uplink.flush()

    def stop(self) -> None:
        if self.uplink:
            self.uplink.stop()

    def close(self) -> None:
        if self.uplink:
            self.uplink.close()
