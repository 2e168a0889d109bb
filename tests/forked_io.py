"""The I/O process, really forked: the process that imports this plays the harts."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from fake_driver import RAM_BYTES, Rig

from mem import regions
from mem.machine import POWER_OFF, end_machine, machine
from mem.window import window_write
from smp import engine
from virtio.device import Device
from virtio.process import IoConfig, run_io
from virtio.queue import Ram


@contextmanager
def io_memory() -> Iterator[Ram]:
    """A machine's memory with all that the I/O process looks at."""
    engine.load()
    opened = regions.open_regions(2, RAM_BYTES)
    m = machine()
    m.harts, m.ram_bytes, m.one = 2, RAM_BYTES, 1
    m.io_fd, m.supervisor_fd, m.iothread_fd[1] = os.eventfd(0), os.eventfd(0), os.eventfd(0)
    try:
        yield Ram(opened.ram(), fd=opened.ram_fd)
    finally:
        os.close(m.io_fd)
        os.close(m.supervisor_fd)
        os.close(m.iothread_fd[1])
        opened.close()


def fork_io(io: IoConfig, number: int = 0) -> int:
    """The I/O process; its exit status says whether an exception got out."""
    if number == 0:
        io.prepare()
    child = os.fork()
    if child == 0:
        status = 3
        try:
            run_io(io, number)
            status = 0
        finally:
            os._exit(status)
    return child


@contextmanager
def process(function: Callable[[], object]) -> Iterator[None]:
    """A child that calls the function once, and is killed in the end."""
    child = os.fork()
    if child == 0:
        try:
            function()
        finally:
            os._exit(0)
    try:
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def wait(until: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < deadline, "the I/O process does not answer"
        time.sleep(0.0005)


def finish(child: int, seconds: float = 60) -> int:
    """End the machine; the process's exit status."""
    end_machine(POWER_OFF, 0)
    return reap(child, seconds)


def reap(child: int, seconds: float = 60) -> int:
    status = 0

    def gone() -> bool:
        nonlocal status
        pid, status = os.waitpid(child, os.WNOHANG)
        return pid == child

    try:
        wait(gone, seconds)
    except AssertionError:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise
    return os.waitstatus_to_exitcode(status)


class Hart(Rig):
    """A driver on hart 0: register writes wait for the I/O process."""

    def __init__(self, ram: Ram, device: Device, slot: int, hart: int = 0) -> None:
        self.ram, self.device, self.slot, self.hart = ram, device, slot, hart
        self.rings: list[Any] = []

    def write(self, register: int, value: int, size: int = 4) -> None:
        window_write(self.hart, self.slot, register, size, value)

    def kick(self, index: int = 0) -> None:
        """Notify without waiting for an answer."""
        self.write(0x50, index)

    def notify(self, index: int = 0) -> None:
        self.kick(index)
        wait(self.rings[index].has_used)
