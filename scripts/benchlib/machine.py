"""Runs one machine, or the native binary, as a process group of which nothing is left afterwards.

Every wait has a limit: LINE_SECONDS until the next line of output.
"""

import contextlib
import os
import re
import selectors
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from benchlib.build import IN_GUEST, ROOT

LINE_SECONDS = 300.0
END_SECONDS = 30.0
MARK = "bench: init"
RESULT = re.compile(r"([a-z]+(?:-\d+)?) (\d+\.\d+) ([0-9a-f]{16})")
FAILURE = re.compile(r"([a-z]+(?:-\d+)?) failed (\d+)")


class RunError(Exception):
    """A machine did not do what it was to do; the message names it."""


class Result(NamedTuple):
    seconds: float
    checksum: str


@dataclass(frozen=True)
class Kind:
    """A kind of machine: its name in the table and the command that all options follow; none for `native`."""

    name: str
    command: tuple[str, ...] = ()


@dataclass(frozen=True)
class Guest:
    """What all machines boot.

    devices: further options, and fds the descriptors that they name. before: what /init is told before the programs.
    """

    kernel: Path
    initrd: Path
    append: str
    release: str
    quick: bool
    before: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    fds: tuple[int, ...] = ()

    def options(self, harts: int, *names: str) -> list[str]:
        words = ["init", *["quick"] * self.quick, *self.before, *names]
        append = f"{self.append} rdinit={IN_GUEST} -- {' '.join(words)}"
        named = ["-kernel", str(self.kernel), "-initrd", str(self.initrd), "-append", append]
        return ["-smp", str(harts), "-m", "1G", *named, *self.devices]


@contextlib.contextmanager
def started(command: list[str], fds: tuple[int, ...] = ()) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a group of its own, with its output on a pipe."""
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        pass_fds=fds,
    )
    with ended_later(process):
        yield process


@contextlib.contextmanager
def ended_later(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Of the process group nothing is left."""
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdout:
            process.stdout.close()


def lines(process: subprocess.Popen[bytes]) -> Iterator[str]:
    """What the process prints, to its end; TimeoutError when no line is complete within LINE_SECONDS."""
    assert process.stdout
    rest, end = b"", time.monotonic() + LINE_SECONDS
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            if not selector.select(max(0.0, end - time.monotonic())):
                raise TimeoutError
            if not (data := os.read(process.stdout.fileno(), 65536)):
                return
            *complete, rest = (rest + data).split(b"\n")
            if complete:
                end = time.monotonic() + LINE_SECONDS
            for line in complete:
                yield line.decode(errors="replace").strip()


def machine_command(kind: Kind, *options: str) -> list[str]:
    return [*kind.command, "-nographic", "-no-reboot", *options]


def run_guest(kind: Kind, guest: Guest, harts: int, names: list[str], results: dict[str, Result]) -> float:
    """Boots, runs the programs and ends: seconds until /init ran. What the programs print goes to `results`, also when
    a later one fails."""
    began = time.monotonic()
    with started(machine_command(kind, *guest.options(harts, *names)), guest.fds) as process:
        output = lines(process)
        seen: list[str] = []
        with explained(kind, seen, "boot"):
            for line in output:
                seen.append(line)
                if line == MARK:
                    break
            else:
                raise RunError(f"{kind.name}: ended before /init ran; {tail(seen)}")
            boot = time.monotonic() - began
            collect(kind, output, names, seen, results)
        wait_for_end(kind, process)
    return boot


def run_native(binary: Path, names: list[str], quick: bool, results: dict[str, Result]) -> None:
    """The same programs on the host itself."""
    kind, seen = Kind("native"), [""]
    with started([str(binary), *["quick"] * quick, *names]) as process, explained(kind, seen, "programs"):
        collect(kind, lines(process), names, seen, results)


def collect(kind: Kind, output: Iterator[str], names: list[str], seen: list[str], results: dict[str, Result]) -> None:
    """The results that the programs print, all of `names`; RunError names the first that gave none."""
    failures: list[str] = []
    for line in output:
        seen.append(line)
        if match := RESULT.fullmatch(line):
            results[match[1]] = Result(float(match[2]), match[3])
        elif match := FAILURE.fullmatch(line):
            failures.append(f"{kind.name}: {match[1]} ended with wait status {match[2]}; {tail(seen[:-1])}")
    if failures:
        raise RunError(failures[0])
    if missing := [name for name in names if name not in results]:
        raise RunError(f"{kind.name}: no result of {missing[0]}; {tail(seen)}")


@contextlib.contextmanager
def explained(kind: Kind, seen: list[str], doing: str) -> Iterator[None]:
    try:
        yield
    except TimeoutError:
        raise RunError(f"{kind.name}: {doing}: nothing for {LINE_SECONDS:g} s; {tail(seen)}") from None


def tail(seen: list[str]) -> str:
    last = next((line for line in reversed(seen) if line), "")
    return f"last output: {last[:160]!r}"


def wait_for_end(kind: Kind, process: subprocess.Popen[bytes]) -> None:
    try:
        status = process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        raise RunError(f"{kind.name}: still runs {END_SECONDS:.0f} s after its guest switched it off") from None
    if status:
        raise RunError(f"{kind.name}: ended with status {status}")
