"""The I/O process's sandbox: what a back-end in it is refused, what it may do, and hosts that lack a part of it."""

import ctypes
import errno
import mmap
import os
import platform
import re
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from struct import unpack_from
from typing import Any

import pytest
from forked_io import Hart, finish, fork_io, io_memory

from smp import machine as supervisor
from smp.cpu import ConfigError
from smp.options import parse
from virtio import landlock, sandbox
from virtio.bpf import ALLOW, FARTHEST, KILL, REFUSE, Assembler, Check, system_call_filter
from virtio.device import Device
from virtio.needs import Needs, together
from virtio.process import IoConfig
from virtio.syscalls import ARCHITECTURES, CLONE_THREAD, NUMBERS, compiled, number

X86, ARM = ARCHITECTURES["x86_64"][1], ARCHITECTURES["aarch64"][1]
HEADERS = {"x86_64": "x86_64-linux-gnu/asm/unistd_64.h", "riscv64": "asm-generic/unistd.h"}
_libc = ctypes.CDLL(None, use_errno=True)


# A back-end that tries things


class Probe(Device):
    """Does what a request names, and answers with the errno (0: it was done)."""

    kind, name, queue_sizes = 4, "probe", (64,)

    def __init__(self, tries: dict[bytes, Callable[[], object]], needs: Needs = Needs()) -> None:  # noqa: B008
        self.tries, self.own_needs = tries, needs

    def needs(self) -> Needs:
        return self.own_needs

    def handle(self, index: int) -> None:
        for request in self.queues[index]:
            result = 0
            try:
                self.tries[request.read(64).rstrip()]()
            except OSError as error:
                result = error.errno or 255
            request.done(request.write(bytes([result])))


def raw(*arguments: Any) -> int:
    """A system call of libc's, as an OSError where it fails."""
    name, *rest = arguments
    result = int(getattr(_libc, name)(*rest))
    if result < 0:
        raise OSError(ctypes.get_errno(), name)
    return result


def outcomes(tries: dict[bytes, Callable[[], object]], needs: Needs | None = None, **given: Any) -> dict[bytes, int]:
    """What each try came to in an I/O process, which must be alive after all of them and end well."""
    with io_memory() as ram:
        device = Probe(tries, needs or Needs())
        child = fork_io(IoConfig({2: device}, **given))
        hart = Hart(ram, device, 2).start()
        found = {name: hart.ask(name.ljust(64), 1)[1][0][0] for name in tries}
        assert finish(child) == 0
    return found


def read_other_memory() -> None:
    """process_vm_readv(2) of the parent."""
    place = (ctypes.c_uint64 * 2)(ctypes.addressof(ctypes.create_string_buffer(8)), 8)
    raw("process_vm_readv", os.getppid(), place, 1, place, 1, 0)


FORBIDDEN: dict[bytes, Callable[[], object]] = {
    b"read a file": lambda: os.open("/etc/passwd", os.O_RDONLY),
    b"write a file": lambda: os.open("/tmp/of-the-guest", os.O_WRONLY | os.O_CREAT),
    b"list a folder": lambda: os.listdir("/"),
    b"read the parent's memory by its file": lambda: os.open(f"/proc/{os.getppid()}/mem", os.O_RDWR),
    b"make a socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM),
    b"make a unix socket": lambda: socket.socket(socket.AF_UNIX, socket.SOCK_STREAM),
    b"execute": lambda: os.execv("/bin/true", ["true"]),
    b"start a process": lambda: subprocess.run(["/bin/true"], check=False),
    b"fork": os.fork,
    b"signal the parent": lambda: os.kill(os.getppid(), 0),
    b"trace the parent": lambda: raw("ptrace", 16, os.getppid(), 0, 0),
    b"read the parent's memory": read_other_memory,
    b"take a descriptor of the parent": lambda: os.pidfd_open(os.getppid()),
    b"type into the terminal": lambda: raw("ioctl", 0, 0x5412, b"x"),
    b"have signals sent": lambda: raw("fcntl", 1, 8, os.getppid()),
    b"make code": lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC),
    b"limit the parent": lambda: raw("prlimit", os.getppid(), 7, None, ctypes.create_string_buffer(16)),
    b"remove a file": lambda: os.unlink("/tmp/of-somebody"),
    b"change a file's mode": lambda: os.chmod("/tmp", 0o777),
    b"load a filter": lambda: raw("prctl", 22, 2, None),
    b"become another user": lambda: os.setuid(1),
    b"unshare": lambda: raw("unshare", 0x1000_0000),
    b"mount": lambda: raw("mount", b"a", b"/", b"tmpfs", 0, None),
}


def test_a_backend_is_refused_whatever_it_did_not_say_it_needs() -> None:
    found = outcomes(FORBIDDEN)
    assert found == dict.fromkeys(FORBIDDEN, errno.EPERM)


def test_the_same_is_possible_without_the_sandbox() -> None:
    """So that the test above is one of the sandbox."""
    harmless = [b"read a file", b"list a folder", b"make a socket", b"start a process", b"signal the parent"]
    found = outcomes({name: FORBIDDEN[name] for name in (*harmless, b"make code")}, sandbox=False)
    assert set(found.values()) == {0}


def test_python_itself_goes_on() -> None:
    def thread() -> None:
        import threading

        begun = threading.Thread(target=lambda: None)
        begun.start()
        begun.join()

    def memory() -> None:
        assert len([bytearray(1 << 20) for _ in range(64)]) == 64

    def pipe() -> None:
        read, write = os.pipe()
        os.write(write, b"x")
        assert os.read(read, 1) == b"x"

    tries = {b"memory": memory, b"pipe": pipe, b"thread": thread, b"random": lambda: os.urandom(16)}
    assert set(outcomes(tries).values()) == {0}


@pytest.mark.skipif(bool(sandbox.missing()), reason="the kernel has no Landlock")
def test_a_folder_that_is_needed_is_all_that_is_there(tmp_path: Path) -> None:
    ours, others = tmp_path / "ours", tmp_path / "others"
    for folder in (ours, others):
        folder.mkdir()
        (folder / "file").write_text("x")
    tries: dict[bytes, Callable[[], object]] = {
        b"read": lambda: (ours / "file").read_text(),
        b"write": lambda: (ours / "new").write_text("y"),
        b"rename": lambda: (ours / "new").rename(ours / "newer"),
        b"read another": lambda: (others / "file").read_text(),
        b"leave": lambda: (ours / ".." / "others" / "file").read_text(),
        b"write another": lambda: (others / "new").write_text("y"),
        b"move out": lambda: (ours / "file").rename(others / "gone"),
        b"passwd": lambda: os.open("/etc/passwd", os.O_RDONLY),
        b"parent": lambda: os.open(f"/proc/{os.getppid()}/mem", os.O_RDWR),
    }
    (tmp_path / "link").symlink_to(others)
    found = outcomes(tries, Needs(writes=(str(ours),)))
    refused = {errno.EACCES, errno.EXDEV}
    assert [found[name] for name in (b"read", b"write", b"rename")] == [0, 0, 0]
    assert {found[name] for name in list(tries)[3:]} <= refused
    found = outcomes({name: tries[name] for name in (b"read", b"write", b"passwd")}, Needs(reads=(str(ours),)))
    assert found[b"read"] == 0 and found[b"write"] in (errno.EACCES, errno.EPERM) and found[b"passwd"] == errno.EACCES


@pytest.mark.skipif(bool(sandbox.missing()), reason="the kernel has no Landlock")
def test_only_the_port_that_is_needed_can_be_connected_to() -> None:
    with socket.create_server(("127.0.0.1", 0)) as right, socket.create_server(("127.0.0.1", 0)) as wrong:
        places = right.getsockname(), wrong.getsockname()

        def connect(place: Any) -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as link:
                link.connect(place)

        tries: dict[bytes, Callable[[], object]] = {
            b"right": lambda: connect(places[0]),
            b"wrong": lambda: connect(places[1]),
            b"another family": lambda: socket.socket(socket.AF_UNIX, socket.SOCK_STREAM),
        }
        needs = Needs(families=(socket.AF_INET,), connects=True, ports=(places[0][1],))
        found = outcomes(tries, needs)
    assert found[b"right"] == 0 and found[b"another family"] == errno.EPERM
    assert found[b"wrong"] == (errno.EACCES if landlock.version() >= 4 else 0)


def test_descriptors_of_others_are_closed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    with open(tmp_path / "secret") as secret, open(tmp_path / "secret") as own:
        tries = {b"read": lambda: os.read(secret.fileno(), 1), b"own": lambda: os.read(own.fileno(), 1)}
        found = outcomes(tries, surplus={secret.fileno()})
    assert found[b"read"] in (errno.EBADF, errno.EINVAL)  # or the number is that of our epoll now
    assert found[b"own"] == 0


def test_what_harts_alone_use_is_not_there() -> None:
    """A write to it would be one to any process of the machine, for harts have no sandbox."""
    from mem import regions

    # madvise(2) says ENOMEM of what is not mapped, without opening anything.
    def look() -> None:
        raw("madvise", ctypes.c_void_p(regions.HARTS), ctypes.c_size_t(4096), 3)

    assert outcomes({b"look": look}) == {b"look": errno.ENOMEM}
    assert outcomes({b"look": look}, sandbox=False) == {b"look": 0}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_root_keeps_no_capability_but_those_that_are_needed() -> None:
    for needs, mask in ((Needs(), 0), (Needs(capabilities=(0, 27)), 1 | 1 << 27)):
        child = os.fork()
        if child == 0:
            sandbox.keep_capabilities(needs.capabilities)
            text = Path("/proc/self/status").read_text()
            os._exit(int(re.findall(r"Cap(?:Prm|Eff|Bnd):\s*(\w+)", text) != [f"{mask:016x}"] * 3))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# Hosts that lack a part


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_landlock_it_is_said_once_and_calls_are_still_filtered(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(landlock, "_call", absent)
    supervisor.say_unsafe()
    said = capsys.readouterr().err
    assert said.startswith("hartbeat: sandbox: no Landlock (") and said.count("\n") == 1
    assert outcomes({b"read": FORBIDDEN[b"read a file"]}) == {b"read": errno.EPERM}


def test_without_seccomp_it_is_said_once_and_files_are_still_out_of_reach(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    has_landlock = not sandbox.missing()
    monkeypatch.setattr(sandbox, "_seccomp", absent)
    supervisor.say_unsafe()
    assert "hartbeat: sandbox: no seccomp (" in capsys.readouterr().err
    expected = errno.EACCES if has_landlock else 0
    assert outcomes({b"read": FORBIDDEN[b"read a file"]}) == {b"read": expected}


def test_a_processor_whose_numbers_are_not_known_has_no_filter(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "loongarch64")
    supervisor.say_unsafe()
    assert "loongarch64" in capsys.readouterr().err


# The option


def test_the_option_has_qemus_name_and_words() -> None:
    assert parse(["-kernel", "x"]).sandbox
    assert not parse(["-sandbox", "off"]).sandbox
    assert parse(["-sandbox", "on,obsolete=deny,spawn=deny,elevateprivileges=deny,resourcecontrol=deny"]).sandbox
    for wrong in ("maybe", "on,spawn=allow", "on,speed=1"):
        with pytest.raises(ConfigError, match="-sandbox"):
            parse(["-sandbox", wrong])


# The filter


def run_filter(code: bytes, architecture: int, number: int, *arguments: int) -> int:
    """What a filter answers: the kernel's interpreter, from its description in seccomp(2) and bpf(4)."""
    data = number.to_bytes(4, "little") + architecture.to_bytes(4, "little") + bytes(8)
    data += b"".join((a & (1 << 64) - 1).to_bytes(8, "little") for a in (*arguments, *[0] * (6 - len(arguments))))
    at = word = 0
    while True:
        operation, true, false, value = unpack_from("<HBBI", code, 8 * at)
        at += 1
        if operation == 0x20:
            (word,) = unpack_from("<I", data, value)
        elif operation == 0x54:
            word &= value
        elif operation in (0x15, 0x45):
            at += true if (word == value if operation == 0x15 else word & value) else false
        else:
            assert operation == 0x06
            return int(value)


def test_a_filter_allows_what_has_a_rule_and_kills_on_other_architectures() -> None:
    code = system_call_filter(X86, {1: (), 16: (Check(1, 0xFFFF_FFFF, 7), Check(1, 0xFFFF_FFFF, 9))}, absent=(435,))
    assert run_filter(code, X86, 1) == ALLOW
    assert [run_filter(code, X86, 16, 0, a) for a in (7, 9)] == [ALLOW, ALLOW]
    assert run_filter(code, X86, 16, 7, 8) == REFUSE | errno.EPERM
    assert run_filter(code, X86, 2) == REFUSE | errno.EPERM
    assert run_filter(code, X86, 435) == REFUSE | errno.ENOSYS
    assert run_filter(code, ARM, 1) == KILL
    assert run_filter(code, X86, 1 | 1 << 30) == KILL  # x32: other calls under the same architecture


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_filters_of_each_architecture_forbid_what_leads_out(machine: str) -> None:
    code, architecture = compiled(Needs(), machine), ARCHITECTURES[machine][1]

    def answer(name: str, *arguments: int) -> int:
        return run_filter(code, architecture, number(name, machine), *arguments)

    assert len(code) // 8 < 4096  # BPF_MAXINSNS
    assert [answer(name) for name in ("read", "futex", "sendmsg", "epoll_ctl", "preadv")] == [ALLOW] * 5
    assert answer("mmap", 0, 4096, mmap.PROT_READ | mmap.PROT_WRITE) == ALLOW
    for forbidden in (("mmap", 0, 4096, 7), ("mprotect", 0, 4096, 4), ("clone", 17), ("openat",), ("socket", 2)):
        assert answer(forbidden[0], *forbidden[1:]) == REFUSE | errno.EPERM
    assert answer("clone", CLONE_THREAD | 0x3D0F00 & ~CLONE_THREAD) == ALLOW
    assert answer("clone3") == REFUSE | errno.ENOSYS
    opens = compiled(Needs(reads=("/",)), machine)
    assert run_filter(opens, architecture, number("openat", machine)) == ALLOW
    assert run_filter(opens, architecture, number("unlinkat", machine)) == REFUSE | errno.EPERM


@pytest.mark.parametrize("machine", HEADERS)
def test_the_numbers_are_those_of_linux(machine: str) -> None:
    header = Path("/usr/include") / HEADERS[machine]
    if not header.exists():
        pytest.skip(f"there is no {header}")
    text = header.read_text()
    found = {m[1]: int(m[2]) for m in re.finditer(r"#define __NR(?:3264)?_(\w+)\s+(\d+)\n", text)}
    found |= {m[1]: found[m[2]] for m in re.finditer(r"#define __NR_(\w+) __NR3264_(\w+)\n", text) if m[2] in found}
    assert len(found) > 250
    for name in NUMBERS:
        assert number(name, machine) == found.get(name, -1), name


def test_a_jump_that_is_too_far_is_an_error() -> None:
    program = Assembler()
    program.emit(0x15, 0, "end", "")
    for _ in range(FARTHEST + 1):
        program.emit(6, 0)
    program.label("end")
    with pytest.raises(ValueError, match="jump"):
        program.finish()


def test_needs_add_up() -> None:
    both = together([Needs(reads=("a",), connects=True), Needs(reads=("b",), ports=(5,))])
    assert both.reads == ("a", "b") and both.connects is True and both.ports == (5,)
    assert together([]) == Needs()
