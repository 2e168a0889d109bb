"""The I/O process, really forked: this process plays the harts, pipes and pseudo-terminals the host's ends."""

import ctypes
import os
import pty
import random
import select
import signal
import socket
import termios
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from struct import pack

import pytest
from forked_io import Hart, finish, fork_io, io_memory, reap, wait

from mem import regions
from mem.machine import POWER_OFF, machine
from mem.mailbox import sleepers
from mem.uart import LSR_READY, Register, uart_read, uart_write
from mem.window import window_write
from virtio.blk import OK, Block, Kind
from virtio.chardev import Stdio
from virtio.device import Device
from virtio.features import EVENT_IDX, RING_PACKED, VERSION_1
from virtio.host import Host
from virtio.image import Image
from virtio.process import IoConfig, IoProcess, Polling
from virtio.queue import Ram
from virtio.rng import Rng


@pytest.fixture
def ram() -> Iterator[Ram]:
    with io_memory() as found:
        yield found


def pipes() -> tuple[Stdio, int, int]:
    """A character device, and what to write to and read from."""
    a, b = os.pipe()
    c, d = os.pipe()
    return Stdio(False, a, d), b, c


def read_all(fd: int, count: int) -> bytes:
    data = b""
    while len(data) < count and select.select([fd], [], [], 60)[0]:
        data += os.read(fd, count)
    return data


def take_all(count: int) -> bytes:
    data = bytearray()

    def more() -> bool:
        while uart_read(Register.LSR) & LSR_READY:
            data.append(uart_read(Register.DATA))
        return len(data) >= count

    wait(more)
    return bytes(data)


@pytest.mark.parametrize("poll_ns", [0, 200_000])
def test_the_uart_carries_both_ways_at_any_speed(ram: Ram, poll_ns: int) -> None:
    """More than the rings and pipes hold, with pauses in which the process falls asleep."""
    host, to_guest, from_guest = pipes()
    child = fork_io(IoConfig(serial=host, polling=[Polling(poll_ns)]))
    chance = random.Random(1)
    data = bytes(chance.randrange(256) for _ in range(20000))
    got = b""
    for start in range(0, len(data), 500):
        for byte in data[start : start + 500]:
            uart_write(0, 0, byte)
        got += read_all(from_guest, 500)
        time.sleep(chance.choice([0, 0, 0.0001, 0.002]))
    assert got == data
    for start in range(0, len(data), 5000):
        os.write(to_guest, data[start : start + 5000])
        assert take_all(5000) == data[start : start + 5000]
    assert finish(child) == 0


def test_input_waits_for_a_guest_that_does_not_read(ram: Ram) -> None:
    host, to_guest, _ = pipes()
    child = fork_io(IoConfig(serial=host))
    data = bytes(n % 251 for n in range(30000))
    os.write(to_guest, data)
    time.sleep(0.2)
    assert take_all(len(data)) == data
    assert finish(child) == 0


def test_a_disk_and_an_entropy_source(ram: Ram, tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(range(256)) * 256)
    devices: dict[int, Device] = {0: Block(Image(path)), 9: Rng()}
    child = fork_io(IoConfig(devices))
    disk, rng = Hart(ram, devices[0], 0).start(), Hart(ram, devices[9], 9)
    chance = random.Random(2)
    for n in range(300):
        _, (data, status) = disk.ask(pack("<IIQ", Kind.IN, 0, n % 128), 512, 1)
        assert (data, status) == (bytes(range(256)) * 2, bytes([OK]))
        if n % 20 == 0:
            time.sleep(chance.choice([0, 0.0001, 0.003]))
    disk.ask(pack("<IIQ", Kind.OUT, 0, 5), b"!" * 512, 1)
    assert path.read_bytes()[5 * 512 : 6 * 512] == b"!" * 512
    assert disk.interrupts() == 1
    rng.start()
    assert rng.ask(64)[0] == 64
    assert finish(child) == 0


def test_an_idle_process_sleeps(ram: Ram) -> None:
    child = fork_io(IoConfig())
    wait(lambda: machine().io_asleep)

    def is_idle() -> bool:
        before = Path(f"/proc/{child}/stat").read_text().split()[13:15]
        time.sleep(0.5)
        return Path(f"/proc/{child}/stat").read_text().split()[13:15] == before

    wait(is_idle)  # the first time, it may be on its way to sleep
    assert finish(child) == 0


class Faulty(Rng):
    def handle(self, index: int) -> None:
        raise ZeroDivisionError


def test_a_faulty_device_leaves_the_others_alone(ram: Ram) -> None:
    devices: dict[int, Device] = {0: Faulty(), 1: Rng()}
    child = fork_io(IoConfig(devices))
    bad, good = Hart(ram, devices[0], 0).start(), Hart(ram, devices[1], 1)
    bad.rings[0].add(8)
    window_write(0, 0, 0x50, 4, 0)
    wait(bad.needs_reset)
    good.start()
    assert good.ask(64)[0] == 64
    assert finish(child) == 0


def test_the_last_words_of_a_machine_go_out(ram: Ram) -> None:
    host, _, from_guest = pipes()
    child = fork_io(IoConfig(serial=host))
    for byte in b"reboot: Power down\n":
        uart_write(0, 0, byte)
    assert finish(child) == 0
    assert os.read(from_guest, 100) == b"reboot: Power down\n"


def test_an_output_that_nobody_reads_does_not_keep_the_machine(ram: Ram) -> None:
    """The guest waits for room, and is let go when the machine ends."""
    host, _, _ = pipes()
    child = fork_io(IoConfig(serial=host))
    writer = os.fork()
    if writer == 0:
        for _ in range(1 << 20):
            uart_write(0, 0, 0x78)
        os._exit(0)
    time.sleep(0.5)
    assert os.waitpid(writer, os.WNOHANG)[0] == 0, "it should wait"
    assert finish(child) == 0
    assert reap(writer) == 0


def test_escape_x_ends_the_machine_and_restores_the_terminal(ram: Ram) -> None:
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    child = fork_io(IoConfig(serial=Stdio(True, slave, slave)))
    wait(lambda: termios.tcgetattr(slave) != before)
    os.write(master, b"\x01x")
    assert reap(child) == 0
    assert machine().ending == POWER_OFF
    assert termios.tcgetattr(slave) == before


def test_ctrl_c_is_input(ram: Ram) -> None:
    host, to_guest, _ = pipes()
    child = fork_io(IoConfig(serial=host))
    wait(lambda: machine().io_asleep)
    os.kill(child, signal.SIGINT)
    os.write(to_guest, b"\x03")
    assert take_all(1) == b"\x03"
    assert finish(child) == 0


def test_a_dead_supervisor_ends_the_process_and_restores_the_terminal(ram: Ram) -> None:
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    reader, writer = os.pipe()
    supervisor = os.fork()
    if supervisor == 0:
        child = fork_io(IoConfig(serial=Stdio(True, slave, slave)))
        os.write(writer, b"%d\n" % child)
        time.sleep(60)
        os._exit(0)
    child = int(os.read(reader, 20))
    wait(lambda: termios.tcgetattr(slave) != before)
    os.kill(supervisor, signal.SIGKILL)
    os.waitpid(supervisor, 0)

    def gone() -> bool:
        with suppress(OSError):
            os.waitpid(child, os.WNOHANG)
        return not Path(f"/proc/{child}").exists() or ") Z" in Path(f"/proc/{child}/stat").read_text()

    wait(gone)
    assert termios.tcgetattr(slave) == before
    os.close(master)


def test_standard_input_from_a_file_is_tolerated(ram: Ram, tmp_path: Path) -> None:
    """epoll takes no regular files; the end of the file is no end of the machine."""
    (tmp_path / "in").write_bytes(b"commands")
    for path in (str(tmp_path / "in"), "/dev/null"):
        machine().ending = 0
        ctypes.memset(regions.UART, 0, 64)
        child = fork_io(IoConfig(serial=Stdio(False, os.open(path, os.O_RDONLY), os.open("/dev/null", os.O_WRONLY))))
        if path != "/dev/null":
            assert take_all(8) == b"commands"
        wait(lambda: machine().io_asleep)
        assert finish(child) == 0


def test_each_device_is_served_by_its_own_process(ram: Ram) -> None:
    io = IoConfig({2: Rng(), 7: Rng()}, polling=[Polling(), Polling(0)], owners={7: 1})
    main = fork_io(io)
    thread = fork_io(io, 1)
    first, second = Hart(ram, io.devices[2], 2).start(), Hart(ram, io.devices[7], 7, hart=1)
    assert first.ask(64)[0] == 64
    os.kill(main, signal.SIGSTOP)
    second.start()
    for _ in range(3):
        time.sleep(0.002)
        assert second.ask(32)[0] == 32
    assert second.interrupts() == 1
    second.write(0x70, 0)
    os.kill(main, signal.SIGCONT)
    os.kill(thread, signal.SIGSTOP)
    first.start()
    assert first.ask(16)[0] == 16
    os.kill(thread, signal.SIGCONT)
    assert finish(main) == 0
    assert reap(thread) == 0, "the end of the machine wakes every process"


def test_a_process_that_spins_looks_at_the_rings_and_spares_the_driver_its_notifications(ram: Ram) -> None:
    for features in (VERSION_1, VERSION_1 | EVENT_IDX, VERSION_1 | RING_PACKED, VERSION_1 | RING_PACKED | EVENT_IDX):
        machine().ending = 0
        device = Rng()
        device.ring_features |= RING_PACKED
        child = fork_io(IoConfig({0: device}, polling=[Polling(3_000_000_000, now=3_000_000_000)]))
        rig = Hart(ram, device, 0).start(features)
        (ring,) = rig.rings
        rig.ask(8)
        for _ in range(5):
            ring.add(8)
            assert not ring.wants_notification()
            wait(ring.has_used, 2.5)
            ring.collect()
        wait(lambda: machine().io_asleep)
        ring.add(8)
        assert ring.wants_notification(), "it sleeps now"
        time.sleep(0.01)
        assert not ring.has_used()
        rig.notify()
        assert finish(child) == 0


def test_a_process_that_spins_looks_at_the_hosts_descriptors(ram: Ram) -> None:
    host, to_guest, _ = pipes()
    child = fork_io(IoConfig(serial=host, polling=[Polling(240_000_000_000, now=240_000_000_000)]))
    time.sleep(0.2)
    began = time.monotonic()
    os.write(to_guest, b"!")
    assert take_all(1) == b"!"
    assert time.monotonic() - began < 60, "and not only when it has spun enough"
    assert finish(child) == 0


def test_spinning_follows_the_gaps_between_requests() -> None:
    polling = Polling(100_000)
    for _ in range(9):
        polling.learn(60_000)
    assert polling.now == 64_000, "4000 doubled until it suffices"
    polling.learn(90_000)
    polling.learn(99_000)
    assert polling.now == 100_000
    polling.learn(1_000)
    assert polling.now == 100_000
    polling.learn(5_000_000)
    assert polling.now == 25_000
    nothing = Polling(0)
    nothing.learn(10)
    assert nothing.now == 0
    qemus = Polling(32768, shrink=0, now=32768)
    qemus.learn(40_000)
    assert qemus.now == 0


@pytest.mark.usefixtures("ram")
def test_it_spins_longer_where_harts_leave_a_core_to_others() -> None:
    polling = Polling(100_000, spare=400_000, now=100_000)
    for asleep, now in ((0, 25_000), (1, 50_000), (1, 100_000), (1, 200_000), (1, 400_000), (0, 100_000)):
        sleepers().harts, sleepers().cores, sleepers().asleep = 4, 4, asleep
        assert polling.limit() == (400_000 if asleep else 100_000)
        polling.learn(350_000)
        assert polling.now == now


class Reconnecting(Host):
    """Closes its socket when it ends, and at once has another one, of the same number."""

    def __init__(self, links: list[socket.socket], keep: bool) -> None:
        self.links, self.got = links, b""
        self.link = links.pop(0)
        self.number = self.link.fileno()
        self.kept = os.dup(self.number) if keep else -1  # as by another process that was forked

    def interest(self) -> dict[int, int]:
        return {self.link.fileno(): select.EPOLLIN}

    def ready(self, fd: int, events: int) -> None:
        self.got += self.link.recv(10)
        self.let_go(self.link.fileno())
        self.link.close()
        os.dup2(self.links[0].fileno(), self.number)
        self.links.pop(0).close()
        self.link = socket.socket(fileno=self.number)


@pytest.mark.parametrize("keep", [False, True])
def test_a_number_that_is_another_descriptors_is_watched_anew(ram: Ram, keep: bool) -> None:
    pairs = [socket.socketpair() for _ in range(3)]
    host = Reconnecting([ours for ours, _ in pairs], keep)
    process = IoProcess(IoConfig(others=[host]))
    for number, (_, theirs) in enumerate(pairs):
        process.look(0)
        theirs.send(b"%d" % number)
        if number < 2:
            process.look(1)
            assert host.got == b"012"[: number + 1]
    process.epoll.close()
    Host.let_go = staticmethod(lambda fd: None)
    host.link.close()
    for _, theirs in pairs:
        theirs.close()
    if keep:
        os.close(host.kept)
