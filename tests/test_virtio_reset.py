"""What must hold at any moment: resets under load, torn configurations, and drivers that write anything anywhere."""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from struct import pack
from typing import Any

import pytest
from fake_driver import ACKNOWLEDGE_DRIVER, ALL, DATA, DRIVER_OK, FEATURES_OK, RINGS, PackedRing, Rig, Ring
from forked_io import Hart, finish, fork_io, io_memory, process
from hypothesis import given, settings
from hypothesis import strategies as st

from mem.machine import machine
from mem.memmap import RAM_BASE
from mem.window import Register, window_take_notified, window_take_queues, window_write
from virtio.blk import Block, Kind
from virtio.device import Device
from virtio.features import IN_ORDER, RING_PACKED
from virtio.image import Image
from virtio.mmio import NEEDS_RESET
from virtio.process import IoConfig
from virtio.queue import Queue, QueueError, Ram
from virtio.rng import Rng


@pytest.fixture
def ram() -> Iterator[Ram]:
    with io_memory() as found:
        yield found


def again_and_again(function: Callable[[], object]) -> None:
    """Call the function until the end."""
    with suppress(KeyboardInterrupt):
        while True:
            function()


def is_early(began: float, seconds: float) -> bool:
    """Whether a loop has not lasted that long; on a busy host it takes longer until enough has happened."""
    lasted = time.monotonic() - began
    assert lasted < 240
    return lasted < seconds


class Counter(Rng):
    """Its configuration is one byte, many times over; each look by `poll` changes it."""

    count = 0

    def config(self) -> bytes:
        self.count = (self.count + 1) & 0xFF
        return bytes([self.count]) * 200

    def handle(self, index: int) -> None:
        self.config_changed()
        super().handle(index)


def test_a_configuration_of_one_generation_is_of_one_piece(ram: Ram) -> None:
    device = Counter()
    child = fork_io(IoConfig({0: device}))
    rig = Hart(ram, device, 0).start()
    seen, torn = set(), 0

    def change() -> None:
        window_write(1, 0, Register.QUEUE_NOTIFY, 4, 0)
        time.sleep(0.00005)

    rig.rings[0].silence()
    began = time.monotonic()
    with process(lambda: again_and_again(change)):
        while is_early(began, 1.5) or not (len(seen) > 20 and torn > 20):
            before = rig.read(Register.CONFIG_GENERATION)
            data = {rig.read(Register.CONFIG + 8 * n, 8) for n in range(25)}
            if rig.read(Register.CONFIG_GENERATION) == before:
                assert len(data) == 1, "two reads of one generation differ"
                seen |= data
            else:
                torn += 1
    assert rig.interrupts() & 2
    assert finish(child) == 0


@pytest.mark.parametrize("features", [ALL, ALL | RING_PACKED, ALL | RING_PACKED | IN_ORDER])
def test_a_device_touches_nothing_after_a_reset(ram: Ram, tmp_path: Path, features: int) -> None:
    """One hart resets at random moments of a load, and takes rings and buffers for something else; another notifies."""
    (tmp_path / "disk").write_bytes(bytes(1 << 20))
    disk = Block(Image(tmp_path / "disk"), queues=2)
    disk.ring_features |= RING_PACKED | IN_ORDER
    child = fork_io(IoConfig({5: disk}))
    rig = Hart(ram, disk, 5)
    chance = random.Random(features)
    mark, reused = b"\xa5" * 0x8_0000, (RINGS, DATA)

    def notify() -> None:
        for index in range(4):
            window_write(1, 5, Register.QUEUE_NOTIFY, 4, index)
        time.sleep(0.0001)

    began = time.monotonic()
    with process(lambda: again_and_again(notify)):
        given_back = 0
        while is_early(began, 2) or given_back <= 10:
            rig.start(features | disk.features, size=chance.choice([8, 64]))
            for ring in rig.rings:
                for _ in range(chance.randrange(3)):
                    ring.add(pack("<IIQ", chance.choice([Kind.IN, Kind.OUT]), 0, chance.randrange(99)), 4096, 1)
            rig.kick(chance.randrange(2))
            time.sleep(chance.choice([0, 0, 0.0001, 0.0005]))
            given_back += sum(ring.has_used() for ring in rig.rings)
            if chance.random() < 0.5:
                rig.write(Register.STATUS, 0)
            for index in range(len(rig.rings)):  # or each queue alone; after a reset of all it does nothing
                rig.write(Register.QUEUE_SEL, index)
                rig.write(Register.QUEUE_RESET, 1)
                assert rig.read(Register.QUEUE_READY) == 0
            for start in reused:
                ram.view(start, len(mark))[:] = mark
            time.sleep(0.0005)
            for start in reused:
                assert ram.view(start, len(mark)) == mark
    rig.start(features | disk.features)
    assert rig.ask(pack("<IIQ", Kind.IN, 0, 0), 512, 1)[0] == 513
    assert finish(child) == 0


def test_descriptors_that_change_while_they_are_read_reach_nothing_outside(ram: Ram) -> None:
    """Another hart writes into rings and tables all the time; each pop gives pieces inside of RAM or an error."""
    chance = random.Random(3)
    addresses = (RINGS, RINGS + 0x100, RAM_BASE, RAM_BASE - 1, RAM_BASE + ram.size - 8, 0, (1 << 64) - 8)
    # Mostly what holds, so that chains are long and the other values are met in their middle.
    values = [
        pack("<QIHH", chance.choice(addresses[:2]), 16 * chance.randrange(1, 5), chance.randrange(8), flags)
        for flags in (0, 1, 1, 1, 2, 3, 4, 0x80, 0x81, 0x81, 0x82, 0x84, 0x8080)
    ] + [pack("<QIHH", address, 0xFFFF_FFFF, 0, 0x81) for address in addresses]

    def flip() -> None:
        for _ in range(100):
            ram.view(RINGS + 16 * chance.randrange(24), 16)[:] = chance.choice(values)

    errors = requests = 0
    began = time.monotonic()
    with process(lambda: again_and_again(flip)):
        while is_early(began, 2) or not (errors > 50 and requests > 50):
            for kind in (Ring, PackedRing):
                queue = Queue(ram, 256)
                ring: Any = kind(ram, 8)
                ring.attach(queue)
                ram.view(ring.avail + 2, 2)[:] = b"\x08\0" if kind is Ring else b"\0\0"
                try:
                    for request in queue:
                        assert all(0 <= a - ram.base <= ram.size - n for a, n in request.ranges)
                        request.done(request.write(b"x" * 100))
                        requests += 1
                except QueueError:
                    errors += 1


class Fickle(Device):
    """Fails now and then, and has state of its own."""

    kind, name, queue_sizes, features = 4, "fickle", (8, 8), 3
    ring_features = Device.ring_features | RING_PACKED | IN_ORDER

    def __init__(self) -> None:
        self.calls = 0

    def config(self) -> bytes:
        return b"fickle"

    def handle(self, index: int) -> None:
        for request in self.queues[index]:
            self.calls += 1
            if self.calls % 7 == 0:
                raise OSError(28, "No space left on device")
            request.done(request.write(request.read(100)))


STATES = (0, 1, 3, 3 | FEATURES_OK, 3 | FEATURES_OK | DRIVER_OK, 64, 128, 0xFF, 0xFFFF_FF00)
ADDRESSES = (0, RINGS, RINGS + 0x8000, RINGS + 0xC000, RAM_BASE + (4 << 20) - 16, RAM_BASE - 16, 8, 0xFFFF_FFFF)
WRITES = st.one_of(
    st.tuples(st.just(Register.STATUS), st.sampled_from(STATES)),
    st.tuples(st.just(Register.QUEUE_SEL), st.sampled_from([0, 1, 2, 0xFFFF_FFFF])),
    st.tuples(st.just(Register.QUEUE_NUM), st.sampled_from([0, 1, 3, 8, 9, 0x1_0000, 0xFFFF_FFFF])),
    st.tuples(st.sampled_from([Register.QUEUE_READY, Register.QUEUE_RESET]), st.sampled_from([0, 1, 1, 2])),
    st.tuples(
        st.sampled_from([Register.QUEUE_DESC, Register.QUEUE_DRIVER, Register.QUEUE_DEVICE]), st.sampled_from(ADDRESSES)
    ),
    st.tuples(st.sampled_from([Register.QUEUE_DESC + 4, Register.QUEUE_DRIVER + 4]), st.sampled_from([0, 0, 1])),
    st.tuples(st.sampled_from([Register.DRIVER_FEATURES_SEL, Register.DEVICE_FEATURES_SEL]), st.integers(0, 5)),
    st.tuples(st.just(Register.DRIVER_FEATURES), st.sampled_from([0, 1, 5, 0xFFFF_FFFF, 1 << 28 | 1 << 29])),
    st.tuples(st.sampled_from([Register.QUEUE_NOTIFY]), st.integers(0, 70)),
    st.tuples(st.sampled_from(range(0, 0x110, 4)), st.integers(0, 0xFFFF_FFFF)),
)


@given(writes=st.lists(WRITES, max_size=60), seed=st.integers(0, 99))
@settings(max_examples=200)
def test_no_register_writes_break_the_transport(ram: Ram, writes: list[tuple[int, int]], seed: int) -> None:
    rig = Rig(ram, Fickle())
    ram.view(RINGS, 0x1_0000)[:] = random.Random(seed).randbytes(0x1_0000)
    for register, value in writes:
        if register == Register.QUEUE_NOTIFY:
            window_write(0, rig.slot, register, 4, value)
            window_take_notified(0)
            rig.transport.notified(window_take_queues(rig.slot))
        elif register not in (Register.INTERRUPT_ACK,):
            rig.write(register, value)
        status = rig.read(Register.STATUS)
        assert status == rig.transport.status and (not status & DRIVER_OK or status & FEATURES_OK)
    rig.start(ALL, size=8)
    rig.device.calls = 0
    assert rig.ask(b"echo", 8)[1] == [b"echo\0\0\0\0"]


def test_after_a_failure_the_device_waits_for_a_reset(ram: Ram, capsys: pytest.CaptureFixture[str]) -> None:
    rig = Rig(ram, Fickle()).start(ALL, size=8)
    rig.device.calls = 6
    rig.rings[0].add(b"x", 4)
    rig.notify(0)
    assert rig.read(Register.STATUS) == ACKNOWLEDGE_DRIVER | FEATURES_OK | DRIVER_OK | NEEDS_RESET
    assert rig.interrupts() == 2
    rig.rings[1].add(b"x", 4)
    rig.notify(1)
    rig.write(Register.STATUS, ACKNOWLEDGE_DRIVER | FEATURES_OK | DRIVER_OK)
    assert rig.read(Register.STATUS) & NEEDS_RESET, "only a reset takes it away"
    assert not rig.rings[1].has_used() and rig.interrupts() == 0
    assert capsys.readouterr().err.count("needs a reset") == 1


def test_a_driver_that_goes_on_after_a_failure_does_not_start_the_device(ram: Ram) -> None:
    rig = Rig(ram, Fickle())
    rig.negotiate(ALL)
    rig.set_up(0, Ring(ram, 16))
    assert rig.needs_reset()
    rig.device.start = lambda *_: pytest.fail("started")
    rig.write(Register.STATUS, ACKNOWLEDGE_DRIVER | FEATURES_OK | DRIVER_OK)
    assert rig.interrupts() == 0 and machine().ending == 0
