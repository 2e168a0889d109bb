"""What the rows of kind SYSTEM do: traps and returns, fences, cache blocks, hints.

Each action gets the hart and the register numbers; `h.pc` is the instruction's own address.  It gives NEXT (go
on), LEAVE (`h.pc` says where; look at the hart's state first) or FAULT (`mmu.cause` is set).
"""

from typing import Any

from mem import reservation
from mem.atomics import aload32, cpu_relax, fence_full, load32, memory_set, sched_yield
from mem.clock import mtime
from mem.machine import Machine
from mem.mailbox import crowded, sleep
from mem.mmu import cached, is_ram, locate
from mem.native import Native, native
from mem.regions import HOST
from mem.regions import MACHINE as MACHINE_RECORD
from mem.tlb import ALL_SPACES, ASID_MASK, NO_FAULT, READ, WRITE, spaces_with
from smp.alarm import fence_i
from smp.code import current_word
from smp.hart import (
    BREAKPOINT,
    CONSTRAINED,
    ECALL_U,
    ILLEGAL,
    MACHINE,
    SUPERVISOR,
    TSR,
    TVM,
    TW,
    USER,
    Hart,
)
from smp.sbi import sbi_call
from smp.spaces import flush_one, flush_spaces, flush_translations
from smp.trap import machine_return, may_interrupt, supervisor_return, timers_due

NEXT, LEAVE, FAULT = range(3)
BLOCK = 64  # bytes of a cache block

ACTIONS: dict[str, Native] = {}


def action(*names: str) -> Any:
    """Decorator: the native does what these rows say."""

    def register(made: Native) -> Native:
        for name in names:
            ACTIONS[name] = made
        return made

    return register


@native
def illegal(h: Hart) -> int:
    """Raise an illegal-instruction exception; its value is the instruction's bits."""
    h.mmu.cause = ILLEGAL
    h.mmu.tval = current_word(h)
    return FAULT


@action("ecall")
@native
def do_ecall(h: Hart, rd: int, rs1: int, rs2: int, imm: int) -> int:
    if h.privilege == SUPERVISOR and Machine.at(MACHINE_RECORD).sbi:
        h.pc += 4
        sbi_call(h)
        return LEAVE
    h.mmu.cause = ECALL_U + h.privilege
    h.mmu.tval = 0
    return FAULT


@action("ebreak")
@native
def do_ebreak(h: Hart, rd: int, rs1: int, rs2: int, imm: int) -> int:
    h.mmu.cause = BREAKPOINT
    h.mmu.tval = h.pc
    return FAULT


@action("mret")
@native
def do_mret(h: Hart, rd: int, rs1: int, rs2: int, imm: int) -> int:
    if h.privilege != MACHINE:
        return illegal(h)
    machine_return(h)
    return LEAVE


@action("sret")
@native
def do_sret(h: Hart, rd: int, rs1: int, rs2: int, imm: int) -> int:
    if h.privilege == USER or (h.privilege == SUPERVISOR and h.mstatus & TSR):
        return illegal(h)
    supervisor_return(h)
    return LEAVE


@action("wfi")
@native
def do_wfi(h: Hart, rd: int, rs1: int, rs2: int, imm: int) -> int:
    if h.privilege == USER or (h.privilege == SUPERVISOR and h.mstatus & TW):
        return illegal(h)
    h.waiting = 1
    h.pc += 4
    return LEAVE


@action("sfence.vma", "sinval.vma")
@native
def do_sfence(h: Hart, rd: int, rs1: int, rs2: int, imm: int) -> int:
    if h.privilege == USER or (h.privilege == SUPERVISOR and h.mstatus & TVM):
        return illegal(h)
    if rs1 == 0 and rs2 == 0:
        flush_translations(h)
        # More than the manual asks for: xv6 and its like reuse pages of code without a fence.i.
        fence_i(h)
    else:
        # Forgetting global translations too is allowed.
        spaces = ALL_SPACES if rs2 == 0 else spaces_with(h.mmu, h.x[rs2] & ASID_MASK)
        if rs1 == 0:
            flush_spaces(h, spaces)
        else:
            flush_one(h, h.x[rs1], spaces)
    h.pc += 4
    return LEAVE


@action("sfence.w.inval", "sfence.inval.ir")
@native
def do_sfence_part(h: Hart, rd: int, rs1: int, rs2: int, imm: int) -> int:
    """sinval.vma acts at once, so its fences have nothing to wait for."""
    return illegal(h) if h.privilege == USER else NEXT


@action("fence")
@native
def do_fence(h: Hart, rd: int, rs1: int, rs2: int, imm: int) -> int:
    """Order all earlier accesses with all later ones; in particular earlier stores with later loads."""
    fence_full()
    return NEXT


@action("fence.i")
@native
def do_fence_i(h: Hart, rd: int, rs1: int, rs2: int, imm: int) -> int:
    fence_i(h)
    h.pc += 4
    return LEAVE


@action("pause")
@native
def do_pause(h: Hart, rd: int, rs1: int, rs2: int, imm: int) -> int:
    """The hart spins: let others have the core when there are more of them than cores.

    Giving it away may take long, so a timer that is due ends the quantum.
    """
    if crowded():
        sched_yield()
        timers_due(h, mtime())
        if may_interrupt(h):
            h.pc += 4
            return LEAVE
    return NEXT


WAIT_TURNS = 40
NAP_NS = 20_000
NAPS = 8


@native
def reservation_holds(h: Hart) -> int:
    """Whether the value that the last LR saw is still there and nothing rings."""
    if aload32(h.alarm):
        return 0
    return load32(HOST + h.reserved_pa) == h.reserved_value & 0xFFFFFFFF


@action("wrs.sto")
@native
def do_wrs_sto(h: Hart, rd: int, rs1: int, rs2: int, imm: int) -> int:
    """Wait until the reserved value changes or an interrupt comes, but not for long: software looks and comes back.

    With more harts than cores the waiter soon sleeps, so that the one it waits for has a core.
    """
    if h.reservation != CONSTRAINED:
        return NEXT
    turns = 0
    while turns < WAIT_TURNS and reservation_holds(h):
        if crowded() and turns & 3 == 3:
            sched_yield()
        else:
            cpu_relax()
        turns += 1
    if crowded():
        naps = 0
        while naps < NAPS and reservation_holds(h):
            sleep(h.id, NAP_NS)
            naps += 1
    # Who asked something of a sleeping hart counts on its looking at the alarm first.
    h.pc += 4
    return LEAVE


@action("wrs.nto")
@native
def do_wrs_nto(h: Hart, rd: int, rs1: int, rs2: int, imm: int) -> int:
    """Waits without a limit, so TW makes it illegal below M."""
    if h.privilege < MACHINE and h.mstatus & TW:
        return illegal(h)
    return do_wrs_sto(h, rd, rs1, rs2, imm)


# Cache blocks (unprivileged manual, "CMO"): the machine's caches are coherent, so only the checks remain.


@native
def block_allowed(h: Hart, field: int) -> int:
    """Whether menvcfg and senvcfg enable the operation in this mode; `field` is the mask of its bits."""
    if h.privilege < MACHINE and h.mmu.menvcfg & field == 0:
        return 0
    return not (h.privilege == USER and h.senvcfg & field == 0)


@native
def block_address(h: Hart, va: int, access: int) -> int:
    """Translate a block's address; faults are those of a store."""
    block = va & ~(BLOCK - 1)
    known = cached(h.mmu, block, BLOCK, access)
    if known != NO_FAULT:
        return known
    pa = locate(h.mmu, block, BLOCK if access == WRITE else 1, access)
    if h.mmu.cause != NO_FAULT:
        if h.mmu.cause == 13 or h.mmu.cause == 5:
            h.mmu.cause += 2
        h.mmu.tval = va
    return pa


@native
def touch_block(h: Hart, rs1: int, field: int) -> int:
    if not block_allowed(h, field):
        return illegal(h)
    block_address(h, h.x[rs1], READ)
    return FAULT if h.mmu.cause != NO_FAULT else NEXT


@action("cbo.inval")
@native
def do_cbo_inval(h: Hart, rd: int, rs1: int, rs2: int, imm: int) -> int:
    return touch_block(h, rs1, 0x30)


@action("cbo.clean", "cbo.flush")
@native
def do_cbo_clean(h: Hart, rd: int, rs1: int, rs2: int, imm: int) -> int:
    return touch_block(h, rs1, 0x40)


@action("cbo.zero")
@native
def do_cbo_zero(h: Hart, rd: int, rs1: int, rs2: int, imm: int) -> int:
    if not block_allowed(h, 0x80):
        return illegal(h)
    pa = block_address(h, h.x[rs1], WRITE)
    if h.mmu.cause != NO_FAULT:
        return FAULT
    if not is_ram(pa, BLOCK):
        h.mmu.cause = 7
        h.mmu.tval = h.x[rs1]
        return FAULT
    watched = reservation.is_watched(pa)
    if watched:
        reservation.lock()
    memory_set(HOST + pa, 0, BLOCK)
    if watched:
        for at in range(pa, pa + BLOCK, reservation.GRANULE):
            reservation.broken_by(h.id, at, reservation.GRANULE)
        reservation.unlock()
    return NEXT
