"""A hart's loop: alarms, interrupts, sleep, then a quantum of instructions; all of it compiled."""

from mem.atomics import aload32, fetch_and32, now_ns
from mem.clock import ns_until
from mem.machine import Machine
from mem.mailbox import ALARM_START, crowded, mailbox, relax, sleep
from mem.native import native, ref
from mem.regions import MACHINE
from smp.alarm import heed
from smp.check import run_checked
from smp.hart import INTERRUPT, LOGGED, NEVER, STOPPED, Hart
from smp.interpreter import run_quantum
from smp.sbi import START_PENDING, begin
from smp.translated import run_translated
from smp.trap import due_interrupt, pending, take_trap, timer_deadline

QUANTUM = 20_000  # instructions between two looks at the clock: some 100 us
FEW = 20  # instructions that the interpreter runs where the translator can't
LONGEST_SLEEP = 1_000_000_000
SPIN_FIRST, SPIN_MOST = 4_000, 60_000  # ns that a hart spins before it sleeps, where that has lately been enough


@native
def wait_for_start(h: Hart) -> None:
    """A hart that SBI's HSM has stopped: sleep until it is started."""
    box = mailbox(h.id)
    fetch_and32(ref(box.alarm), ~ALARM_START)
    if aload32(ref(box.hsm)) == START_PENDING:
        begin(h)
    else:
        sleep(h.id, LONGEST_SLEEP)


@native
def wait_while_paused(h: Hart) -> None:
    """Sleep until the alarm rings.  The bits that stay set would keep it from that; they are looked at afterwards."""
    fetch_and32(ref(mailbox(h.id).alarm), ~ALARM_START)
    sleep(h.id, LONGEST_SLEEP)


@native
def wait_for_interrupt(h: Hart) -> None:
    """After wfi: sleep until an enabled interrupt is pending, whether or not it can be taken."""
    if pending(h) & h.mie:
        h.waiting = 0
        if h.suspended:
            begin(h)
        return
    started = now_ns()
    left = ns_until(timer_deadline(h))
    if not spin_for_alarm(h, left if left < h.wfi_spin else h.wfi_spin):
        sleep(h.id, left if left < LONGEST_SLEEP else LONGEST_SLEEP)
    learn_to_spin(h, now_ns() - started)
    h.wfi_ns += now_ns() - started


@native
def spin_for_alarm(h: Hart, limit: int) -> int:
    """Wait for the alarm without sleeping; the hart counts as running meanwhile, for the alarm ends it."""
    if limit == 0:
        return 0
    alarm = ref(mailbox(h.id).alarm)
    deadline = now_ns() + limit
    spins = 0
    while now_ns() < deadline and not crowded():
        if aload32(alarm):
            return 1
        relax(spins)
        spins += 1
    return 0


@native
def learn_to_spin(h: Hart, waited: int) -> None:
    """Spin longer if a little longer would have been enough; an idle hart learns not to."""
    if waited > SPIN_MOST:
        h.wfi_spin >>= 2
    elif waited > h.wfi_spin:
        longer = 2 * h.wfi_spin if h.wfi_spin else SPIN_FIRST
        h.wfi_spin = longer if longer < SPIN_MOST else SPIN_MOST


@native
def uneven_quantum(h: Hart) -> int:
    """A quantum, up to a tenth shorter.

    Quanta of one length end in the same few places of a loop again and again, and samples (smp/hot.py) see no others.
    """
    h.uneven = h.uneven * 0x5851_F42D_4C95_7F2D + 0x1405_7B7E_F767_814F
    return QUANTUM - (h.uneven >> 53)


@native
def run_some(h: Hart) -> None:
    """A quantum of instructions by the engine of this machine."""
    if h.step:
        run_quantum(h, 1)
    elif not Machine.at(MACHINE).jit:
        run_quantum(h, QUANTUM)
    elif Machine.at(MACHINE).check:
        run_checked(h)
    elif not run_translated(h, uneven_quantum(h)):
        run_quantum(h, FEW)


@native
def run_hart(h: Hart) -> int:
    """Run until the machine ends (STOPPED) or there is a trap to log (LOGGED)."""
    while True:
        heed(h)
        if h.stop:
            return STOPPED
        if h.paused:
            wait_while_paused(h)
            continue
        if h.stopped:
            wait_for_start(h)
            continue
        if h.waiting:
            wait_for_interrupt(h)
            continue
        cause = due_interrupt(h)
        if cause != NEVER:
            take_trap(h, h.pc, INTERRUPT | cause, 0)
        else:
            run_some(h)
        if h.log_new or h.step or h.check_failed:
            return LOGGED
    return STOPPED
