"""virtio-vsock in a real I/O process, in its sandbox: what it reaches, what it does not, and what is left of it."""

import errno
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from forked_io import Hart, finish, fork_io, io_memory, wait
from test_sandbox import Probe
from vsock_driver import CID, REQUEST, RESPONSE, RST, RW, Guest, Peers, new_host, read_line

from mem import machine as machine_state
from virtio.process import IoConfig
from virtio.queue import Ram
from virtio.vsock import Vsock

PORT, SERVICE = 1234, 80


class VsockHart(Hart):
    """The I/O process does its part by itself."""

    def turn(self) -> None:
        pass


def wait_gone(process: psutil.Process) -> None:
    wait(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE)


@pytest.fixture
def ram() -> Iterator[Ram]:
    with io_memory() as ram:
        yield ram


def test_both_ways_in_the_sandbox_and_again_after_a_reset(ram: Ram, tmp_path: Path) -> None:
    device, peers = Vsock(CID, new_host(tmp_path)), Peers(tmp_path)
    io = IoConfig({1: device})
    listener = None
    for life in range(2):
        machine_state.machine().ending = 0
        child = fork_io(io)
        guest = Guest(VsockHart(ram, device, 1))
        listener = listener or peers.listen(SERVICE)  # after the sandbox was entered
        assert guest.connect(PORT, SERVICE).op == RESPONSE
        end = peers.accept(listener)
        guest.send(RW, PORT, SERVICE, b"to the host")
        assert end.recv(100) == b"to the host"
        caller = peers.call(7)
        guest.send(RESPONSE, 7, guest.wait(REQUEST).src_port)
        assert read_line(caller).startswith(b"OK ")
        caller.sendall(b"to the guest")
        assert guest.wait(RW).data == b"to the guest"
        guest.send(REQUEST, PORT, 99)
        assert guest.wait(RST).src_port == 99
        (dialler,) = psutil.Process(child).children()
        assert finish(child) == 0
        assert end.recv(1) == b"" == caller.recv(1), f"life {life}"
        wait_gone(dialler)
    assert os.path.exists(peers.path)
    io.close()
    assert not os.path.exists(peers.path)
    peers.close()


def test_an_io_process_that_was_taken_over_reaches_no_other_socket(ram: Ram, tmp_path: Path) -> None:
    other = socket.socket(socket.AF_UNIX)
    other.bind(str(tmp_path / "v_80"))
    other.listen()

    def reach() -> None:
        socket.socket(socket.AF_UNIX).connect(str(tmp_path / "v_80"))

    tries: dict[bytes, Callable[[], object]] = {
        b"make a socket": lambda: socket.socket(socket.AF_UNIX),
        b"connect": reach,
        b"remove another folder's file": lambda: os.unlink(tmp_path / "in" / "file"),
        b"read a file": lambda: os.open(tmp_path / "in" / "file", os.O_RDONLY),
    }
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "file").write_text("kept")
    (tmp_path / "vsock").mkdir()
    probe, device = Probe(tries), Vsock(CID, new_host(tmp_path / "vsock"))
    io = IoConfig({1: probe, 2: device})
    child = fork_io(io)
    assert io.needs(0).removes == (str(tmp_path / "vsock" / "v"),)
    assert not io.needs(0).connects and not io.needs(0).families
    hart = Hart(ram, probe, 1).start()
    for name in tries:
        assert hart.ask(name.ljust(64), 1)[1][0][0] in (errno.EPERM, errno.EACCES), name
    assert finish(child) == 0
    assert (tmp_path / "in" / "file").read_text() == "kept"
    io.close()
    other.close()


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_no_process_is_left_when_it_is_killed(ram: Ram, tmp_path: Path, end: signal.Signals) -> None:
    device = Vsock(CID, new_host(tmp_path))
    io = IoConfig({1: device})
    child = fork_io(io)
    guest = Guest(VsockHart(ram, device, 1))
    guest.send(REQUEST, PORT, SERVICE)
    guest.wait(RST)
    (dialler,) = psutil.Process(child).children()
    os.kill(child, end)
    os.waitpid(child, 0)
    wait_gone(dialler)
    assert os.path.exists(tmp_path / "v") == (end == signal.SIGKILL)
    io.close()


def test_a_dialler_that_is_gone_refuses_the_guest_and_no_more(ram: Ram, tmp_path: Path) -> None:
    device, peers = Vsock(CID, new_host(tmp_path)), Peers(tmp_path)
    io = IoConfig({1: device})
    child = fork_io(io)
    guest = Guest(VsockHart(ram, device, 1))
    peers.listen(SERVICE)
    guest.connect(PORT, SERVICE)
    (dialler,) = psutil.Process(child).children()
    dialler.kill()
    for _ in range(3):
        guest.send(REQUEST, PORT + 1, SERVICE)
        assert guest.wait(RST).dst_port == PORT + 1
    peers.call(7)
    assert guest.wait(REQUEST).dst_port == 7
    assert finish(child) == 0
    io.close()
    peers.close()
