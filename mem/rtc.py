"""Goldfish real-time clock: the host's wall clock in nanoseconds since 1970, and one alarm.

Harts keep the registers; the I/O process asks `rtc_ns_until_alarm` how long it may sleep and calls `rtc_tick`
(Android's GOLDFISH-VIRTUAL-HARDWARE: TIME_LOW first, it latches TIME_HIGH).
"""

from enum import IntEnum

from mem import memmap, regions
from mem.atomics import spin_lock, spin_unlock, wall_ns
from mem.clock import FOREVER_NS
from mem.layout import Layout, layout, u32, u64
from mem.machine import kick_io
from mem.native import native, ref
from mem.plic import plic_set_level
from mem.word import lts

RTC = regions.UART + 0x1_0000  # behind the UART's record


class Register(IntEnum):
    """Offsets of the 32-bit registers."""

    TIME_LOW = 0x00
    TIME_HIGH = 0x04
    ALARM_LOW = 0x08
    ALARM_HIGH = 0x0C
    IRQ_ENABLED = 0x10
    CLEAR_ALARM = 0x14
    ALARM_STATUS = 0x18
    CLEAR_INTERRUPT = 0x1C


@layout
class Rtc(Layout):
    """All under `lock`."""

    lock: u32
    time_high: u32  # latched by the read of TIME_LOW
    ahead: u64  # what the guest set its clock ahead of the host's, modulo 2**64
    alarm: u64
    armed: u32
    enabled: u32
    pending: u32
    line: u32


@native
def rtc_now() -> int:
    """Nanoseconds since 1970 as the guest set it."""
    return wall_ns() + Rtc.at(RTC).ahead


@native
def update_line(rtc: Rtc) -> None:
    """Fire a due alarm, and tell the PLIC when the interrupt's level changed."""
    if rtc.armed and rtc.alarm <= rtc_now():
        rtc.armed = 0
        rtc.pending = 1
    level = rtc.pending & rtc.enabled
    if level != rtc.line:
        rtc.line = level
        plic_set_level(memmap.RTC_IRQ, level)


@native
def rtc_tick() -> None:
    """Fire the alarm if it is due; the I/O process calls it when it wakes."""
    rtc = Rtc.at(RTC)
    spin_lock(ref(rtc.lock))
    update_line(rtc)
    spin_unlock(ref(rtc.lock))


@native
def rtc_ns_until_alarm() -> int:
    """How long the I/O process may sleep before `rtc_tick`; FOREVER_NS when no alarm is set."""
    rtc = Rtc.at(RTC)
    if rtc.armed == 0:
        return FOREVER_NS
    left = rtc.alarm - rtc_now()
    if lts(left, 1):
        return 0
    return left if left < FOREVER_NS else FOREVER_NS


@native
def rtc_read(offset: int) -> int:
    """An aligned load of 4 bytes."""
    rtc = Rtc.at(RTC)
    match offset:
        case Register.TIME_LOW:
            now = rtc_now()
            rtc.time_high = now >> 32
            return now & 0xFFFFFFFF
        case Register.TIME_HIGH:
            return rtc.time_high
        case Register.ALARM_LOW:
            return rtc.alarm & 0xFFFFFFFF
        case Register.ALARM_HIGH:
            return rtc.alarm >> 32
        case Register.IRQ_ENABLED:
            return rtc.enabled
        case Register.ALARM_STATUS:
            rtc_tick()
            return rtc.armed
    return 0


@native
def rtc_write(offset: int, value: int) -> None:
    """An aligned store of 4 bytes."""
    rtc = Rtc.at(RTC)
    spin_lock(ref(rtc.lock))
    write_register(rtc, offset, value & 0xFFFFFFFF)
    update_line(rtc)
    armed = rtc.armed
    spin_unlock(ref(rtc.lock))
    if armed:
        kick_io()


@native
def write_register(rtc: Rtc, offset: int, value: int) -> None:
    """Every register, with the lock held.  ALARM_LOW arms, so drivers write ALARM_HIGH first."""
    now = rtc_now()
    match offset:
        case Register.TIME_LOW:
            rtc.ahead += (now >> 32 << 32 | value) - now
        case Register.TIME_HIGH:
            rtc.ahead += (now & 0xFFFFFFFF | value << 32) - now
        case Register.ALARM_LOW:
            rtc.alarm = rtc.alarm >> 32 << 32 | value
            rtc.armed = 1
        case Register.ALARM_HIGH:
            rtc.alarm = rtc.alarm & 0xFFFFFFFF | value << 32
        case Register.IRQ_ENABLED:
            rtc.enabled = value & 1
        case Register.CLEAR_ALARM:
            rtc.armed = 0
        case Register.CLEAR_INTERRUPT:
            rtc.pending = 0
