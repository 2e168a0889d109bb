"""A 9P2000.L client without a guest: messages packed from the protocol's description, over tests/fake_driver.py."""

import contextlib
import errno
import gc
import os
from collections.abc import Iterator
from pathlib import Path
from struct import calcsize, pack, unpack, unpack_from

import pytest
from fake_driver import Rig

from virtio.host_owners import MODELS
from virtio.host_tree import Handle, HostTree
from virtio.ninep import Ninep
from virtio.queue import Ram

MSIZE = 512 << 10
NO_FID = 0xFFFF_FFFF
ROOT = 0
O_RDONLY, O_WRONLY, O_RDWR, O_EXCL, O_TRUNC, O_APPEND = 0, 1, 2, 0o200, 0o1000, 0o2000


def s(text: bytes) -> bytes:
    return pack("<H", len(text)) + text


def open_handles() -> int:
    """Descriptors of shared files; what earlier tests left is not counted."""
    gc.collect()
    return Handle.count


class NinepError(Exception):
    """An Rlerror, with its number in `errno`."""

    def __init__(self, number: int) -> None:
        super().__init__(os.strerror(number))
        self.errno = number


class Client:
    """Each method is a message; it gives what the answer has, or raises NinepError."""

    def __init__(
        self,
        ram: Ram,
        folder: Path,
        model: str = "none",
        readonly: bool = False,
        multidevs: str = "remap",
        uid: int = 0,
    ) -> None:
        self.rig = Rig(ram, Ninep(HostTree(folder, MODELS[model](), readonly, multidevs), b"tag")).start()
        self.room = 65536
        self.next_fid = 1
        self.version()
        self.attach(uid=uid)

    def raw(self, message: bytes, *room: int) -> bytes:
        """A whole message to a whole answer."""
        used, written = self.rig.ask(message, *(room or (self.room,)))
        return b"".join(written)[:used]

    def call(self, kind: int, body: bytes = b"", *room: int) -> bytes:
        answer = self.raw(pack("<IBH", 7 + len(body), kind, 5) + body, *room)
        size, number, tag = unpack_from("<IBH", answer)
        assert (size, tag) == (len(answer), 5)
        if number == 7:
            raise NinepError(unpack("<I", answer[7:])[0])
        assert number == kind + 1
        return answer[7:]

    def new(self) -> int:
        self.next_fid += 1
        return self.next_fid

    def version(self, msize: int = MSIZE, name: bytes = b"9P2000.L") -> tuple[int, bytes]:
        answer = self.call(100, pack("<I", msize) + s(name))
        return unpack_from("<I", answer)[0], answer[6:]

    def attach(self, fid: int = ROOT, uid: int = 0) -> bytes:
        return self.call(104, pack("<II", fid, NO_FID) + s(b"root") + s(b"") + pack("<I", uid))

    def walk(self, *names: bytes, start: int = ROOT, new: int | None = None) -> int:
        new = self.new() if new is None else new
        answer = self.call(110, pack("<IIH", start, new, len(names)) + b"".join(map(s, names)))
        if unpack_from("<H", answer)[0] != len(names):
            raise NinepError(errno.ENOENT)  # what Linux makes of a part of the way
        return new

    def open(self, *names: bytes, flags: int = O_RDONLY) -> int:
        fid = self.walk(*names)
        self.call(12, pack("<II", fid, flags))
        return fid

    def create(self, name: bytes, flags: int = O_RDWR, mode: int = 0o644, folder: int = ROOT, gid: int = 0) -> int:
        fid = self.walk(start=folder)
        self.call(14, pack("<I", fid) + s(name) + pack("<III", flags, mode, gid))
        return fid

    def read(self, fid: int, offset: int, count: int) -> bytes:
        answer = self.call(116, pack("<IQI", fid, offset, count), 11, max(count, 1))
        assert unpack_from("<I", answer)[0] == len(answer) - 4
        return answer[4:]

    def write(self, fid: int, offset: int, *data: bytes) -> int:
        size = sum(map(len, data))
        head = pack("<IBHIQI", 23 + size, 118, 5, fid, offset, size)
        _, (answer,) = self.rig.ask(head, *data, 64)
        if answer[4] == 7:
            raise NinepError(unpack_from("<I", answer, 7)[0])
        return int(unpack_from("<I", answer, 7)[0])

    def getattr(self, fid: int) -> dict[str, int]:
        answer = self.call(24, pack("<IQ", fid, 0x7FF))
        assert len(answer) == 153
        names = "valid type version path mode uid gid nlink rdev size blksize blocks atime atime_ns mtime mtime_ns"
        return dict(zip(names.split(), unpack_from("<QBIQIII9Q", answer), strict=True))

    def setattr(self, fid: int, valid: int, mode: int = 0, uid: int = 0, gid: int = 0, size: int = 0, *times: int):
        self.call(26, pack("<IIIIIQQQQQ", fid, valid, mode, uid, gid, size, *(times or (0, 0, 0, 0))))

    def readdir(self, fid: int, offset: int = 0, count: int = 4096) -> list[tuple[bytes, int, int, int]]:
        """Entries as name, kind, offset, inode."""
        answer = self.call(40, pack("<IQI", fid, offset, count), 11, count)
        assert unpack_from("<I", answer)[0] == len(answer) - 4 <= count
        entries, at = [], 4
        while at < len(answer):
            _, _, inode, offset, kind, length = unpack_from("<BIQQBH", answer, at)
            at += calcsize("<BIQQBH")
            entries.append((answer[at : at + length], kind, offset, inode))
            at += length
        return entries

    def listing(self, *names: bytes, count: int = 4096) -> list[bytes]:
        fid = self.open(*names)
        found: list[bytes] = []
        offset = 0
        while some := self.readdir(fid, offset, count):
            found += [entry[0] for entry in some]
            offset = some[-1][2]
        self.clunk(fid)
        return sorted(found)

    def mkdir(self, name: bytes, folder: int = ROOT, mode: int = 0o755, gid: int = 0) -> None:
        self.call(72, pack("<I", folder) + s(name) + pack("<II", mode, gid))

    def symlink(self, name: bytes, target: bytes, folder: int = ROOT) -> None:
        self.call(16, pack("<I", folder) + s(name) + s(target) + pack("<I", 0))

    def readlink(self, fid: int) -> bytes:
        return self.call(22, pack("<I", fid))[2:]

    def mknod(self, name: bytes, mode: int, major: int = 0, minor: int = 0, folder: int = ROOT) -> None:
        self.call(18, pack("<I", folder) + s(name) + pack("<IIII", mode, major, minor, 0))

    def link(self, fid: int, name: bytes, folder: int = ROOT) -> None:
        self.call(70, pack("<II", folder, fid) + s(name))

    def rename(self, fid: int, name: bytes, folder: int = ROOT) -> None:
        self.call(20, pack("<II", fid, folder) + s(name))

    def renameat(self, name: bytes, to: bytes, folder: int = ROOT, to_folder: int = ROOT) -> None:
        self.call(74, pack("<I", folder) + s(name) + pack("<I", to_folder) + s(to))

    def unlinkat(self, name: bytes, flags: int = 0, folder: int = ROOT) -> None:
        self.call(76, pack("<I", folder) + s(name) + pack("<I", flags))

    def clunk(self, fid: int) -> None:
        self.call(120, pack("<I", fid))

    def remove(self, fid: int) -> None:
        self.call(122, pack("<I", fid))

    def xattr(self, fid: int, name: bytes = b"") -> bytes:
        new = self.new()
        (size,) = unpack("<Q", self.call(30, pack("<II", fid, new) + s(name)))
        value = self.read(new, 0, size) if size else b""
        self.clunk(new)
        return value

    def set_xattr(self, fid: int, name: bytes, value: bytes, flags: int = 0, size: int | None = None) -> None:
        new = self.walk(start=fid)
        self.call(32, pack("<I", new) + s(name) + pack("<QI", len(value) if size is None else size, flags))
        if value:
            self.write(new, 0, value)
        self.clunk(new)

    def lock(self, fid: int, kind: int, process: int, start: int = 0, length: int = 0) -> int:
        return self.call(52, pack("<IBIQQI", fid, kind, 0, start, length, process) + s(b"host"))[0]

    def getlock(self, fid: int, kind: int, process: int, start: int = 0, length: int = 0) -> tuple[int, int, int]:
        answer = self.call(54, pack("<IBQQI", fid, kind, start, length, process) + s(b"host"))
        return unpack_from("<BQQ", answer)


@contextlib.contextmanager
def refused(*numbers: int) -> Iterator[None]:
    """What is in it gets an Rlerror: one of these, or any."""
    with pytest.raises(NinepError) as caught:
        yield
    assert not numbers or caught.value.errno in numbers, caught.value


# A fixture; a test module has its own `folder`.


@pytest.fixture
def client(ram: Ram, folder: Path) -> Client:
    return Client(ram, folder)
