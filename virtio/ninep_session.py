"""One client's session with a 9P2000.L server: its fids, and what each message does to them and to the host's tree.

Guest nonsense and the host's refusals are OSErrors, which the client gets as numbers.
"""

import errno
import os
from collections.abc import Callable
from struct import Struct
from typing import Any

from virtio.host_calls import UTIME_NOW, UTIME_OMIT, host_error
from virtio.host_locks import Locks, Owner, Range
from virtio.host_owners import UNKNOWN, Attributes
from virtio.host_tree import Handle, HostTree, Identity, Node
from virtio.image import IOV_MAX, rest
from virtio.ninep_messages import COUNT, IO_HEADER, QID, Message, qid, string
from virtio.queue import size_of, take

VERSION = b"9P2000.L"
LEAST_MSIZE, MOST_MSIZE = 4096, 1 << 20
MOST_FIDS = 65536
XATTR_MAX = 65536  # of one attribute, as in Linux
XATTR_MEMORY = 16 << 20  # of all attributes that fids hold
XATTR_CREATE, XATTR_REPLACE = 1, 2
REMOVE_FOLDER = 0x200  # AT_REMOVEDIR
BASIC = 0x7FF  # the attributes up to `blocks`, which are always told
V9FS_MAGIC = 0x0102_1997
LOCK_SUCCESS, LOCK_BLOCKED = 0, 1
LOCK_FLAGS = 3
ATTRIBUTES = Struct("<QBIQIII15Q")
STATFS = Struct("<IIQQQQQQI")
ENTRY = Struct("<QB")

SET_MODE, SET_UID, SET_GID, SET_SIZE, SET_ATIME, SET_MTIME, SET_CTIME = (1 << bit for bit in range(7))
GIVEN_ATIME, GIVEN_MTIME = 1 << 7, 1 << 8

# Flags of open as the protocol numbers them, and as the host does; all others are left out.
OPEN_FLAGS = (
    (0o200, os.O_EXCL),
    (0o1000, os.O_TRUNC),
    (0o2000, os.O_APPEND),
    (0o10000, os.O_DSYNC),
    (0o4000000, os.O_SYNC & ~os.O_DSYNC),
)


def open_flags(flags: int) -> int:
    """The host's flags for those of a client."""
    return flags & os.O_ACCMODE | sum(own for theirs, own in OPEN_FLAGS if flags & theirs)


class Xattr:
    """An extended attribute on its way: `name` is empty for one that is read."""

    def __init__(self, data: bytearray, name: bytes = b"", flags: int = 0) -> None:
        self.data, self.name, self.flags = data, name, flags
        self.written = 0


class Fid:
    """What a client's number stands for: a file, and with it an open descriptor or an attribute."""

    def __init__(self, node: Node, uid: int) -> None:
        self.node, self.uid = node, uid
        self.file: Handle | None = None
        self.xattr: Xattr | None = None


class Session:
    """The state from one Tversion to the next."""

    def __init__(self, tree: HostTree) -> None:
        self.tree, self.locks = tree, Locks(tree)
        self.fids: dict[int, Fid] = {}
        self.msize = 0
        self.xattr_bytes = 0

    def forget(self) -> None:
        """As it is before a client comes."""
        self.fids.clear()
        self.locks = Locks(self.tree)
        self.msize = self.xattr_bytes = 0

    # Fids

    def fid(self, number: int) -> Fid:
        """What the client means."""
        found = self.fids.get(number)
        if found is None:
            raise host_error(errno.EBADF)
        return found

    def folder(self, number: int) -> Node:
        """A fid's file, in which names are made or looked up."""
        return self.fid(number).node

    def file(self, number: int) -> Handle:
        """A fid's open descriptor."""
        file = self.fid(number).file
        if file is None:
            raise host_error(errno.EBADF)
        return file

    def add(self, number: int, fid: Fid) -> None:
        """Give a number to something new."""
        if number in self.fids or number == UNKNOWN:
            raise host_error(errno.EINVAL)
        if len(self.fids) >= MOST_FIDS:
            raise host_error(errno.ENFILE)
        self.fids[number] = fid

    def drop(self, number: int) -> Fid:
        """The client has no more use for a number."""
        fid = self.fid(number)
        del self.fids[number]
        if fid.xattr:
            self.xattr_bytes -= len(fid.xattr.data)
        if fid.file and fid.node.identity in self.locks.holders and not self._is_open(fid.node.identity):
            self.locks.release(fid.node.identity)
        return fid

    def _is_open(self, identity: Identity) -> bool:
        return any(fid.file and fid.node.identity == identity for fid in self.fids.values())

    def qid(self, node: Node) -> bytes:
        """A file's qid as it is sent."""
        return qid(self.tree.qid(self.tree.attributes(node)))

    # The session itself

    def version(self, msize: int, name: bytes) -> bytes:
        """Agree on the largest message; everything that was before is over."""
        self.forget()
        if msize < LEAST_MSIZE:
            raise host_error(errno.EMSGSIZE)
        if name != VERSION:
            return COUNT.pack(min(msize, MOST_MSIZE)) + string(b"unknown")
        self.msize = min(msize, MOST_MSIZE)
        return COUNT.pack(self.msize) + string(VERSION)

    def auth(self, afid: int, user: bytes, name: bytes, uid: int) -> bytes:
        raise host_error(errno.EOPNOTSUPP)

    def attach(self, fid: int, afid: int, user: bytes, name: bytes, uid: int) -> bytes:
        self.add(fid, Fid(self.tree.root, uid))
        return self.qid(self.tree.root)

    def flush(self, tag: int) -> bytes:
        """Requests are done in their order: the one meant is finished."""
        return b""

    # Finding and forgetting

    def walk(self, fid: int, new: int, names: list[bytes]) -> bytes:
        start = self.fid(fid)
        if fid != new and new in self.fids:
            raise host_error(errno.EINVAL)
        node, qids = start.node, b""
        for done, name in enumerate(names):
            try:
                node = self.tree.child(node, name)
                qids += self.qid(node)
            except OSError:
                if done:
                    return _walked(qids)  # a part of the way: no new fid
                raise
        if fid == new:
            if start.file or start.xattr:
                raise host_error(errno.EINVAL)
            del self.fids[fid]
        self.add(new, Fid(node, start.uid))
        return _walked(qids)

    def clunk(self, fid: int) -> bytes:
        dropped = self.drop(fid)
        if dropped.xattr and dropped.xattr.name:
            self._store(dropped.node, dropped.xattr)
        return b""

    def remove(self, fid: int) -> bytes:
        self.tree.remove(self.drop(fid).node)
        return b""

    # Attributes

    def getattr(self, fid: int, wanted: int) -> bytes:
        node = self.fid(fid).node
        return self._attributes(self.tree.attributes(node))

    def _attributes(self, a: Attributes) -> bytes:
        found = a.host
        times = (found.st_atime_ns, found.st_mtime_ns, found.st_ctime_ns, 0)
        parts = [part & (1 << 64) - 1 for time in times for part in divmod(time, 10**9)]
        block = self._unit(found.st_blksize)
        head = (BASIC, *self.tree.qid(a), a.mode, a.uid, a.gid, found.st_nlink, a.rdev)
        return ATTRIBUTES.pack(*head, found.st_size, block, found.st_blocks, *parts, 0, 0)

    def _unit(self, block: int) -> int:
        """What is best read or written at once: as many blocks as fit in a message."""
        most = self.msize - IO_HEADER
        return most - most % block if 0 < block <= most else most

    def setattr(self, fid: int, valid: int, mode: int, uid: int, gid: int, size: int, *times: int) -> bytes:
        it = self.fid(fid)
        self.tree.check_writable()
        if valid & SET_MODE:
            self.tree.change_mode(it.node, mode)
        if valid & (SET_UID | SET_GID):
            new = uid if valid & SET_UID else UNKNOWN, gid if valid & SET_GID else UNKNOWN
            self.tree.change_owner(it.node, *new)
        if valid & SET_SIZE:
            self.tree.change_size(it.node, it.file, size)
        if valid & (SET_ATIME | SET_MTIME):
            self.tree.change_times(
                it.node,
                _time(valid, SET_ATIME, GIVEN_ATIME, times[:2]),
                _time(valid, SET_MTIME, GIVEN_MTIME, times[2:]),
            )
        return b""

    def statfs(self, fid: int) -> bytes:
        s = self.tree.statistics(self.fid(fid).node)
        counts = (s.f_blocks, s.f_bfree, s.f_bavail, s.f_files, s.f_ffree)
        return STATFS.pack(V9FS_MAGIC, s.f_frsize, *counts, s.f_fsid & (1 << 64) - 1, s.f_namemax)

    def readlink(self, fid: int) -> bytes:
        return string(self.tree.read_link(self.fid(fid).node))

    # Open files

    def lopen(self, fid: int, flags: int) -> bytes:
        it = self.fid(fid)
        if it.file or it.xattr:
            raise host_error(errno.EINVAL)
        it.file = self.tree.open(it.node, open_flags(flags) & ~os.O_EXCL)
        return self._opened(it.node)

    def lcreate(self, fid: int, name: bytes, flags: int, mode: int, gid: int) -> bytes:
        """The fid becomes the new file."""
        it = self.fid(fid)
        if it.file or it.xattr:
            raise host_error(errno.EINVAL)
        it.node, it.file = self.tree.create(it.node, name, open_flags(flags), mode, it.uid, gid)
        return self._opened(it.node)

    def _opened(self, node: Node) -> bytes:
        attributes = self.tree.attributes(node)
        return qid(self.tree.qid(attributes)) + COUNT.pack(self._unit(attributes.host.st_blksize))

    def read(self, fid: int, offset: int, room: list[memoryview]) -> int:
        """Fill the room straight from the file; how much there was."""
        it = self.fid(fid)
        if it.xattr and not it.xattr.name:
            return _copy(it.xattr.data[offset:], room)
        return _all(os.preadv, self.file(fid), room, offset)

    def write(self, fid: int, offset: int, data: list[memoryview]) -> bytes:
        """Write the data straight to the file."""
        it = self.fid(fid)
        if it.xattr and it.xattr.name:
            return COUNT.pack(self._gather(it.xattr, offset, data))
        return COUNT.pack(_all(os.pwritev, self.file(fid), data, offset))

    def readdir(self, fid: int, offset: int, count: int) -> bytes:
        if offset >> 63:
            raise host_error(errno.EINVAL)
        room = min(count, self.msize - IO_HEADER)
        parts, used = [], 0
        for entry in self.tree.entries(self.fid(fid).node, self.file(fid), offset, min(max(room, 512), 1 << 16)):
            kind = 0x80 if entry.kind == 4 else 0x02 if entry.kind == 10 else 0  # DT_DIR, DT_LNK
            part = QID.pack(kind, 0, entry.inode) + ENTRY.pack(entry.offset, entry.kind) + string(entry.name)
            if used + len(part) > room:
                break
            parts.append(part)
            used += len(part)
        else:
            return COUNT.pack(used) + b"".join(parts)
        if not parts:
            raise host_error(errno.EINVAL)  # an empty answer would be the end of the folder
        return COUNT.pack(used) + b"".join(parts)

    def fsync(self, fid: int, data_only: int) -> bytes:
        (os.fdatasync if data_only else os.fsync)(self.file(fid).fd)
        return b""

    # Names

    def mkdir(self, fid: int, name: bytes, mode: int, gid: int) -> bytes:
        return self.qid(self.tree.make_folder(self.folder(fid), name, mode, self.fid(fid).uid, gid))

    def mknod(self, fid: int, name: bytes, mode: int, major: int, minor: int, gid: int) -> bytes:
        device = os.makedev(major & 0xFFF, minor & 0xF_FFFF)
        return self.qid(self.tree.make_node(self.folder(fid), name, mode, device, self.fid(fid).uid, gid))

    def symlink(self, fid: int, name: bytes, target: bytes, gid: int) -> bytes:
        return self.qid(self.tree.make_link(self.folder(fid), name, target, self.fid(fid).uid, gid))

    def link(self, folder: int, fid: int, name: bytes) -> bytes:
        self.tree.add_name(self.folder(folder), name, self.fid(fid).node)
        return b""

    def unlinkat(self, folder: int, name: bytes, flags: int) -> bytes:
        self.tree.remove_name(self.folder(folder), name, bool(flags & REMOVE_FOLDER))
        return b""

    def rename(self, fid: int, folder: int, name: bytes) -> bytes:
        node = self.fid(fid).node
        self._rename(self.tree.place(node), node.name, self.folder(folder), name)
        return b""

    def renameat(self, folder: int, name: bytes, to_folder: int, to_name: bytes) -> bytes:
        self._rename(self.folder(folder), name, self.folder(to_folder), to_name)
        return b""

    def _rename(self, folder: Node, name: bytes, to_folder: Node, to_name: bytes) -> None:
        """Fids of the file learn where it is now: a later remove, rename or ".." is by that name."""
        self.tree.rename(folder, name, to_folder, to_name)
        above = to_folder.lineage()  # one in it is out of date, and must not come to be its own parent
        for node in {fid.node for fid in self.fids.values()} - above:
            if node.name == name and node.parent and node.parent.identity == folder.identity:
                node.parent, node.name = to_folder, to_name

    # Locks

    def lock(self, fid: int, kind: int, flags: int, start: int, length: int, process: int, client: bytes) -> bytes:
        self.file(fid)
        if flags & ~LOCK_FLAGS:
            raise host_error(errno.EINVAL)
        taken = self.locks.take(self.fid(fid).node, Owner(process, client), Range(kind, start, length))
        return bytes([LOCK_SUCCESS if taken else LOCK_BLOCKED])  # which a client that waits tries again

    def getlock(self, fid: int, kind: int, start: int, length: int, process: int, client: bytes) -> bytes:
        self.file(fid)
        found = self.locks.in_the_way(self.fid(fid).node, Owner(process, client), Range(kind, start, length))
        return GETLOCK.pack(*found, process) + string(client)

    # Extended attributes

    def xattrwalk(self, fid: int, new: int, name: bytes) -> bytes:
        """A new fid from which the value, or the list of all names, is read."""
        it = self.fid(fid)
        value = self.tree.xattr(it.node, name) if name else self.tree.xattr_names(it.node)
        made = Fid(it.node, it.uid)
        made.xattr = self._held(Xattr(bytearray(value)))
        try:
            self.add(new, made)
        except OSError:
            self.xattr_bytes -= len(value)
            raise
        return SIZE.pack(len(value))

    def xattrcreate(self, fid: int, name: bytes, size: int, flags: int) -> bytes:
        """The fid takes the value by writes, and its clunk sets it."""
        it = self.fid(fid)
        self.tree.check_writable()
        if it.file or it.xattr or not name or flags & ~(XATTR_CREATE | XATTR_REPLACE):
            raise host_error(errno.EINVAL)
        if size > XATTR_MAX:
            raise host_error(errno.E2BIG)
        it.xattr = self._held(Xattr(bytearray(size), name, flags))
        return b""

    def _held(self, xattr: Xattr) -> Xattr:
        if self.xattr_bytes + len(xattr.data) > XATTR_MEMORY:
            raise host_error(errno.ENOMEM)
        self.xattr_bytes += len(xattr.data)
        return xattr

    def _gather(self, xattr: Xattr, offset: int, data: list[memoryview]) -> int:
        size = size_of(data)
        if offset + size > len(xattr.data):
            raise host_error(errno.ENOSPC)
        xattr.data[offset : offset + size] = b"".join(data)
        xattr.written = max(xattr.written, offset + size)
        return size

    def _store(self, node: Node, xattr: Xattr) -> None:
        if xattr.written != len(xattr.data):
            raise host_error(errno.EINVAL)
        self.tree.set_xattr(node, xattr.name, bytes(xattr.data), xattr.flags)


SIZE = Struct("<Q")
GETLOCK = Struct("<BQQI")


def _walked(qids: bytes) -> bytes:
    return (len(qids) // QID.size).to_bytes(2, "little") + qids


def _time(valid: int, wanted: int, given: int, time: tuple[int, ...]) -> tuple[int, int]:
    """Seconds and nanoseconds as `change_times` takes them."""
    if not valid & wanted:
        return 0, UTIME_OMIT
    return (time[0], min(time[1], 10**9 - 1)) if valid & given else (0, UTIME_NOW)


def _all(transfer: Callable[[int, list[memoryview], int], int], file: Handle, parts: list[memoryview], at: int) -> int:
    """preadv or pwritev until all is done, or the file's end is reached; how much it was."""
    total = size_of(parts)
    if at + total >> 63:
        raise host_error(errno.EINVAL)
    done = 0
    while done < total:
        try:
            count = transfer(file.fd, rest(parts, done)[:IOV_MAX], at + done)
        except OSError:
            if done:
                break
            raise
        if count == 0:
            break
        done += count
    return done


def _copy(data: bytearray, room: list[memoryview]) -> int:
    at = 0
    for part in take(room, len(data)):
        part[:] = data[at : at + len(part)]
        at += len(part)
    return at


HANDLERS: dict[Message, Callable[..., Any]] = {
    message: getattr(Session, message.name.lower()) for message in Message if message is not Message.LERROR
}
