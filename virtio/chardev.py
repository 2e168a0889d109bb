"""The host's end of a serial line or console: terminal, file, socket, pty or nothing.

A character device has two buffers.  The event loop waits for the file descriptors of `interest` and calls `ready`;
nothing here blocks.  The mux of `-nographic` takes the keys after Ctrl-A, as QEMU's does.
"""

import contextlib
import errno
import os
import select
import stat
import sys
import termios
import tty
from collections.abc import Callable
from typing import Any

from virtio.host import Host

IN, OUT = select.EPOLLIN, select.EPOLLOUT
INPUT_LIMIT = 4096  # bytes kept for a guest that does not read
OUTPUT_LIMIT = 65536  # bytes kept for a host end that does not; then the guest waits
ESCAPE = 0x01  # Ctrl-A
HELP = b"""\r
C-a h    print this help\r
C-a x    exit\r
C-a c    the monitor, which is not available\r
C-a C-a  send C-a\r
"""


class Chardev(Host):
    """The end that leads nowhere, and the base of the others."""

    label = ""  # its name, and where it leads to, for a monitor
    filename = "null"

    def __init__(self) -> None:
        self.input, self.output = bytearray(), bytearray()

    def write(self, data: bytes) -> None:
        """Send to the host; ask `has_room` first."""

    def has_room(self) -> bool:
        """Whether more output is welcome."""
        return len(self.output) < OUTPUT_LIMIT

    def is_open(self) -> bool:
        """Whether somebody is at the host's end, as far as that is known."""
        return False

    def is_over(self) -> bool:
        """Whether the host's end sends no more, and what it sent has been read."""
        return False

    def has_output(self) -> bool:
        return bool(self.output)

    def read(self, limit: int) -> bytes:
        """Up to `limit` bytes that came from the host."""
        data = bytes(self.input[:limit])
        del self.input[:limit]
        return data

    def size(self) -> tuple[int, int]:
        """Columns and rows, (0, 0) when there are none."""
        return 0, 0


class FdChardev(Chardev):
    """Bytes from one descriptor and to another; -1 where there is none.  `lossy` drops the oldest output."""

    def __init__(self, source: int, sink: int, lossy: bool = False) -> None:
        super().__init__()
        self.source, self.sink, self.lossy = source, sink, lossy
        self.has_ended = False  # the source has

    def is_open(self) -> bool:
        return True

    def is_over(self) -> bool:
        return self.has_ended and not self.input

    def interest(self) -> dict[int, int]:
        wanted: dict[int, int] = {}
        if self.source >= 0 and len(self.input) < INPUT_LIMIT:
            wanted[self.source] = IN
        if self.output and self.sink >= 0:
            wanted[self.sink] = wanted.get(self.sink, 0) | OUT
        return wanted

    def ready(self, fd: int, events: int) -> None:
        if fd == self.source and events & ~OUT:
            self._receive()
        if fd == self.sink and events & ~IN:
            self.flush()

    def _receive(self) -> None:
        try:
            data = os.read(self.source, INPUT_LIMIT)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self.received(data)
        else:
            self.ended()

    def received(self, data: bytes) -> None:
        """Bytes came from the host."""
        self.input += data

    def ended(self) -> None:
        """The host's end sends no more."""
        self.source, self.has_ended = -1, True

    def write(self, data: bytes) -> None:
        if self.sink < 0:
            return
        self.output += data
        self.flush()
        if self.lossy and len(self.output) >= OUTPUT_LIMIT:
            del self.output[: -(OUTPUT_LIMIT // 2)]

    def flush(self) -> None:
        while self.output and self.sink >= 0:
            try:
                count = self.send(bytes(self.output[:4096]))
            except BlockingIOError:
                return
            except OSError as error:
                self.lost(error)
                return
            del self.output[:count]

    def send(self, data: bytes) -> int:
        """Write what the sink takes without blocking, or raise BlockingIOError."""
        return os.write(self.sink, data)

    def lost(self, error: OSError) -> None:
        """The sink failed: output goes nowhere from now on."""
        self.sink = -1
        self.output.clear()
        if error.errno != errno.EPIPE:
            print(f"hartbeat: console output: {error.strerror}; it is dropped", file=sys.stderr)

    def close(self) -> None:
        super().close()
        for fd in {self.source, self.sink} - {-1}:
            with contextlib.suppress(OSError):
                os.close(fd)
        self.source = self.sink = -1


def _without_blocking(fd: int) -> int:
    """The same terminal or pipe opened anew, non-blocking: the flag of `fd` itself is shared with the shell."""
    kind = os.fstat(fd).st_mode
    if not (stat.S_ISCHR(kind) or stat.S_ISFIFO(kind)):
        return os.dup(fd)
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return os.dup(fd)


class Stdio(FdChardev):
    """Standard input and output; a terminal is raw while the machine runs.

    mux: Ctrl-A commands.  signals: Ctrl-C ends the machine; it belongs to the guest otherwise.
    """

    def __init__(self, mux: bool, source: int = 0, sink: int = 1, signals: bool | None = None) -> None:
        super().__init__(source, sink)
        self.signals = not mux if signals is None else signals
        self.mux, self.terminal, self.escaped = mux, source, False
        self.escape = ESCAPE
        self.saved = save_terminal(source)
        self.quit: Callable[[], None] = lambda: None

    def start(self) -> None:
        self.enter_raw()
        self.sink = _without_blocking(self.sink)

    def enter_raw(self) -> None:
        """Every key goes to the guest; output keeps its newlines."""
        if self.saved is None:
            return
        mode: list[Any] = [list(part) if isinstance(part, list) else part for part in self.saved]
        mode[0] &= ~(
            termios.IGNBRK | termios.BRKINT | termios.PARMRK | termios.ISTRIP | termios.INLCR
            | termios.IGNCR | termios.ICRNL | termios.IXON
        )  # fmt: skip
        mode[1] |= termios.OPOST
        mode[2] = mode[2] & ~(termios.CSIZE | termios.PARENB) | termios.CS8
        mode[3] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.IEXTEN)
        if not self.signals:
            mode[3] &= ~termios.ISIG
        mode[tty.CC][termios.VMIN], mode[tty.CC][termios.VTIME] = 1, 0
        with contextlib.suppress(termios.error):
            termios.tcsetattr(self.terminal, termios.TCSANOW, mode)

    def send(self, data: bytes) -> int:
        if os.get_blocking(self.sink) and not select.select([], [self.sink], [], 0)[1]:
            raise BlockingIOError
        return os.write(self.sink, data[:512])

    def received(self, data: bytes) -> None:
        if not self.mux:
            self.input += data
            return
        for byte in data:
            if self.escaped:
                self.escaped = False
                self._command(byte)
            elif byte == self.escape:
                self.escaped = True
            else:
                self.input.append(byte)

    def _command(self, byte: int) -> None:
        match chr(byte):
            case "x":
                self.write(b"\r\nhartbeat: terminated\r\n")
                self.quit()
            case "h" | "?":
                self.write(HELP)
            case "c":
                self.write(b"\r\nhartbeat: the monitor is not available\r\n")
            case key if ord(key) == self.escape:
                self.input.append(self.escape)

    def size(self) -> tuple[int, int]:
        try:
            return tuple(os.get_terminal_size(self.terminal))  # type: ignore[return-value]
        except OSError:
            return 0, 0

    def stop(self) -> None:
        if self.saved is not None:
            with contextlib.suppress(termios.error):  # it may be gone, and draining it could take for ever
                termios.tcsetattr(self.terminal, termios.TCSANOW, self.saved)

    def close(self) -> None:
        self.stop()


class Output(Stdio):
    """Output to a descriptor of the caller's.  When nobody reads there any more, the machine ends: as by SIGPIPE."""

    def __init__(self, sink: int) -> None:
        super().__init__(mux=False, source=-1, sink=sink)

    def lost(self, error: OSError) -> None:
        super().lost(error)
        if error.errno == errno.EPIPE:
            self.quit()


def save_terminal(fd: int) -> list[Any] | None:
    """The terminal's mode; None when it is no terminal."""
    return termios.tcgetattr(fd) if fd >= 0 and os.isatty(fd) else None


def open_file(path: str, append: bool = False, source: str = "") -> Chardev:
    """Output goes to a file, new if it is not to be continued; input comes from another one, if any."""
    given = open_plain(source, os.O_RDONLY) if source else -1
    return FdChardev(given, open_plain(path, os.O_WRONLY | os.O_CREAT | (os.O_APPEND if append else os.O_TRUNC)))


def open_pipe(path: str) -> Chardev:
    """Two FIFOs, PATH.in and PATH.out, or one for both ways: open for both, they need nobody on the other side."""
    try:
        return FdChardev(open_plain(f"{path}.in", os.O_RDWR), open_plain(f"{path}.out", os.O_RDWR))
    except FileNotFoundError:
        both = open_plain(path, os.O_RDWR)
        return FdChardev(both, both)


def open_plain(path: str, flags: int) -> int:
    """A descriptor of our own.  Pipes and terminals, which /proc/self/fd/N may stand for, are not waited for."""
    fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOCTTY, 0o666)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.set_blocking(fd, False)
    return fd


class Pty(FdChardev):
    """A new pseudo-terminal, whose name is printed.  Our own open end keeps it alive while nobody else has it."""

    def __init__(self, label: str) -> None:
        master, self.slave = os.openpty()
        super().__init__(master, master, lossy=True)
        self.name = os.ttyname(self.slave)
        tty.setraw(self.slave)
        os.set_blocking(master, False)
        print(f"char device redirected to {self.name} (label {label})", file=sys.stderr, flush=True)

    def close(self) -> None:
        super().close()
        if self.slave >= 0:
            os.close(self.slave)
        self.slave = -1
