"""What a hart does when its alarm rings: answers to other harts, and the end of the machine."""

from mem.atomics import aload32, aload64, fetch_and32
from mem.machine import Machine, is_ending
from mem.mailbox import (
    ALARM_CODE,
    ALARM_FENCE_I,
    ALARM_INTERRUPT,
    ALARM_PAUSE,
    ALARM_SERVE,
    ALARM_STOP,
    ALARM_TLB,
    ALARM_WATCH,
    is_served,
    mailbox,
    relax,
    serve,
)
from mem.native import native, ref
from mem.regions import MACHINE
from mem.tlb import flush_writes
from smp.codecache import next_epoch
from smp.hart import Hart
from smp.spaces import flush_decoded, flush_jumps, flush_translations
from smp.trap import end_sequence

ANSWERED = ALARM_TLB | ALARM_FENCE_I | ALARM_WATCH | ALARM_SERVE


@native
def answer(h: Hart) -> None:
    """Do what other harts asked for.  Also called while this hart waits for others, so that two never block.

    The ticket is read before the bits are taken: whoever drew it had set its bits before.  A ticket drawn between
    the two may have had its ALARM_SERVE taken with them, so it is looked for once more.

    Who calls this in the middle of an instruction ends the chain, or leaves translated code, behind it if
    `code_flushes` has moved: the code that it came from may be old by then.
    """
    box = mailbox(h.id)
    if aload32(ref(box.alarm)) & ANSWERED == 0:
        return
    while True:
        ticket = aload64(ref(box.requests))
        bits = fetch_and32(ref(box.alarm), ~ANSWERED)
        if bits & ALARM_TLB:
            flush_translations(h)
        if bits & ALARM_FENCE_I:
            fence_i(h)
        if bits & ALARM_WATCH:
            flush_writes(h.mmu)
        serve(h.id, ticket)
        if aload64(ref(box.requests)) == ticket:
            break


@native
def wait_for(h: Hart, hart: int, ticket: int) -> None:
    """Until another hart has answered; meanwhile this one answers too, so that two never block each other."""
    spins = 0
    while not is_served(hart, ticket) and not is_ending():
        answer(h)
        relax(spins)
        spins += 1


@native
def fence_i(h: Hart) -> None:
    """Have every page of code compared with memory before it runs again."""
    if Machine.at(MACHINE).jit:
        h.epoch = next_epoch()
    flush_decoded(h)


@native
def leave_code(h: Hart) -> None:
    """Let the code cache be emptied (smp/quiesce.py).  Between two instructions only: not even a step slot is in use.

    The bit goes last: its absence is the answer.
    """
    box = mailbox(h.id)
    if aload32(ref(box.alarm)) & ALARM_CODE:
        flush_jumps(h)
        end_sequence(h)  # it has the address of its LR's slot
        fetch_and32(ref(box.alarm), ~ALARM_CODE)


@native
def heed(h: Hart) -> None:
    """Look at the alarm between two instructions."""
    box = mailbox(h.id)
    bits = aload32(ref(box.alarm))
    if bits & ALARM_STOP:
        h.stop = 1
    if bits & ALARM_INTERRUPT:
        fetch_and32(ref(box.alarm), ~ALARM_INTERRUPT)
    if bits & ALARM_PAUSE:
        fetch_and32(ref(box.alarm), ~ALARM_PAUSE)
        h.paused = aload32(ref(Machine.at(MACHINE).paused))  # after the bit: a later change rings again
    leave_code(h)
    answer(h)
