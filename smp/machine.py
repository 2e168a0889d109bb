"""The supervisor: opens the machine's regions, starts its processes, watches them, and says how it ended.

One process a hart and one for I/O are forked from here, after the engine is loaded and before any thread exists.
Whatever dies unexpectedly ends the whole machine; whatever happens here, no process and no memory is left.
"""

import gc
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import multiprocess

from mem.machine import FAILED, RESET, end_machine, machine
from mem.regions import RegionError, Regions, open_code_cache, open_regions
from smp import engine
from smp.blocktext import PERIOD, BlockText
from smp.boot import check_engine, write_hart, write_machine, write_ram
from smp.config import MachineConfig
from smp.control import Control
from smp.cpu import ConfigError
from smp.devicetree import plan_boot
from smp.io_setup import io_config
from smp.optimizer import run_optimizer
from smp.process import run_hart_process
from smp.stats import print_stats
from smp.translate import prepare_cache
from virtio import sandbox
from virtio.process import IoConfig, run_io
from virtio.sandbox import open_descriptors

PATIENCE = 20.0  # seconds that processes have to stop, which they do at once; a busy host may not let them
LAST_WORDS = 60.0  # seconds that a reader has to take what the guest has sent
HURRY = 1.0  # the same when it was a signal that ended the machine
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run_machine(config: MachineConfig) -> int:
    """Run until the guest powers off; the command's exit status.  A reset starts anew unless -no-reboot is given."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until there is something to clean up
    check_engine(config)
    plan_boot(config)  # mistakes in the files come before the engine is compiled
    progress = Progress()
    engine.load(progress.say)
    progress.done()
    log_fd = open_log(config)
    say_unimplemented(config, log_fd)
    io = io_config(config)
    if config.sandbox:
        say_unsafe()
    control: Control | None = None
    try:
        control = Control(config, io)
        while True:
            run = Run(config, io, control, log_fd)
            why, status = run.go()
            if why != RESET or not config.reboot:
                return status
    finally:
        if control:
            control.close()
        io.close()
        if log_fd != 2:
            os.close(log_fd)


def open_log(config: MachineConfig) -> int:
    """Where -d's lines go."""
    if config.log_file is None:
        return 2
    try:
        return os.open(config.log_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise ConfigError(f"-D {config.log_file}: {error.strerror}; choose another place") from error


def say_unimplemented(config: MachineConfig, log_fd: int) -> None:
    """With -d unimp: what was asked for and is something else here."""
    names = sorted({device.on_pci for device in config.devices if device.on_pci})
    if names and "unimp" in config.log:
        os.write(log_fd, f"unimp: the machine has no PCI: {', '.join(names)} on virtio-mmio\n".encode())


def say_unsafe() -> None:
    """What the host's kernel lacks for the sandbox; the machine runs without that part of it."""
    for text in sandbox.missing():
        print(f"hartbeat: sandbox: {text}", file=sys.stderr)


class Progress:
    """What takes long is said on a terminal, on one line that goes away again."""

    def __init__(self) -> None:
        self.shown = False

    def say(self, text: str) -> None:
        if sys.stderr.isatty():
            sys.stderr.write(f"\r\x1b[Khartbeat: {text}")
            sys.stderr.flush()
            self.shown = True

    def done(self) -> None:
        if self.shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


@dataclass
class Run:
    """One life of the machine, from its start to power-off, reset or failure."""

    config: MachineConfig
    io: IoConfig
    control: Control
    log_fd: int
    regions: Regions | None = None
    blocks: BlockText | None = None
    harts: list[Any] = field(default_factory=list)
    io_processes: list[Any] = field(default_factory=list)
    optimizer: Any = None
    fds: list[int] = field(default_factory=list)
    killed_by: int = 0
    running: bool = False
    started: float = 0.0

    def go(self) -> tuple[int, int]:
        """Run it; gives why it ended (mem/machine.py) and the exit status."""
        old = {number: signal.signal(number, self.interrupted) for number in SIGNALS}
        try:
            self.open()
            self.start()
            self.running = True
            if self.killed_by:
                end_machine(FAILED, 128 + self.killed_by)
            return self.watch()
        except RegionError as error:
            raise ConfigError(f"-m {self.config.ram >> 20}M: {error}") from error
        finally:
            self.close()
            for number, handler in old.items():
                signal.signal(number, handler)

    def interrupted(self, number: int, frame: object) -> None:
        """A signal to the supervisor ends the machine."""
        self.killed_by = number
        if self.running:
            end_machine(FAILED, 128 + number)

    def open(self) -> None:
        """Map and fill in everything."""
        boot = plan_boot(self.config)
        self.regions = open_regions(self.config.harts, self.config.ram)
        self.fds = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(2)]
        self.fds.append(os.eventfd(0, os.EFD_CLOEXEC))
        if self.config.translates:
            open_code_cache(self.regions, self.config.tb_size, self.config.perfmap)
            prepare_cache(self.config.tb_size)
        write_machine(self.config, boot, self.fds[0], self.fds[1], self.log_fd)
        if self.config.engine == "jit":
            machine().optimizer_fd = self.fds[2]
        for number in range(1, len(self.io.polling)):
            self.fds.append(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))
            machine().iothread_fd[number] = self.fds[-1]
        if self.config.wants_blocks():
            self.blocks = BlockText(self.config, self.log_fd)
        write_ram(self.regions, boot)
        for number in range(self.config.harts):
            write_hart(self.config, boot, number)
        self.io.supervisor, self.io.last_words = os.getpid(), LAST_WORDS
        self.io.ram_fd = self.regions.ram_fd
        self.io.prepare()
        self.control.open(self.harts, self.io_processes)

    def start(self) -> None:
        """Fork the processes.  What exists by now is shared with them copy-on-write; the collector keeps off it."""
        sys.stdout.flush()
        sys.stderr.flush()
        gc.freeze()
        gc.enable()
        context = multiprocess.get_context("fork")
        self.started = time.monotonic()
        for number in range(len(self.io.polling)):
            name = f"io {number}" if number else "io"
            self.io.surplus = self.surplus(number)
            self.io_processes.append(context.Process(target=run_io, args=(self.io, number), name=name))
            self.io_processes[-1].start()
        for number in range(self.config.harts):
            args = (number, os.getpid(), self.log_fd, self.control.descriptors())
            hart = context.Process(target=run_hart_process, args=args, name=f"hart {number}")
            hart.start()
            self.harts.append(hart)
        if self.config.engine == "jit":
            what = (os.getpid(), self.fds[2], self.control.descriptors())
            self.optimizer = context.Process(target=run_optimizer, args=what, name="optimizer")
            self.optimizer.start()
        self.control.forked()
        if self.blocks and self.config.perfmap:
            self.blocks.open_maps([os.getpid(), *(hart.pid for hart in self.harts)])

    def surplus(self, number: int) -> set[int]:
        """The descriptors that an I/O process does not need, before it is forked."""
        if self.config.backends or not self.config.sandbox:
            return self.control.descriptors(number)  # what the caller's own devices have open is not known
        return open_descriptors() - self.io.keeps(number) - {0, 1, 2, self.log_fd, self.io.ram_fd, *self.fds}

    def watch(self) -> tuple[int, int]:
        """Wait for the end, orderly or not."""
        m = machine()
        everyone = self.everyone()
        while not m.ending:
            fds = [self.fds[0], *(p.sentinel for p in everyone)]
            ready = self.control.wait(fds, PERIOD if self.blocks else None)
            if self.blocks:
                self.blocks.some()
            dead = next((p for p in everyone if p.sentinel in ready and not p.is_alive()), None)
            if dead is not None and not m.ending:
                return self.fail(f"{dead.name} {describe(dead.exitcode)}; the machine is stopped")
        why, code = m.ending, m.code
        self.control.ended(why, "host-signal" if self.killed_by else "")
        if not self.join(self.harts, lambda: PATIENCE):
            return self.fail("a hart did not stop")
        if not self.join(self.io_processes, self.for_last_words) and not self.in_haste():
            return self.fail("an I/O process did not stop")
        if self.config.stats:
            print_stats(self.config, time.monotonic() - self.started)
        return why, exit_status(code) if why == FAILED else 0

    def fail(self, text: str) -> tuple[int, int]:
        """The machine ends because something of ours broke."""
        if not machine().ending:
            self.control.ended(FAILED, "host-error")
        end_machine(FAILED, 1)
        self.stop_all()
        self.io.close()
        print(f"\rhartbeat: {text}", file=sys.stderr)
        return FAILED, 1

    def for_last_words(self) -> float:
        """Seconds that I/O processes have to end in; when the user has ended the machine there are fewer."""
        return HURRY if self.in_haste() else LAST_WORDS + PATIENCE

    def join(self, processes: list[Any], seconds: Callable[[], float]) -> bool:
        """Wait for processes to exit; whether all did in time."""
        began = time.monotonic()
        while alive := [p for p in processes if p.is_alive()]:
            left = began + seconds() - time.monotonic()
            if left <= 0:
                return False
            self.control.wait([p.sentinel for p in alive], min(left, 0.1))
        return True

    def in_haste(self) -> bool:
        """Whether it is the user who has ended the machine."""
        return bool(self.killed_by or machine().hurry)

    def everyone(self) -> list[Any]:
        """All processes that were started."""
        return [p for p in [*self.harts, *self.io_processes, self.optimizer] if p is not None]

    def stop_all(self) -> None:
        """Kill what still runs."""
        everyone = self.everyone()
        for process in everyone:
            if process.is_alive():
                process.kill()
        for process in everyone:
            process.join()

    def close(self) -> None:
        """Leave nothing: processes, descriptors, mappings."""
        self.stop_all()
        self.control.closed()
        for process in self.everyone():
            process.close()
        for fd in self.fds:
            os.close(fd)
        self.fds = []
        if self.blocks is not None:
            self.killed_by = 0
            self.blocks.close(lambda: self.killed_by != 0)
            self.blocks = None
        if self.regions is not None:
            self.regions.close()
            self.regions = None


def exit_status(code: int) -> int:
    """A failure's code as a process can give it: in eight bits, and never 0."""
    return code & 0xFF or 1


def describe(status: int | None) -> str:
    """How a process ended."""
    if status is not None and status < 0:
        return f"was killed by {signal.Signals(-status).name}"
    return f"exited with status {status}"
