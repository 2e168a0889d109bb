"""A hostile driver for each device, played from bytes: what it does is decided by them and nothing else.

Memory beside guest RAM and files beside those given must be as they were, the device must come up again for whoever
comes next, and no exception may be of another kind than a driver's mistake or the host's refusal.
"""

import contextlib
import errno
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from struct import pack
from typing import Any, ClassVar, NamedTuple

import fuzz_makers as makers
from fake_driver import ACKNOWLEDGE_DRIVER, DATA, DRIVER_OK, FEATURES_OK, RAM_BYTES, PackedRing, Rig
from forked_io import Hart
from fuzz_core import Fuzzer, Source, silence
from fuzz_memory import CANARY, check_guards, guarded_memory
from fuzzed_vsock import connect, make_vsock, packet

from mem.memmap import RAM_BASE, UART_BASE
from mem.window import Register, window_take_notified, window_take_queues, window_write
from virtio.blk import Block
from virtio.chardev import Chardev
from virtio.console import Console, Port
from virtio.device import Device
from virtio.features import IN_ORDER, RING_PACKED, VERSION_1
from virtio.host_owners import NoOwners
from virtio.host_tree import HostTree
from virtio.image import Image
from virtio.mmio import Transport
from virtio.ninep import Ninep
from virtio.request import QueueError
from virtio.rng import Rng

MOST_STEPS = 40
RING_SIZE = 16
ADDRESSES = (0, UART_BASE, RAM_BASE - 8, RAM_BASE, RAM_BASE + RAM_BYTES - 8, RAM_BASE + RAM_BYTES, (1 << 64) - 16)
SIZES = (0, 1, 2, 7, 12, 16, 17, 512, 4096, 0x1_0000, 0x7FFF_FFFF, 0xFFFF_FFFF)
ROOMS = ((4096,), (4096,), (512, 1), (512, 1), (512, 1), (16,), (1,), (11, 4096), (4096, 4), ())
REGISTERS = tuple(range(0, 0x100, 4))
NUMBERS = (0, 1, 2, 3, 8, 15, 16, 17, 64, 0x8000, 0x1_0000, 0xFFFF_FFFF)
ACCEPTED = (QueueError, OSError)
OURS = (errno.EBADF, errno.EFAULT)  # of the host's refusals those that no driver brings about
KEPT = {"beside", "disk", "share", "dump", "vsock"}  # files that devices are given, and one that they are not


class Target(NamedTuple):
    """A device in a folder of its own, and what the head of a request for it looks like.

    begin: what a driver that behaves does first, after half of all starts; host: the other side does something;
    check: more to look at after a batch.
    """

    make: Callable[[Path], Device]
    head: Callable[[Source], bytes]
    begin: Callable[["Player"], None] = lambda player: None
    host: Callable[[Transport, Source], object] | None = None
    check: Callable[[Any, Path], object] | None = None


def make_disk(folder: Path) -> Device:
    (folder / "disk").write_bytes(bytes(1 << 16))
    return Block(Image(folder / "disk"), "serial", 2)


def make_share(folder: Path) -> Device:
    (folder / "share" / "in").mkdir(parents=True)
    (folder / "share" / "file").write_text("shared")
    return Ninep(HostTree(folder / "share", NoOwners(), multidevs="remap"), b"tag")


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
    "net": Target(makers.make_card, makers.net_head),
    "net-dump": Target(makers.make_dumped, makers.net_head, check=makers.check_dump),
    "net-stream": Target(makers.make_wired, makers.net_head, host=makers.wired_host),
    "ports": Target(makers.make_ports, makers.ports_head, host=makers.ports_host),
    "balloon": Target(makers.make_balloon, makers.balloon_head, host=makers.balloon_host),
    "vhost-user": Target(makers.make_vhost, lambda s: s.bytes(16), host=makers.vhost_host),
    "user": Target(makers.make_user, lambda s: s.bytes(s.number(40)), host=makers.user_host),
}


def check_surroundings(folder: Path, given: Iterable[str] = KEPT) -> None:
    """Memory and files that no device was given."""
    check_guards()
    assert (folder / "beside").read_bytes() == CANARY, "a file that was not given has changed"
    assert set(os.listdir(folder)) <= set(given), "a file was made where none was given"


class Player:
    """The driver: steps by what the source says."""

    def __init__(self, rig: Any, target: Target, source: Source, offered: int) -> None:
        self.rig, self.target, self.source, self.offered = rig, target, source, offered
        self.features = source.one((offered, offered & source.number(1 << 32) | VERSION_1, VERSION_1))
        self.steps = 2 * (self.request, self.request, self.chain, self.register, self.notify, self.scribble)
        self.steps += (self.restart, self.host)
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

    def host(self) -> None:
        """Something happens at the device's other side."""
        if self.target.host and not isinstance(self.rig, Hart):
            self.target.host(self.rig.transport, self.source)
            self.rig.transport.poll()

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


class Arena(Fuzzer):
    """A device in this process, which is played with again and again."""

    unit = "a driver: features, then up to 40 steps, of which a third are requests"
    name: ClassVar[str]

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.target = TARGETS[self.name]
        self.stack = contextlib.ExitStack()
        self.ram = self.stack.enter_context(guarded_memory())
        self.stack.enter_context(silence())
        (folder / "beside").write_bytes(CANARY)
        self.rig: Any = Rig(self.ram, self.target.make(folder))
        self.offered = self.rig.features()
        self.faults: list[Exception] = []
        self.rig.transport._fail = self.note(self.rig.transport._fail)

    def note(self, fail: Callable[[Exception], None]) -> Callable[[Exception], None]:
        """Have what devices raise looked at, on its way."""

        def noted(error: Exception) -> None:
            if not isinstance(error, ACCEPTED) or getattr(error, "errno", 0) in OURS:
                self.faults.append(error)
            fail(error)

        return noted

    def play(self, data: bytes) -> None:
        Player(self.rig, self.target, Source(data), self.offered).play()
        self.settle()

    def settle(self) -> None:
        """Raise what a device should not have."""
        if self.faults:
            raise self.faults.pop()

    def check(self) -> None:
        check_surroundings(self.folder)
        if self.target.check:
            self.target.check(self.rig.device, self.folder)
        self.rig.start(None, RING_SIZE)
        self.settle()
        status = self.rig.read(Register.STATUS)
        assert status == ACKNOWLEDGE_DRIVER | FEATURES_OK | DRIVER_OK, "the device does not come up again"

    def close(self) -> None:
        self.rig.device.close()
        self.rig = None
        self.stack.close()


class Requests(Arena):
    """The same device with a driver that goes on after each request: what is new with each is its bytes."""

    unit = "a request: random bytes in up to four descriptors, in a ring that is kept"
    longest = 120

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.begin(None)

    def begin(self, features: int | None) -> None:
        """With a ring of its own for each queue; descriptors 0 to 3 are used again and again."""
        self.rig.start(features, RING_SIZE)
        self.counts = [0] * len(self.rig.rings)

    def play(self, data: bytes) -> None:
        source = Source(data)
        if not source.number(200) or not self.rig.transport.is_running():
            self.begin(self.offered & ~RING_PACKED & source.number(1 << 32) | VERSION_1)
        if self.target.host and not source.number(4):
            self.target.host(self.rig.transport, source)
        index = source.number(len(self.counts))
        number = 4 * (self.counts[index] % 4)
        if number in self.rig.transport.queues[index].outstanding:
            self.rig.transport.write(Register.QUEUE_SEL, 4, index)
            self.begin(None)
            number = 0
        self.offer(index, number, source)
        self.rig.transport.notified(1 << index)
        self.rig.transport.poll()
        self.settle()

    def offer(self, index: int, number: int, source: Source) -> None:
        """Descriptors from `number` on: what is to be read, in one or two pieces, then room."""
        ring, place = self.rig.rings[index], DATA + 0x4000 * number + 0x4_0000 * (index % 8)
        rooms = source.one(ROOMS)
        head = self.target.head(source) + (source.rest() if source.number(2) else b"")
        cut = len(head) // 2 if len(head) & 1 else len(head)
        pieces = [(place, cut, 0), (place + cut, len(head) - cut, 0)][: 2 if cut < len(head) else 1]
        pieces += [(place + 0x1000 * (n + 1), room, 2) for n, room in enumerate(rooms)]
        self.ram.view(place, len(head))[:] = head
        last = len(pieces) - 1
        for n, (address, size, flags) in enumerate(pieces):
            flags, following = (flags, 0) if n == last else (flags | 1, number + n + 1)
            ring.describe(number + n, address, size, flags, following)
        ring.offer(number)
        self.counts[index] += 1


def arena(name: str, kind: type[Arena] = Arena) -> type[Arena]:
    """The target of a device's name."""
    return type(f"{kind.__name__}_{name}", (kind,), {"name": name})
