"""Traps: interrupts that are due, entry, return (privileged manual, "Machine-Level ISA" and "Supervisor-Level ISA")."""

from mem.atomics import aload32
from mem.clint import Clint
from mem.clock import mtime
from mem.machine import Machine
from mem.mailbox import MEIP, MSIP, MTIP, SEIP, SSIP, STIP, mailbox
from mem.native import native, ref
from mem.regions import CLINT
from mem.regions import MACHINE as MACHINE_RECORD
from mem.tlb import NO_FAULT, choose_view
from mem.word import ctz, select
from smp.hart import (
    INTERRUPT,
    JUMP_ENTRIES,
    MACHINE,
    MIE,
    MPIE,
    MPP,
    MPP_SHIFT,
    MPRV,
    MXR,
    NEVER,
    NOTHING,
    SIE,
    SPIE,
    SPP,
    SUM,
    SUPERVISOR,
    USER,
    Hart,
)
from smp.spaces import code_bank, flush_translations

STCE = 1 << 63  # menvcfg


@native
def update_view(h: Hart) -> None:
    """Follow a change of privilege or mstatus: which translations are in use."""
    mmu = h.mmu
    mmu.privilege = h.privilege
    data = h.privilege
    if h.mstatus & MPRV:
        data = (h.mstatus & MPP) >> MPP_SHIFT
    mmu.data_privilege = data
    mmu.sum = h.mstatus & SUM != 0
    mxr = h.mstatus & MXR != 0
    if mmu.mxr != mxr:
        mmu.mxr = mxr
        # Code's too: only together may they forget which superpages are cached.
        flush_translations(h)
    choose_view(mmu)
    bank = code_bank(h, h.privilege)
    h.fetch = ref(h.fetch_banks[bank])
    h.jumps = ref(h.jump_banks[bank * JUMP_ENTRIES])


@native
def timer_deadline(h: Hart) -> int:
    """The next mtime value at which an enabled timer interrupt rises."""
    deadline = NEVER
    if h.mie & MTIP:
        deadline = Clint.at(CLINT).mtimecmp[h.id]
    if h.mie & STIP and h.mmu.menvcfg & STCE and h.stimecmp < deadline:
        deadline = h.stimecmp
    return deadline


@native
def timers_due(h: Hart, now: int) -> int:
    """The timers' bits of mip at this time; kept in `timers` for `may_interrupt`."""
    bits = 0
    if now >= Clint.at(CLINT).mtimecmp[h.id]:
        bits |= MTIP
    if h.mmu.menvcfg & STCE and now >= h.stimecmp:
        bits |= STIP
    h.timers = bits
    return bits


@native
def pending(h: Hart) -> int:
    """mip: lines from outside, software's bits, and the timers against the clock."""
    bits = aload32(ref(mailbox(h.id).pending)) | h.soft_pending
    if h.mmu.menvcfg & STCE:
        bits &= ~STIP
    return bits | timers_due(h, mtime())


@native
def may_interrupt(h: Hart) -> int:
    """Whether `due_interrupt` is worth asking: costs no look at the clock.

    A timer counts when a look at the clock that software may know of found it due (the loop's, mip's, `time`'s).
    """
    return (aload32(ref(mailbox(h.id).pending)) | h.soft_pending | h.timers) & h.mie != 0


@native
def may_go_on(h: Hart) -> int:
    """Whether the hart runs on at `h.pc` after a trap, a return or a change of state, with no look by its loop.

    It costs one of the quantum, so that traps that trap again come to an end.
    """
    if h.privilege == MACHINE and h.mstatus & MIE:
        # Here a look at MTIME, that nobody notes, may be what software goes by.
        return 0
    if Machine.at(MACHINE_RECORD).check:
        # The check's windows end at traps.
        return 0
    if h.waiting | h.stopped | h.suspended | h.stop | h.log_new or may_interrupt(h):
        return 0
    # What has been done may have slept: others count on its looking at the alarm before it runs translated code.
    if aload32(h.alarm):
        return 0
    h.quantum -= 1
    h.left -= 1
    return 1


@native
def highest(bits: int) -> int:
    """The interrupt that goes first: MEI MSI MTI SEI SSI STI."""
    if bits & MEIP:
        return 11
    if bits & MSIP:
        return 3
    if bits & MTIP:
        return 7
    if bits & SEIP:
        return 9
    if bits & SSIP:
        return 1
    if bits & STIP:
        return 5
    return ctz(bits)


@native
def due_interrupt(h: Hart) -> int:
    """The number of the interrupt to take now, or NEVER."""
    ready = pending(h) & h.mie
    if ready == 0:
        return NEVER
    for_machine = ready & ~h.mideleg
    if for_machine and (h.privilege < MACHINE or h.mstatus & MIE):
        return highest(for_machine)
    for_supervisor = ready & h.mideleg
    if for_supervisor and (h.privilege < SUPERVISOR or (h.privilege == SUPERVISOR and h.mstatus & SIE)):
        return highest(for_supervisor)
    return NEVER


@native
def vector(base: int, cause: int) -> int:
    """Where the handler starts: vectored mode adds 4 * cause for interrupts."""
    target = base & ~3
    if base & 1 and cause & INTERRUPT:
        target += 4 * (cause & ~INTERRUPT)
    return target


@native
def note_trap(h: Hart, pc: int, cause: int, tval: int) -> None:
    """Keep the trap for -d int and the statistics."""
    if cause & INTERRUPT:
        h.interrupts += 1
    else:
        h.traps += 1
    if Machine.at(MACHINE_RECORD).log & 1:
        h.log_cause = cause
        h.log_tval = tval
        h.log_pc = pc
        h.log_new = 1


@native
def end_sequence(h: Hart) -> None:
    """A trap or a return ends a constrained LR/SC sequence; whoever breaks a watched reservation does so himself."""
    if h.reservation:
        h.reservation = NOTHING


@native
def take_trap(h: Hart, pc: int, cause: int, tval: int) -> None:
    """Enter the handler for a trap at `pc`; `cause` as in mcause."""
    note_trap(h, pc, cause, tval)
    end_sequence(h)
    number = cause & 63
    delegated = (h.mideleg if cause & INTERRUPT else h.medeleg) >> number & 1
    status = h.mstatus
    if delegated and h.privilege <= SUPERVISOR:
        h.sepc = pc
        h.scause = cause
        h.stval = tval
        status = status & ~(SPP | SPIE) | select(h.privilege == SUPERVISOR, SPP, 0)
        status |= select(status & SIE != 0, SPIE, 0)
        h.mstatus = status & ~SIE
        h.privilege = SUPERVISOR
        h.pc = vector(h.stvec, cause)
    else:
        h.mepc = pc
        h.mcause = cause
        h.mtval = tval
        status = status & ~(MPP | MPIE) | h.privilege << MPP_SHIFT
        status |= select(status & MIE != 0, MPIE, 0)
        h.mstatus = status & ~MIE
        h.privilege = MACHINE
        h.pc = vector(h.mtvec, cause)
    update_view(h)


@native
def take_fault(h: Hart, pc: int) -> None:
    """Enter the handler for the exception left in `mmu.cause`."""
    cause = h.mmu.cause
    h.mmu.cause = NO_FAULT
    take_trap(h, pc, cause, h.mmu.tval)


@native
def machine_return(h: Hart) -> None:
    """MRET."""
    status = h.mstatus
    previous = (status & MPP) >> MPP_SHIFT
    status = status & ~(MIE | MPP) | select(status & MPIE != 0, MIE, 0) | MPIE
    if previous != MACHINE:
        status &= ~MPRV
    h.mstatus = status
    h.privilege = previous
    h.pc = h.mepc & ~h.misaligned
    end_sequence(h)
    update_view(h)


@native
def supervisor_return(h: Hart) -> None:
    """SRET."""
    status = h.mstatus
    previous = select(status & SPP != 0, SUPERVISOR, USER)
    status = status & ~(SIE | SPP | MPRV) | select(status & SPIE != 0, SIE, 0) | SPIE
    h.mstatus = status
    h.privilege = previous
    h.pc = h.sepc & ~h.misaligned
    end_sequence(h)
    update_view(h)
