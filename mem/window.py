"""The front half of virtio-mmio: register windows that harts answer from shared memory.

A window's first 512 bytes are the registers and the configuration space exactly as a guest reads them (virtio
1.2, 4.2.2), so a read is a load; the I/O process keeps them current.  QueueNotify and InterruptACK are done in
the hart.  Any other write is a request to the I/O process, and the hart waits for the answer.
"""

from enum import IntEnum

from mem import regions
from mem.atomics import (
    aload32,
    aload64,
    astore32,
    fetch_and32,
    fetch_or32,
    fetch_or64,
    futex_wait,
    futex_wake,
    load8,
    load16,
    load32,
    load64,
    now_ns,
    xchg32,
    xchg64,
)
from mem.layout import Layout, layout, line_aligned, many, u8, u32, u64
from mem.log import LOG_GUEST_ERRORS, WRONG_SIZE, log
from mem.machine import is_ending, kick_io_process
from mem.mailbox import RUNNING, SLEEPING, mailbox, relax
from mem.memmap import VIRTIO_SLOTS
from mem.native import native, ref
from mem.plic import plic_set_level
from mem.ringwatch import ring_has_work

MAGIC = 0x7472_6976
VERSION = 2
CONFIG_BYTES = 256


class Register(IntEnum):
    """Offsets of the registers (virtio 1.2, 4.2.2)."""

    MAGIC = 0x00
    VERSION = 0x04
    DEVICE_ID = 0x08
    VENDOR_ID = 0x0C
    DEVICE_FEATURES = 0x10
    DEVICE_FEATURES_SEL = 0x14
    DRIVER_FEATURES = 0x20
    DRIVER_FEATURES_SEL = 0x24
    QUEUE_SEL = 0x30
    QUEUE_NUM_MAX = 0x34
    QUEUE_NUM = 0x38
    QUEUE_READY = 0x44
    QUEUE_NOTIFY = 0x50
    INTERRUPT_STATUS = 0x60
    INTERRUPT_ACK = 0x64
    STATUS = 0x70
    QUEUE_DESC = 0x80
    QUEUE_DRIVER = 0x90
    QUEUE_DEVICE = 0xA0
    SHM_SEL = 0xAC
    SHM_LENGTH = 0xB0
    SHM_BASE = 0xB8
    QUEUE_RESET = 0xC0
    CONFIG_GENERATION = 0xFC
    CONFIG = 0x100


@line_aligned
@layout
class Window(Layout):
    """One slot: the image that guests read, and what is to be done."""

    registers: list[u32] = many(64)  # device id 0 makes the slot empty; InterruptStatus is touched by atomics only
    config: list[u8] = many(CONFIG_BYTES)
    notify: u64  # bit n: the driver notified queue n
    owner: u64  # number of the I/O process that serves the slot
    pad: list[u64] = many(6)


@line_aligned
@layout
class WindowRequest(Layout):
    """A register write that a hart waits for; one a hart."""

    state: u32  # IDLE or ASKED: the futex that the hart waits on
    slot: u32
    register: u32  # offset in the window
    size: u32
    value: u64
    pad: list[u64] = many(5)


@line_aligned
@layout
class WindowWork(Layout):
    """Where an I/O process looks for what has been asked of it; one a process."""

    notified: u64  # bit n: window n has notified queues
    asked: list[u64] = many(2)  # bit n: hart n's request is to be served
    pad: list[u64] = many(5)


IDLE, ASKED = range(2)
REQUESTS = regions.WINDOWS + 0x8000
WORK = regions.WINDOWS + 0xF000
SPINS = 200  # turns of waiting before a hart sleeps: the I/O process answers within microseconds if it polls

assert Window.offset("config") == Register.CONFIG
assert VIRTIO_SLOTS * Window.sizeof() <= REQUESTS - regions.WINDOWS
assert regions.MAX_HARTS * WindowRequest.sizeof() <= WORK - REQUESTS
assert WORK + regions.IO_PROCESSES * WindowWork.sizeof() <= regions.RESERVATIONS


@native(inline=True)
def window_at(slot: int) -> Window:
    """The window of a slot."""
    return Window.at(regions.WINDOWS + slot * Window.sizeof())


@native(inline=True)
def work_of(number: int) -> WindowWork:
    """What is to be done by the I/O process of this number."""
    return WindowWork.at(WORK + number * WindowWork.sizeof())


@native
def window_read(slot: int, offset: int, size: int) -> int:
    """What the guest reads; 0 where nothing is, and from registers read with another size than 4 bytes."""
    if slot >= VIRTIO_SLOTS:
        return 0
    window = window_at(slot)
    place = ref(window.registers[0]) + offset
    if offset < Register.CONFIG:
        if size != 4 or offset & 3:
            return 0
        if offset == Register.CONFIG_GENERATION:
            return _generation(place)
        return aload32(place)
    if offset + size > Register.CONFIG + CONFIG_BYTES:
        return 0
    match size:
        case 1:
            return load8(place)
        case 2:
            return load16(place)
        case 4:
            return load32(place)
        case 8:
            return load64(place)
    return 0


@native(inline=True)
def _generation(place: int) -> int:
    """The generation; odd while the I/O process rewrites the configuration, which takes it microseconds.

    A driver that reads the same number before and after its reads of the configuration has seen one version.
    """
    spins = 0
    while aload32(place) & 1 and is_ending() == 0:
        relax(spins)
        spins += 1
    return aload32(place)


@native
def window_write(hart: int, slot: int, offset: int, size: int, value: int) -> None:
    """A guest's write; ignored where nothing is and where the size is wrong."""
    if slot >= VIRTIO_SLOTS or _is_refused(offset, size):
        log(LOG_GUEST_ERRORS, hart, WRONG_SIZE, offset, size)
        return
    window = window_at(slot)
    if window.registers[2] == 0:  # DeviceID
        return
    if offset == Register.QUEUE_NOTIFY:
        _notify(slot, value & 0xFFFF)
    elif offset == Register.INTERRUPT_ACK:
        fetch_and32(ref(window.registers[24]), ~value)  # InterruptStatus
        _settle(slot)
    else:
        _ask(hart, slot, offset, size, value)


@native(inline=True)
def _is_refused(offset: int, size: int) -> int:
    if offset < Register.CONFIG:
        return size != 4 or offset & 3 != 0
    return offset + size > Register.CONFIG + CONFIG_BYTES


@native(inline=True)
def _notify(slot: int, queue: int) -> None:
    """The locked `or` orders the driver's avail.idx before the bits; the I/O process takes them the other way round."""
    if queue < 64:
        owner = window_at(slot).owner
        fetch_or64(ref(window_at(slot).notify), 1 << queue)
        fetch_or64(ref(work_of(owner).notified), 1 << slot)
        kick_io_process(owner)


@native(inline=True)
def _source(slot: int) -> int:
    """memmap.virtio_irq."""
    return slot + 1 if slot < 8 else slot + 32


@native
def _settle(slot: int) -> None:
    """Make the interrupt line follow InterruptStatus, whoever else changes it meanwhile.

    Everyone settles after changing the status.  The last to set the line has read the status again afterwards
    and found it in accord; a later change is followed by another settling, which then would be the last.
    """
    status = ref(window_at(slot).registers[24])
    known = 2
    while True:
        level = fetch_or32(status, 0) != 0  # locked: this read comes after the line was set
        if level == known:
            return
        plic_set_level(_source(slot), level)
        known = level


@native
def _ask(hart: int, slot: int, offset: int, size: int, value: int) -> None:
    """Have the I/O process do a write, and wait.

    A waiting hart counts as asleep, so nobody waits for it: two harts that want something of each other can't
    deadlock here.  It looks at its alarm before it executes anything further.
    """
    request = WindowRequest.at(REQUESTS + hart * WindowRequest.sizeof())
    activity = ref(mailbox(hart).activity)
    request.slot = slot
    request.register = offset
    request.size = size
    request.value = value
    astore32(ref(request.state), ASKED)
    owner = window_at(slot).owner
    fetch_or64(ref(work_of(owner).asked[hart >> 6]), 1 << (hart & 63))
    kick_io_process(owner)
    xchg32(activity, SLEEPING)
    spins = 0
    while aload32(ref(request.state)) == ASKED and is_ending() == 0:
        if spins < SPINS:
            relax(spins)
        else:
            futex_wait(ref(request.state), ASKED, 20_000_000)
        spins += 1
    xchg32(activity, RUNNING)


# The I/O process's side.


@native
def window_has_work(number: int) -> int:
    """Whether a notify or a request waits to be taken by the I/O process of this number."""
    work = work_of(number)
    return (aload64(ref(work.notified)) | aload64(ref(work.asked[0])) | aload64(ref(work.asked[1]))) != 0


@native
def window_poll(number: int, watches: int, count: int, place: int, value: int, timeout_ns: int) -> int:
    """Spin until there is work, here or in a ring, or the u32 at `place` is not `value` any more.

    `watches` are the addresses of RingWatches.  Gives 0 when the time is over, 1 for work here, and 2 + n for ring n.
    """
    deadline = now_ns() + timeout_ns
    spins = 0
    while now_ns() < deadline:
        if window_has_work(number) or aload32(place) != value:
            return 1
        for n in range(count):
            if ring_has_work(load64(watches + 8 * n)):
                return 2 + n
        relax(spins)
        spins += 1
    return 0


@native
def window_take_notified(number: int) -> int:
    """The windows of this process that were notified since the last call, as bits."""
    return xchg64(ref(work_of(number).notified), 0)


@native
def window_take_queues(slot: int) -> int:
    """The queues notified since the last call, as bits; call after `window_take_notified`."""
    return xchg64(ref(window_at(slot).notify), 0)


@native
def window_take_asked(number: int, word: int) -> int:
    """The harts 64 * word to 64 * word + 63 whose requests are to be answered by this process, as bits."""
    return xchg64(ref(work_of(number).asked[word]), 0)


@native
def window_answer(hart: int) -> None:
    """Let the hart go on: what was written to the window before is what it reads."""
    state = ref(WindowRequest.at(REQUESTS + hart * WindowRequest.sizeof()).state)
    astore32(state, IDLE)
    futex_wake(state, 1)


@native
def window_raise(slot: int, bits: int) -> None:
    """Set bits of InterruptStatus; nothing more to do when one was set and not acknowledged yet."""
    if fetch_or32(ref(window_at(slot).registers[24]), bits) == 0:
        _settle(slot)


@native
def window_reset_interrupt(slot: int) -> None:
    """Clear InterruptStatus as a device reset does."""
    xchg32(ref(window_at(slot).registers[24]), 0)
    _settle(slot)
