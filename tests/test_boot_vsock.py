"""Linux with virtio-vsock: programs of the guest and of the host's talk, over a reboot of the guest too."""

import contextlib
import hashlib
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from console import Console
from test_boot import PROMPT, TIMEOUT, TROUBLE, options
from vsock_driver import read_line

from smp.guest import Guest, default_guest

pytestmark = pytest.mark.boot

ROOT = Path(__file__).resolve().parent.parent
ECHO, SINK, SERVICE = 2000, 2001, 1000
MIB = 1 << 20


@pytest.fixture(scope="module")
def guest() -> Guest:
    return default_guest()


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The guest's program (tests/linux/vsock.c) in a folder to be shared."""
    folder = tmp_path_factory.mktemp("shared")
    words = ["riscv64-linux-gnu-gcc", "-O1", "-static", "-Wall", "-o", folder / "vsock", ROOT / "tests/linux/vsock.c"]
    built = subprocess.run(words, capture_output=True, text=True, timeout=240)
    if built.returncode:
        pytest.skip("no C library for riscv64 here")
    return folder


@pytest.fixture
def echo(tmp_path: Path) -> Iterator[None]:
    """A program of the host's that gives back what it gets, to all at once."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / f"v_{SERVICE}"))
    listener.listen(64)

    def talk(end: socket.socket) -> None:
        with end, contextlib.suppress(OSError):
            while data := end.recv(1 << 16):
                end.sendall(data)

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=talk, args=(listener.accept()[0],), daemon=True).start()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


def call(path: Path, port: int) -> socket.socket:
    """A connection to the guest, as soon as somebody listens there."""
    deadline = time.monotonic() + TIMEOUT
    while True:
        end = socket.socket(socket.AF_UNIX)
        end.settimeout(TIMEOUT)
        try:
            end.connect(str(path))
            end.sendall(b"CONNECT %d\n" % port)
            assert read_line(end).startswith(b"OK ")
            return end
        except (AssertionError, OSError):  # nobody listens yet
            end.close()
            assert time.monotonic() < deadline, "the guest does not listen"
            time.sleep(0.2)


def echoed(end: socket.socket, data: bytes) -> bytes:
    """Send it all, and hear it all."""

    def send() -> None:
        end.sendall(data)
        end.shutdown(socket.SHUT_WR)

    thread = threading.Thread(target=send)
    thread.start()
    heard = b"".join(iter(lambda: end.recv(1 << 16), b""))
    thread.join()
    return heard


def device(folder: Path, kind: str = "virtio-vsock-device") -> tuple[str, str]:
    return "-device", f"{kind},guest-cid=42,path={folder / 'v'}"


SCRIPT = f"""
./vsock cid && ./vsock refused 77 || exit 1
./vsock serve {ECHO} & ./vsock sink {SINK} &
./vsock send {SERVICE} {8 * MIB} || exit 2
for n in 1 2 3 4 5 6 7 8; do ./vsock send {SERVICE} 300000 & pids="$pids $!"; done
for pid in $pids; do wait $pid || exit 3; done
until [ -e done ]; do sleep 0.2; done
"""


@pytest.mark.usefixtures("echo")
@pytest.mark.parametrize("rings", ["", ",packed=on,in_order=on"])
def test_both_ways_with_megabytes(guest: Guest, program: Path, tmp_path: Path, rings: str) -> None:
    name, value = device(tmp_path, "virtio-vsock-pci")
    (program / "done").unlink(missing_ok=True)
    words = [sys.executable, "-m", "smp.guest", "boot", "-smp", "2", name, value + rings]
    words += ["--share", str(program), "--run", SCRIPT]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            host_side(tmp_path / "v")
            (program / "done").touch()
        finally:
            out, err = ended(process)
            print(out.decode(), err.decode())
    assert (process.returncode, err.decode()) == (0, "")
    text = out.decode()
    assert "cid 42\nrefused\n" in text and f"sent {8 * MIB}, came back {8 * MIB}\n" in text
    assert text.count("sent 300000, came back 300000\n") == 8
    assert not (tmp_path / "v").exists()


def ended(process: subprocess.Popen[bytes]) -> tuple[bytes, bytes]:
    """What the machine has said, when it has ended by itself or for lack of an end."""
    try:
        return process.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.communicate()


def host_side(path: Path) -> None:
    """The host calls: one with megabytes, then many at once; and one that the guest hears out before it answers."""
    data = random.Random(1).randbytes(4 * MIB)
    heard = echoed(call(path, ECHO), data)
    assert hashlib.sha256(heard).digest() == hashlib.sha256(data).digest()
    ends = [call(path, ECHO) for _ in range(20)]
    for number, end in enumerate(ends):
        end.sendall(b"%d" % number)
    assert [end.recv(10) for end in ends] == [b"%d" % number for number in range(20)]
    for end in ends:
        end.close()
    assert echoed(call(path, SINK), data) == b"%d\n" % len(data)


def test_over_a_reboot(guest: Guest, program: Path, tmp_path: Path) -> None:
    """Listening goes on: who calls while the guest is not there is put through when it is, connections end."""
    shared = ("--share", str(program))
    with Console(*options(guest, 1, "console=ttyS0", *device(tmp_path), *shared), terminal=True) as console:
        console.expect(PROMPT, TIMEOUT)
        console.send(f"/share/vsock serve {ECHO} &\n")
        end = call(tmp_path / "v", ECHO)
        end.sendall(b"before")
        assert end.recv(10) == b"before"
        console.send("reboot -f\n")
        assert end.recv(10) == b""
        console.expect("Run /init", TIMEOUT)
        console.expect(PROMPT, TIMEOUT)
        console.send(f"/share/vsock serve {ECHO} &\n")
        again = call(tmp_path / "v", ECHO)
        again.sendall(b"after")
        assert again.recv(10) == b"after"
        family = [psutil.Process(console.process.pid), *psutil.Process(console.process.pid).children(recursive=True)]
        console.send("poweroff -f\n")
        assert console.wait(TIMEOUT) == 0
        assert again.recv(10) == b"" and not (tmp_path / "v").exists()
        wait_for(lambda: not [each for each in family if each.is_running()])
        assert not TROUBLE.search(console.text())


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
