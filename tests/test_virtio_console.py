"""virtio-console and the host's ends of character devices."""

import os
import pty
import select
import socket
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from struct import unpack_from

import pytest
from fake_driver import Rig

from virtio.chardev import IN, INPUT_LIMIT, OUTPUT_LIMIT, Chardev, FdChardev, Pty, Stdio, open_file, open_pipe
from virtio.charsocket import Socket
from virtio.console import Console, Port
from virtio.queue import Ram
from virtio.sockets import connect, listen


class Kept(Chardev):
    """A host end that keeps what it is sent, as far as it has room."""

    def __init__(self) -> None:
        super().__init__()
        self.room, self.columns = True, 80

    def write(self, data: bytes) -> None:
        self.output += data

    def has_room(self) -> bool:
        return self.room

    def size(self) -> tuple[int, int]:
        return self.columns, 25


def pump(host: Chardev, until: Callable[[], object]) -> None:
    """The event loop for one character device."""
    deadline = time.monotonic() + 60
    while not until() and time.monotonic() < deadline:
        wanted = host.interest()
        poll = select.poll()
        for fd, events in wanted.items():
            poll.register(fd, events)
        for fd, events in poll.poll(20):
            host.ready(fd, events)
    assert until()


def test_console_output_and_input(ram: Ram) -> None:
    host = Kept()
    rig = Rig(ram, Console({0: Port(host)})).start()
    rig.ask(b"hello ", b"world", queue=1)
    assert host.output == b"hello world"
    buffers = [rig.rings[0].add(4), rig.rings[0].add(8)]
    rig.notify(0)
    assert rig.rings[0].collect() == []
    host.input += b"abcdef"
    rig.transport.poll()
    assert [size for _, size in rig.rings[0].collect()] == [4, 2]
    assert bytes(ram.view(buffers[0][0].address, 4)) == b"abcd"
    assert bytes(ram.view(buffers[1][0].address, 2)) == b"ef"


def test_console_input_waits_for_buffers(ram: Ram) -> None:
    host = Kept()
    rig = Rig(ram, Console({0: Port(host)})).start()
    host.input += b"early"
    rig.transport.poll()
    assert host.input == b"early"
    rig.rings[0].add(16)
    rig.notify(0)
    assert [size for _, size in rig.rings[0].collect()] == [5]


def test_console_output_waits_for_room(ram: Ram) -> None:
    host = Kept()
    rig = Rig(ram, Console({0: Port(host)})).start()
    host.room = False
    rig.rings[1].add(b"later")
    rig.notify(1)
    assert rig.rings[1].collect() == []
    host.room = True
    rig.transport.poll()
    assert host.output == b"later"
    assert len(rig.rings[1].collect()) == 1


def test_console_size_follows_the_terminal(ram: Ram) -> None:
    host = Kept()
    rig = Rig(ram, Console({0: Port(host)})).start()
    assert unpack_from("<HH", rig.device.config()) == (80, 25)
    rig.device.resized()
    assert rig.interrupts() == 0
    host.columns = 132
    rig.device.resized()
    assert rig.interrupts() == 2
    assert rig.read(0x100, 2) == 132


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    master, slave = pty.openpty()
    os.set_blocking(master, False)
    yield master, slave
    os.close(master)
    os.close(slave)


def test_a_terminal_is_raw_and_restored(terminal: tuple[int, int]) -> None:
    _, slave = terminal
    before = termios.tcgetattr(slave)
    host = Stdio(True, slave, slave)
    child = os.fork()
    if child == 0:
        host.start()
        os.kill(os.getpid(), 9)
    os.waitpid(child, 0)
    during = termios.tcgetattr(slave)
    assert not during[3] & (termios.ICANON | termios.ECHO | termios.ISIG)
    assert during[1] & termios.OPOST
    host.close()  # in the supervisor, when the I/O process was killed
    assert termios.tcgetattr(slave) == before


def test_without_mux_the_signals_stay(terminal: tuple[int, int]) -> None:
    _, slave = terminal
    host = Stdio(False, slave, slave)
    host.start()
    assert termios.tcgetattr(slave)[3] & termios.ISIG
    host.received(b"\x01x")
    assert host.read(9) == b"\x01x"
    host.close()


def test_escape_keys(terminal: tuple[int, int]) -> None:
    master, slave = terminal
    host = Stdio(True, slave, slave)
    quits: list[int] = []
    host.quit = lambda: quits.append(1)
    host.start()
    os.write(master, b"a\x01\x01b\x01")
    pump(host, lambda: len(host.input) == 3)
    assert host.read(9) == b"a\x01b"
    os.write(master, b"h\x01cq\x01x")
    pump(host, lambda: quits)
    assert host.read(9) == b"q"
    shown = os.read(master, 4096)
    assert b"C-a x    exit" in shown
    assert b"monitor is not available" in shown
    host.close()


def test_stdio_of_pipes_has_no_mode_and_survives_eof() -> None:
    a, b = os.pipe()
    c, d = os.pipe()
    host = Stdio(True, a, d)
    host.start()
    os.write(b, b"in")
    os.close(b)
    pump(host, lambda: host.source == -1)
    assert host.read(9) == b"in"
    host.write(b"out")
    assert os.read(c, 9) == b"out"
    assert os.get_blocking(d), "the shell's descriptor keeps its flags"
    host.close()


def test_output_does_not_block_and_is_bounded() -> None:
    reader, writer = os.pipe()
    host = Stdio(True, -1, writer)
    host.start()
    sent = 0
    while host.has_room():
        host.write(b"x" * 5000)
        sent += 5000
    assert sent >= OUTPUT_LIMIT
    got = 0

    def read_all() -> bool:
        nonlocal got
        if select.select([reader], [], [], 0)[0]:
            got += len(os.read(reader, 1 << 16))
        return got == sent

    pump(host, read_all)
    os.close(reader)
    host.write(b"nobody")
    host.write(b"reads")
    assert host.sink == -1


def test_input_is_bounded() -> None:
    a, b = os.pipe()
    host = FdChardev(a, -1)
    host.input += bytes(INPUT_LIMIT)
    assert host.interest() == {}
    host.read(1)
    assert host.interest() == {a: IN}
    os.close(b)
    host.close()


def test_file(tmp_path: Path) -> None:
    host = open_file(str(tmp_path / "log"))
    host.write(b"text")
    assert (tmp_path / "log").read_bytes() == b"text"
    assert host.interest() == {}
    host.close()


def unix(path: str) -> Socket:
    return Socket(listener=listen((socket.AF_UNIX, path)))


def test_a_file_is_continued_and_another_is_read(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"before ")
    (tmp_path / "keys").write_bytes(b"typed")
    host = open_file(str(tmp_path / "log"), True, str(tmp_path / "keys"))
    assert isinstance(host, FdChardev)
    host.write(b"after")
    for _ in range(2):
        host.ready(host.source, IN)
    host.close()
    assert ((tmp_path / "log").read_bytes(), host.read(9), host.source) == (b"before after", b"typed", -1)


def test_a_full_pipe_of_a_file_does_not_block() -> None:
    reader, writer = os.pipe()
    host = open_file(f"/proc/self/fd/{writer}")
    while host.has_room():
        host.write(b"x" * 4096)
    assert os.get_blocking(writer), "the flags of the caller's own descriptor are left alone"
    assert len(os.read(reader, 1 << 20)) == 65536
    host.close()
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize("endings", [(".in", ".out"), ("", "")])
def test_fifos_carry_both_ways(tmp_path: Path, endings: tuple[str, str]) -> None:
    path = str(tmp_path / "fifo")
    for ending in set(endings):
        os.mkfifo(path + ending)
    host = open_pipe(path)
    other = [os.open(path + ending, os.O_RDWR | os.O_NONBLOCK) for ending in endings]
    os.write(other[0], b"in")
    pump(host, lambda: host.input)
    assert host.read(9) == b"in"
    host.write(b"out")
    assert os.read(other[1], 9) == b"out"
    host.close()
    for fd in other:
        os.close(fd)


@pytest.mark.parametrize("family", [socket.AF_UNIX, socket.AF_INET])
def test_a_connection_is_made_again(tmp_path: Path, family: socket.AddressFamily) -> None:
    address = str(tmp_path / "sock") if family == socket.AF_UNIX else ("127.0.0.1", 0)
    listener = listen((family, address))
    address = listener.getsockname()
    host = Socket(target=(family, address), retry=0.05, nodelay=True)
    host.start()
    assert host.timer >= 0, "there before any socket that may fail, whose number it would get"
    for _ in range(2):
        pump(host, host.is_open)
        client, _ = listener.accept()
        host.write(b"out")
        assert client.recv(9) == b"out"
        client.close()
        pump(host, lambda: not host.is_open())
    listener.close()
    pump(host, lambda: host.timer >= 0 and not host.is_open())
    listener = listen((family, address))
    pump(host, host.is_open)
    host.close()
    listener.close()


def test_a_connection_that_is_lost_is_not_made_again_without_reconnect(tmp_path: Path) -> None:
    target = socket.AF_UNIX, str(tmp_path / "sock")
    with listen(target) as listener:
        host = Socket(connect(target), target=target)
        host.start()
        listener.accept()[0].close()
        pump(host, lambda: not host.is_open())
        assert host.interest() == {}
        host.close()


def test_unix_takes_one_client_after_the_other(tmp_path: Path) -> None:
    path = str(tmp_path / "sock")
    host = unix(path)
    host.write(b"lost")
    for n in range(2):
        client = socket.socket(socket.AF_UNIX)
        client.connect(path)
        pump(host, lambda: host.source >= 0)
        client.send(b"in%d" % n)
        pump(host, lambda: host.input)
        assert host.read(9) == b"in%d" % n
        host.write(b"out")
        assert client.recv(9) == b"out"
        client.close()
        pump(host, lambda: host.source == -1)
    host.stop()
    assert os.path.exists(path), "the next I/O process goes on with it"
    host.close()
    assert not os.path.exists(path)
    host.close()
    unix(path).close()


def test_unix_keeps_its_client_for_the_next_io_process(tmp_path: Path) -> None:
    host = unix(str(tmp_path / "sock"))
    assert host.listener
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "sock"))
        pump(host, lambda: host.source >= 0)
        host.output += b"unsent"
        host.stop()
        assert host.interest() == {host.listener.fileno(): IN}
        host.start()
        host.flush()
        assert client.recv(9) == b"unsent"
        client.send(b"more")
        pump(host, lambda: host.input)
        host.stop()
        host.close()
        assert client.recv(9) == b"", "nobody has the other end any more"


def test_pty_prints_its_name_and_drops_what_nobody_reads(capsys: pytest.CaptureFixture[str]) -> None:
    host = Pty("serial0")
    name = capsys.readouterr().err.split()[4]
    slave = os.open(name, os.O_RDWR | os.O_NOCTTY)
    host.write(b"hello")
    assert os.read(slave, 9) == b"hello"
    os.write(slave, b"key")
    pump(host, lambda: host.input)
    assert host.read(9) == b"key"
    os.close(slave)
    for _ in range(50):
        host.write(b"x" * 4096)
    assert host.has_room()
    host.close()
