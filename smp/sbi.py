"""The built-in SBI: version 2.0's base, TIME, IPI, RFENCE, HSM, SRST, DBCN and PMU for a kernel without firmware.

It is M-mode that never runs: an ecall from S-mode is answered in compiled code, by the calling hart.  Chapters
are those of the SBI specification.
"""

from mem.atomics import aload32, astore32, cas32, load8, store8
from mem.bus import is_ram
from mem.clock import mtime
from mem.log import LOG_UNIMP, NO_SBI_CALL, log
from mem.machine import POWER_OFF, RESET, Machine, end_machine
from mem.mailbox import (
    ALARM_FENCE_I,
    ALARM_START,
    ALARM_TLB,
    SSIP,
    alarm,
    mailbox,
    raise_pending,
    request,
)
from mem.native import native, ref
from mem.regions import HOST
from mem.regions import MACHINE as MACHINE_RECORD
from mem.uart import NOTHING, uart_put, uart_take
from smp.alarm import fence_i, wait_for
from smp.csr import write_mcycle, write_minstret
from smp.hart import SIE, SUPERVISOR, Hart
from smp.spaces import flush_translations, switch_space
from smp.trap import timers_due, update_view

SUCCESS, NOT_SUPPORTED, INVALID_PARAM, INVALID_ADDRESS = 0, -2, -3, -5
ALREADY_AVAILABLE = -6
BASE, TIME, IPI, RFENCE = 0x10, 0x54494D45, 0x735049, 0x52464E43
HSM, SRST, DBCN, PMU = 0x48534D, 0x53525354, 0x4442434E, 0x504D55
STARTED, STOPPED, START_PENDING, STOP_PENDING, SUSPENDED = range(5)
IMPLEMENTATION = 0x4862  # not registered
A0, A1, A2, A3, A6, A7 = 10, 11, 12, 13, 16, 17
ALL_HARTS = (1 << 64) - 1


@native
def sbi_call(h: Hart) -> None:
    """Answer the call in a7, a6: error in a0, value in a1 (chapter "Binary Encoding")."""
    error = dispatch(h, h.x[A7], h.x[A6])
    if error == NOT_SUPPORTED:
        log(LOG_UNIMP, h.id, NO_SBI_CALL, h.x[A7], h.x[A6])
    h.x[A0] = error


@native
def dispatch(h: Hart, extension: int, function: int) -> int:
    if extension == TIME:
        return set_timer(h, function)
    if extension == IPI:
        return send_ipi(h, function)
    if extension == RFENCE:
        return remote_fence(h, function)
    if extension == DBCN:
        return debug_console(h, function)
    if extension == HSM:
        return hart_state(h, function)
    if extension == BASE:
        return base(h, function)
    if extension == SRST:
        return system_reset(h, function)
    if extension == PMU:
        return performance(h, function)
    h.x[A1] = 0
    return NOT_SUPPORTED


@native
def is_present(extension: int) -> int:
    timing = extension in (TIME, PMU)
    harts = extension in (IPI, RFENCE, HSM)
    return timing or harts or extension in (BASE, SRST, DBCN)


@native
def base(h: Hart, function: int) -> int:
    """Chapter "Base Extension"."""
    value = 0
    match function:
        case 0:
            value = 2 << 24
        case 1:
            value = IMPLEMENTATION
        case 2:
            value = 1
        case 3:
            value = is_present(h.x[A0])
        case 4 | 5 | 6:
            value = 0
        case _:
            return NOT_SUPPORTED
    h.x[A1] = value
    return SUCCESS


@native
def set_timer(h: Hart, function: int) -> int:
    """Chapter "Timer Extension": the SBI has Sstc on for itself, whether or not the kernel may use it."""
    if function != 0:
        return NOT_SUPPORTED
    h.stimecmp = h.x[A0]
    timers_due(h, mtime())
    h.x[A1] = 0
    return SUCCESS


@native
def in_mask(hart: int, mask: int, first: int) -> int:
    """Whether a hart mask (chapter "Hart list parameter") names the hart."""
    if first == ALL_HARTS:
        return 1
    return hart >= first and hart - first < 64 and (mask >> (hart - first)) & 1 == 1


@native
def mask_is_sound(mask: int, first: int) -> int:
    """Whether every hart that the mask names exists."""
    harts = Machine.at(MACHINE_RECORD).harts
    if first == ALL_HARTS or mask == 0:
        return 1
    if first >= harts:
        return 0
    return harts - first >= 64 or mask >> (harts - first) == 0


@native
def send_ipi(h: Hart, function: int) -> int:
    """Chapter "IPI Extension"."""
    mask = h.x[A0]
    first = h.x[A1]
    if function != 0:
        return NOT_SUPPORTED
    if not mask_is_sound(mask, first):
        return INVALID_PARAM
    for hart in range(Machine.at(MACHINE_RECORD).harts):
        if in_mask(hart, mask, first):
            h.ipis += 1
            raise_pending(hart, SSIP)
    h.x[A1] = 0
    return SUCCESS


@native
def remote_fence(h: Hart, function: int) -> int:
    """Chapter "RFENCE Extension": FENCE.I and SFENCE.VMA (whole address space, all ASIDs) on other harts."""
    mask = h.x[A0]
    first = h.x[A1]
    if function > 2:
        return NOT_SUPPORTED
    if not mask_is_sound(mask, first):
        return INVALID_PARAM
    bit = ALARM_FENCE_I if function == 0 else ALARM_TLB
    if in_mask(h.id, mask, first):
        if function == 0:
            fence_i(h)
        else:
            flush_translations(h)
    for hart in range(Machine.at(MACHINE_RECORD).harts):
        if hart != h.id and in_mask(hart, mask, first):
            h.tickets[hart] = request(hart, bit)
    for hart in range(Machine.at(MACHINE_RECORD).harts):
        if hart != h.id and in_mask(hart, mask, first):
            wait_for(h, hart, h.tickets[hart])
    h.x[A1] = 0
    return SUCCESS


# Hart state management


@native
def hart_state(h: Hart, function: int) -> int:
    """Chapter "Hart State Management Extension"."""
    match function:
        case 0:
            return hart_start(h, h.x[A0], h.x[A1], h.x[A2])
        case 1:
            astore32(ref(mailbox(h.id).hsm), STOPPED)
            h.stopped = 1
            return SUCCESS
        case 2:
            if h.x[A0] >= Machine.at(MACHINE_RECORD).harts:
                return INVALID_PARAM
            h.x[A1] = aload32(ref(mailbox(h.x[A0]).hsm))
            return SUCCESS
        case 3:
            return hart_suspend(h, h.x[A0], h.x[A1], h.x[A2])
    return NOT_SUPPORTED


@native
def hart_start(h: Hart, hart: int, pc: int, opaque: int) -> int:
    if hart >= Machine.at(MACHINE_RECORD).harts:
        return INVALID_PARAM
    if not is_ram(pc, 4):
        return INVALID_ADDRESS
    box = mailbox(hart)
    if cas32(ref(box.hsm), STOPPED, STOP_PENDING) != STOPPED:
        return ALREADY_AVAILABLE
    box.start_pc = pc
    box.start_opaque = opaque
    astore32(ref(box.hsm), START_PENDING)
    alarm(hart, ALARM_START)
    h.x[A1] = 0
    return SUCCESS


@native
def hart_suspend(h: Hart, kind: int, resume: int, opaque: int) -> int:
    """Retentive suspend is a wfi; the other one starts again at `resume`, as hart_start does."""
    if kind == 0:
        h.waiting = 1
        h.x[A1] = 0
        return SUCCESS
    if kind != 0x80000000:
        return INVALID_PARAM
    if not is_ram(resume, 4):
        return INVALID_ADDRESS
    box = mailbox(h.id)
    box.start_pc = resume
    box.start_opaque = opaque
    astore32(ref(box.hsm), SUSPENDED)
    h.suspended = 1
    h.waiting = 1
    return SUCCESS


@native
def begin(h: Hart) -> None:
    """Start (or resume) in S-mode as the specification lays down: a0 hart id, a1 opaque, satp 0, interrupts off."""
    box = mailbox(h.id)
    h.x[A0] = h.id
    h.x[A1] = box.start_opaque
    h.pc = box.start_pc
    h.privilege = SUPERVISOR
    h.mstatus &= ~SIE
    switch_space(h, 0)
    h.stopped = 0
    h.suspended = 0
    flush_translations(h)
    fence_i(h)
    update_view(h)
    astore32(ref(box.hsm), STARTED)


# Reset, console, counters


@native
def system_reset(h: Hart, function: int) -> int:
    """Chapter "System Reset Extension"."""
    if function != 0:
        return NOT_SUPPORTED
    if h.x[A0] > 2 or h.x[A1] > 1:
        return INVALID_PARAM
    end_machine(POWER_OFF if h.x[A0] == 0 else RESET, 0)
    h.stop = 1
    return SUCCESS


@native
def debug_console(h: Hart, function: int) -> int:
    """Chapter "Debug Console Extension": bytes go through the UART's rings."""
    count = h.x[A0]
    address = h.x[A1]
    if function == 2:
        uart_put(h.id, count & 0xFF)
        h.x[A1] = 0
        return SUCCESS
    if function > 2:
        return NOT_SUPPORTED
    if h.x[A2] or (count and not is_ram(address, count)):
        return INVALID_PARAM
    done = 0
    while done < count:
        if function == 0:
            uart_put(h.id, load8(HOST + address + done))
        else:
            byte = uart_take()
            if byte == NOTHING:
                break
            store8(HOST + address + done, byte)
        done += 1
    h.x[A1] = done
    return SUCCESS


COUNTERS = 3  # cycle, (time), instret: index n is CSR 0xC00 + n


@native
def performance(h: Hart, function: int) -> int:
    """Chapter "Performance Monitoring Unit Extension": the two fixed counters, which never stop."""
    index = h.x[A0]
    match function:
        case 0:
            h.x[A1] = COUNTERS
            return SUCCESS
        case 1:
            if index >= COUNTERS or index == 1:
                return INVALID_PARAM
            h.x[A1] = 63 << 12 | 0xC00 + index
            return SUCCESS
        case 2:
            return find_counter(h)
        case 3:
            return start_counters(h)
        case 4:
            h.x[A1] = 0
            return SUCCESS
    return NOT_SUPPORTED


@native
def find_counter(h: Hart) -> int:
    """counter_config_matching: hardware events 1 (cycles) and 2 (instructions)."""
    event = h.x[A3]
    wanted = 0 if event == 1 else 2
    if event != 1 and event != 2:
        return NOT_SUPPORTED
    if wanted < h.x[A0] or wanted - h.x[A0] >= 64 or (h.x[A1] >> (wanted - h.x[A0])) & 1 == 0:
        return NOT_SUPPORTED
    h.x[A1] = wanted
    return SUCCESS


@native
def start_counters(h: Hart) -> int:
    """counter_start: bit 0 of the flags sets the initial value."""
    if h.x[A2] & 1:
        for index in range(COUNTERS):
            if index >= h.x[A0] and (h.x[A1] >> (index - h.x[A0])) & 1 == 1:
                if index == 0:
                    write_mcycle(h, h.x[A3])
                if index == 2:
                    write_minstret(h, h.x[A3])
    h.x[A1] = 0
    return SUCCESS
