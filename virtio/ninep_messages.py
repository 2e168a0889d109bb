"""The messages of 9P2000.L: numbers, and fields declared once, from which parsing is derived.

The protocol is described in diod's protocol.md and in the manual pages of Plan 9, section 5.
"""

from collections.abc import Callable
from enum import IntEnum
from struct import Struct, error
from typing import Any

from virtio.host_tree import Qid

HEADER = Struct("<IBH")  # size, type, tag
QID = Struct("<BIQ")
COUNT = Struct("<I")
LENGTH = Struct("<H")
NO_FID = 0xFFFF_FFFF
IO_HEADER = 24  # what the protocol sets aside for the header of a read or write
MOST_NAMES = 16  # of one walk
Values = tuple[Any, ...]


class Malformed(Exception):
    """A message that is not what its type says."""


class Message(IntEnum):
    """Types of requests; an answer's is one more."""

    LERROR = 6
    STATFS = 8
    LOPEN = 12
    LCREATE = 14
    SYMLINK = 16
    MKNOD = 18
    RENAME = 20
    READLINK = 22
    GETATTR = 24
    SETATTR = 26
    XATTRWALK = 30
    XATTRCREATE = 32
    READDIR = 40
    FSYNC = 50
    LOCK = 52
    GETLOCK = 54
    LINK = 70
    MKDIR = 72
    RENAMEAT = 74
    UNLINKAT = 76
    VERSION = 100
    AUTH = 102
    ATTACH = 104
    FLUSH = 108
    WALK = 110
    READ = 116
    WRITE = 118
    CLUNK = 120
    REMOVE = 122


# Fields of each request: B, H, I and Q are numbers of 1, 2, 4 and 8 bytes, s is a string, * any number of strings.
# The data of a write are not among them.
FIELDS: dict[Message, str] = {
    Message.STATFS: "I",
    Message.LOPEN: "II",
    Message.LCREATE: "IsIII",
    Message.SYMLINK: "IssI",
    Message.MKNOD: "IsIIII",
    Message.RENAME: "IIs",
    Message.READLINK: "I",
    Message.GETATTR: "IQ",
    Message.SETATTR: "IIIIIQQQQQ",
    Message.XATTRWALK: "IIs",
    Message.XATTRCREATE: "IsQI",
    Message.READDIR: "IQI",
    Message.FSYNC: "II",
    Message.LOCK: "IBIQQIs",
    Message.GETLOCK: "IBQQIs",
    Message.LINK: "IIs",
    Message.MKDIR: "IsII",
    Message.RENAMEAT: "IsIs",
    Message.UNLINKAT: "IsI",
    Message.VERSION: "Is",
    Message.AUTH: "IssI",
    Message.ATTACH: "IIssI",
    Message.FLUSH: "H",
    Message.WALK: "II*",
    Message.READ: "IQI",
    Message.WRITE: "IQI",
    Message.CLUNK: "I",
    Message.REMOVE: "I",
}


Reader = Callable[[bytes, int], tuple[Values, int]]


def _numbers(codes: str) -> Reader:
    layout = Struct("<" + codes)
    return lambda data, at: (layout.unpack_from(data, at), at + layout.size)


def _string(data: bytes, at: int) -> tuple[Values, int]:
    (length,) = LENGTH.unpack_from(data, at)
    end = at + 2 + length
    if end > len(data):
        raise Malformed(f"a string of {length} bytes with {len(data) - at - 2} left")
    return (data[at + 2 : end],), end


def _strings(data: bytes, at: int) -> tuple[Values, int]:
    (count,) = LENGTH.unpack_from(data, at)
    if count > MOST_NAMES:
        raise Malformed(f"a walk of {count} names")
    names: list[bytes] = []
    at += 2
    for _ in range(count):
        (name,), at = _string(data, at)
        names.append(name)
    return (names,), at


def _readers(codes: str) -> list[Reader]:
    """Runs of numbers are read at once."""
    special: dict[str, Reader] = {"s": _string, "*": _strings}
    readers, run = [], ""
    for code in codes:
        if code not in special:
            run += code
            continue
        readers += [_numbers(run)] * bool(run) + [special[code]]
        run = ""
    return readers + [_numbers(run)] * bool(run)


READERS = {message: _readers(codes) for message, codes in FIELDS.items()}
# How much of a message is its fields: all of it, unless data follow.
FIELDS_SIZE = {Message.WRITE: Struct("<" + FIELDS[Message.WRITE]).size}


def parse(message: Message, data: bytes) -> Values:
    """The fields of a request."""
    values: Values = ()
    at = 0
    try:
        for read in READERS[message]:
            some, at = read(data, at)
            values += some
    except error as problem:
        raise Malformed(f"a {message.name} of {len(data)} bytes") from problem
    return values


def string(data: bytes) -> bytes:
    """A string as it is sent."""
    return LENGTH.pack(len(data)) + data


def qid(value: Qid) -> bytes:
    """A qid as it is sent."""
    return QID.pack(*value)
