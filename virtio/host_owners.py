"""Whose the files of a shared tree are: what -fsdev calls its security models.

Paths are those of /proc/self/fd, which lead to one file and no further.  Modes have the bits of the file's type.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Callable
from struct import Struct
from typing import ClassVar, NamedTuple

from virtio.host_calls import host_error
from virtio.needs import CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER, CAP_FSETID, CAP_MKNOD

UNKNOWN = 0xFFFF_FFFF  # a user or group that the guest does not name
PREFIX = b"user.virtfs."
ACL = b"system.posix_acl_"
LE32, LE64 = Struct("<I"), Struct("<Q")


class Attributes(NamedTuple):
    """What the guest is told of a file: the host's view, with owner, mode and device number as the model has them."""

    host: os.stat_result
    mode: int
    uid: int
    gid: int
    rdev: int


def plain_attributes(found: os.stat_result) -> Attributes:
    """The host's view as it is."""
    return Attributes(found, found.st_mode, found.st_uid, found.st_gid, found.st_rdev)


def _id(number: int) -> int:
    """A user or group as os.chown takes it."""
    return -1 if number == UNKNOWN else number


class NoOwners:
    """security_model=none: files have the guest's modes, and its owners as far as the host allows.

    What would give someone on the host more rights is left out: setuid bits and device nodes.
    """

    capabilities: ClassVar[tuple[int, ...]] = (CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER, CAP_FSETID)
    maps = False  # whether links and special files are regular ones of the host
    xattr_spaces: ClassVar[tuple[bytes, ...]] = (b"user.",)

    def attributes(self, path: bytes, found: os.stat_result) -> Attributes:
        """What the guest is to see of a file."""
        return plain_attributes(found)

    def first_mode(self, mode: int) -> int:
        """What a new file or folder is made with on the host."""
        return stat.S_IMODE(self.allowed(mode))

    def allowed(self, mode: int) -> int:
        """The mode without what the guest may not give."""
        return mode & ~(stat.S_ISUID | (0 if stat.S_ISDIR(mode) else stat.S_ISGID))

    def check_special(self, mode: int) -> None:
        """Whether the guest may make such a node."""
        if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
            raise host_error(errno.EPERM)

    def settle(self, path: bytes, mode: int, uid: int, gid: int, rdev: int | None = None) -> None:
        """Give a file that was just made its owner and mode: the host's umask is not the guest's."""
        found = os.stat(path)
        moves = (uid, gid) != (found.st_uid, found.st_gid)
        if moves:
            self.chown(path, uid, gid)  # which takes setuid bits away
        if not stat.S_ISLNK(mode) and (moves or stat.S_IMODE(found.st_mode) != self.first_mode(mode)):
            os.chmod(path, self.first_mode(mode))

    def chmod(self, path: bytes, old: Attributes, mode: int) -> None:
        """Change the permissions."""
        os.chmod(path, self.first_mode(stat.S_IFMT(old.mode) | stat.S_IMODE(mode)))

    def chown(self, path: bytes, uid: int, gid: int) -> None:
        """Change the owner, UNKNOWN leaves it; what the host does not allow does not happen."""
        with contextlib.suppress(OSError):
            os.chown(path, _id(uid), _id(gid))

    def xattr_on_host(self, name: bytes, writes: bool) -> bytes:
        """The host's name of an extended attribute of the guest."""
        if not name.startswith(self.xattr_spaces):
            raise host_error(errno.EOPNOTSUPP)
        return name

    def xattr_in_guest(self, name: bytes) -> bytes | None:
        """The guest's name of one of the host's; None when it has none."""
        return name if name.startswith(self.xattr_spaces) else None


class SameOwners(NoOwners):
    """security_model=passthrough: everything is done as the guest says, or fails."""

    capabilities = (*NoOwners.capabilities, CAP_MKNOD)
    xattr_spaces = (b"user.", ACL)

    def allowed(self, mode: int) -> int:
        return mode

    def check_special(self, mode: int) -> None:
        pass

    def chown(self, path: bytes, uid: int, gid: int) -> None:
        os.chown(path, _id(uid), _id(gid))


class MappedOwners(NoOwners):
    """security_model=mapped-xattr: owner, mode and device number are extended attributes, as QEMU writes them.

    On the host every file is the user's own and has one of two modes; links and special files are regular files.
    """

    maps = True

    def __init__(self, file_mode: int = 0o600, folder_mode: int = 0o700) -> None:
        self.file_mode, self.folder_mode = file_mode, folder_mode

    def attributes(self, path: bytes, found: os.stat_result) -> Attributes:
        try:
            names = os.listxattr(path)
        except OSError:  # a real symbolic link has none
            return plain_attributes(found)
        if not any(name.startswith("user.virtfs.") for name in names):
            return plain_attributes(found)
        return Attributes(
            found,
            self._number(path, b"mode", LE32, found.st_mode),
            self._number(path, b"uid", LE32, found.st_uid),
            self._number(path, b"gid", LE32, found.st_gid),
            self._number(path, b"rdev", LE64, found.st_rdev),
        )

    def _number(self, path: bytes, name: bytes, layout: Struct, otherwise: int) -> int:
        try:
            data = os.getxattr(path, PREFIX + name)
        except OSError:
            return otherwise
        return int(layout.unpack(data)[0]) if len(data) == layout.size else otherwise

    def first_mode(self, mode: int) -> int:
        return self.folder_mode if stat.S_ISDIR(mode) else self.file_mode

    def check_special(self, mode: int) -> None:
        pass

    def settle(self, path: bytes, mode: int, uid: int, gid: int, rdev: int | None = None) -> None:
        self.chown(path, uid, gid)
        os.setxattr(path, PREFIX + b"mode", LE32.pack(mode))
        if rdev is not None:
            os.setxattr(path, PREFIX + b"rdev", LE64.pack(rdev))

    def chmod(self, path: bytes, old: Attributes, mode: int) -> None:
        os.setxattr(path, PREFIX + b"mode", LE32.pack(stat.S_IFMT(old.mode) | stat.S_IMODE(mode)))

    def chown(self, path: bytes, uid: int, gid: int) -> None:
        for name, number in ((b"uid", uid), (b"gid", gid)):
            if number != UNKNOWN:
                os.setxattr(path, PREFIX + name, LE32.pack(number))

    def xattr_on_host(self, name: bytes, writes: bool) -> bytes:
        if name.startswith(ACL):
            return PREFIX + name
        if name.startswith(PREFIX):
            raise host_error(errno.EACCES if writes else errno.ENODATA)
        return super().xattr_on_host(name, writes)

    def xattr_in_guest(self, name: bytes) -> bytes | None:
        if name.startswith(PREFIX):
            return name.removeprefix(PREFIX) if name.startswith(PREFIX + ACL) else None
        return super().xattr_in_guest(name)


MODELS: dict[str, Callable[[], NoOwners]] = {
    "none": NoOwners,
    "passthrough": SameOwners,
    "mapped-xattr": MappedOwners,
    "mapped": MappedOwners,
}
