"""A machine started as a user starts it, on a pseudo-terminal or pipes: send, expect, and see that nothing is left."""

import contextlib
import os
import pty
import re
import select
import shlex
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from smp.options import parse

ROOT = Path(__file__).resolve().parent.parent
COMMAND = (sys.executable, "-m", "smp")
# Seconds that a guest has for all it does, and a machine for an answer: what takes so long hangs, at any load.
TIMEOUT = float(os.environ.get("HARTBEAT_GUEST_TIMEOUT", "600"))
PATIENCE = 240.0


class Console:
    """One machine and both ends of its console; `output` is everything it has said.

    terminal: standard input and output are a pseudo-terminal, of `size` rows and columns, else two pipes. Standard
    error is a pipe of its own, collected in `errors`. Use as a context manager; leaving it kills what still runs.
    """

    def __init__(
        self, *options: str, terminal: bool = False, size: tuple[int, int] = (0, 0), command: tuple[str, ...] = COMMAND
    ) -> None:
        self.options = options
        self.output = b""
        self.errors = b""
        self.seen = 0  # what `expect` has gone past
        self.open = True
        if terminal:
            self.reader, self.slave = pty.openpty()
            self.writer, ends = self.reader, (self.slave, self.slave)
            self.mode: list[Any] = termios.tcgetattr(self.slave)
            termios.tcsetwinsize(self.slave, size)
        else:
            stdin, self.writer = os.pipe()
            self.reader, stdout = os.pipe()
            self.slave, ends = -1, (stdin, stdout)
        self.error_reader, stderr = os.pipe()
        self.process = subprocess.Popen(
            [*command, *options],
            cwd=ROOT,
            stdin=ends[0],
            stdout=ends[1],
            stderr=stderr,
            start_new_session=True,
            # A shell's background job, as a test run may be, ignores SIGINT, and that is inherited.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        for fd in {*ends, stderr} - {self.slave}:
            os.close(fd)

    def __enter__(self) -> "Console":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        if error is not None:
            sys.stdout.write(f"console:\n{self.text()[-4000:]}\nstderr:\n{self.errors.decode(errors='replace')}\n")
        for fd in {self.reader, self.writer, self.error_reader, self.slave} - {-1}:
            with contextlib.suppress(OSError):
                os.close(fd)

    def text(self) -> str:
        return self.output.decode(errors="replace").replace("\r\n", "\n")

    def collect(self, seconds: float = 0) -> bool:
        """Take what has been said, waiting at most so long for the first byte; False when all ends are closed."""
        wanted = [self.error_reader] * (self.error_reader >= 0) + [self.reader] * self.open
        for fd in select.select(wanted, [], [], seconds)[0]:
            try:
                data = os.read(fd, 65536)
            except OSError:  # a pseudo-terminal that nobody holds any more
                data = b""
            if fd == self.reader:
                self.output += data
                self.open = bool(data)
            elif data:
                self.errors += data
            else:
                os.close(fd)
                self.error_reader = -1
        return self.open or self.error_reader >= 0

    def expect(self, pattern: str, seconds: float = PATIENCE) -> re.Match[bytes]:
        """Wait until the console says the pattern (bytes of a regular expression) after the last one expected."""
        deadline = time.monotonic() + seconds
        while True:
            if match := re.search(pattern.encode(), self.output[self.seen :]):
                self.seen += match.end()
                return match
            left = deadline - time.monotonic()
            assert left > 0, f"no {pattern!r} within {seconds} s"
            assert self.collect(min(left, 0.1)) or self.process.poll() is None, f"ended before {pattern!r}"
            if not self.open and self.process.poll() is not None:
                raise AssertionError(f"ended with {self.process.returncode} before {pattern!r}")

    def send(self, data: str | bytes, seconds: float = PATIENCE) -> None:
        """Type, reading what comes back meanwhile so that neither side waits for the other."""
        rest = data.encode() if isinstance(data, str) else data
        deadline = time.monotonic() + seconds
        os.set_blocking(self.writer, False)
        while rest:
            assert time.monotonic() < deadline, f"{len(rest)} bytes were not taken within {seconds} s"
            with contextlib.suppress(BlockingIOError):
                rest = rest[os.write(self.writer, rest[:1024]) :]
            self.collect(0.001)

    def close_input(self) -> None:
        """End of standard input (pipes only)."""
        os.close(self.writer)
        self.writer = -1

    def wait(self, seconds: float = PATIENCE) -> int:
        """Exit status of the supervisor, once it has ended; -N when signal N killed it."""
        deadline = time.monotonic() + seconds
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"still running after {seconds} s"
            self.collect(0.01)
        while (self.open or self.error_reader >= 0) and self.slave < 0 and self.collect(0.2):
            assert time.monotonic() < deadline, "the console is still open"
        self.collect()
        return self.process.returncode

    @property
    def optimizes(self) -> bool:
        """Whether there is an optimizer."""
        return parse(list(self.options)).engine == "jit"

    def processes(self, harts: int, seconds: float = PATIENCE) -> list[psutil.Process]:
        """The I/O process, the harts, and the optimizer, if there is one, in this order, as soon as all are there.

        That is the order in which they were forked: a number below the supervisor's came after the largest one.
        """
        wanted = 1 + harts + self.optimizes
        deadline = time.monotonic() + seconds
        while True:
            found = psutil.Process(self.process.pid).children(recursive=True)
            if len(found) == wanted:
                return sorted(found, key=lambda process: (process.pid < self.process.pid, process.pid))
            assert time.monotonic() < deadline and self.process.poll() is None, f"{len(found)} processes"
            time.sleep(0.01)

    def terminal_is_restored(self) -> bool:
        return bool(termios.tcgetattr(self.slave) == self.mode)


def runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def gone(processes: list[psutil.Process], seconds: float = 30) -> list[psutil.Process]:
    """Those still there after so long; one that has exited and was only not yet waited for by init is gone."""
    deadline = time.monotonic() + seconds
    while left := [p for p in processes if runs(p)]:
        if time.monotonic() > deadline:
            return left
        time.sleep(0.005)
    return []


def inodes(pid: int) -> set[str]:
    """What a process's descriptors are, in the kernel's words."""
    found = set()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            found.add(os.readlink(f"/proc/{pid}/fd/{fd}"))
    return found


@contextlib.contextmanager
def started(*options: str, harts: int = 4, terminal: bool = False) -> Iterator[Console]:
    """A machine of bare-metal size without firmware, with the options that HARTBEAT_GUEST_ARGS adds."""
    more = shlex.split(os.environ.get("HARTBEAT_GUEST_ARGS", ""))
    with Console("-m", "64M", "-bios", "none", "-smp", str(harts), *more, *options, terminal=terminal) as console:
        yield console
