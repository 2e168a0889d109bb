"""Which system calls an I/O process may make, and their numbers.

From the code, and from the tests and boots of Linux under the filter.  `ALWAYS` is what Python and its allocator use of
descriptors that are open, memory, time and signals to itself.  What opens or changes files is there only where a
back-end needs it.
"""

import fcntl
import mmap
import os
import socket
import termios

from virtio.bpf import Check, system_call_filter
from virtio.needs import Needs

# uname -m: the column of NUMBERS, and linux/audit.h's name of the architecture
ARCHITECTURES = {"x86_64": (0, 0xC000_003E), "aarch64": (1, 0xC000_00B7), "riscv64": (1, 0xC000_00F3)}

# Linux's numbers: on x86-64, and on aarch64 and riscv64, which have the same; -1 where there is no such call.
# fmt: off
NUMBERS = {
    "accept": (43, 202), "accept4": (288, 242), "access": (21, -1), "brk": (12, 214), "chmod": (90, -1),
    "chown": (92, -1), "clock_getres": (229, 114), "clock_gettime": (228, 113), "clock_nanosleep": (230, 115),
    "clone": (56, 220), "clone3": (435, 435), "close": (3, 57), "close_range": (436, 436), "connect": (42, 203),
    "copy_file_range": (326, 285), "dup": (32, 23), "dup2": (33, -1), "dup3": (292, 24), "epoll_create1": (291, 20),
    "epoll_ctl": (233, 21), "epoll_pwait": (281, 22), "epoll_pwait2": (441, 441), "epoll_wait": (232, -1),
    "eventfd2": (290, 19), "exit": (60, 93), "exit_group": (231, 94), "faccessat": (269, 48),
    "faccessat2": (439, 439), "fallocate": (285, 47), "fchmod": (91, 52), "fchmodat": (268, 53), "fchown": (93, 55),
    "fchownat": (260, 54), "fcntl": (72, 25), "fdatasync": (75, 83), "fgetxattr": (193, 10), "flistxattr": (196, 13),
    "fremovexattr": (199, 16), "fsetxattr": (190, 7), "fstat": (5, 80), "fstatfs": (138, 44), "fsync": (74, 82),
    "ftruncate": (77, 46), "futex": (202, 98), "getcpu": (309, 168), "getcwd": (79, 17), "getdents64": (217, 61),
    "getegid": (108, 177), "geteuid": (107, 175), "getgid": (104, 176), "getpeername": (52, 205), "getpid": (39, 172),
    "getppid": (110, 173), "getrandom": (318, 278), "getrusage": (98, 165), "getsockname": (51, 204),
    "getsockopt": (55, 209), "gettid": (186, 178), "gettimeofday": (96, 169), "getuid": (102, 174),
    "getxattr": (191, 8), "ioctl": (16, 29), "landlock_add_rule": (445, 445), "landlock_create_ruleset": (444, 444),
    "landlock_restrict_self": (446, 446), "lchown": (94, -1), "lgetxattr": (192, 9), "link": (86, -1),
    "linkat": (265, 37), "listxattr": (194, 11), "llistxattr": (195, 12), "lremovexattr": (198, 15), "lseek": (8, 62),
    "lsetxattr": (189, 6), "lstat": (6, -1), "madvise": (28, 233), "membarrier": (324, 283), "mkdir": (83, -1),
    "mkdirat": (258, 34), "mknod": (133, -1), "mknodat": (259, 33), "mmap": (9, 222), "mprotect": (10, 226),
    "mremap": (25, 216), "munmap": (11, 215), "nanosleep": (35, 101), "newfstatat": (262, 79), "open": (2, -1),
    "openat": (257, 56), "openat2": (437, 437), "pipe2": (293, 59), "poll": (7, -1), "ppoll": (271, 73),
    "prctl": (157, 167), "pread64": (17, 67), "preadv": (295, 69), "preadv2": (327, 286), "prlimit64": (302, 261),
    "pselect6": (270, 72), "pwrite64": (18, 68), "pwritev": (296, 70), "pwritev2": (328, 287), "read": (0, 63),
    "readlink": (89, -1), "readlinkat": (267, 78), "readv": (19, 65), "recvfrom": (45, 207), "recvmsg": (47, 212),
    "removexattr": (197, 14), "rename": (82, -1), "renameat": (264, 38), "renameat2": (316, 276),
    "restart_syscall": (219, 128), "rmdir": (84, -1), "rseq": (334, 293), "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "rt_sigsuspend": (130, 133),
    "sched_getaffinity": (204, 123), "sched_yield": (24, 124), "seccomp": (317, 277), "select": (23, -1),
    "sendmsg": (46, 211), "sendto": (44, 206), "set_robust_list": (273, 99), "setsockopt": (54, 208),
    "setxattr": (188, 5), "shutdown": (48, 210), "sigaltstack": (131, 132), "socket": (41, 198),
    "socketpair": (53, 199), "stat": (4, -1), "statfs": (137, 43), "statx": (332, 291), "symlink": (88, -1),
    "symlinkat": (266, 36),
    "sync_file_range": (277, 84), "sysinfo": (99, 179), "tgkill": (234, 131), "time": (201, -1),
    "timerfd_create": (283, 85), "timerfd_gettime": (287, 87), "timerfd_settime": (286, 86), "times": (100, 153),
    "truncate": (76, 45), "uname": (63, 160), "unlink": (87, -1), "unlinkat": (263, 35), "utimensat": (280, 88),
    "wait4": (61, 260), "write": (1, 64), "writev": (20, 66),
}
# fmt: on

ALWAYS = """
    read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 lseek close close_range fstat newfstatat
    statx fstatfs fsync fdatasync sync_file_range fallocate ftruncate dup dup2 dup3 copy_file_range
    epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2 poll ppoll select pselect6
    eventfd2 timerfd_create timerfd_settime timerfd_gettime pipe2
    futex set_robust_list rseq sched_yield sched_getaffinity membarrier getcpu munmap mremap madvise brk
    rt_sigaction rt_sigprocmask rt_sigreturn rt_sigsuspend sigaltstack restart_syscall
    clock_gettime clock_getres clock_nanosleep nanosleep gettimeofday time times getrusage
    getpid getppid gettid getuid geteuid getgid getegid uname sysinfo getrandom getcwd
    exit exit_group wait4
    sendmsg recvmsg sendto recvfrom accept accept4 shutdown getsockname getpeername getsockopt setsockopt
""".split()  # noqa: SIM905

LOOKING = """
    open openat openat2 getdents64 readlink readlinkat access faccessat faccessat2 stat lstat statfs
    getxattr lgetxattr fgetxattr listxattr llistxattr flistxattr
""".split()  # noqa: SIM905

CHANGING = """
    mkdir mkdirat mknod mknodat unlink unlinkat rmdir rename renameat renameat2 link linkat symlink symlinkat truncate
    chmod fchmod fchmodat chown lchown fchown fchownat utimensat
    setxattr lsetxattr fsetxattr removexattr lremovexattr fremovexattr
""".split()  # noqa: SIM905

IOCTLS = (termios.TCGETS, termios.TCSETS, termios.TCSETSW, termios.TCSETSF, termios.TIOCGWINSZ,
          termios.FIONBIO, termios.FIOCLEX, termios.FIONCLEX, termios.FIONREAD)  # fmt: skip
# Not F_SETOWN, F_SETSIG and their like, by which the kernel is made to send signals.
FCNTLS = (fcntl.F_DUPFD, fcntl.F_GETFD, fcntl.F_SETFD, fcntl.F_GETFL, fcntl.F_SETFL, fcntl.F_GETLK, fcntl.F_SETLK,
          fcntl.F_SETLKW, fcntl.F_OFD_GETLK, fcntl.F_OFD_SETLK, fcntl.F_OFD_SETLKW, fcntl.F_DUPFD_CLOEXEC)  # fmt: skip
WORD = 0xFFFF_FFFF
CLONE_THREAD = 0x1_0000
PR_SET_NAME = 15
ABSENT = ("clone3",)  # its flags can't be looked at; the C library takes clone then


def rules(needs: Needs) -> dict[str, tuple[Check, ...]]:
    """The calls by name, each with the tests of which one must hold; none: it is allowed whatever its arguments."""
    names = list(ALWAYS)
    if needs.opens_files():
        names += LOOKING
    if needs.writes:
        names += CHANGING
    if needs.removes:
        names += ["unlink", "unlinkat"]
    if needs.connects:
        names.append("connect")
    allowed: dict[str, tuple[Check, ...]] = dict.fromkeys(names, ())
    # No memory becomes code: what was compiled is there already.
    allowed["mmap"] = allowed["mprotect"] = (Check(2, mmap.PROT_EXEC, 0),)
    allowed["clone"] = (Check(0, CLONE_THREAD, CLONE_THREAD),)
    allowed["tgkill"] = (Check(0, WORD, os.getpid()),)
    allowed["prlimit64"] = (Check(0, WORD, 0),)
    allowed["prctl"] = (Check(0, WORD, PR_SET_NAME),)
    allowed["fcntl"] = tuple(Check(1, WORD, command) for command in FCNTLS)
    allowed["ioctl"] = tuple(Check(1, WORD, request) for request in (*IOCTLS, *needs.ioctls))
    if needs.families:
        allowed["socket"] = tuple(Check(0, WORD, family) for family in sorted(set(needs.families)))
    if socket.AF_UNIX in needs.families:
        allowed["socketpair"] = (Check(0, WORD, socket.AF_UNIX),)
    return allowed


def number(name: str, machine: str) -> int:
    """A call's number on an architecture, -1 if it has none."""
    return NUMBERS[name][ARCHITECTURES[machine][0]]


def compiled(needs: Needs, machine: str) -> bytes:
    """The filter for a process with these needs."""
    numbered = {number(name, machine): tests for name, tests in rules(needs).items()}
    numbered.pop(-1, None)
    absent = tuple(number(name, machine) for name in ABSENT)
    return system_call_filter(ARCHITECTURES[machine][1], numbered, absent)
