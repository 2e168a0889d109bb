"""The host's end of a network card: what takes and gives Ethernet frames.  The kinds are in the files net*.py."""

from typing import NamedTuple

from virtio.host import Host

HEADER_BYTES = 12  # struct virtio_net_hdr of virtio 1.x, with num_buffers
PLAIN = bytes(HEADER_BYTES)  # of a frame with nothing left to do
ETHERNET = 14  # bytes of an Ethernet header: the shortest frame that is looked at
MAX_FRAME = 69632  # the longest, as in QEMU: 64 KiB of payload and some headers


class Frame(NamedTuple):
    """An Ethernet frame in pieces, and what is left to do with it: checksum, segmentation."""

    parts: list[memoryview]
    header: bytes = PLAIN

    def size(self) -> int:
        """Bytes of the frame."""
        return sum(map(len, self.parts))


class Netdev(Host):
    """Where a network card's frames go to and come from; the base leads nowhere."""

    queues = 1  # pairs of a receive and a transmit queue
    offloads = 0  # virtio-net's feature bits of what may be left to do in a frame, either way
    takes_large = False  # TCP segments of up to 64 KiB, checksum included
    is_up = True  # whether there is a carrier
    name = ""  # its id, for messages

    def send(self, queue: int, frames: list[Frame]) -> int:
        """Send frames; gives how many were taken off the caller's hands.

        What can't be delivered is lost, as on a wire, and counts as taken.  What is not taken is to be sent again
        when the host's end is ready for more; until then nothing of it is kept, so it may lie in guest RAM.
        """
        return len(frames)

    def receive(self, queue: int) -> Frame | None:
        """The next frame that has come, in one piece.  It is valid until the next call."""
        return None

    def configure(self, features: int, queues: int) -> None:
        """What the driver has negotiated, and how many queues it uses."""
