"""What others may tell a hart: one mailbox a hart, on cache lines of its own, touched only by atomics.

`alarm` is the one word that a running hart looks at; the slow path sorts out what its bits meant.  A sleeping
hart waits on the same word as a futex.
"""

from mem import regions
from mem.atomics import (
    aload32,
    aload64,
    astore64,
    cpu_relax,
    fetch_add64,
    fetch_and32,
    fetch_or32,
    futex_wait,
    futex_wake,
    sched_yield,
    xchg32,
)
from mem.layout import Layout, layout, line_aligned, many, u32, u64
from mem.native import native, ref

ALARM_INTERRUPT = 1  # `pending` changed, or a deadline moved
ALARM_STOP = 2  # the machine ends
ALARM_TLB = 4  # drop all translations
ALARM_FENCE_I = 8  # drop decoded and translated code
ALARM_WATCH = 16  # drop write translations: a page became watched (mem/reservation.py)
ALARM_START = 32  # hart_start of SBI's HSM
ALARM_SERVE = 64  # somebody waits for `served`
ALARM_CODE = 128  # be out of translated code: it is about to be emptied (smp/quiesce.py)
ALARM_PAUSE = 256  # `paused` of the machine changed (mem/pause.py)

RUNNING, SLEEPING, STOPPED = range(3)

# Bits of mip, as the privileged manual numbers them.
SSIP, MSIP, STIP, MTIP, SEIP, MEIP = (1 << n for n in (1, 3, 5, 7, 9, 11))


@line_aligned
@layout
class Mailbox(Layout):
    """128 bytes: two cache lines, so that neighbours and the adjacent-line prefetcher do not meet."""

    alarm: u32  # ALARM_* bits; the futex a sleeping hart waits on
    activity: u32  # RUNNING, SLEEPING or STOPPED: whether alarms need a wake, and requests an answer
    pending: u32  # mip bits driven from outside: SSIP, MSIP, SEIP, MEIP
    hsm: u32  # SBI hart state (smp/sbi.py)
    requests: u64  # how many answers were ever asked for
    served: u64  # how many of them are done
    start_pc: u64  # where hart_start begins
    start_opaque: u64  # its a1
    pad: list[u64] = many(10)


@line_aligned
@layout
class Sleepers(Layout):
    """How many harts sleep; on a cache line of its own, for whoever falls asleep or wakes writes it."""

    asleep: u64
    harts: u64  # of the machine; this and the next are set before the fork
    cores: u64  # of the host's that it may use
    pad: list[u64] = many(5)


assert regions.MAILBOXES + regions.MAX_HARTS * Mailbox.sizeof() <= regions.SLEEPERS


def sleepers() -> Sleepers:
    """The record of this machine."""
    return Sleepers.at(regions.SLEEPERS)


@native
def crowded() -> int:
    """Whether more harts are awake than the host has cores: one that spins takes the core from one that works."""
    s = Sleepers.at(regions.SLEEPERS)
    return aload64(ref(s.asleep)) + s.cores < s.harts


@native
def spares_core() -> int:
    """Whether fewer harts are awake than the host has cores: who spins then takes no hart's core."""
    s = Sleepers.at(regions.SLEEPERS)
    return aload64(ref(s.asleep)) + s.cores > s.harts


@native(inline=True)
def mailbox(hart: int) -> Mailbox:
    """The hart's mailbox."""
    return Mailbox.at(regions.MAILBOXES + hart * Mailbox.sizeof())


@native
def alarm(hart: int, bits: int) -> None:
    """Set alarm bits and wake the hart if it sleeps.

    The locked `or` orders what the caller wrote before with the read of `activity`; the sleeper publishes
    SLEEPING with a locked exchange before it reads `alarm`.  One of the two sees the other.
    """
    box = mailbox(hart)
    fetch_or32(ref(box.alarm), bits)
    if aload32(ref(box.activity)) != RUNNING:
        futex_wake(ref(box.alarm), 1)


@native
def raise_pending(hart: int, bits: int) -> None:
    """Drive interrupt lines of a hart high; costs nothing when they already are."""
    box = mailbox(hart)
    if fetch_or32(ref(box.pending), bits) & bits != bits:
        alarm(hart, ALARM_INTERRUPT)


@native
def clear_pending(hart: int, bits: int) -> None:
    """Drive interrupt lines of a hart low."""
    fetch_and32(ref(mailbox(hart).pending), ~bits)


@native
def sleep(hart: int, timeout_ns: int) -> None:
    """Sleep until the alarm rings, at most `timeout_ns`; an alarm set before is seen."""
    box = mailbox(hart)
    asleep = ref(Sleepers.at(regions.SLEEPERS).asleep)
    xchg32(ref(box.activity), SLEEPING)
    if aload32(ref(box.alarm)) == 0:
        fetch_add64(asleep, 1)
        futex_wait(ref(box.alarm), 0, timeout_ns)
        fetch_add64(asleep, -1)
    # Full barrier: from here on requests wait for us, so the alarm must be read after this.
    xchg32(ref(box.activity), RUNNING)


@native
def request(hart: int, bits: int) -> int:
    """Ask a hart to do what the alarm bits say; gives the ticket for `wait_served`.

    The bits come before the ticket: a hart that reads the ticket's number has the bits in its alarm.
    """
    box = mailbox(hart)
    fetch_or32(ref(box.alarm), bits)
    ticket = fetch_add64(ref(box.requests), 1) + 1
    fetch_or32(ref(box.alarm), ALARM_SERVE)
    return ticket


@native
def is_served(hart: int, ticket: int) -> int:
    """Whether the request is done, or will be before the hart executes anything (it sleeps)."""
    box = mailbox(hart)
    if aload64(ref(box.served)) >= ticket:
        return 1
    return aload32(ref(box.activity)) != RUNNING


@native
def serve(hart: int, ticket: int) -> None:
    """Tell the askers that all requests up to the ticket (read before the alarm was taken) are done."""
    astore64(ref(mailbox(hart).served), ticket)


@native
def relax(spins: int) -> None:
    """One turn of a wait for another process: spin a little, then give the core away."""
    if spins & 31 == 31:
        sched_yield()
    else:
        cpu_relax()
