"""Devices that another process serves: what it is given, and what becomes of requests when it dies."""

import os
import random
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from struct import pack
from typing import Any

import pytest
from fake_driver import DATA, Rig, machine_memory
from forked_io import Hart, finish, fork_io, io_memory

from mem import regions
from mem.memmap import RAM_BASE
from mem.reservation import NONE, Reservations
from mem.window import Register
from smp import options, vhost_setup
from smp.config import DeviceConfig, MachineConfig, SerialConfig
from smp.config_check import check
from smp.io_setup import ring_features
from smp.net_setup import open_networks
from smp.vhost_options import STANDARD
from virtio.blk import OK, Kind
from virtio.features import IN_ORDER, RING_PACKED
from virtio.process import IoConfig
from virtio.queue import Ram
from virtio.vhost_devices import VhostBlock, VhostFs
from virtio.vhost_user import Backend
from virtio.vhost_wire import Session, dial

BACKEND = Path(__file__).with_name("vhost_backend.py")
SECTORS = 256


@pytest.fixture
def ram() -> Iterator[Ram]:
    with machine_memory() as memory:
        yield memory


@contextmanager
def backend(folder: Path, *modes: str) -> Iterator[subprocess.Popen[bytes]]:
    """The back-end's process, when it listens."""
    file = folder / "disk"
    if not file.exists():
        file.write_bytes(bytes(512 * SECTORS))
    with backend_process(folder, "disk", *modes) as process:
        try:
            yield process
        finally:
            process.kill()


def backend_process(folder: Path, file: str, *modes: str) -> subprocess.Popen[bytes]:
    """The back-end, which listens."""
    place = folder / "socket"
    place.unlink(missing_ok=True)
    process = subprocess.Popen([sys.executable, str(BACKEND), str(place), str(folder / file), *modes])
    wait(place.exists)
    return process


def wait(until: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < deadline, "nothing happens"
        time.sleep(0.001)


def turn(host: Backend, rig: Rig | None = None) -> None:
    """What the event loop does."""
    poll, interest = select.poll(), host.interest()
    for fd, events in interest.items():
        poll.register(fd, events)
    for fd, events in poll.poll(0):
        host.ready(fd, events)
    if rig:
        rig.transport.poll()


def machine_of(folder: Path) -> MachineConfig:
    return MachineConfig(chardevs=(SerialConfig("unix", str(folder / "socket"), "c0", (("reconnect-ms", "20"),)),))


def parsed(text: str) -> MachineConfig:
    return options.parse(["-bios", "none", "-kernel", __file__, *text.split()])


def open_disk(folder: Path, queues: int = 1, *rings: str) -> VhostBlock:
    properties = tuple((name, "on") for name in rings)
    given = DeviceConfig("vhost-user-blk-device", (("chardev", "c0"), ("num-queues", str(queues)), *properties))
    made = vhost_setup.open_block(given, machine_of(folder))
    made.ring_features = ring_features(given, made.ring_features) & made.ring_limit
    return made


@contextmanager
def disk(ram: Ram, folder: Path, queues: int = 1, *rings: str) -> Iterator[Rig]:
    made = open_disk(folder, queues, *rings)
    try:
        yield Rig(ram, made)
    finally:
        made.close()


def request(rig: Rig, kind: Kind, sector: int, *parts: bytes | int, queue: int = 0) -> list[bytes]:
    """One request from offer to answer."""
    ring = rig.rings[queue]
    ring.bump = DATA + queue * 0x8_0000
    buffers = ring.add(pack("<IIQ", kind, 0, sector), *parts, 1)
    rig.notify(queue)
    done(rig, queue)
    ring.collect()
    return [bytes(ring.ram.view(b.address, b.size)) for b in buffers if b.writable]


def reset_queue(rig: Rig, index: int) -> Any:
    """Reset a queue alone; gives the driver's side of its ring."""
    rig.write(Register.QUEUE_SEL, index)
    rig.write(Register.QUEUE_RESET, 1)
    assert rig.read(Register.QUEUE_READY) == 0 and index not in rig.device.host.rings
    return rig.rings[index]


def done(rig: Rig, queue: int = 0) -> None:
    def used() -> bool:
        turn(rig.device.host, rig)
        return bool(rig.rings[queue].has_used())

    wait(used)


@pytest.mark.parametrize("rings", [(), ("packed",), ("in_order",), ("packed", "in_order")])
def test_what_is_written_is_read_and_in_the_file(ram: Ram, tmp_path: Path, rings: tuple[str, ...]) -> None:
    with backend(tmp_path), disk(ram, tmp_path, 2, *rings) as rig:
        assert [bool(rig.features() & bit) for bit in (RING_PACKED, IN_ORDER)] == [
            "packed" in rings,
            "in_order" in rings,
        ]
        rig.start()
        assert rig.read(Register.CONFIG, 8) == SECTORS and rig.read(Register.CONFIG + 34, 2) == 2
        data = os.urandom(1024)
        assert request(rig, Kind.OUT, 3, data, queue=1) == [bytes([OK])]
        assert request(rig, Kind.IN, 3, 1024) == [data, bytes([OK])]
        assert (tmp_path / "disk").read_bytes()[3 * 512 : 5 * 512] == data
        wait(lambda: turn(rig.device.host) or rig.read(Register.INTERRUPT_STATUS) & 1)


@pytest.mark.parametrize("rings", [(), ("packed",)])
@pytest.mark.parametrize("modes", [(), ("full", "inflight")])
def test_a_reset_takes_the_rings_back(ram: Ram, tmp_path: Path, modes: tuple[str, ...], rings: tuple[str, ...]) -> None:
    with backend(tmp_path, *modes), disk(ram, tmp_path, 1, *rings) as rig:
        for n in range(20):
            rig.start()
            data = bytes([n]) * 512
            assert request(rig, Kind.OUT, n, data) == [bytes([OK])]
            assert request(rig, Kind.IN, n, 512) == [data, bytes([OK])]
            rig.write(Register.STATUS, 0)
            assert rig.device.host.session is not None


@pytest.mark.parametrize("rings", [(), ("packed",), ("packed", "in_order")])
@pytest.mark.parametrize("modes", [(), ("inflight",)])
def test_requests_survive_a_back_end_that_dies(
    ram: Ram, tmp_path: Path, modes: tuple[str, ...], rings: tuple[str, ...]
) -> None:
    with backend(tmp_path, "die", *modes) as first, disk(ram, tmp_path, 1, *rings) as rig:
        rig.start()
        ring = rig.rings[0]
        for n in range(12):
            ring.add(pack("<IIQ", Kind.OUT, 0, n), bytes([n + 1]) * 512, 1)
        rig.notify()
        first.wait(10)
        host: Backend = rig.device.host
        wait(lambda: turn(host) or host.session is None)
        assert (tmp_path / "disk").read_bytes().count(b"\1" * 512) == 0
        ring.add(pack("<IIQ", Kind.OUT, 0, 12), bytes([13]) * 512, 1)
        rig.notify()  # meanwhile the driver goes on
        with backend(tmp_path, *modes):
            found: list[tuple[int, int]] = []

            def all_used() -> bool:
                turn(host, rig)
                found.extend(ring.collect())
                return len(found) >= 13

            wait(all_used)
            assert len({head for head, _ in found}) == 13 == len(found)
            content = (tmp_path / "disk").read_bytes()
            assert [content[512 * n] for n in range(13)] == list(range(1, 14))
            assert request(rig, Kind.IN, 4, 512) == [b"\5" * 512, bytes([OK])]


@pytest.mark.parametrize("rings", [(), ("packed",), ("in_order",)])
def test_many_deaths_lose_nothing(
    ram: Ram, tmp_path: Path, rings: tuple[str, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    """The ring's indices wrap around in its entries, and old requests stay behind younger ones."""
    with backend(tmp_path, "die") as process, disk(ram, tmp_path, 1, *rings) as rig:
        rig.start(size=64)
        ring, host = rig.rings[0], rig.device.host
        found: list[tuple[int, int]] = []
        for life in range(5):
            for n in range(16):
                ring.bump = DATA + n * 1024
                ring.add(pack("<IIQ", Kind.OUT, 0, life * 16 + n), bytes([life * 16 + n + 1]) * 512, 1)
            rig.notify()
            process.wait(10)
            wait(lambda: turn(host) or host.session is None)
            with backend(tmp_path) as process:
                due = 16 * (life + 1)
                wait(lambda due=due: turn(host, rig) or found.extend(ring.collect()) or len(found) >= due)
                assert len(found) == due
                process.kill()
                process.wait()
                wait(lambda: turn(host) or host.session is None)
            if life < 4:
                process = subprocess.Popen(
                    [sys.executable, str(BACKEND), str(tmp_path / "socket"), str(tmp_path / "disk"), "die"]
                )
                wait(lambda: turn(host) or host.session is not None)
        process.kill()
        process.wait()
        content = (tmp_path / "disk").read_bytes()
        assert [content[512 * n] for n in range(80)] == list(range(1, 81))


def test_a_back_end_that_comes_anew_has_its_cache_off_before_its_rings(ram: Ram, tmp_path: Path) -> None:
    with backend(tmp_path) as process, disk(ram, tmp_path) as rig:
        rig.start()
        rig.write(Register.CONFIG + VhostBlock.WRITEBACK, 0, 1)
        process.kill()
        process.wait()
        with backend(tmp_path, "through"):
            assert request(rig, Kind.OUT, 0, b"x" * 512) == [bytes([OK])]
            assert rig.read(Register.CONFIG + VhostBlock.WRITEBACK, 1) == 0


@pytest.mark.parametrize("rings", [(), ("packed",)])
@pytest.mark.parametrize("modes", [(), ("inflight", "full")])
def test_a_queue_is_reset_alone(ram: Ram, tmp_path: Path, modes: tuple[str, ...], rings: tuple[str, ...]) -> None:
    """Also while it has requests; the other queue goes on, and a back-end that comes anew gets both."""
    with backend(tmp_path, *modes) as process, disk(ram, tmp_path, 2, *rings) as rig:
        rig.start()
        for life in range(4):
            data = bytes([life + 1]) * 512
            rig.rings[1].add(pack("<IIQ", Kind.OUT, 0, 9), data, 1)
            rig.notify(1)
            old = reset_queue(rig, 1)
            assert request(rig, Kind.OUT, life, data) == [bytes([OK])]
            rig.rings[1] = type(old)(ram, old.size, old.table, old.event_index)
            rig.set_up(1, rig.rings[1])
            assert request(rig, Kind.IN, life, 512, queue=1) == [data, bytes([OK])]
            assert rig.device.host.session is not None
        process.kill()
        process.wait()
        with backend(tmp_path, *modes):
            for queue in (0, 1):
                assert request(rig, Kind.IN, 2, 512, queue=queue) == [b"\3" * 512, bytes([OK])]


def test_the_driver_is_told_of_another_size(ram: Ram, tmp_path: Path) -> None:
    """The back-end waits for an answer, perhaps just when we wait for one of it."""
    with backend(tmp_path, "full"), disk(ram, tmp_path) as rig:
        rig.start()
        for sectors in (512, 1024, 2048):
            os.truncate(tmp_path / "disk", 512 * sectors)
            until = time.monotonic() + 0.1
            while time.monotonic() < until:
                rig.write(Register.CONFIG + 32, 1, 1)
            wait(lambda size=sectors: turn(rig.device.host, rig) or rig.read(Register.CONFIG, 8) == size)
            assert rig.interrupts() & 2 and rig.device.host.session is not None


def test_a_long_request_waits_for_room(ram: Ram, tmp_path: Path) -> None:
    """Tables of descriptors take more of our ring than they take of the driver's."""
    with backend(tmp_path), disk(ram, tmp_path, 1, "packed") as rig:
        rig.start(size=256)
        ring = rig.rings[0]
        for n in range(40):
            ring.bump = DATA + n * 0x2000
            ring.add(pack("<IIQ", Kind.OUT, 0, n), *[bytes([n + 1]) * 16] * 32, 1, indirect=True)
        rig.notify()
        found: list[tuple[int, int]] = []
        wait(lambda: turn(rig.device.host, rig) or found.extend(ring.collect()) or len(found) == 40)
        content = (tmp_path / "disk").read_bytes()
        assert all(content[512 * n : 512 * n + 512] == bytes([n + 1]) * 512 for n in range(40))
        ring.bump = DATA
        ring.add(*[bytes(16)] * 300, 1, indirect=True)
        rig.notify()
        assert rig.needs_reset()


def test_a_device_of_any_kind(ram: Ram, tmp_path: Path) -> None:
    with backend(tmp_path, "rng"):
        words = (("chardev", "c0"), ("virtio-id", "4"), ("num_vqs", "1"), ("vq_size", "8"), ("config_size", "2"))
        made = vhost_setup.open_standard(DeviceConfig("vhost-user-device", words), machine_of(tmp_path))
        rig = Rig(ram, made).start(size=8)
        assert rig.read(Register.DEVICE_ID) == 4 and rig.read(Register.CONFIG, 2) == 5
        rig.write(Register.CONFIG, 9, 1)
        assert rig.read(Register.CONFIG, 2) == 0x109
        (buffer,) = rig.rings[0].add(100)
        rig.notify()
        done(rig)
        assert rig.rings[0].collect() == [(0, 100)] and ram.view(buffer.address, 100) == b"\7" * 100
        made.close()


@pytest.mark.parametrize("name", sorted(STANDARD))
def test_names_stand_for_numbers(tmp_path: Path, name: str) -> None:
    with backend(tmp_path):
        made = vhost_setup.open_standard(DeviceConfig(name, (("chardev", "c0"),)), machine_of(tmp_path))
        assert made.kind == STANDARD[name].kind and len(made.config()) == STANDARD[name].config_bytes
        assert len(made.host.kicks) == (2 if "vsock" in name else len(made.queue_sizes))
        made.close()


def test_disks_of_scsi(ram: Ram, tmp_path: Path) -> None:
    with backend(tmp_path):
        given = DeviceConfig("vhost-user-scsi-device", (("chardev", "c0"), ("num_queues", "2")))
        made = vhost_setup.open_scsi(given, machine_of(tmp_path))
        assert made.queue_sizes == (128,) * 4 and made.config()[:4] == pack("<I", 2) and len(made.config()) == 36
        made.close()


def test_a_back_end_breaks_reservations(ram: Ram, tmp_path: Path) -> None:
    with backend(tmp_path), disk(ram, tmp_path) as rig:
        rig.start()
        reservations = Reservations.at(regions.RESERVATIONS)
        reservations.watched, reservations.granule[0] = 1, DATA
        request(rig, Kind.IN, 0, 512)
        wait(lambda: turn(rig.device.host) or reservations.granule[0] == NONE)
        reservations.watched = 0


@pytest.mark.parametrize("place", [0, RAM_BASE - 4096, RAM_BASE + (4 << 20) - 16, 1 << 63, (1 << 64) - 16])
def test_rings_outside_of_ram_are_never_passed(ram: Ram, tmp_path: Path, place: int) -> None:
    with backend(tmp_path) as process, disk(ram, tmp_path) as rig:
        rig.negotiate(rig.features())
        for register in (Register.QUEUE_DESC, Register.QUEUE_DRIVER, Register.QUEUE_DEVICE):
            rig.write(register, place & 0xFFFF_FFFF)
            rig.write(register + 4, place >> 32)
        rig.write(Register.QUEUE_NUM, 64)
        rig.write(Register.QUEUE_READY, 1)
        rig.write(Register.STATUS, 15)
        assert rig.needs_reset() and not rig.device.host.rings
        assert process.poll() is None
        rig.start()
        assert request(rig, Kind.IN, 0, 512)[1] == bytes([OK])


def test_indices_that_make_no_sense_are_the_drivers_own_trouble(ram: Ram, tmp_path: Path) -> None:
    chance = random.Random(3)
    with backend(tmp_path) as process, disk(ram, tmp_path) as rig:
        rig.start()
        ring, host = rig.rings[0], rig.device.host
        process.kill()
        process.wait()
        wait(lambda: turn(host) or host.session is None)
        for _ in range(200):
            ram.view(ring.avail, 4 + 128)[:] = chance.randbytes(4 + 128)
            ram.view(ring.used, 4 + 512)[:] = chance.randbytes(4 + 512)
            rig.notify()
            host.rings[0].again()
            assert len(host.rings[0].heads) <= 2 * 64


def test_a_card_of_another_process(ram: Ram, tmp_path: Path) -> None:
    with backend(tmp_path, "net") as process:
        config = parsed(
            f"-chardev socket,id=c0,path={tmp_path}/socket,reconnect-ms=20 "
            "-netdev vhost-user,id=n0,chardev=c0 -device virtio-net-pci,netdev=n0,mac=52:54:00:00:00:07,host_mtu=1400"
        )
        check(config)
        ((_, card),), others = open_networks(config)
        try:
            rig = Rig(ram, card).start()
            assert others == [] and bytes(rig.read(Register.CONFIG + n, 1) for n in range(12)) == card.config()
            assert card.config() == pack("<6sHHH", bytes.fromhex("525400000007"), 1, 1, 1400)
            receive, send = rig.rings
            for n in range(5):
                (buffer,) = receive.add(2000)
                rig.notify(0)
                frame = bytes(12) + os.urandom(100 + n)
                send.add(frame)
                rig.notify(1)
                done(rig, 0)
                assert [size for _, size in receive.collect()] == [len(frame)]
                assert ram.view(buffer.address, len(frame)) == frame
                send.collect()
            process.kill()
            process.wait()
            wait(lambda: turn(card.host) or card.host.session is None)
            assert rig.transport.poll() and card.config()[6] == 0 and rig.interrupts() & 2
            with backend(tmp_path, "net"):
                wait(lambda: turn(card.host) or card.host.session)
                assert rig.transport.poll() and card.config()[6] == 1
        finally:
            card.close()


def test_a_file_systems_configuration_is_ours(tmp_path: Path) -> None:
    with backend(tmp_path):
        made = VhostFs(Backend("c0", lambda: Session(dial(str(tmp_path / "socket"))), 3), (128,) * 3, b"files")
        assert made.config() == b"files".ljust(36, b"\0") + pack("<I", 2)
        made.close()


def test_a_back_end_goes_through_lives_of_the_machine(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Each life has RAM and an I/O process of its own; in the second one the back-end is started anew.

    The old connection is still open in this process then, and must not be taken for the new one.
    """
    process, said = None, []
    try:
        with backend(tmp_path, "full") as first:
            io = IoConfig({3: open_disk(tmp_path)})
            for life in range(4):
                with io_memory() as ram:
                    io.ram_fd, io.supervisor = ram.fd, os.getpid()
                    child = fork_io(io)
                    hart = Hart(ram, io.devices[3], 3)
                    hart.start()
                    data = bytes([life + 1]) * 512
                    assert hart.ask(pack("<IIQ", Kind.OUT, 0, life), data, 1)[1] == [bytes([OK])]
                    if life == 1:
                        first.kill()
                        first.wait()
                        (tmp_path / "socket").unlink()
                        words = [sys.executable, str(BACKEND), str(tmp_path / "socket"), str(tmp_path / "disk"), "full"]
                        process = subprocess.Popen(words)
                    assert hart.ask(pack("<IIQ", Kind.IN, 0, life), 512, 1)[1] == [data, bytes([OK])]
                    if life == 1:
                        wait(lambda: said.append(capfd.readouterr().err) or "is there again" in said[-1])
                        time.sleep(0.3)
                        assert "is there again" not in capfd.readouterr().err
                    assert finish(child) == 0
            io.close()
    finally:
        if process:
            process.kill()
            process.wait()
