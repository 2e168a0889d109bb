"""What the event loop watches for a device: the host's end of a console or a network card."""

from collections.abc import Callable

from virtio.needs import Needs


class Host:
    """Has file descriptors; nothing here blocks.

    Made in the supervisor; `start` and `stop` are the life of one I/O process, of which there is another after a
    reset.  A device's `poll` follows whenever a descriptor was `ready`.
    """

    impatient = False  # what its descriptors tell must not wait while the process spins
    # To be called before a descriptor of `interest` is closed: another one may have its number at once.
    let_go: Callable[[int], None] = staticmethod(lambda fd: None)

    def start(self) -> None:
        """The I/O process takes over."""

    def needs(self) -> Needs:
        """What it opens or connects to later, of which the sandbox has to know (virtio/sandbox.py)."""
        return Needs()

    def interest(self) -> dict[int, int]:
        """File descriptors to wait for, with epoll's events."""
        return {}

    def ready(self, fd: int, events: int) -> None:
        """A descriptor of `interest` has something for us."""

    def poll(self) -> bool:
        """Of a host end that belongs to no device: do what there is to do; True when there was something."""
        return False

    def has_output(self) -> bool:
        """Whether something of the guest's has not gone out yet; when the machine ends, that is waited for."""
        return False

    def flush(self) -> None:
        """Send what the host end takes now."""

    def stop(self) -> None:
        """The I/O process ends, and another may follow after a reset."""

    def close(self) -> None:
        """The last one ends: leave nothing.  May be called in any process, and again."""
        self.stop()
