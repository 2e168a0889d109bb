"""What all processes know of the machine: its size, its processor, and whether it is ending."""

from mem import regions
from mem.atomics import cas32, fetch_or32, load32, write_fd
from mem.layout import Layout, layout, many, u32, u64
from mem.mailbox import ALARM_STOP, alarm
from mem.native import native, ref
from mem.regions import IO_PROCESSES

RUNNING, POWER_OFF, RESET, FAILED = range(4)


@layout
class Machine(Layout):
    """One for all; written by the supervisor before the fork but for `ending`, `code`, `paused` and `hurry`."""

    harts: u32
    ending: u32  # RUNNING, or why the machine ends: the first writer wins
    code: u32  # exit status that goes with `ending`
    log: u32  # LOG_* bits of -d
    ram_bytes: u64
    extensions: u64  # bits of smp/cpu.py
    clock_origin: u64  # host nanoseconds at mtime 0
    supervisor_fd: u32  # eventfd that wakes the supervisor
    io_fd: u32  # eventfd that wakes the I/O process
    io_asleep: u32  # 1 while the I/O process sleeps in epoll: whoever has work for it must kick
    log_fd: u32  # where compiled code writes its log lines
    htif_tohost: u64  # physical address, 0 when there is none
    sbi: u32  # 1 when calls from S-mode go to the built-in SBI
    mmu_levels: u32  # 3, 4 or 5: the deepest translation satp accepts
    jit: u32  # 1 when harts run translated code
    blocks_fd: u32  # where records of translated blocks go (smp/blocklog.py), 0 when nobody wants them
    blocks_lost: u32  # 1 when one could not be written
    check: u32  # 1 when the interpreter checks the translator
    optimizer_fd: u32  # eventfd that wakes the optimizer, 0 when there is none
    paused: u32  # 1 while no hart is to execute anything (mem/pause.py)
    hurry: u32  # 1 when the user ended the machine: output may be lost if its reader is slow
    one: u64  # 1, what a kick writes
    iothread_fd: list[u32] = many(IO_PROCESSES)  # as io_fd, for the I/O process of this number; that of 0 is unused
    iothread_asleep: list[u32] = many(IO_PROCESSES)


def machine() -> Machine:
    """The machine of this process."""
    return Machine.at(regions.MACHINE)


@native
def end_machine(why: int, code: int) -> None:
    """Stop every hart; the first reason given is the one that counts."""
    m = Machine.at(regions.MACHINE)
    if cas32(ref(m.ending), 0, why) == 0:
        m.code = code
    for hart in range(m.harts):
        alarm(hart, ALARM_STOP)
    kick(m.supervisor_fd)
    kick(m.io_fd)
    for number in range(1, IO_PROCESSES):
        if m.iothread_fd[number]:
            kick(m.iothread_fd[number])


@native
def kick(fd: int) -> None:
    """Add one to an eventfd."""
    write_fd(fd, ref(Machine.at(regions.MACHINE).one), 8)


@native
def kick_io() -> None:
    """Wake the I/O process if it sleeps: call after publishing the work.

    Orders the work's writes before the read of `io_asleep`; the sleeper sets it, fences, and looks for work again.
    """
    m = Machine.at(regions.MACHINE)
    if fetch_or32(ref(m.io_asleep), 0):
        kick(m.io_fd)


@native
def kick_io_process(number: int) -> None:
    """The same for the I/O process of this number."""
    if number == 0:
        kick_io()
        return
    m = Machine.at(regions.MACHINE)
    if fetch_or32(ref(m.iothread_asleep[number]), 0):
        kick(m.iothread_fd[number])


@native
def is_ending() -> int:
    """Why the machine ends, or 0."""
    return load32(ref(Machine.at(regions.MACHINE).ending))
