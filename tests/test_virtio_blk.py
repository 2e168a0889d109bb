"""virtio-blk: every request type, bounds, read-only, overlay and host errors, through rings and registers."""

import errno
import os
import resource
from pathlib import Path
from struct import pack, unpack_from

import pytest
from fake_driver import ALL, Rig
from hypothesis import given, settings
from hypothesis import strategies as st

from mem.window import Register
from virtio.blk import F_DISCARD, F_FLUSH, F_MQ, F_RO, IOERR, MAX_SECTORS, OK, UNSUPP, Block, Kind
from virtio.image import Image, Overlay
from virtio.queue import Ram

SECTORS = 64


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(n // 512 for n in range(SECTORS * 512)))
    return path


def start(ram: Ram, image: Image, **options: object) -> Rig:
    return Rig(ram, Block(image, **options)).start()  # type: ignore[arg-type]


def ask(rig: Rig, kind: int, sector: int, *parts: bytes | int, indirect: bool = False) -> tuple[int, bytes]:
    """Status and the data of a request."""
    _, written = rig.ask(pack("<IIQ", kind, 0, sector), *parts, 1, indirect=indirect)
    return written[-1][0], b"".join(written[:-1])


@pytest.mark.parametrize("indirect", [False, True])
def test_read_and_write(ram: Ram, disk: Path, indirect: bool) -> None:
    rig = start(ram, Image(disk))
    assert ask(rig, Kind.IN, 3, 512, 1024, indirect=indirect) == (OK, b"\3" * 512 + b"\4" * 512 + b"\5" * 512)
    assert ask(rig, Kind.OUT, 4, b"a" * 100, b"b" * 412, indirect=indirect) == (OK, b"")
    assert disk.read_bytes()[3 * 512 : 6 * 512] == b"\3" * 512 + b"a" * 100 + b"b" * 412 + b"\5" * 512
    assert rig.interrupts() == 1


def test_used_length_counts_data_and_status(ram: Ram, disk: Path) -> None:
    rig = start(ram, Image(disk))
    used, _ = rig.ask(pack("<IIQ", Kind.IN, 0, 0), 512, 1)
    assert used == 513


def test_any_framing(ram: Ram, disk: Path) -> None:
    """The header may be split and the status share a buffer with data (virtio 1.2, 2.7.4)."""
    rig = start(ram, Image(disk))
    header = pack("<IIQ", Kind.IN, 0, 9)
    used, (data,) = rig.ask(header[:3], header[3:], 513)
    assert (used, data) == (513, b"\x09" * 512 + b"\0")


@pytest.mark.parametrize(
    ("sector", "size"), [(SECTORS, 512), (SECTORS - 1, 1024), ((1 << 64) - 1, 512), (1 << 55, 512), (0, 511)]
)
@pytest.mark.parametrize("kind", [Kind.IN, Kind.OUT])
def test_outside_the_disk_is_an_error(ram: Ram, disk: Path, kind: int, sector: int, size: int) -> None:
    before = disk.read_bytes()
    rig = start(ram, Image(disk))
    assert ask(rig, kind, sector, size if kind == Kind.IN else b"x" * size)[0] == IOERR
    assert disk.read_bytes() == before
    assert ask(rig, Kind.IN, 0, 512)[0] == OK


def test_a_size_between_sectors_reads_as_zeroes(ram: Ram, tmp_path: Path) -> None:
    path = tmp_path / "odd"
    path.write_bytes(b"x" * 600)
    rig = start(ram, Image(path))
    assert unpack_from("<Q", rig.device.config())[0] == 2
    assert ask(rig, Kind.IN, 1, 512) == (OK, b"x" * 88 + bytes(424))


def test_read_only(ram: Ram, disk: Path) -> None:
    rig = start(ram, Image(disk, readonly=True))
    assert rig.features() & F_RO
    assert not rig.features() & F_DISCARD
    assert ask(rig, Kind.OUT, 0, b"x" * 512)[0] == IOERR
    assert ask(rig, Kind.WRITE_ZEROES, 0, pack("<QII", 0, 1, 0))[0] == IOERR
    assert ask(rig, Kind.IN, 1, 512) == (OK, b"\1" * 512)
    assert ask(rig, Kind.FLUSH, 0)[0] == OK


def test_identity_and_unknown_requests(ram: Ram, disk: Path) -> None:
    rig = start(ram, Image(disk), serial="a-serial-number-of-a-disk")
    assert ask(rig, Kind.GET_ID, 0, 20) == (OK, b"a-serial-number-of-a")
    assert ask(rig, 99, 0)[0] == UNSUPP
    assert rig.ask(b"short", 1)[1] == [bytes([IOERR])]


def test_a_request_without_room_for_a_status_needs_a_reset(ram: Ram, disk: Path) -> None:
    rig = start(ram, Image(disk))
    rig.rings[0].add(pack("<IIQ", Kind.FLUSH, 0, 0))
    rig.notify()
    assert rig.needs_reset()
    rig.start()
    assert ask(rig, Kind.IN, 0, 512)[0] == OK


def test_discard_and_write_zeroes(ram: Ram, disk: Path) -> None:
    rig = start(ram, Image(disk))
    two = pack("<QIIQII", 2, 1, 0, 5, 2, 1)
    assert ask(rig, Kind.WRITE_ZEROES, 0, two)[0] == OK
    data = disk.read_bytes()
    assert data[2 * 512 : 3 * 512] == bytes(512)
    assert data[5 * 512 : 7 * 512] == bytes(1024)
    assert data[3 * 512 : 4 * 512] == b"\3" * 512
    assert ask(rig, Kind.DISCARD, 0, pack("<QII", 16, 16, 0))[0] == OK
    assert len(disk.read_bytes()) == SECTORS * 512


@pytest.mark.parametrize(
    ("kind", "data", "status"),
    [
        (Kind.DISCARD, pack("<QII", 0, 1, 1), UNSUPP),
        (Kind.WRITE_ZEROES, pack("<QII", 0, 1, 2), UNSUPP),
        (Kind.WRITE_ZEROES, pack("<QII", 0, SECTORS + 1, 0), IOERR),
        (Kind.WRITE_ZEROES, pack("<QII", 0, MAX_SECTORS + 1, 0), IOERR),
        (Kind.WRITE_ZEROES, pack("<QII", 1 << 63, 1, 0), IOERR),
        (Kind.WRITE_ZEROES, pack("<QII", 0, 1, 0)[:15], IOERR),
        (Kind.WRITE_ZEROES, pack("<QII", 0, 1, 0) * 33, IOERR),
    ],
)
def test_bad_segments_change_nothing(ram: Ram, disk: Path, kind: int, data: bytes, status: int) -> None:
    before = disk.read_bytes()
    assert ask(start(ram, Image(disk)), kind, 0, data)[0] == status
    assert disk.read_bytes() == before


def test_write_cache_mode(ram: Ram, disk: Path) -> None:
    flushed: list[int] = []
    image = Image(disk)
    image.flush = lambda: flushed.append(1)  # type: ignore[method-assign]
    rig = start(ram, image)
    ask(rig, Kind.OUT, 0, bytes(512))
    assert flushed == []
    ask(rig, Kind.FLUSH, 0)
    assert flushed == [1]
    rig.write(0x100 + 32, 0, 1)
    assert rig.read(0x100 + 32, 1) == 0
    ask(rig, Kind.OUT, 0, bytes(512))
    assert flushed == [1, 1]
    rig.start(features=ALL)
    ask(rig, Kind.OUT, 0, bytes(512))
    assert flushed == [1, 1, 1], "a driver without FLUSH expects writes to last"
    assert rig.features() & F_FLUSH


def test_several_queues(ram: Ram, disk: Path) -> None:
    rig = start(ram, Image(disk), queues=3)
    assert rig.features() & F_MQ
    assert unpack_from("<H", rig.device.config(), 34)[0] == 3
    for queue in range(3):
        _, (data, status) = rig.ask(pack("<IIQ", Kind.IN, 0, queue), 512, 1, queue=queue)
        assert (data, status) == (bytes([queue]) * 512, b"\0")


def test_many_requests_under_one_notify(ram: Ram, disk: Path) -> None:
    rig = start(ram, Image(disk))
    buffers = [rig.rings[0].add(pack("<IIQ", Kind.IN, 0, n), 512, 1) for n in range(20)]
    rig.notify()
    assert len(rig.rings[0].collect()) == 20
    assert [ram.view(b[1].address, 1)[0] for b in buffers] == list(range(20))


def test_a_full_host_is_an_io_error_for_the_guest(ram: Ram, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file size limit stands for the full file system: the write fails, and a later one may succeed."""
    path = tmp_path / "sparse"
    path.touch()
    os.truncate(path, 1 << 20)
    rig = start(ram, Image(path))
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, old[1]))
    try:
        assert ask(rig, Kind.OUT, 100, b"x" * 512)[0] == IOERR
        assert ask(rig, Kind.OUT, 101, b"x" * 512)[0] == IOERR
        assert ask(rig, Kind.OUT, 1, b"y" * 512)[0] == OK
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert ask(rig, Kind.OUT, 100, b"x" * 512)[0] == OK
    assert capsys.readouterr().err.count("the guest gets I/O errors") == 1


def test_a_disk_grows_with_its_image(ram: Ram, disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("virtio.blk.MEASURE_S", 0.0)
    rig = start(ram, Image(disk))
    assert ask(rig, Kind.OUT, SECTORS, b"x" * 512)[0] == IOERR and not rig.interrupts() & 2
    os.truncate(disk, (SECTORS + 2) * 512)
    assert ask(rig, Kind.OUT, SECTORS, b"x" * 512)[0] == OK
    assert rig.interrupts() & 2 and rig.read(Register.CONFIG, 8) == SECTORS + 2
    os.truncate(disk, 512)
    assert ask(rig, Kind.IN, SECTORS, 512) == (OK, bytes(512)) and not rig.interrupts() & 2


def test_a_host_that_is_full(ram: Ram, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that does not fit, or of which only a part does, is an error of the guest's, and the disk goes on."""
    path, left = tmp_path / "thin", 4096
    path.touch()
    os.truncate(path, 1 << 20)
    rig, pwritev = start(ram, Image(path)), os.pwritev

    def limited(fd: int, parts: list[memoryview], offset: int) -> int:
        nonlocal left
        if left == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        count = pwritev(fd, [bytes(b"".join(parts)[:left])], offset)
        left -= count
        return count

    monkeypatch.setattr(os, "pwritev", limited)
    assert ask(rig, Kind.OUT, 8, b"a" * 3000 + b"b" * 1096)[0] == OK
    left = 700
    assert ask(rig, Kind.OUT, 100, b"c" * 1024)[0] == IOERR
    assert ask(rig, Kind.IN, 8, 4096) == (OK, b"a" * 3000 + b"b" * 1096)
    left = 1 << 20
    assert ask(rig, Kind.OUT, 100, b"c" * 1024)[0] == OK and path.read_bytes()[51200 : 51200 + 1024] == b"c" * 1024


@given(
    operations=st.lists(
        st.tuples(st.sampled_from("rwz"), st.integers(0, SECTORS - 1), st.integers(1, 20)), min_size=1, max_size=30
    )
)
@settings(max_examples=100)
def test_an_overlay_reads_what_was_written_and_leaves_the_file(
    tmp_path: Path, operations: list[tuple[str, int, int]]
) -> None:
    path = tmp_path / "base"
    base = bytes(n * 7 // 512 & 0xFF for n in range(SECTORS * 512 - 100))
    path.write_bytes(base)
    model = bytearray(base + bytes(100))
    image = Overlay(path)
    assert not image.readonly
    for n, (operation, sector, count) in enumerate(operations):
        start_, end = sector * 512, min(sector + count, SECTORS) * 512
        if operation == "r":
            buffer = bytearray(end - start_)
            cut = len(buffer) // 3
            image.read([memoryview(buffer)[:cut], memoryview(buffer)[cut:]], start_)
            assert buffer == model[start_:end]
        else:
            data = bytes([n + 1]) * (end - start_) if operation == "w" else bytes(end - start_)
            model[start_:end] = data
            if operation == "w":
                image.write([memoryview(data)[:5], memoryview(data)[5:]], start_)
            else:
                image.zero(start_, end - start_, True)
    whole = bytearray(len(model))
    image.read([memoryview(whole)], 0)
    assert whole == model
    image.close()
    assert path.read_bytes() == base


def test_an_overlay_outlives_the_process_that_wrote_it(tmp_path: Path) -> None:
    """A reset of the machine starts a new I/O process from the supervisor's image."""
    path = tmp_path / "base"
    path.write_bytes(bytes(1 << 16))
    image = Overlay(path)
    child = os.fork()
    if child == 0:
        image.write([memoryview(b"new" + bytes(509))], 512)
        os._exit(0)
    os.waitpid(child, 0)
    buffer = bytearray(3)
    image.read([memoryview(buffer)], 512)
    assert buffer == b"new"
    image.close()
    image.close()
