"""System calls that Python's os module lacks, for a tree of the host's files.  Errors are OSErrors; names are bytes."""

import ctypes
import errno
import os
from collections.abc import Iterator
from struct import Struct
from typing import ClassVar, NamedTuple

OPENAT2 = 437  # on every architecture
NO_MAGICLINKS, NO_SYMLINKS, BENEATH = 2, 4, 8  # of open_how.resolve
AT_FDCWD = -100
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2
DIRENT = Struct("<QqHB")  # of linux_dirent64: inode, offset of the next, length, type; then the name
_libc = ctypes.CDLL(None, use_errno=True)


class _OpenHow(ctypes.Structure):
    _fields_: ClassVar = [("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64)]


class _Timespec(ctypes.Structure):
    _fields_: ClassVar = [("sec", ctypes.c_long), ("nsec", ctypes.c_long)]


class DirectoryEntry(NamedTuple):
    """`offset` is where the entry after this one begins: what `directory_entries` takes."""

    inode: int
    offset: int
    kind: int
    name: bytes


def host_error(number: int) -> OSError:
    """An error of the host's, by its number."""
    return OSError(number, os.strerror(number))


def _raise_errno() -> None:
    raise host_error(ctypes.get_errno())


def open_beneath(folder: int, name: bytes, flags: int, mode: int = 0) -> int:
    """Open one name in a folder, never following a symbolic link: with O_PATH a link itself is opened."""
    if b"/" in name or b"\0" in name or name == b"..":
        raise host_error(errno.ENOENT)
    flags |= os.O_NOFOLLOW | os.O_CLOEXEC
    if not _HAS_OPENAT2:
        return os.open(name, flags, mode, dir_fd=folder)
    return _openat2(folder, name, flags, mode)


def _openat2(folder: int, name: bytes, flags: int, mode: int) -> int:
    how = _OpenHow(flags, mode, BENEATH | NO_SYMLINKS | NO_MAGICLINKS)
    fd = int(_libc.syscall(OPENAT2, folder, name, ctypes.byref(how), ctypes.sizeof(how)))
    if fd < 0:
        _raise_errno()
    return fd


def _has_openat2() -> bool:
    """Linux 5.6 and later, where no filter of a container is in the way."""
    try:
        os.close(_openat2(AT_FDCWD, b".", os.O_PATH | os.O_CLOEXEC, 0))
    except OSError as error:
        return error.errno not in (errno.ENOSYS, errno.EPERM)
    return True


def directory_entries(folder: int, size: int) -> Iterator[DirectoryEntry]:
    """The entries at the descriptor's position that fit in a buffer of `size` bytes, and none at the end."""
    buffer = ctypes.create_string_buffer(size)
    count = _libc.getdents64(folder, buffer, size)
    if count < 0:
        _raise_errno()
    place = 0
    while place < count:
        inode, offset, length, kind = DIRENT.unpack_from(buffer, place)
        yield DirectoryEntry(inode, offset, kind, ctypes.string_at(ctypes.addressof(buffer) + place + DIRENT.size))
        place += length


def set_times(path: bytes, accessed: tuple[int, int], modified: tuple[int, int]) -> None:
    """Seconds and nanoseconds, or UTIME_NOW or UTIME_OMIT in place of the latter; follows symbolic links."""
    times = (_Timespec * 2)(_Timespec(*accessed), _Timespec(*modified))
    if _libc.utimensat(AT_FDCWD, path, times, 0):
        _raise_errno()


_HAS_OPENAT2 = _has_openat2()
