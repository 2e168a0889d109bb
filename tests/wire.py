"""The other end of a network card's link, and the frames that go over it."""

import select
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from fake_driver import DATA, Rig

from virtio.net import Net
from virtio.netdev import Netdev
from virtio.netstream import Stream
from virtio.queue import Ram

MAC = bytes.fromhex("525400123456")
OTHER = bytes.fromhex("525400123457")
GROUP = bytes.fromhex("333300000001")
EVERYBODY = b"\xff" * 6
PLAIN = bytes(12)
RX, TX = 0, 1


def frame(to: bytes = MAC, size: int = 60, fill: int = 1, sender: bytes = OTHER) -> bytes:
    """An Ethernet frame of no particular kind."""
    return to + sender + b"\x88\xb5" + bytes([fill]) * (size - 14)


class Wire:
    """Sends and takes frames as the other side of a stream link."""

    def __init__(self, link: socket.socket) -> None:
        self.link = link
        self.received = bytearray()

    def send(self, *frames: bytes) -> None:
        self.link.sendall(b"".join(struct.pack(">I", len(data)) + data for data in frames))

    def frames(self) -> list[bytes]:
        """Every frame that has come in whole."""
        self.link.setblocking(False)
        try:
            while data := self.link.recv(1 << 20):
                self.received += data
        except BlockingIOError:
            pass
        found = []
        while len(self.received) >= 4:
            (size,) = struct.unpack_from(">I", self.received)
            if len(self.received) < 4 + size:
                break
            found.append(bytes(self.received[4 : 4 + size]))
            del self.received[: 4 + size]
        return found


def watch(*hosts: Netdev, seconds: float = 0) -> None:
    """What the event loop does with a host's descriptors."""
    owners = {fd: (host, events) for host in hosts for fd, events in host.interest().items()}
    poll = select.poll()
    for fd, (_, events) in owners.items():
        poll.register(fd, events)
    for fd, events in poll.poll(seconds * 1000):
        owners[fd][0].ready(fd, events)


def turn(*rigs: Rig) -> None:
    """A turn of the event loop for these cards, until nobody has anything to do."""
    watch(*(rig.device.host for rig in rigs))
    while sum(rig.transport.poll() for rig in rigs):
        watch(*(rig.device.host for rig in rigs))


@contextmanager
def card(ram: Ram, features: int | None = None, start: bool = True, **options: object) -> Iterator[tuple[Rig, Wire]]:
    """A started card and the other end of its link."""
    ours, theirs = socket.socketpair()
    host = Stream("n0", ours)
    host.start()
    rig = Rig(ram, Net(host, MAC, **options))  # type: ignore[arg-type]
    try:
        if start:
            begin(rig, features)
        yield rig, Wire(theirs)
    finally:
        rig.device.close()
        theirs.close()


def begin(rig: Rig, features: int | None = None, lacks: int = 0, size: int = 64) -> Rig:
    """Start with these features, or all but those it lacks."""
    return rig.start((rig.features() if features is None else features) & ~lacks, size)


def transmit(rig: Rig, *parts: bytes | int, indirect: bool = False, queue: int = TX) -> list[tuple[int, int]]:
    """Offer one chain to send, header included; the used elements so far."""
    ring = rig.rings[queue]
    ring.bump = DATA + queue * 0x8_0000
    ring.add(*parts, indirect=indirect)
    rig.notify(queue)
    return ring.collect()


def receive(rig: Rig, queue: int = RX) -> list[bytes]:
    """What every used buffer holds, and it must be as long as the used element says."""
    ring, found = rig.rings[queue], []
    chains = {head: list(indices) for head, indices in ring.chains.items()}
    for head, size in ring.collect():
        data = b""
        for index in chains[head]:
            address, length, _, _ = struct.unpack("<QIHH", rig.ram.view(ring.table + 16 * index, 16))
            data += bytes(rig.ram.view(address, length))
        found.append(data[:size])
    return found


def offer(rig: Rig, count: int, *sizes: int, queue: int = RX) -> None:
    """Buffers to receive into, each a chain of these sizes."""
    for _ in range(count):
        rig.rings[queue].add(*sizes)
    rig.notify(queue)
