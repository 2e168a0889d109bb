"""Disk images on the host: a raw file or block device, and a throw-away overlay over one.

Offsets and sizes are bytes.  Host failures are OSErrors, which virtio-blk turns into I/O errors of the guest.
"""

import ctypes
import mmap
import os
import tempfile
from pathlib import Path

CLUSTER = 4096
IOV_MAX = 1024
KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16  # of fallocate(2)
ZEROES = bytes(1 << 16)
_libc = ctypes.CDLL(None, use_errno=True)


def _fallocate(fd: int, mode: int, offset: int, size: int) -> bool:
    """Whether the host could; False when its file system has no such thing."""
    if _libc.fallocate(fd, mode | KEEP_SIZE, ctypes.c_long(offset), ctypes.c_long(size)) == 0:
        return True
    error = ctypes.get_errno()
    if error in (95, 38, 19, 22):  # EOPNOTSUPP, ENOSYS, ENODEV, EINVAL
        return False
    raise OSError(error, os.strerror(error))


def rest(parts: list[memoryview], done: int) -> list[memoryview]:
    """The parts without their first `done` bytes."""
    for index, part in enumerate(parts):
        if done < len(part):
            return [part[done:], *parts[index + 1 :]]
        done -= len(part)
    return []


class Image:
    """A raw image, read and written in place with the caller's buffers."""

    def __init__(self, path: Path, readonly: bool = False) -> None:
        self.path, self.readonly = path, readonly
        self.fd = os.open(path, (os.O_RDONLY if readonly else os.O_RDWR) | os.O_CLOEXEC)
        self.base = self.fd
        self.size = os.lseek(self.fd, 0, os.SEEK_END)

    def measure(self) -> int:
        """Its size now: somebody on the host may have made it larger."""
        return os.lseek(self.fd, 0, os.SEEK_END)

    def resize(self, size: int) -> None:
        """Make it larger, with zeroes at its end, or smaller."""
        if self.readonly:
            raise OSError("the image is read-only")
        os.ftruncate(self.fd, size)

    def read(self, parts: list[memoryview], offset: int) -> None:
        """Fill the parts; what lies past the end of the file reads as zeroes."""
        while parts:
            count = os.preadv(self.fd, parts[:IOV_MAX], offset)
            if count == 0:
                for part in parts:
                    part[:] = bytes(len(part))
                return
            offset += count
            parts = rest(parts, count)

    def write(self, parts: list[memoryview], offset: int) -> None:
        """Write all the parts."""
        while parts:
            count = os.pwritev(self.fd, parts[:IOV_MAX], offset)
            offset += count
            parts = rest(parts, count)

    def flush(self) -> None:
        """Have everything on stable storage."""
        os.fdatasync(self.fd)

    def discard(self, offset: int, size: int) -> None:
        """The guest has no use for these bytes any more."""
        _fallocate(self.fd, PUNCH_HOLE, offset, size)

    def zero(self, offset: int, size: int, unmap: bool) -> None:
        """Make the bytes zero, giving the space back if allowed."""
        if not _fallocate(self.fd, PUNCH_HOLE if unmap else ZERO_RANGE, offset, size):
            self.write_zeroes(offset, size)

    def write_zeroes(self, offset: int, size: int) -> None:
        """Zeroes the slow way."""
        zeroes = memoryview(ZEROES)
        while size:
            count = min(size, len(zeroes))
            self.write([zeroes[:count]], offset)
            offset, size = offset + count, size - count

    def close(self) -> None:
        """May be called again."""
        if self.base >= 0:
            os.close(self.base)
        self.base = -1


class Overlay(Image):
    """Writes go to an unnamed file that vanishes with the machine; `owned` has a byte a cluster.

    Both are shared with the processes forked later, so that the writes last over a reset of the machine.
    """

    def __init__(self, path: Path, readonly: bool = False) -> None:
        super().__init__(path, readonly=True)
        self.readonly = readonly  # what the guest is told
        self.file = tempfile.TemporaryFile(prefix="hartbeat-")  # noqa: SIM115
        self.owned = mmap.mmap(-1, self.size // CLUSTER + 2)

    def measure(self) -> int:
        """What has been copied on a write fits the size of the beginning."""
        return self.size

    def resize(self, size: int) -> None:
        raise OSError("an image with snapshot=on keeps its size")

    def _runs(self, parts: list[memoryview], offset: int) -> None:
        """Read run by run from where the clusters are."""
        while parts:
            cluster = offset // CLUSTER
            ours = self.owned[cluster]
            end = self.owned.find(bytes([1 - ours]), cluster)
            room = ((end if end >= 0 else len(self.owned) + (1 << 40)) * CLUSTER) - offset
            now, parts = _split(parts, room)
            self.fd = self.file.fileno() if ours else self.base
            super().read(now, offset)
            offset += sum(map(len, now))

    def read(self, parts: list[memoryview], offset: int) -> None:
        self._runs(parts, offset)

    def write(self, parts: list[memoryview], offset: int) -> None:
        end = offset + sum(map(len, parts))
        if end == offset:
            return
        self._own(offset, end)
        self.fd = self.file.fileno()
        super().write(parts, offset)
        first, last = offset // CLUSTER, -(-end // CLUSTER)
        self.owned[first:last] = b"\1" * (last - first)

    def _own(self, start: int, end: int) -> None:
        """Copy the clusters that are written in part only."""
        for cluster in {start // CLUSTER} | {(end - 1) // CLUSTER}:
            if not self.owned[cluster]:
                buffer = memoryview(bytearray(CLUSTER))
                self._runs([buffer], cluster * CLUSTER)
                self.fd = self.file.fileno()
                super().write([buffer], cluster * CLUSTER)
                self.owned[cluster] = 1

    def flush(self) -> None:
        pass

    def discard(self, offset: int, size: int) -> None:
        pass

    def zero(self, offset: int, size: int, unmap: bool) -> None:
        self.write_zeroes(offset, size)

    def close(self) -> None:
        super().close()
        self.file.close()


def _split(parts: list[memoryview], count: int) -> tuple[list[memoryview], list[memoryview]]:
    """The first `count` bytes, and what remains."""
    first: list[memoryview] = []
    for index, part in enumerate(parts):
        if count < len(part):
            return [*first, *([part[:count]] if count else [])], [part[count:], *parts[index + 1 :]]
        first.append(part)
        count -= len(part)
    return first, []
