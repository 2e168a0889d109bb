"""Emptying the full code cache, while every hart is kept out of it.

Who needs room holds the translator's lock, sets `emptying`, sets ALARM_CODE at every other hart and waits until each
has taken it (smp/alarm.py:leave_code) or counts as asleep.  A hart takes it between two blocks or while it waits for
the lock, never in the middle of an instruction, whose decoded slot lies in the cache too; one that counts as asleep
looks at its alarm before it executes anything.  So from then on a hart has no address of translated code: it has left
the blocks, its jump caches are empty, and a jump that was to be linked is dropped.  It gets a new one only by
`find_code`, which looks nothing up while `emptying` is set but waits for the lock.

Nobody waits for ever: a hart that waits in the middle of an instruction waits for answers of others, which they give
also while they wait for the lock, or hold it and wait here.
"""

from mem.atomics import aload32, astore32, fetch_or32, spin_unlock, xchg32
from mem.machine import Machine, is_ending
from mem.mailbox import ALARM_CODE, RUNNING, mailbox, relax
from mem.native import native, ref
from mem.regions import MACHINE
from smp.alarm import answer, leave_code
from smp.codecache import forget_all, table
from smp.hart import Hart
from smp.spaces import flush_jumps
from smp.trap import end_sequence


@native
def take_lock(h: Hart) -> int:
    """Take the translator's lock; 0 when it was held, and this hart may have answered others until it was free."""
    lock = ref(table().lock)
    if xchg32(lock, 1) == 0:
        return 1
    spins = 0
    while aload32(lock) and not is_ending():
        leave_code(h)
        answer(h)
        relax(spins)
        spins += 1
    return 0


@native
def free_lock() -> None:
    spin_unlock(ref(table().lock))


@native
def wait_until_out(h: Hart, hart: int) -> None:
    """Until another hart has left translated code, or can't go back without looking at its alarm."""
    box = mailbox(hart)
    spins = 0
    while aload32(ref(box.alarm)) & ALARM_CODE and aload32(ref(box.activity)) == RUNNING and not is_ending():
        answer(h)
        relax(spins)
        spins += 1


@native(cold=True)
def empty_cache(h: Hart) -> None:
    """Empty the code cache, unless the machine ends: then not every hart answers.  Under the lock.

    This hart answers others meanwhile, so what it knows of its translations may be old.
    """
    emptying = ref(table().emptying)
    astore32(emptying, 1)
    harts = Machine.at(MACHINE).harts
    for hart in range(harts):
        if hart != h.id:
            fetch_or32(ref(mailbox(hart).alarm), ALARM_CODE)
    for hart in range(harts):
        if hart != h.id:
            wait_until_out(h, hart)
    if not is_ending():
        flush_jumps(h)
        end_sequence(h)
        forget_all()
    astore32(emptying, 0)
