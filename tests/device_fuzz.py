"""A hostile driver for each device, played from bytes: what it does is decided by them and nothing else.

After each input the device must serve a driver that behaves, memory beside guest RAM and files beside those given
must be as they were, and no exception may be of another kind than a guest's mistake or the host's refusal.
"""

import contextlib
import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from struct import pack
from typing import Any, NamedTuple

from fake_driver import ACKNOWLEDGE_DRIVER, DATA, RAM_BYTES, PackedRing, Rig, machine_memory
from forked_io import Hart, finish, fork_io, io_memory
from fuzzed_vsock import connect, make_vsock, packet

from mem import regions
from mem.memmap import RAM_BASE, UART_BASE
from mem.regions import map_fixed, unmap
from mem.window import Register, window_take_notified, window_take_queues, window_write
from virtio.blk import Block
from virtio.chardev import Chardev
from virtio.console import Console, Port
from virtio.device import Device
from virtio.features import IN_ORDER, RING_PACKED, VERSION_1
from virtio.host_owners import NoOwners
from virtio.host_tree import HostTree
from virtio.image import Image
from virtio.net import Net
from virtio.netdev import Frame
from virtio.nethub import HubPort
from virtio.ninep import Ninep
from virtio.process import IoConfig
from virtio.queue import Ram
from virtio.request import QueueError
from virtio.rng import Rng

MOST_STEPS = 40
RING_SIZE = 16
CANARY = b"\xa5" * 4096
PAGES = (regions.HOST + RAM_BASE - 4096, regions.HOST + RAM_BASE + RAM_BYTES)  # before and after guest RAM
ADDRESSES = (0, UART_BASE, RAM_BASE - 8, RAM_BASE, RAM_BASE + RAM_BYTES - 8, RAM_BASE + RAM_BYTES, (1 << 64) - 16)
SIZES = (0, 1, 2, 7, 12, 16, 17, 512, 4096, 0x1_0000, 0x7FFF_FFFF, 0xFFFF_FFFF)
REGISTERS = tuple(range(0, 0x100, 4))
NUMBERS = (0, 1, 2, 3, 8, 15, 16, 17, 64, 0x8000, 0x1_0000, 0xFFFF_FFFF)
ACCEPTED = (QueueError, OSError)


class Source:
    """Numbers from bytes; zeroes when they are used up."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def number(self, limit: int) -> int:
        width = 1 if limit <= 256 else 4
        taken, self.at = self.data[self.at : self.at + width], self.at + width
        return int.from_bytes(taken, "little") % limit

    def one(self, choices: Any) -> Any:
        return choices[self.number(len(choices))]

    def bytes(self, count: int) -> bytes:
        taken, self.at = self.data[self.at : self.at + count], self.at + count
        return taken.ljust(count, b"\0")

    def is_empty(self) -> bool:
        return self.at >= len(self.data)


class Target(NamedTuple):
    """A device in a folder of its own, and what the head of a request for it looks like.

    begin: what a driver that behaves does first, after half of all starts.
    """

    make: Callable[[Path], Device]
    head: Callable[[Source], bytes]
    begin: Callable[["Player"], None] = lambda player: None


def make_disk(folder: Path) -> Device:
    (folder / "disk").write_bytes(bytes(1 << 16))
    return Block(Image(folder / "disk"), "serial", 2)


def make_share(folder: Path) -> Device:
    (folder / "share" / "in").mkdir(parents=True)
    (folder / "share" / "file").write_text("shared")
    return Ninep(HostTree(folder / "share", NoOwners(), multidevs="remap"), b"tag")


def make_card(folder: Path) -> Device:
    """On a hub, at which every frame comes back."""
    ports: list[HubPort] = []
    card, other = HubPort("card", ports), HubPort("other", ports)
    other.take = lambda frames: card.take(frames)  # type: ignore[method-assign]
    other.send(0, [Frame([memoryview(bytes(100))])])
    return Net(card, bytes(6), 1500, 2)


def ninep_head(source: Source) -> bytes:
    body = pack("<I", source.number(4)) + source.bytes(source.number(40))
    return (
        pack("<IBH", 7 + len(body), source.one((100, 104, 110, 12, 14, 40, 116, 118, 120, source.number(256))), 1)
        + body
    )


TARGETS = {
    "blk": Target(
        make_disk, lambda s: pack("<IIQ", s.one((0, 1, 4, 8, 11, 13, 99)), 0, s.one((0, 1, 127, 128, 1 << 55)))
    ),
    "rng": Target(lambda folder: Rng(), lambda s: b""),
    "console": Target(
        lambda folder: Console({0: Port(Chardev()), 1: Port(Chardev(), False, b"port")}, 2),
        lambda s: pack("<IHH", s.one((0, 1, 2, 0xFFFF_FFFF)), s.number(9), s.number(3)),
    ),
    "9p": Target(make_share, ninep_head),
    "vsock": Target(make_vsock, packet, connect),
    "net": Target(make_card, lambda s: s.bytes(12) + bytes([s.number(8), s.number(8)]) + s.bytes(s.number(64))),
}


@contextmanager
def fuzzed_memory(io: bool = False) -> Iterator[Ram]:
    """A small machine's memory between two pages that nobody may touch."""
    with io_memory() if io else machine_memory() as ram:
        for page in PAGES:
            map_fixed(page, 4096)
            ctypes.memmove(page, CANARY, 4096)
        try:
            yield ram
        finally:
            for page in PAGES:
                unmap(page, 4096)


def check_canaries(folder: Path) -> None:
    for page in PAGES:
        assert ctypes.string_at(page, 4096) == CANARY, f"a device wrote to {page:#x}, beside guest RAM"
    assert (folder / "beside").read_bytes() == CANARY, "a file that was not given has changed"
    assert set(os.listdir(folder)) <= {"beside", "disk", "share", "vsock"}, "a file was made where none was given"


class Player:
    """The driver: steps by what the source says."""

    def __init__(self, rig: Any, target: Target, source: Source) -> None:
        self.rig, self.target, self.source = rig, target, source
        offered = rig.features()
        self.features = source.one((offered, offered & source.number(1 << 32) | VERSION_1, VERSION_1))
        self.steps = (self.request, self.request, self.chain, self.register, self.notify, self.restart, self.scribble)
        self.offered = offered
        self.restart()

    def play(self) -> None:
        for _ in range(MOST_STEPS):
            if self.source.is_empty():
                return
            self.source.one(self.steps)()

    def restart(self) -> None:
        """A storm of resets, then the driver comes up, perhaps with other rings."""
        for _ in range(self.source.number(4)):
            self.rig.write(Register.STATUS, self.source.one((0, 3, 11, 15, 255)))
        packed = RING_PACKED | IN_ORDER if self.source.number(2) else 0
        self.rig.start(self.features | packed & self.offered, RING_SIZE)
        if self.source.number(2):
            self.target.begin(self)

    def ring(self) -> tuple[int, Any]:
        index = self.source.number(len(self.rig.rings))
        return index, self.rig.rings[index]

    def request(self) -> None:
        """One that looks right, of one to three pieces."""
        index, ring = self.ring()
        head = self.target.head(self.source)
        cut = self.source.number(len(head) + 1)
        rooms = [self.source.one((1, 4, 11, 512, 4096)) for _ in range(self.source.number(3))]
        self.offer(ring, [part for part in (head[:cut], head[cut:]) if part] + rooms)
        self.ask(index)

    def offer(self, ring: Any, parts: list[Any]) -> None:
        ring.bump = DATA + self.source.number(64) * 0x1000
        if not parts or ring.room() < len(parts) + 1:
            return
        with contextlib.suppress(IndexError):  # no number is free any more: what was given back is not collected
            ring.add(*parts, indirect=bool(self.source.number(2)) and len(parts) > 1)

    def chain(self) -> None:
        """Descriptors that nobody should write: loops, tables in tables, memory that is not there."""
        index, ring = self.ring()
        pieces = [
            (
                self.source.one((*ADDRESSES, DATA, DATA + self.source.number(1 << 20))),
                self.source.one(SIZES),
                self.flags(),
            )
            for _ in range(1 + self.source.number(6))
        ]
        if isinstance(ring, PackedRing):
            ring.offer(pieces, self.source.one(NUMBERS) & 0xFFFF)
        else:
            for number, (address, size, flags) in enumerate(pieces):
                ring.describe(number, address, size, flags, self.source.one(NUMBERS) & 0xFFFF)
            ring.offer(self.source.one((0, 0, 0, 1, RING_SIZE - 1, RING_SIZE, 0xFFFF)))
        self.ask(index)

    def flags(self) -> int:
        return int(self.source.one((0, 1, 2, 3, 4, 5, 6, 7, 1, 3)))

    def register(self) -> None:
        register = self.source.one(REGISTERS)
        if register not in (Register.QUEUE_NOTIFY, Register.INTERRUPT_ACK):
            self.rig.write(register, self.source.one((*NUMBERS, self.source.number(1 << 32))))

    def notify(self) -> None:
        self.ask(self.source.number(80))

    def ask(self, index: int) -> None:
        window_write(0, self.rig.slot, Register.QUEUE_NOTIFY, 4, index)
        if isinstance(self.rig, Hart):
            return
        window_take_notified(0)
        self.rig.transport.notified(window_take_queues(self.rig.slot))
        self.rig.transport.poll()

    def scribble(self) -> None:
        """Bytes over the rings."""
        _, ring = self.ring()
        place = self.source.one((ring.table, ring.avail, ring.used)) + self.source.number(256)
        count = self.source.number(32)
        self.rig.ram.view(place, count)[:] = self.source.bytes(count)


class Arena:
    """A device that is played with again and again in this process."""

    def __init__(self, name: str, ram: Ram, folder: Path) -> None:
        self.target, self.ram, self.folder = TARGETS[name], ram, folder
        (folder / "beside").write_bytes(CANARY)
        self.rig = Rig(ram, self.target.make(folder))
        self.faults: list[Exception] = []
        fail = self.rig.transport._fail

        def noted(error: Exception) -> None:
            if not isinstance(error, ACCEPTED):
                self.faults.append(error)
            fail(error)

        self.rig.transport._fail = noted

    def play(self, data: bytes) -> None:
        """One input; an AssertionError, or whatever got out of the device, is a finding."""
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
            Player(self.rig, self.target, Source(data)).play()
            if self.faults:
                raise self.faults.pop()
            check_canaries(self.folder)
            self.rig.start(None, RING_SIZE)
        assert self.rig.read(Register.STATUS) == ACKNOWLEDGE_DRIVER | 8 | 4, "the device does not come up again"

    def close(self) -> None:
        self.rig.device.close()


def play_forked(inputs: dict[str, list[bytes]], folder: Path) -> None:
    """All devices in one I/O process, each with its hostile driver; an entropy source must answer all the while."""
    with fuzzed_memory(io=True) as ram:
        (folder / "beside").write_bytes(CANARY)
        devices: dict[int, Device] = {slot: TARGETS[name].make(folder) for slot, name in enumerate(inputs, 1)}
        child = fork_io(IoConfig({0: Rng(), **devices}))
        good = Hart(ram, Rng(), 0)
        for slot, (name, list_of) in enumerate(inputs.items(), 1):
            for data in list_of:
                Player(Hart(ram, devices[slot], slot), TARGETS[name], Source(data)).play()
                good.start()
                assert len(good.ask(32)[1][0]) == 32
                check_canaries(folder)
                Hart(ram, devices[slot], slot).write(Register.STATUS, 0)
        assert finish(child) == 0
        for device in devices.values():
            device.close()
