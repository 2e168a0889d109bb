"""Stopping every hart, and letting all go on: stop and cont of a monitor (smp/commands.py).

A hart that stops counts as asleep, so others need not wait for it.  The guest's clock stands still meanwhile: who lets
the harts go on says from which tick (mem/clock.py).
"""

from mem.atomics import aload32, astore32
from mem.clock import set_mtime
from mem.machine import Machine, is_ending
from mem.mailbox import ALARM_PAUSE, RUNNING, alarm, mailbox
from mem.native import native, ref
from mem.regions import MACHINE


@native
def pause_machine() -> None:
    """Have each hart stop before its next instruction.

    `paused` is written before the alarms: a hart reads it after it has taken ALARM_PAUSE (smp/alarm.py:heed).
    """
    m = Machine.at(MACHINE)
    astore32(ref(m.paused), 1)
    for hart in range(m.harts):
        alarm(hart, ALARM_PAUSE)


@native
def has_paused() -> int:
    """Whether no hart executes anything more: it has taken the alarm, or will before it does, for it sleeps."""
    for hart in range(Machine.at(MACHINE).harts):
        box = mailbox(hart)
        if aload32(ref(box.alarm)) & ALARM_PAUSE and aload32(ref(box.activity)) == RUNNING:
            return is_ending()
    return 1


@native
def resume_machine(ticks: int) -> None:
    """Let all harts go on, with this on the guest's clock."""
    m = Machine.at(MACHINE)
    set_mtime(ticks)
    astore32(ref(m.paused), 0)
    for hart in range(m.harts):
        alarm(hart, ALARM_PAUSE)
