"""virtio-console (virtio 1.3, 5.3): consoles, and ports with names, each with a host end of its own.

Queues 0 and 1 are port 0's; with MULTIPORT 2 and 3 carry control messages, and port N has 2 * N + 2 and 2 * N + 3.
"""

from collections import deque
from enum import IntEnum
from struct import Struct, pack

from virtio.chardev import OUTPUT_LIMIT, Chardev
from virtio.device import Device
from virtio.host import Host
from virtio.queue import Queue, Request, size_of

F_SIZE, F_MULTIPORT, F_EMERG_WRITE = 1 << 0, 1 << 1, 1 << 2
RECEIVE, TRANSMIT = 0, 1
CONTROL_RECEIVE, CONTROL_TRANSMIT = 2, 3
MOST_PORTS = 31  # a window has notify bits for 64 queues
CONTROL = Struct("<IHH")  # struct virtio_console_control: id, event, value
NO_PORT = 0xFFFF_FFFF  # of a message that is about the device
EMERGENCY = 8  # where emerg_wr is in the configuration
WAITING = 256  # messages that wait for the driver's buffers; then the driver's own have to wait


class Event(IntEnum):
    """What a control message says."""

    DEVICE_READY = 0
    PORT_ADD = 1
    PORT_READY = 3
    CONSOLE_PORT = 4
    RESIZE = 5
    PORT_OPEN = 6
    PORT_NAME = 7


class Port:
    """A port: its host end, and how far the driver has come with it."""

    def __init__(self, host: Chardev, is_console: bool = True, name: bytes = b"") -> None:
        self.host, self.is_console, self.name = host, is_console, name
        self.shown = host.size()
        self.forget()

    def forget(self) -> None:
        """As before the driver knows of it."""
        self.is_ready = False  # the driver has it, and may be told of its state
        self.is_open = False  # somebody in the guest has it open
        self.told_open = False  # what the driver knows of the host's end
        self.sending: Request | None = None  # of which the host has taken a part
        self.blocked = False  # the host's end was full

    def host_is_open(self) -> bool:
        """A console is there whether or not somebody looks at it; a port until its input's end.  Both as in QEMU."""
        return self.is_console or (self.host.is_open() and not self.host.is_over())

    def send(self, queue: Queue) -> None:
        """Pass on what the guest sends until the host's end is full; `Console.poll` goes on when it has room again."""
        self.blocked = False
        while not self.blocked:
            if not self.host.has_room():
                self.blocked = True
                return
            request = self.sending or queue.pop()
            if request is None:
                if queue.arm():
                    return
                continue
            data = request.read(OUTPUT_LIMIT)
            self.host.write(data)
            self.sending = request if request.readable else None
            if not self.sending:
                request.done(0)

    def receive(self, queue: Queue) -> None:
        """Input stays with the host end while the driver offers no buffer."""
        while self.host.input:
            request = queue.pop()
            if request is None:
                if queue.arm():
                    return
                continue
            request.done(request.write(self.host.read(size_of(request.writable))))


class Console(Device):
    """Ports by their numbers; with `most` over 1 the driver is told of them by control messages."""

    kind = 3
    name = "console"

    def __init__(self, ports: dict[int, Port], most: int = 1) -> None:
        self.ports, self.most = ports, most
        self.features = F_SIZE | F_EMERG_WRITE | (F_MULTIPORT if most > 1 else 0)
        self.queue_sizes = (128, 128) if most == 1 else (128, 128, 32, 32) + (128, 128) * (most - 1)
        self.messages: deque[bytes] = deque()  # for the driver
        self.by_queue = {_receive_queue(number) + way: port for number, port in ports.items() for way in (0, 1)}

    def hosts(self) -> list[Host]:
        return [port.host for port in self.ports.values()]

    def config(self) -> bytes:
        """struct virtio_console_config: cols, rows, max_nr_ports, emerg_wr."""
        columns, rows = (0, 0)
        if port := self.ports.get(0):
            columns, rows = port.shown = port.host.size()
        return pack("<HHII", columns, rows, self.most, 0)

    def configure(self, offset: int, data: bytes) -> None:
        """A character without a queue, from a kernel that can't do better yet."""
        port = self.ports.get(0)
        if offset == EMERGENCY and port and port.host.has_room():
            port.host.write(data[:1])

    def start(self, queues: list[Queue], features: int) -> None:
        super().start(queues, features)
        for number, port in self.ports.items():
            queues[_receive_queue(number)].arm()
            port.is_open = number == 0 and not self._has_control()

    def _has_control(self) -> bool:
        return bool(self.negotiated & F_MULTIPORT)

    def handle(self, index: int) -> None:
        """Without MULTIPORT the driver has port 0 only."""
        if index > TRANSMIT and not self._has_control():
            return
        if index in (CONTROL_RECEIVE, CONTROL_TRANSMIT):
            self._talk()
        elif port := self.by_queue.get(index):
            if index & 1 == TRANSMIT:
                port.send(self.queues[index])
            elif port.is_open:
                port.receive(self.queues[index])

    def poll(self) -> bool:
        if self._has_control():
            self._report()
        for number, port in self.ports.items():
            if port.blocked:
                port.send(self.queues[_receive_queue(number) + TRANSMIT])
            if port.is_open and port.host.input:
                port.receive(self.queues[_receive_queue(number)])
        return False

    def resized(self) -> None:
        """The terminal has another size."""
        if self._has_control():
            self._report()
        elif (port := self.ports.get(0)) and port.host.size() != port.shown:
            self.config_changed()

    def queue_reset(self, index: int) -> None:
        if (port := self.by_queue.get(index)) and index & 1 == TRANSMIT:
            port.sending = None

    def stop(self) -> None:
        super().stop()
        self.messages.clear()
        for port in self.ports.values():
            if port.is_open and not port.is_console:
                self.tell(f"port {port.host.label}", False)
            port.forget()

    # Control messages

    def _talk(self) -> None:
        """Hear the driver out, and tell it what it does not know, as far as it has buffers for that."""
        self._tell()
        while len(self.messages) < WAITING:
            request = self.queues[CONTROL_TRANSMIT].pop()
            if request is None:
                if self.queues[CONTROL_TRANSMIT].arm():
                    break
                continue
            message = request.read(CONTROL.size)
            request.done(0)
            if len(message) == CONTROL.size:
                self._heed(*CONTROL.unpack(message))
        self._report()

    def _tell(self) -> None:
        queue = self.queues[CONTROL_RECEIVE]
        while self.messages:
            request = queue.pop()
            if request is None:
                if queue.arm():
                    return
                continue
            request.done(request.write(self.messages.popleft()))

    def _say(self, number: int, event: Event, value: int = 1, more: bytes = b"") -> None:
        self.messages.append(CONTROL.pack(number, event, value) + more)

    def _heed(self, number: int, event: int, value: int) -> None:
        """A message of the driver's; what makes no sense is passed over, as in QEMU."""
        port = self.ports.get(number)
        if event == Event.DEVICE_READY and value:
            for known in self.ports:
                self._say(known, Event.PORT_ADD)
        elif port and event == Event.PORT_READY and value:
            self._introduce(number, port)
        elif port and event == Event.PORT_OPEN:
            if port.is_open != bool(value):
                self.tell(f"port {port.host.label}", bool(value))
            port.is_open = bool(value)
            if port.is_open:
                port.receive(self.queues[_receive_queue(number)])

    def _introduce(self, number: int, port: Port) -> None:
        """The driver has a port: what it is, its name, and the size of a console."""
        port.is_ready, port.told_open = True, False
        if port.is_console:
            self._say(number, Event.CONSOLE_PORT)
            port.shown = 0, 0
        if port.name:
            self._say(number, Event.PORT_NAME, 1, port.name + b"\0")

    def _report(self) -> None:
        """What has changed at the host's ends; where there is no room for messages, that is told later."""
        for number, port in self.ports.items():
            if not port.is_ready or len(self.messages) >= WAITING:
                continue
            if port.told_open != port.host_is_open():
                port.told_open = not port.told_open
                self._say(number, Event.PORT_OPEN, int(port.told_open))
            if port.is_console and self.negotiated & F_SIZE and port.host.size() != port.shown:
                port.shown = port.host.size()
                # Columns first (virtio 1.3, 5.3.6.2); Linux 6.12 does as well, and took them for rows before 6.12.66.
                self._say(number, Event.RESIZE, 0, pack("<HH", *port.shown))
        self._tell()


def _receive_queue(number: int) -> int:
    """A port's queue for input; the next is the one for output."""
    return 2 * number + 2 if number else 0
