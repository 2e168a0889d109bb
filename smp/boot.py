"""The state a machine starts in: shared records, RAM and hart records, written before anything is forked."""

import os

from mem import clint, reservation
from mem.atomics import py_now_ns
from mem.image import Boot
from mem.log import LOG_EXEC, LOG_GUEST_ERRORS, LOG_INT, LOG_UNIMP
from mem.machine import Machine, machine
from mem.mailbox import sleepers
from mem.memmap import RAM_BASE
from mem.regions import HART_STRIDE, HARTS, MAILBOXES, Regions
from mem.tlb import NO_FAULT, Mmu
from smp.config import MachineConfig
from smp.cpu import EXT_C, EXT_SVADU, EXT_SVPBMT, ConfigError
from smp.hart import DECODED_PAGES, MACHINE, NEVER, SUPERVISOR, Hart, hart_record
from smp.host import untranslatable
from smp.sbi import STARTED, STOPPED
from smp.spaces import reset_spaces
from smp.trap import STCE, update_view

LOG_BITS = {"int": LOG_INT, "exec": LOG_EXEC, "guest_errors": LOG_GUEST_ERRORS, "unimp": LOG_UNIMP}
A0, A1, A2 = 10, 11, 12
ADUE, PBMTE, ENVCFG_CACHE = 1 << 61, 1 << 62, 0xF0
# What M-mode delegates under the built-in SBI: everything but calls from S-mode, which the SBI answers.
DELEGATED = 0xB1FF
SUPERVISOR_INTERRUPTS = 0x222
COUNTERS_FOR_ALL = 7  # cycle, time and instret, which OpenSBI lets user programs read as well


def host_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def check_engine(config: MachineConfig) -> None:
    """Raise ConfigError when this host can't run the engine that was asked for."""
    if config.translates and (reason := untranslatable()):
        raise ConfigError(f"--engine {config.engine}: {reason}; use --engine interp")


def write_machine(config: MachineConfig, boot: Boot, supervisor_fd: int, io_fd: int, log_fd: int) -> Machine:
    """Fill in the machine's shared record."""
    m = machine()
    m.harts, m.ram_bytes, m.extensions = config.harts, config.ram, config.cpu.mask
    m.log = sum(LOG_BITS.get(item, 0) for item in config.log)
    m.clock_origin = py_now_ns()
    m.supervisor_fd, m.io_fd, m.log_fd, m.one = supervisor_fd, io_fd, log_fd, 1
    m.htif_tohost = boot.tohost or 0
    m.sbi = boot.mode == "S"
    m.mmu_levels = {39: 3, 48: 4, 57: 5}[config.cpu.mmu]
    m.jit, m.check = config.translates, config.engine == "check"
    sleepers().harts, sleepers().cores = config.harts, host_cores()
    clint.clint_reset()
    reservation.reset()
    return m


def write_ram(regions: Regions, boot: Boot) -> None:
    """Put the boot's pieces into RAM."""
    ram = regions.ram()
    for segment in boot.segments:
        start = segment.address - RAM_BASE
        ram[start : start + len(segment.data)] = segment.data


def write_hart(config: MachineConfig, boot: Boot, number: int) -> None:
    """A hart as it leaves reset, or as M-mode firmware hands it to a kernel (privileged manual, "Reset")."""
    from mem.mailbox import Mailbox

    h = hart_record(number)
    box = MAILBOXES + number * Mailbox.sizeof()
    h.id = h.mmu.hart = number
    h.alarm = box + Mailbox.offset("alarm")
    h.pc = boot.pc
    h.x[A0], h.x[A1], h.x[A2] = number, boot.dtb, boot.info
    h.misaligned = 0 if config.cpu.mask & EXT_C else 2
    h.stimecmp = NEVER
    h.mmu.cause = NO_FAULT
    for page in range(DECODED_PAGES):
        h.page_ppn[page] = NEVER
    h.privilege = MACHINE
    # No manual says what a reset gives; kernels with an M-mode of their own (xv6) count on QEMU's: A and D are set.
    h.mmu.menvcfg = ADUE if config.cpu.mask & EXT_SVADU else 0
    h.step = "exec" in config.log
    if boot.mode == "S":
        hand_over(config, h, Mailbox.at(box), first=number == 0)
    reset_spaces(h, HARTS + number * HART_STRIDE + Hart.offset("mmu") + Mmu.offset("views"))
    update_view(h)


def hand_over(config: MachineConfig, h: Hart, box: "object", first: bool) -> None:
    """What firmware has set up when it enters a kernel; the other harts wait for hart_start."""
    h.privilege = SUPERVISOR
    h.medeleg, h.mideleg = DELEGATED, SUPERVISOR_INTERRUPTS
    h.mcounteren = 0xFFFFFFFF
    h.scounteren = COUNTERS_FOR_ALL  # a kernel without a PMU driver leaves it as it is, and the vDSO reads time
    h.mmu.menvcfg = ENVCFG_CACHE | STCE  # the SBI sets timers by it, with or without Sstc
    h.mmu.menvcfg |= PBMTE if config.cpu.mask & EXT_SVPBMT else 0
    h.mmu.pmpcfg[0], h.mmu.pmpaddr[0] = 0x1F, (1 << 54) - 1
    h.stopped = not first
    box.hsm = STARTED if first else STOPPED  # type: ignore[attr-defined]
