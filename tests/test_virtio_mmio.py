"""The MMIO transport and its windows: registers, negotiation, set-up, reset, configuration, interrupts."""

import ctypes
import mmap
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from fake_driver import ALL, RINGS, Rig, Ring

from mem import memmap, regions
from mem.atomics import py_store32, py_xchg32
from mem.log import LOG_GUEST_ERRORS
from mem.machine import machine
from mem.mailbox import RUNNING, SLEEPING, Mailbox
from mem.plic import Plic
from mem.window import (
    REQUESTS,
    Register,
    Window,
    WindowRequest,
    window_answer,
    window_has_work,
    window_raise,
    window_read,
    window_take_asked,
    window_write,
)
from virtio.blk import F_FLUSH, Block
from virtio.device import Device
from virtio.features import (
    ACCESS_PLATFORM,
    EVENT_IDX,
    IN_ORDER,
    INDIRECT_DESC,
    RING_PACKED,
    VERSION_1,
)
from virtio.image import Image
from virtio.queue import Ram
from virtio.rng import Rng


class Odd(Device):
    """A device with a configuration, and a fault on demand."""

    kind, name, queue_sizes, features = 42, "odd", (8, 16), 5

    def __init__(self) -> None:
        self.bytes, self.written, self.fault = b"\1\2\3\4\5\6\7\x08", [], None

    def config(self) -> bytes:
        return self.bytes

    def configure(self, offset: int, data: bytes) -> None:
        self.written.append((offset, data))

    def handle(self, index: int) -> None:
        if self.fault:
            raise self.fault
        for request in self.queues[index]:
            request.done(0)


@pytest.fixture
def rig(ram: Ram) -> Rig:
    return Rig(ram, Odd())


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.0002)


def level(slot: int) -> bool:
    """What the slot drives at the PLIC."""
    source = memmap.virtio_irq(slot)
    return bool(Plic.at(regions.PLIC).level[source // 32] >> source % 32 & 1)


def test_identity(rig: Rig) -> None:
    assert [rig.read(n) for n in (0, 4, 8, 12)] == [0x74726976, 2, 42, 0x554D4551]
    assert rig.features() == ALL | 5
    rig.write(Register.DEVICE_FEATURES_SEL, 2)
    assert rig.read(Register.DEVICE_FEATURES) == 0
    assert rig.read(Register.SHM_LENGTH) == rig.read(Register.SHM_BASE + 4) == 0xFFFF_FFFF


def test_an_empty_slot_reads_as_nothing_and_ignores_writes(ram: Ram) -> None:
    assert [window_read(20, n, 4) for n in (0, 4, 8, 12)] == [0x74726976, 2, 0, 0]
    window_write(0, 20, Register.STATUS, 4, 1)
    window_write(0, 20, Register.QUEUE_NOTIFY, 4, 0)
    assert not window_has_work(0)


def test_registers_take_words_only(rig: Rig) -> None:
    for offset, size in ((0, 1), (0, 2), (0, 8), (2, 4), (1, 2)):
        assert rig.read(offset, size) == 0
    window_write(0, rig.slot, Register.STATUS, 1, 1)
    window_write(0, rig.slot, Register.STATUS, 8, 1)
    window_write(0, rig.slot, Register.QUEUE_NOTIFY, 2, 0)
    assert not window_has_work(0)


def test_configuration_takes_every_size(rig: Rig) -> None:
    assert [rig.read(0x100, n) for n in (1, 2, 4, 8)] == [1, 0x201, 0x4030201, 0x807060504030201]
    assert rig.read(0x101, 1) == 2
    assert rig.read(0x1FF, 1) == rig.read(0x1FF, 2) == rig.read(0x200, 4) == rig.read(0xFFC, 4) == 0
    rig.write(0x102, 0xAABBCCDD, 2)
    assert rig.device.written == [(2, b"\xdd\xcc")]


def test_features_ok_is_refused_for_what_is_not_offered(rig: Rig) -> None:
    assert rig.negotiate(VERSION_1 | 1) & 8
    assert not rig.negotiate(VERSION_1 | 2) & 8
    assert not rig.negotiate(5) & 8, "a driver without VERSION_1"
    rig.write(Register.STATUS, 3 | 8 | 4)
    assert rig.read(Register.STATUS) == 3, "no DRIVER_OK without FEATURES_OK"


def test_a_disk_takes_a_driver_that_knows_the_first_features_only(ram: Ram, tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(512))
    disk = Rig(ram, Block(Image(tmp_path / "disk")))
    assert disk.negotiate(F_FLUSH) & 8, "as xv6 does"
    assert not disk.negotiate(F_FLUSH | 1 << 40 | 1 << 41) & 8


@pytest.mark.parametrize(
    ("features", "words"),
    [
        (VERSION_1 | ACCESS_PLATFORM, "ACCESS_PLATFORM no IOMMU"),
        (VERSION_1 | 2, "features 0x2 not offered"),
        (VERSION_1 | RING_PACKED, "features 0x400000000 not offered"),
        (VERSION_1 | 1 << 70, "features 0x400000000000000000 not offered"),
        (5, "older than virtio 1.0 VERSION_1"),
    ],
)
def test_refused_features_are_a_line_with_guest_errors(rig: Rig, tmp_path: Path, features: int, words: str) -> None:
    m = machine()
    with open(tmp_path / "log", "w+") as log:
        m.log_fd, m.log = log.fileno(), 0
        assert not rig.negotiate(features) & 8
        m.log = LOG_GUEST_ERRORS
        try:
            assert not rig.negotiate(features) & 8
            assert rig.negotiate(ALL) & 8
        finally:
            m.log = m.log_fd = 0
        text = (tmp_path / "log").read_text()
    assert text.count("\n") == 1 and text.startswith("guest_errors: virtio slot 3 (odd): ")
    assert all(word in text for word in words.split())


class Loop(Odd):
    """A device with everything there is for rings."""

    ring_features = Odd.ring_features | RING_PACKED | IN_ORDER

    def __init__(self) -> None:
        super().__init__()
        self.resets: list[int] = []

    def queue_reset(self, index: int) -> None:
        self.resets.append(index)


@pytest.mark.parametrize("packed", [0, RING_PACKED])
@pytest.mark.parametrize("in_order", [0, IN_ORDER])
@pytest.mark.parametrize("event_index", [0, EVENT_IDX])
@pytest.mark.parametrize("indirect", [0, INDIRECT_DESC])
def test_every_mix_of_ring_features_works(
    ram: Ram, packed: int, in_order: int, event_index: int, indirect: int
) -> None:
    rig = Rig(ram, Loop()).start(VERSION_1 | packed | in_order | event_index | indirect, size=8)
    for n in range(30):
        for queue in range(2):
            assert rig.ask(b"x", 8, queue=queue, indirect=bool(indirect) and n % 2 == 0) == (0, [bytes(8)])
    assert rig.interrupts() == 1


@pytest.mark.parametrize("packed", [0, RING_PACKED])
@pytest.mark.parametrize("event_index", [0, EVENT_IDX])
def test_a_batch_interrupts_once(ram: Ram, packed: int, event_index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver is told when the device has gone through what there is, or when that takes long."""
    device = Loop()
    device.queue_sizes = (16, 16)
    rig = Rig(ram, device).start(VERSION_1 | packed | event_index, size=16)
    queue, raised = rig.transport.queues[1], []
    queue.interrupt = lambda: raised.append(len(queue.outstanding))

    def ask_for(count: int) -> int:
        raised.clear()
        if event_index:
            rig.rings[1].want_interrupt()
        for _ in range(count):
            rig.rings[1].add(b"x")
        rig.notify(1)
        assert len(rig.rings[1].collect()) == count
        return len(raised)

    monkeypatch.setattr("virtio.queue.BATCH_NS", 10_000_000_000)
    assert [ask_for(count) for count in (1, 7, 3)] == [1, 1, 1]
    monkeypatch.setattr("virtio.queue.BATCH_NS", 0)
    assert ask_for(5) == 1 if event_index else 5


@pytest.mark.parametrize("packed", [0, RING_PACKED])
def test_a_queue_is_reset_alone_and_set_up_anew(ram: Ram, packed: int) -> None:
    rig = Rig(ram, Loop()).start(ALL | packed, size=8)
    rig.ask(b"x", 8, queue=1)
    rig.rings[0].add(b"lost")
    rig.write(Register.QUEUE_SEL, 0)
    rig.write(Register.QUEUE_RESET, 1)
    assert [rig.read(n) for n in (Register.QUEUE_RESET, Register.QUEUE_READY)] == [0, 0]
    assert rig.device.resets == [0]
    rig.notify(0)
    assert not rig.rings[0].has_used(), "a queue that is not ready is not looked at"
    rig.rings[0] = type(rig.rings[0])(ram, 4, RINGS, True)
    rig.set_up(0, rig.rings[0])
    assert rig.read(Register.QUEUE_READY) == 1
    for queue in (0, 1, 0):
        assert rig.ask(b"x", 8, queue=queue)[0] == 0
    assert not rig.needs_reset()


def test_a_queue_reset_that_was_not_negotiated_does_nothing(ram: Ram) -> None:
    rig = Rig(ram, Loop()).start(VERSION_1, size=8)
    rig.write(Register.QUEUE_SEL, 0)
    rig.write(Register.QUEUE_RESET, 1)
    assert rig.read(Register.QUEUE_READY) == 1
    assert rig.device.resets == []


def test_features_can_not_change_after_features_ok(rig: Rig) -> None:
    rig.negotiate(VERSION_1)
    rig.write(Register.DRIVER_FEATURES_SEL, 0)
    rig.write(Register.DRIVER_FEATURES, 2)
    assert rig.transport.accepted == VERSION_1


def test_queues_are_shown_as_selected(rig: Rig) -> None:
    sizes = []
    for index in range(4):
        rig.write(Register.QUEUE_SEL, index)
        sizes.append(rig.read(Register.QUEUE_NUM_MAX))
    assert sizes == [8, 16, 0, 0]
    rig.write(Register.QUEUE_SEL, 0xFFFF_FFFF)
    rig.write(Register.QUEUE_READY, 1)
    assert rig.read(Register.QUEUE_READY) == 0


def test_a_ready_queue_can_not_be_moved_but_taken_back(rig: Rig) -> None:
    rig.start(size=8)
    rig.write(Register.QUEUE_SEL, 0)
    assert rig.read(Register.QUEUE_READY) == 1
    rig.write(Register.QUEUE_DESC, 0)
    assert rig.transport.queues[0].descriptors == RINGS
    rig.write(Register.QUEUE_READY, 0)
    assert rig.read(Register.QUEUE_READY) == 0


def test_a_bad_queue_needs_a_reset(rig: Rig, ram: Ram, capsys: pytest.CaptureFixture[str]) -> None:
    rig.negotiate(ALL)
    rig.set_up(0, Ring(ram, 32))
    assert rig.needs_reset()
    assert rig.read(Register.QUEUE_READY) == 0
    assert capsys.readouterr().err.count("\n") == 1
    rig.start(size=8)
    assert not rig.needs_reset()


def test_a_queue_before_features_ok_stays_off(rig: Rig, ram: Ram) -> None:
    rig.write(Register.STATUS, 0)
    rig.set_up(0, Ring(ram, 8))
    assert rig.read(Register.QUEUE_READY) == 0


@pytest.mark.parametrize("error", [ValueError("wrong"), ZeroDivisionError(), OSError(5, "I/O error")])
def test_a_fault_of_the_device_costs_a_reset_and_nothing_else(
    rig: Rig, error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    rig.start(size=8)
    rig.device.fault = error
    rig.rings[0].add(b"x")
    rig.notify()
    rig.notify()
    assert rig.needs_reset()
    assert rig.interrupts() == 2
    assert capsys.readouterr().err.count("needs a reset") == 1
    rig.device.fault = None
    rig.start(size=8)
    rig.rings[0].add(b"x")
    rig.notify()
    assert rig.rings[0].collect() == [(0, 0)]


def test_reset_takes_everything_back(rig: Rig) -> None:
    rig.start(size=8)
    rig.rings[0].add(b"x")
    rig.notify()
    assert level(rig.slot)
    rig.write(Register.STATUS, 0)
    assert [rig.read(n) for n in (Register.STATUS, Register.INTERRUPT_STATUS, Register.QUEUE_READY)] == [0, 0, 0]
    assert not level(rig.slot)
    rig.notify()
    assert rig.rings[0].collect() == [(0, 0)]


def test_a_changed_configuration_moves_the_generation(rig: Rig) -> None:
    rig.start(size=8)
    before = rig.read(Register.CONFIG_GENERATION)
    rig.device.bytes = b"\xff"
    rig.device.config_changed()
    assert rig.read(Register.CONFIG_GENERATION) not in (before, before + 1)
    assert (rig.read(0x100, 1), rig.read(0x101, 1)) == (0xFF, 0)
    assert rig.interrupts() == 2


def test_the_line_follows_interrupt_status(rig: Rig) -> None:
    window_raise(rig.slot, 1)
    window_raise(rig.slot, 2)
    assert level(rig.slot)
    window_write(0, rig.slot, Register.INTERRUPT_ACK, 4, 1)
    assert level(rig.slot)
    assert rig.read(Register.INTERRUPT_STATUS) == 2
    window_write(0, rig.slot, Register.INTERRUPT_ACK, 4, 2)
    assert not level(rig.slot)


@contextmanager
def process(function: Callable[[], object]) -> Iterator[int]:
    """A child that calls the function, gone at the end."""
    child = os.fork()
    if child == 0:
        function()
        os._exit(0)
    try:
        yield child
    finally:
        with suppress(OSError):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def test_raising_and_acknowledging_at_once_lose_nothing(rig: Rig) -> None:
    """Both have changed the status and wait to set the line, in whatever order: it agrees in the end."""
    lock = regions.PLIC + Plic.offset("lock")
    for n in range(40):
        window_raise(rig.slot, 1)
        assert level(rig.slot)
        py_xchg32(lock, 1)
        with process(lambda: window_write(0, rig.slot, Register.INTERRUPT_ACK, 4, 1)) as acknowledging:
            wait_for(lambda: rig.read(Register.INTERRUPT_STATUS) == 0)
            time.sleep(0.001)
            with process(lambda: window_raise(rig.slot, 2)) as raising:
                wait_for(lambda: rig.read(Register.INTERRUPT_STATUS) == 2)
                time.sleep(0.001 * (n % 3))
                py_store32(lock, 0)
                os.waitpid(raising, 0)
                os.waitpid(acknowledging, 0)
        assert level(rig.slot)
        rig.interrupts()
        assert not level(rig.slot)


def test_a_register_write_waits_for_its_answer_as_a_sleeper(rig: Rig) -> None:
    """The hart counts as asleep meanwhile, so that nobody waits for it."""
    activity = Mailbox.at(regions.MAILBOXES + Mailbox.sizeof())
    with process(lambda: window_write(1, rig.slot, Register.STATUS, 4, 0x5)) as hart:
        wait_for(lambda: window_has_work(0) and activity.activity == SLEEPING)
        assert os.waitpid(hart, os.WNOHANG)[0] == 0
        assert window_take_asked(0, 0) == 2
        request = WindowRequest.at(REQUESTS + WindowRequest.sizeof())
        assert (request.slot, request.register, request.size, request.value) == (rig.slot, 0x70, 4, 5)
        window_answer(1)
        os.waitpid(hart, 0)
    assert activity.activity == RUNNING


def test_the_generation_waits_while_the_configuration_changes(rig: Rig) -> None:
    """A hart that reads it in the middle gets the number of after."""
    place = regions.WINDOWS + rig.slot * Window.sizeof() + Register.CONFIG_GENERATION
    before = rig.read(Register.CONFIG_GENERATION)
    py_store32(place, before + 1)
    results = mmap.mmap(-1, 4096)

    def read() -> None:
        results[:4] = rig.read(Register.CONFIG_GENERATION).to_bytes(4, "little")

    with process(read) as hart:
        time.sleep(0.05)
        assert os.waitpid(hart, os.WNOHANG)[0] == 0
        py_store32(place, before + 2)
        os.waitpid(hart, 0)
    assert int.from_bytes(results[:4], "little") == before + 2


def test_an_ending_machine_lets_a_waiting_hart_go(rig: Rig) -> None:
    machine().ending = 1
    try:
        window_write(0, rig.slot, Register.STATUS, 4, 1)
    finally:
        machine().ending = 0
        window_take_asked(0, 0)
        ctypes.memset(REQUESTS, 0, WindowRequest.sizeof())


def test_rng_fills_what_it_is_given(ram: Ram) -> None:
    rig = Rig(ram, Rng()).start(VERSION_1 | EVENT_IDX)
    used, (first, second) = rig.ask(100, 28)
    assert used == 128
    assert len(set(first + second)) > 30
    used, _ = rig.ask(70000)
    assert used == 65536
