"""Landlock (landlock(7)): what of the file system this process may open from now on, and where it may connect."""

import ctypes
import os
import stat
from struct import pack

from virtio.needs import Needs

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # on every architecture
VERSION, PATH_BENEATH, NET_PORT = 1, 1, 2
# linux/landlock.h, access rights to files
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, REMOVE_DIR, REMOVE_FILE = (1 << bit for bit in range(6))
REFER, TRUNCATE, IOCTL_DEVICE = 1 << 13, 1 << 14, 1 << 15
FIRST = (1 << 13) - 1  # those of the first version
BIND_TCP, CONNECT_TCP = 1, 2
SCOPES = 3  # abstract unix sockets and signals stay among those in the sandbox
READS = READ_FILE | READ_DIR
WRITES = (FIRST & ~EXECUTE) | REFER | TRUNCATE
OF_FILES = WRITE_FILE | READ_FILE | TRUNCATE  # rights that something else than a folder can have
_libc = ctypes.CDLL(None, use_errno=True)


def _call(number: int, *arguments: object) -> int:
    """The system call; an OSError where it fails."""
    result = int(_libc.syscall(number, *arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def version() -> int:
    """The kernel's version of Landlock; OSError where it has none (ENOSYS) or it is off (EOPNOTSUPP)."""
    return _call(CREATE_RULESET, None, ctypes.c_size_t(0), VERSION)


def handled(abi: int) -> tuple[int, int, int]:
    """What a version can refuse: rights to files, to the network, scopes.

    Version 1 refuses renaming and linking from folder to folder whatever the rules, with EXDEV.
    """
    files = FIRST | (REFER if abi >= 2 else 0) | (TRUNCATE if abi >= 3 else 0) | (IOCTL_DEVICE if abi >= 5 else 0)
    return files, BIND_TCP | CONNECT_TCP if abi >= 4 else 0, SCOPES if abi >= 6 else 0


def restrict(needs: Needs, abi: int) -> None:
    """Leave this process what it needs.  PR_SET_NO_NEW_PRIVS has been set."""
    files, network, scopes = handled(abi)
    ruleset = _call(CREATE_RULESET, pack("<QQQ", files, network, scopes), ctypes.c_size_t(24), 0)
    try:
        for place in needs.reads:
            _allow(ruleset, place, READS & files)
        for place in needs.writes:
            _allow(ruleset, place, (WRITES | READS) & files)
        for path in needs.removes:
            _allow(ruleset, os.path.dirname(path) or ".", REMOVE_FILE)
        for port in needs.ports if network else ():
            _call(ADD_RULE, ruleset, NET_PORT, pack("<QQ", CONNECT_TCP, port), 0)
        _call(RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, place: str | int, rights: int) -> None:
    """Rights to a file or to everything in a folder."""
    fd = os.open(place, os.O_PATH | os.O_CLOEXEC) if isinstance(place, str) else place
    try:
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            rights &= OF_FILES
        _call(ADD_RULE, ruleset, PATH_BENEATH, pack("<Qi", rights, fd), 0)
    finally:
        if fd != place:
            os.close(fd)
