"""A folder of the host and all below it, for a guest that is not trusted: no way leads out, and nothing hangs.

A file is known by a descriptor that gives no access (O_PATH) and is found one name at a time, without following
links.  What is then done to it goes through the descriptor, so renaming and replacing names changes nothing.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import resource
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from struct import Struct
from typing import ClassVar

from virtio.host_calls import AT_FDCWD, DirectoryEntry, directory_entries, host_error, open_beneath, set_times
from virtio.host_owners import PREFIX, Attributes, NoOwners
from virtio.needs import CAP_DAC_OVERRIDE, Needs

MOST_HANDLES = 65536
RESERVED = 256  # descriptors that are left for everything else in the process
LINK_MAX = 4096
FOLDER, LINK, FILE = 0x80, 0x02, 0  # the type in a qid
FLOCK = Struct("@hhqqi4x")
ACCESS_WRITES = os.O_WRONLY | os.O_RDWR
Identity = tuple[int, int]  # device and inode
Qid = tuple[int, int, int]  # type, version, path


class Handle:
    """A descriptor that is closed when nobody has it any more; there is a limit to how many there are."""

    limit: ClassVar[int] = MOST_HANDLES
    count: ClassVar[int] = 0

    def __init__(self, fd: int) -> None:
        self.fd = fd
        Handle.count += 1
        if Handle.count > Handle.limit:
            raise host_error(errno.ENFILE)

    def __del__(self) -> None:
        Handle.count -= 1
        with contextlib.suppress(OSError):
            os.close(self.fd)

    @property
    def path(self) -> bytes:
        """Leads to the very file, for calls that take no descriptor of O_PATH."""
        return b"/proc/self/fd/%d" % self.fd


def raise_limits() -> None:
    """Have this process keep as many files open as the host lets it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    Handle.limit = MOST_HANDLES if soft == resource.RLIM_INFINITY else min(MOST_HANDLES, max(soft - RESERVED, 16))


class Node(Handle):
    """A file that was found: `parent` and `name` are where, the root has none.

    Parents never form a ring, even when names on the host and what is known of them differ: descriptors are closed
    as soon as nobody has the node.
    """

    def __init__(self, fd: int, parent: "Node | None" = None, name: bytes = b"") -> None:
        super().__init__(fd)
        self.parent, self.name = parent, name
        self.found = os.stat(fd)
        self.identity: Identity = (self.found.st_dev, self.found.st_ino)

    def lineage(self) -> "set[Node]":
        """The node and all that it was found in."""
        found: set[Node] = set()
        node: Node | None = self
        while node is not None:
            found.add(node)
            node = node.parent
        return found


class HostTree:
    """The operations.  All raise OSError, and nothing else for any bytes as a name."""

    def __init__(self, path: Path, owners: NoOwners, readonly: bool = False, multidevs: str = "warn") -> None:
        self.label, self.owners, self.readonly, self.multidevs = path, owners, readonly, multidevs
        self.root = Node(os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        self.warned = False
        if owners.maps:
            _check_xattrs(self.root)

    def needs(self) -> Needs:
        """The folder; root's rights are those that the model uses (open_by_handle_at is none of them)."""
        root = self.root.fd
        if self.readonly:
            return Needs(reads=(root,), capabilities=(CAP_DAC_OVERRIDE,))
        return Needs(writes=(root,), capabilities=self.owners.capabilities)

    # Looking

    def child(self, folder: Node, name: bytes) -> Node:
        """The file of this name; "." and ".." never lead above the root."""
        if name == b".":
            return folder
        if name == b"..":
            return self.place(folder) if folder.parent else folder
        node = Node(open_beneath(folder.fd, _checked(name), os.O_PATH), folder, name)
        if node.found.st_dev != self.root.found.st_dev:
            self._foreign()
        return node

    def _foreign(self) -> None:
        """A file of another file system of the host, whose inode numbers may be those of the root's."""
        if self.multidevs == "forbid":
            raise host_error(errno.ENODEV)
        if self.multidevs == "warn" and not self.warned:
            self.warned = True
            text = "has files of several file systems, which a guest may take for the same; use multidevs=remap"
            print(f"hartbeat: share {self.label}: {text}", file=sys.stderr, flush=True)

    def attributes(self, node: Node) -> Attributes:
        """What stat tells now."""
        return self.owners.attributes(node.path, os.stat(node.fd))

    def qid(self, attributes: Attributes) -> Qid:
        """What a client knows the file by; the version changes with the contents and is never 0 (do not cache)."""
        found = attributes.host
        kind = FOLDER if stat.S_ISDIR(attributes.mode) else LINK if stat.S_ISLNK(attributes.mode) else FILE
        changed = found.st_mtime_ns
        version = (changed ^ changed >> 32 ^ found.st_size << 8) & 0xFFFF_FFFF
        return kind, version or 1, self.number(found.st_dev, found.st_ino)

    def number(self, device: int, inode: int) -> int:
        """One number for both: with multidevs=remap a digest for what is on another device than the root."""
        if self.multidevs != "remap" or device == self.root.found.st_dev:
            return inode
        return int.from_bytes(hashlib.blake2b(b"%d:%d" % (device, inode), digest_size=8).digest(), "little")

    def read_link(self, node: Node) -> bytes:
        """Where a symbolic link leads, which is for the guest to follow."""
        if stat.S_ISLNK(node.found.st_mode):
            return os.readlink(b"", dir_fd=node.fd)
        if not stat.S_ISLNK(self.attributes(node).mode):
            raise host_error(errno.EINVAL)
        file = Handle(os.open(node.path, os.O_RDONLY | os.O_CLOEXEC))
        return os.pread(file.fd, LINK_MAX, 0)

    def statistics(self, node: Node) -> os.statvfs_result:
        """Of the file system."""
        return os.statvfs(node.fd)

    # Open files

    def open(self, node: Node, flags: int) -> Handle:
        """Open for I/O.  Only files and folders: others could block, or do something."""
        self._check_flags(flags)
        mode = self.attributes(node).mode
        if stat.S_ISLNK(mode):
            raise host_error(errno.ELOOP)
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) or not _is_plain(node):
            raise host_error(errno.ENXIO)
        return Handle(os.open(node.path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC))

    def _check_flags(self, flags: int) -> None:
        if flags & ACCESS_WRITES == ACCESS_WRITES:
            raise host_error(errno.EINVAL)
        if flags & (ACCESS_WRITES | os.O_TRUNC | os.O_CREAT):
            self.check_writable()

    def entries(self, node: Node, file: Handle, offset: int, size: int) -> Iterator[DirectoryEntry]:
        """Entries of an open folder from an offset that an entry gave; the root's ".." is the root."""
        os.lseek(file.fd, offset, os.SEEK_SET)
        while True:
            some = list(directory_entries(file.fd, size))
            if not some:
                return
            for entry in some:
                inode = self.root.found.st_ino if entry.name == b".." and node.parent is None else entry.inode
                kind = 0 if self.owners.maps else entry.kind  # unknown: an attribute says
                yield DirectoryEntry(self.number(node.found.st_dev, inode), entry.offset, kind, entry.name)

    def lock_file(self, node: Node) -> Handle:
        """A descriptor of its own to hold locks on, for writing if possible."""
        if not stat.S_ISREG(node.found.st_mode):
            raise host_error(errno.EINVAL)
        flags = os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        if not self.readonly:
            with contextlib.suppress(OSError):
                return Handle(os.open(node.path, os.O_RDWR | flags))
        return Handle(os.open(node.path, os.O_RDONLY | flags))

    # Making

    def check_writable(self) -> None:
        """Nothing changes in a tree that is shared read-only."""
        if self.readonly:
            raise host_error(errno.EROFS)

    def create(self, folder: Node, name: bytes, flags: int, mode: int, uid: int, gid: int) -> tuple[Node, Handle]:
        """Make a regular file and open it; one that is there is opened if the flags lack O_EXCL."""
        self._check_flags(flags | os.O_CREAT)
        mode = stat.S_IFREG | stat.S_IMODE(mode)
        name = _new_name(name)
        how = flags | os.O_CREAT | os.O_EXCL | os.O_NONBLOCK | os.O_NOCTTY
        try:
            fd = open_beneath(folder.fd, name, how, self.owners.first_mode(mode))
        except FileExistsError:
            if flags & os.O_EXCL:
                raise
            node = self.child(folder, name)
            return node, self.open(node, flags & ~os.O_CREAT)
        file = Handle(fd)
        node = Node(os.open(file.path, os.O_PATH | os.O_CLOEXEC), folder, name)
        return self._settled(node, mode, uid, gid), file

    def make_folder(self, folder: Node, name: bytes, mode: int, uid: int, gid: int) -> Node:
        """Make a folder."""
        self.check_writable()
        mode = stat.S_IFDIR | stat.S_IMODE(mode)
        os.mkdir(_new_name(name), self.owners.first_mode(mode), dir_fd=folder.fd)
        return self._settled(self.child(folder, name), mode, uid, gid)

    def make_node(self, folder: Node, name: bytes, mode: int, device: int, uid: int, gid: int) -> Node:
        """Make a file, device, FIFO or socket."""
        self.check_writable()
        mode = mode & ~0o7777 | stat.S_IMODE(mode) if stat.S_IFMT(mode) else stat.S_IFREG | mode
        if stat.S_ISDIR(mode) or stat.S_ISLNK(mode):
            raise host_error(errno.EINVAL)
        self.owners.check_special(mode)
        first = self.owners.first_mode(mode)
        if self.owners.maps:
            os.mknod(_new_name(name), stat.S_IFREG | first, dir_fd=folder.fd)
        else:
            os.mknod(_new_name(name), stat.S_IFMT(mode) | first, device, dir_fd=folder.fd)
        return self._settled(self.child(folder, name), mode, uid, gid, device)

    def make_link(self, folder: Node, name: bytes, target: bytes, uid: int, gid: int) -> Node:
        """Make a symbolic link."""
        self.check_writable()
        if b"\0" in target or not target:
            raise host_error(errno.ENOENT)
        if len(target) >= LINK_MAX:
            raise host_error(errno.ENAMETOOLONG)
        if self.owners.maps:
            how = os.O_CREAT | os.O_EXCL | os.O_WRONLY
            file = Handle(open_beneath(folder.fd, _new_name(name), how, self.owners.first_mode(stat.S_IFLNK)))
            os.write(file.fd, target)
        else:
            os.symlink(target, _new_name(name), dir_fd=folder.fd)
        return self._settled(self.child(folder, name), stat.S_IFLNK | 0o777, uid, gid)

    def _settled(self, node: Node, mode: int, uid: int, gid: int, device: int | None = None) -> Node:
        """With owner and mode as they should be, or not there at all."""
        try:
            self.owners.settle(node.path, mode, uid, gid, device)
        except OSError:
            with contextlib.suppress(OSError):
                self.remove(node)
            raise
        return node

    def add_name(self, folder: Node, name: bytes, node: Node) -> None:
        """A hard link."""
        self.check_writable()
        os.link(node.path, _new_name(name), src_dir_fd=AT_FDCWD, dst_dir_fd=folder.fd, follow_symlinks=True)

    # Changing

    def rename(self, folder: Node, name: bytes, to_folder: Node, to_name: bytes) -> None:
        """Move a name within the tree, replacing what is there."""
        self.check_writable()
        os.rename(_old_name(name), _old_name(to_name), src_dir_fd=folder.fd, dst_dir_fd=to_folder.fd)

    def remove_name(self, folder: Node, name: bytes, is_folder: bool) -> None:
        """Take a name away."""
        self.check_writable()
        if is_folder:
            os.rmdir(_old_name(name), dir_fd=folder.fd)
        else:
            os.unlink(_old_name(name), dir_fd=folder.fd)

    def remove(self, node: Node) -> None:
        """Take the name away by which the node was found, if it still is the node's."""
        self.remove_name(self.place(node), node.name, stat.S_ISDIR(node.found.st_mode))

    def place(self, node: Node) -> Node:
        """The folder where the node still has its name."""
        if node.parent is None:
            raise host_error(errno.EBUSY)
        if Node(open_beneath(node.parent.fd, node.name, os.O_PATH)).identity != node.identity:
            raise host_error(errno.ENOENT)
        return node.parent

    def change_mode(self, node: Node, mode: int) -> None:
        """Permissions."""
        self.check_writable()
        self.owners.chmod(node.path, self.attributes(node), mode)

    def change_owner(self, node: Node, uid: int, gid: int) -> None:
        """Owner and group; UNKNOWN leaves what is."""
        self.check_writable()
        self.owners.chown(node.path, uid, gid)

    def change_times(self, node: Node, accessed: tuple[int, int], modified: tuple[int, int]) -> None:
        """Times of access and modification as `set_times` takes them."""
        self.check_writable()
        set_times(node.path, accessed, modified)

    def change_size(self, node: Node, file: Handle | None, size: int) -> None:
        """Cut or extend a file; by its open descriptor where there is one, which needs no permission any more."""
        self.check_writable()
        if stat.S_ISDIR(node.found.st_mode):
            raise host_error(errno.EISDIR)
        if not stat.S_ISREG(node.found.st_mode):
            raise host_error(errno.EINVAL)
        if size >> 63:
            raise host_error(errno.EFBIG)
        if file and fcntl.fcntl(file.fd, fcntl.F_GETFL) & ACCESS_WRITES:
            os.ftruncate(file.fd, size)
        else:
            os.truncate(node.path, size)

    # Extended attributes

    def xattr(self, node: Node, name: bytes) -> bytes:
        """One value."""
        return os.getxattr(node.path, self.owners.xattr_on_host(_xattr_name(name), writes=False))

    def xattr_names(self, node: Node) -> bytes:
        """All names, each with a NUL behind it."""
        names = (self.owners.xattr_in_guest(os.fsencode(name)) for name in os.listxattr(node.path))
        return b"".join(name + b"\0" for name in names if name is not None)

    def set_xattr(self, node: Node, name: bytes, value: bytes, flags: int) -> None:
        """Set one value; an empty one takes the attribute away, as the protocol has no other message for it."""
        self.check_writable()
        own = self.owners.xattr_on_host(_xattr_name(name), writes=True)
        if value:
            os.setxattr(node.path, own, value, flags)
        else:
            os.removexattr(node.path, own)


def _check_xattrs(node: Node) -> None:
    """A file system without extended attributes is the user's mistake, and found out at once."""
    try:
        os.getxattr(node.path, PREFIX + b"uid")
    except OSError as error:
        if error.errno != errno.ENODATA:
            raise


def _is_plain(node: Node) -> bool:
    return stat.S_ISREG(node.found.st_mode) or stat.S_ISDIR(node.found.st_mode)


def _checked(name: bytes) -> bytes:
    """A single name of a file."""
    if not name or b"/" in name or b"\0" in name:
        raise host_error(errno.ENOENT)
    return name


def _new_name(name: bytes) -> bytes:
    if name in (b".", b".."):
        raise host_error(errno.EEXIST)
    return _checked(name)


def _old_name(name: bytes) -> bytes:
    if name in (b".", b".."):
        raise host_error(errno.EINVAL)
    return _checked(name)


def _xattr_name(name: bytes) -> bytes:
    if b"\0" in name or len(name) > 255:
        raise host_error(errno.ERANGE)
    return name
