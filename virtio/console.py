"""virtio-console (virtio 1.2, 5.3) with its one port."""

from struct import pack

from virtio.chardev import Chardev
from virtio.device import Device
from virtio.queue import Queue, size_of

F_SIZE = 1 << 0
RECEIVE, TRANSMIT = 0, 1


class Console(Device):
    """A console whose host end is a character device."""

    kind = 3
    name = "console"
    queue_sizes = (128, 128)
    features = F_SIZE

    host: Chardev

    def __init__(self, host: Chardev) -> None:
        self.host, self.shown = host, host.size()

    def config(self) -> bytes:
        """struct virtio_console_config: cols, rows, max_nr_ports, emerg_wr."""
        self.shown = self.host.size()
        return pack("<HHII", *self.shown, 1, 0)

    def start(self, queues: list[Queue], features: int) -> None:
        super().start(queues, features)
        queues[RECEIVE].arm()

    def handle(self, index: int) -> None:
        self.poll()

    def poll(self) -> bool:
        self._send()
        self._receive()
        return False

    def resized(self) -> None:
        """The terminal has another size."""
        if self.host.size() != self.shown:
            self.config_changed()

    def _send(self) -> None:
        """Stops while the host's end is full; `poll` goes on when it has room again."""
        if not self.host.has_room():
            return
        for request in self.queues[TRANSMIT]:
            self.host.write(request.read(1 << 20))
            request.done(0)
            if not self.host.has_room():
                return

    def _receive(self) -> None:
        """Input stays with the host end while the driver offers no buffer."""
        queue = self.queues[RECEIVE]
        while self.host.input:
            request = queue.pop()
            if request is None:
                if queue.arm():
                    return
                continue
            request.done(request.write(self.host.read(size_of(request.writable))))
