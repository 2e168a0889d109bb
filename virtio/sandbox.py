"""The I/O processes' sandbox: what a guest could do that had taken one over (docs/SAFETY.md).

Entered after everything is open and before the guest is served.  Each part is there if the kernel has it; `missing`
says which are not, in the supervisor, once.
"""

import contextlib
import ctypes
import linecache
import os
import platform
import tokenize
import traceback
from collections.abc import Iterable
from struct import pack, unpack

from mem import regions
from virtio import landlock
from virtio.needs import Needs
from virtio.syscalls import ARCHITECTURES, NUMBERS, compiled

PR_CAPBSET_READ, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 23, 24, 38
PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
CAPABILITY_VERSION_3 = 0x2008_0522
CAPABILITIES = 64  # at most
SECCOMP_SET_MODE_FILTER, SECCOMP_GET_ACTION_AVAIL, SECCOMP_FILTER_FLAG_TSYNC = 1, 2, 1
SECCOMP_RET_ERRNO = 0x0005_0000
PRELOADED = (linecache, tokenize, traceback)  # what Python imports when it has an exception to print
_libc = ctypes.CDLL(None, use_errno=True)


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def missing() -> list[str]:
    """What this host can't do, each with what follows from it."""
    lacks = []
    try:
        landlock.version()
    except OSError as error:
        lacks.append(f"no Landlock ({error.strerror}): with a shared folder other files can be opened too")
    try:
        _seccomp(SECCOMP_GET_ACTION_AVAIL, 0, ctypes.byref(ctypes.c_uint32(SECCOMP_RET_ERRNO)))
    except OSError as error:
        lacks.append(f"no seccomp ({error.strerror}): system calls are not filtered")
    return lacks


def enter(needs: Needs) -> None:
    """Give up what is not needed, for good."""
    regions.hide_harts()
    _prctl(PR_SET_NO_NEW_PRIVS, 1)
    keep_capabilities(needs.capabilities)
    try:
        abi = landlock.version()
    except OSError:
        abi = 0
    if abi:
        landlock.restrict(needs, abi)
    filter_calls(needs)


def close_all(surplus: Iterable[int]) -> None:
    """Close these descriptors, some of which may be closed already."""
    for fd in surplus:
        with contextlib.suppress(OSError):
            os.close(fd)


def open_descriptors() -> set[int]:
    """Those of this process."""
    return {int(name) for name in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{name}")}


def keep_capabilities(wanted: Iterable[int]) -> None:
    """Drop all others, which a process of an ordinary user does not have."""
    kept = set(wanted)
    for capability in range(CAPABILITIES):
        if capability not in kept and _libc.prctl(PR_CAPBSET_READ, capability, 0, 0, 0) == 1:
            _libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)  # EPERM: we are nobody to begin with
    _libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    header = pack("<Ii", CAPABILITY_VERSION_3, 0)
    data = ctypes.create_string_buffer(24)
    _check(_libc.capget(header, data))
    words = unpack("<6I", data)
    masks = [sum(1 << bit % 32 for bit in kept if bit // 32 == word) for word in range(2)]
    effective = [[words[3 * word] & masks[word], words[3 * word + 1] & masks[word], 0] for word in range(2)]
    _check(_libc.capset(header, pack("<6I", *effective[0], *effective[1])))


def filter_calls(needs: Needs) -> None:
    """Refuse all system calls but those that such a process makes."""
    if platform.machine() not in ARCHITECTURES:
        return
    code = compiled(needs, platform.machine())
    program = _Program(len(code) // 8, code)
    try:
        _seccomp(SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, ctypes.byref(program))
    except OSError:
        if not missing():
            raise


def _seccomp(operation: int, flags: int, argument: object) -> None:
    if platform.machine() not in ARCHITECTURES:
        raise OSError(38, f"the numbers of system calls on {platform.machine()} are not known")
    _check(_libc.syscall(NUMBERS["seccomp"][ARCHITECTURES[platform.machine()][0]], operation, flags, argument))


def _prctl(option: int, value: int) -> None:
    _check(_libc.prctl(option, value, 0, 0, 0))


def _check(result: int) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
