"""What a virtio back-end is: it knows its queues and its configuration, and nothing of the transport."""

from collections.abc import Callable
from typing import Any, ClassVar

from virtio.features import EVENT_IDX, INDIRECT_DESC, RING_RESET
from virtio.host import Host
from virtio.needs import Needs
from virtio.queue import Queue


class Device:
    """Base of the back-ends.

    `start` hands over the queues when the driver is ready, `handle` tells of work in one of them, `poll` is called
    whenever the I/O process has been awake, `stop` comes with a reset.  What they raise costs the driver a reset.
    """

    kind: int = 0  # the device id of virtio 1.2, 5
    name: ClassVar[str] = ""
    queue_sizes: tuple[int, ...] = ()
    queue_kind: type[Queue] = Queue
    queues: list[Queue]  # while the driver is ready
    negotiated = 0
    features = 0  # bits beyond those of rings and transport
    ring_features = INDIRECT_DESC | EVENT_IDX | RING_RESET  # what the driver is offered for its rings
    ring_limit = ~0  # of these, those that it could be made to offer
    takes_legacy = False  # whether its requests look the same to a driver that does not accept VERSION_1
    host: Host | None = None  # what the event loop watches for it
    descriptors: frozenset[int] = frozenset()  # those that it came with, as far as they are known
    config_changed: Callable[[], None] = staticmethod(lambda: None)
    orders: ClassVar[tuple[str, ...]] = ()  # methods of one argument that a monitor may call (virtio/orders.py)
    tell: Callable[[str, Any], None] = staticmethod(lambda what, value: None)  # of a change that a monitor is to know

    def hosts(self) -> list[Host]:
        """Everything that the event loop watches for it."""
        return [self.host] if self.host else []

    def config(self) -> bytes:
        """The configuration space as the driver reads it."""
        return b""

    def configure(self, offset: int, data: bytes) -> None:
        """The driver writes to the configuration space."""

    def needs(self) -> Needs:
        """What it opens or connects to later besides its hosts, of which the sandbox has to know."""
        return Needs()

    def start(self, queues: list[Queue], features: int) -> None:
        """The driver is ready (DRIVER_OK)."""
        self.queues, self.negotiated = queues, features

    def handle(self, index: int) -> None:
        """The driver has put requests into a queue."""

    def poll(self) -> bool:
        """Look after the host's side; True when there was something to do, which may be work for other devices."""
        return False

    def resized(self) -> None:
        """The host's terminal may have another size."""

    def queue_reset(self, index: int) -> None:
        """The driver resets one queue: forget its requests.  It may set it up again."""

    def stop(self) -> None:
        """The driver resets the device: forget its queues."""
        self.queues = []
        self.negotiated = 0

    def close(self) -> None:
        """The machine ends."""
        for host in self.hosts():
            host.close()
