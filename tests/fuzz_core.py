"""Fuzzing: what a target is, and how many inputs are played in child processes until one of them is a finding.

An input is bytes; those of a seed are always the same.  A batch of inputs is played by a child in one go, and what
may not have been touched is looked at when it ends.  A child that fails, dies or does not end is played again, input
by input, until few are left that do it; these are written to a file.
"""

import contextlib
import faulthandler
import gc
import hashlib
import mmap
import os
import signal
import struct
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

from smp import engine

MAGIC = b"hartbeat fuzz\n"
LENGTH = struct.Struct("<I")
SEED = struct.Struct("<Q")
PATIENCE = 60.0  # seconds for a batch, which takes some two
BATCH_SECONDS = 2.0
LEAST_BATCH, LARGEST_BATCH = 64, 1 << 22  # on a busy host a child alone may take longer than a batch should
PREFIX, FOLDER = "hartbeat-fuzz-", "HARTBEAT_FUZZ_FOLDER"  # of the folder that a child makes its own in
MEMORY = "/dev/shm"  # where folders of targets are, if it is there: no disk has to be waited for
FAILED = 1  # a child's exit status
T = TypeVar("T")


class Fuzzer:
    """A target in a folder of its own.

    An AssertionError, or whatever else gets out of it, is a finding.  Subclasses say in `unit` what one input is.
    """

    unit: ClassVar[str] = "an input"
    longest: ClassVar[int] = 400  # bytes of an input
    follows: ClassVar[bool] = True  # coverage of Python code says something of it
    depends: ClassVar[bool] = True  # an input may do what it does because of those before it

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def play(self, data: bytes) -> None:
        """One input."""
        raise NotImplementedError

    @classmethod
    def prepare(cls) -> None:
        """Have compiled what takes a while, before there are children."""
        engine.load()

    @classmethod
    def input_of(cls, seed: int) -> bytes:
        """The input of a seed."""
        stream = hashlib.shake_128(SEED.pack(seed & (1 << 64) - 1)).digest(cls.longest + 4)
        return stream[4 : 5 + int.from_bytes(stream[:4], "little") % cls.longest]

    def play_seeds(self, first: int, count: int, tell: Callable[[int], None]) -> None:
        """The inputs of so many seeds, each told of before it is played."""
        for seed in range(first, first + count):
            tell(seed)
            self.play(self.input_of(seed))

    def check(self) -> None:
        """Look after what must not have changed; at the end of a batch."""

    def close(self) -> None:
        """The end of a batch: leave nothing."""


class NativeFuzzer(Fuzzer):
    """A target that plays seeds in compiled code; an input is its seed."""

    follows = depends = False

    @classmethod
    def input_of(cls, seed: int) -> bytes:
        return SEED.pack(seed & (1 << 64) - 1)

    def play(self, data: bytes) -> None:
        self.play_seeds(*SEED.unpack(data[:8].ljust(8, b"\0")), 1, lambda seed: None)


class Source:
    """Numbers from bytes; zeroes when they are used up."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def number(self, limit: int) -> int:
        """From 0 up to and without the limit."""
        width = 1 if limit <= 256 else 4
        taken, self.at = self.data[self.at : self.at + width], self.at + width
        return int.from_bytes(taken, "little") % limit

    def one(self, choices: Sequence[T]) -> T:
        return choices[self.number(len(choices))]

    def bytes(self, count: int) -> bytes:
        taken, self.at = self.data[self.at : self.at + count], self.at + count
        return taken.ljust(count, b"\0")

    def rest(self) -> bytes:
        taken, self.at = self.data[self.at :], len(self.data)
        return taken

    def is_empty(self) -> bool:
        return self.at >= len(self.data)


class Nowhere:
    """Takes what devices say of their drivers."""

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        pass


def silence() -> contextlib.redirect_stderr[Any]:
    """Nothing of what is said on stderr is seen, at little cost."""
    return contextlib.redirect_stderr(Nowhere())  # type: ignore[type-var]


# Children


class Outcome(NamedTuple):
    """How a child ended: which input it was at, and what went wrong, or ''."""

    at: int
    what: str


class Progress:
    """Where a child is, for its parent to see; whatever becomes of the child."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, 64)
        self.words = memoryview(self.memory).cast("Q")

    def tell(self, at: int) -> None:
        self.words[0] = at & (1 << 64) - 1

    def at(self) -> int:
        return self.words[0]


def in_child(work: Callable[[Callable[[int], None]], None], patience: float = PATIENCE) -> Outcome:
    """Do the work in a child process, which has that long; it tells where it is."""
    progress = Progress()
    # Its folders lie in one of ours, for a child that is killed removes none.
    with tempfile.TemporaryFile() as said, tempfile.TemporaryDirectory(prefix=PREFIX, dir=folder_of_all()) as folder:
        child = os.fork()
        if child == 0:
            os.environ[FOLDER] = folder
            _work(work, progress.tell, said.fileno())
        status = _end_of(child, patience)
        said.seek(0)
        text = said.read().decode(errors="replace")
    if status is None:
        return Outcome(progress.at(), f"it has not ended after {patience:.0f} s")
    if status < 0:
        return Outcome(progress.at(), f"killed by {signal.Signals(-status).name}\n{text}")
    return Outcome(progress.at(), text or "it has exited" if status else "")


def _work(work: Callable[[Callable[[int], None]], None], tell: Callable[[int], None], said: int) -> None:
    """The child's part; never comes back."""
    status = FAILED
    faulthandler.enable(said)
    try:
        work(tell)
        status = 0
    except BaseException:
        os.write(said, traceback.format_exc().encode())
    finally:
        os._exit(status)


def _end_of(child: int, patience: float) -> int | None:
    """The exit status of a child, a negative signal, or None if it has to be killed."""
    deadline, pause = time.monotonic() + patience, 0.001
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None
        time.sleep(pause)
        pause = min(0.02, 2 * pause)


def folder_of_all() -> str | None:
    """Where the folders of targets are made."""
    if FOLDER in os.environ:
        return os.environ[FOLDER]
    return MEMORY if os.access(MEMORY, os.W_OK) else None


def opened(kind: type[Fuzzer], play: Callable[[Fuzzer], None]) -> None:
    """Play with a fresh target, and see that it leaves no descriptors."""
    before = len(os.listdir("/proc/self/fd"))
    with tempfile.TemporaryDirectory(prefix=PREFIX, dir=folder_of_all()) as folder:
        fuzzer = kind(Path(folder))
        try:
            play(fuzzer)
            fuzzer.check()
        finally:
            fuzzer.close()
    del fuzzer
    gc.collect()
    after = len(os.listdir("/proc/self/fd"))
    assert after <= before, f"{after - before} descriptors more than before"


def play_batch(kind: type[Fuzzer], first: int, count: int) -> Outcome:
    """Seeds in a child."""
    return in_child(lambda tell: opened(kind, lambda fuzzer: fuzzer.play_seeds(first, count, tell)))


def play_inputs(kind: type[Fuzzer], inputs: Sequence[bytes], patience: float = PATIENCE) -> Outcome:
    """Inputs in a child: as in a batch, and if all is well with a look at everything after each."""
    kind.prepare()

    def work(tell: Callable[[int], None], each: bool) -> None:
        def play(fuzzer: Fuzzer) -> None:
            for number, data in enumerate(inputs):
                tell(number)
                fuzzer.play(data)
                if each:
                    fuzzer.check()

        opened(kind, play)

    outcome = in_child(lambda tell: work(tell, False), patience)
    if outcome.what and outcome.at < len(inputs) - 1:
        return outcome
    careful = in_child(lambda tell: work(tell, True), patience)
    return careful if careful.what else outcome


# Findings


def shortened(kind: type[Fuzzer], inputs: Sequence[bytes], patience: float = PATIENCE) -> tuple[Sequence[bytes], str]:
    """The last few of the inputs that still go wrong, and how; '' if they do not do so again."""
    outcome = play_inputs(kind, inputs, patience)
    if not outcome.what:
        return inputs, ""
    known, count = inputs[: outcome.at + 1], 1
    while count < len(known):
        again = play_inputs(kind, known[-count:], patience)
        if again.what:
            return known[-count:], again.what
        count *= 2
    return known, outcome.what


def write_finding(path: Path, inputs: Sequence[bytes]) -> None:
    """Inputs that are to be played one after another."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(MAGIC + b"".join(LENGTH.pack(len(data)) + data for data in inputs))


def read_finding(path: Path) -> list[bytes]:
    """The inputs of a file; one that was not written by `write_finding` is an input as it is."""
    data = path.read_bytes()
    if not data.startswith(MAGIC):
        return [data]
    inputs, at = [], len(MAGIC)
    while at < len(data):
        (size,) = LENGTH.unpack_from(data, at)
        at += LENGTH.size
        inputs.append(data[at : at + size])
        at += size
    return inputs


class Finding(NamedTuple):
    """What went wrong, and the inputs that do it."""

    what: str
    inputs: Sequence[bytes]
    again: bool  # it does so every time


def play_for(kind: type[Fuzzer], first: int, seconds: float, limit: int = 1 << 62) -> Iterator[int | Finding]:
    """Batches until the time is up, at least one: the inputs of each, and at last a finding if there is one."""
    end, count = time.monotonic() + seconds, min(LEAST_BATCH, limit)
    left = limit
    kind.prepare()
    while left:
        began = time.monotonic()
        outcome = play_batch(kind, first, count)
        if outcome.what:
            yield _finding(kind, first, count, outcome)
            return
        yield count
        first, left, now = first + count, left - count, time.monotonic()
        if now >= end:
            return
        longest = min(BATCH_SECONDS, max(0.1, end - now))
        grown = int(count * min(8.0, longest / max(now - began, 0.001)))
        count = min(max(grown, LEAST_BATCH), LARGEST_BATCH, left)


def _finding(kind: type[Fuzzer], first: int, count: int, outcome: Outcome) -> Finding:
    """From how a batch ended to what can be played again."""
    last = outcome.at if first <= outcome.at < first + count else first + count - 1
    begin = first if kind.depends else last
    inputs = [kind.input_of(seed) for seed in range(begin, last + 1)]
    again, what = shortened(kind, inputs)
    return Finding(what or outcome.what, again, bool(what))
