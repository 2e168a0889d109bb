"""A hart's process: maps what is private to it, runs the compiled loop, writes the log lines it comes back for."""

import ctypes
import os
import signal
import sys
from typing import NoReturn

from mem.machine import FAILED, end_machine, machine
from mem.regions import DECODED, HART_STRIDE, HARTS, map_fixed
from smp.check import prepare_check
from smp.check_report import report
from smp.code import DECODED_BYTES
from smp.hart import INTERRUPT, STOPPED, Hart, hart_record
from smp.loop import run_hart
from virtio.sandbox import close_all

PR_SET_PDEATHSIG = 1
EXCEPTIONS = {0: "misaligned fetch", 1: "fetch access fault", 2: "illegal instruction", 3: "breakpoint",
              4: "misaligned load", 5: "load access fault", 6: "misaligned store", 7: "store access fault",
              8: "ecall from U", 9: "ecall from S", 11: "ecall from M", 12: "fetch page fault",
              13: "load page fault", 15: "store page fault"}  # fmt: skip
INTERRUPTS = {1: "supervisor software", 3: "machine software", 5: "supervisor timer", 7: "machine timer",
              9: "supervisor external", 11: "machine external"}  # fmt: skip


def depend_on(supervisor: int) -> None:
    """In a forked process: die with the supervisor, and leave the terminal's signals to it."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != supervisor:
        os._exit(1)
    for ignored in (signal.SIGINT, signal.SIGHUP, signal.SIGTTOU, signal.SIGPIPE):
        signal.signal(ignored, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def run_hart_process(number: int, supervisor: int, log_fd: int, surplus: set[int]) -> NoReturn:
    """The main function of a forked hart: runs until the machine ends, then exits with status 0."""
    depend_on(supervisor)
    close_all(surplus)
    map_fixed(DECODED, DECODED_BYTES)
    if machine().check:
        prepare_check()
    h = hart_record(number)
    address = HARTS + number * HART_STRIDE
    while run_hart.unlocked(address) != STOPPED:
        if h.check_failed:
            print(report(h), file=sys.stderr, flush=True)
            h.check_failed = 0
            end_machine(FAILED, 1)
        write_log(h, log_fd)
    os._exit(0)


def write_log(h: Hart, fd: int) -> None:
    """One line for a trap, or for the block about to run."""
    lines = []
    if h.log_new:
        h.log_new = 0
        lines.append(trap_line(h))
    if h.step:
        lines.append(f"Trace {h.id}: [{h.pc:016x}/{'US?M'[h.privilege]}]")
    if lines:
        os.write(fd, ("\n".join(lines) + "\n").encode())


def trap_line(h: Hart) -> str:
    """A trap as QEMU's -d int has it."""
    number, is_async = h.log_cause & ~INTERRUPT, bool(h.log_cause & INTERRUPT)
    what = (INTERRUPTS if is_async else EXCEPTIONS).get(number, "?")
    return (
        f"riscv_cpu_do_interrupt: hart:{h.id}, async:{int(is_async)}, cause:{number:016x}, "
        f"epc:0x{h.log_pc:016x}, tval:0x{h.log_tval:016x}, desc={what}"
    )
