"""The 16550A as a driver sees it on one side and the I/O process on the other."""

import ctypes
import os
import select
import threading
import time
from collections.abc import Iterator

import pytest

from mem import memmap, regions
from mem.machine import POWER_OFF, Machine, machine
from mem.mailbox import RUNNING, SEIP, SLEEPING, Mailbox
from mem.plic import ENABLE_BASE, ENABLE_STRIDE, Plic, plic_write
from mem.uart import (
    FIFO,
    NOTHING,
    RING,
    Register,
    Uart,
    uart_collect,
    uart_put,
    uart_read,
    uart_receive,
    uart_send,
    uart_take,
    uart_write,
)
from smp import engine

HARTS = 2
UART_BIT = 1 << memmap.UART_IRQ
DATA, IER, IIR_FCR, LCR, MCR, LSR, MSR, SCR = Register
BUFFER = (ctypes.c_uint8 * (2 * RING))()


@pytest.fixture(autouse=True, scope="module")
def shared() -> Iterator[None]:
    engine.load()
    opened = regions.open_regions(HARTS, 1 << 20)
    yield
    opened.close()


@pytest.fixture(autouse=True)
def kicks() -> Iterator[int]:
    """A fresh machine; gives the eventfd that wakes the I/O process, which sleeps all the time."""
    for address, kind in ((regions.UART, Uart), (regions.PLIC, Plic), (regions.MACHINE, Machine)):
        ctypes.memset(address, 0, kind.sizeof())
    ctypes.memset(regions.MAILBOXES, 0, HARTS * Mailbox.sizeof())
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    m = machine()
    m.harts, m.one, m.io_fd, m.supervisor_fd, m.io_asleep = HARTS, 1, fd, fd, 1
    yield fd
    os.close(fd)


def kicked(fd: int) -> bool:
    if not select.select([fd], [], [], 0)[0]:
        return False
    os.eventfd_read(fd)
    return True


def write(offset: int, value: int) -> None:
    uart_write(0, offset, value)


def send(text: bytes) -> None:
    for byte in text:
        write(DATA, byte)


def sent(limit: int = 2 * RING) -> bytes:
    return bytes(BUFFER[: uart_collect(ctypes.addressof(BUFFER), limit)])


def receive(text: bytes) -> int:
    ctypes.memmove(BUFFER, text, len(text))
    return uart_receive(ctypes.addressof(BUFFER), len(text))


def level() -> bool:
    """What the PLIC sees."""
    return bool(Plic.at(regions.PLIC).level[0] & UART_BIT)


def test_bytes_sent_come_out_in_order_and_wake_the_other_side(kicks: int) -> None:
    send(b"hello")
    assert kicked(kicks)
    assert [sent(2), sent(), sent()] == [b"he", b"llo", b""]


def test_nobody_is_kicked_awake_who_is_awake(kicks: int) -> None:
    machine().io_asleep = 0
    send(b"x")
    assert not kicked(kicks)


def test_bytes_received_are_read_in_order() -> None:
    assert uart_read(LSR) == 0x60
    assert receive(b"ab") == 2
    assert uart_read(LSR) == 0x61
    assert [uart_read(DATA), uart_read(DATA), uart_read(LSR), uart_read(DATA)] == [97, 98, 0x60, 0]


def test_rings_survive_many_rounds_and_the_wrap_of_their_indices() -> None:
    uart = Uart.at(regions.UART)
    uart.tx_head = uart.tx_tail = uart.rx_head = uart.rx_tail = 2**32 - 1000
    for turn in range(10):
        text = bytes((turn + i) & 0xFF for i in range(700))
        send(text)
        assert sent() == text
        assert receive(text) == 700
        assert bytes(uart_read(DATA) for _ in text) == text
    assert uart.tx_head == uart.tx_tail == 6000


def test_a_full_receive_ring_takes_what_fits_and_asks_for_more_when_it_has_room(kicks: int) -> None:
    assert receive(bytes(RING + 10)) == RING
    assert not kicked(kicks)
    assert uart_take() == 0
    assert kicked(kicks)
    assert uart_take() == 0
    assert not kicked(kicks)
    assert receive(b"abc") == 2


def test_take_says_when_there_is_nothing() -> None:
    assert uart_take() == NOTHING
    receive(b"\x00")
    assert [uart_take(), uart_take()] == [0, NOTHING]


def test_receive_interrupt_lasts_while_there_are_bytes() -> None:
    receive(b"a")
    assert not level()
    assert uart_read(IIR_FCR) == 1
    write(IER, 1)
    assert level()
    assert uart_read(IIR_FCR) == 4
    receive(b"b")
    uart_read(DATA)
    assert level()
    uart_read(DATA)
    assert not level()
    assert uart_read(IIR_FCR) == 1


@pytest.mark.parametrize(("code", "trigger"), [(0x00, 1), (0x40, 4), (0x80, 8), (0xC0, 14)])
def test_below_its_trigger_a_fifo_times_out(code: int, trigger: int) -> None:
    write(IIR_FCR, 1 | code)
    write(IER, 1)
    assert uart_read(IIR_FCR) == 0xC1
    receive(bytes(trigger - 1))
    assert uart_read(IIR_FCR) == (0xCC if trigger > 1 else 0xC1)
    receive(b"x")
    assert uart_read(IIR_FCR) == 0xC4


def test_allowing_the_transmit_interrupt_of_an_empty_transmitter_causes_it() -> None:
    write(IER, 2)
    assert level()
    assert uart_read(IIR_FCR) == 2  # which takes it back
    assert not level()
    assert uart_read(IIR_FCR) == 1
    write(IER, 0)
    write(IER, 2)  # Linux tests for this (serial8250_THRE_test)
    assert level()
    assert uart_read(IIR_FCR) == 2


def test_each_byte_sent_brings_the_transmit_interrupt_again() -> None:
    write(IER, 2)
    uart_read(IIR_FCR)
    send(b"x")
    assert level()
    assert uart_read(IIR_FCR) == 2


def test_receive_comes_before_transmit_and_does_not_take_it_back() -> None:
    receive(b"a")
    write(IER, 3)
    assert uart_read(IIR_FCR) == 4
    uart_read(DATA)
    assert level()
    assert uart_read(IIR_FCR) == 2


def test_a_full_transmitter_interrupts_only_once_it_has_drained() -> None:
    write(IER, 2)
    send(bytes(RING - FIFO))
    assert uart_read(LSR) == 0x60
    send(b"x")
    assert uart_read(LSR) == 0
    assert not level()
    sent(2)
    assert uart_read(LSR) == 0x60
    assert level()
    assert uart_read(IIR_FCR) == 2


def test_the_line_reaches_the_hart() -> None:
    plic_write(4 * memmap.UART_IRQ, 1)
    plic_write(ENABLE_BASE + ENABLE_STRIDE * 3, UART_BIT)
    write(IER, 1)
    receive(b"a")
    boxes = [Mailbox.at(regions.MAILBOXES + hart * Mailbox.sizeof()) for hart in range(HARTS)]
    assert [box.pending for box in boxes] == [0, SEIP]


def test_a_hart_waits_for_room_counting_as_asleep(kicks: int) -> None:
    send(bytes(RING))
    kicked(kicks)
    # The call without the interpreter's lock, which the thread would keep.
    waiting = threading.Thread(target=uart_put.unlocked, args=(1, 120))
    waiting.start()
    box = Mailbox.at(regions.MAILBOXES + Mailbox.sizeof())
    give_up = time.monotonic() + 60
    while box.activity != SLEEPING:
        assert waiting.is_alive() and time.monotonic() < give_up
        time.sleep(0.001)
    assert kicked(kicks)
    assert sent(1) == b"\0"
    waiting.join(60)
    assert not waiting.is_alive()
    assert box.activity == RUNNING
    assert sent()[-1:] == b"x"


def test_a_hart_that_waits_for_room_ends_with_its_machine() -> None:
    send(bytes(RING))
    machine().ending = POWER_OFF
    uart_put(0, 120)
    assert sent() == bytes(RING)


def test_the_divisor_hides_data_and_ier() -> None:
    write(LCR, 0x83)
    write(DATA, 0x0D)
    write(IER, 0x55)
    assert [uart_read(DATA), uart_read(IER), uart_read(LCR)] == [0x0D, 0x55, 0x83]
    receive(b"a")
    write(LCR, 0x03)
    assert [uart_read(DATA), uart_read(IER)] == [97, 0]
    assert sent() == b""


def test_registers_read_back_what_they_can_hold() -> None:
    for offset, held in ((IER, 0x0F), (LCR, 0x7F), (MCR, 0x1F), (SCR, 0xFF)):
        write(offset, 0xFF & ~0x80 if offset == LCR else 0xFF)
        assert uart_read(offset) == held
    write(MCR, 0)
    assert uart_read(MSR) == 0xB0
    assert [uart_read(8), uart_read(200)] == [0, 0]


def test_loop_back_returns_bytes_and_modem_signals_and_sends_nothing() -> None:
    receive(b"r")
    write(MCR, 0x10 | 0x0A)  # OUT2 and RTS
    assert uart_read(MSR) == 0x90  # DCD and CTS
    write(MCR, 0x10 | 0x05)
    assert uart_read(MSR) == 0x60
    send(b"0123456789abcdefX")
    assert bytes(uart_read(DATA) for _ in range(FIFO)) == b"0123456789abcdef"
    assert uart_read(LSR) == 0x60
    assert sent() == b""
    write(MCR, 0)
    assert uart_read(DATA) == ord("r")


def test_clearing_the_receiver_drops_its_fifo_and_not_what_is_on_the_wire() -> None:
    receive(bytes(range(40)))
    write(IIR_FCR, 1)  # switching the FIFO on clears it
    assert uart_read(DATA) == FIFO
    write(IIR_FCR, 1)
    assert uart_read(DATA) == FIFO + 1
    write(IIR_FCR, 1 | 2)
    assert uart_read(DATA) == 2 * FIFO + 2
    write(IIR_FCR, 1 | 2)
    assert uart_read(LSR) == 0x60


def test_two_processes_send_and_none_of_their_bytes_is_lost() -> None:
    each = 400_000
    children = []
    for hart in range(HARTS):
        text = (ctypes.c_uint8 * each)(*[65 + hart] * each)
        child = os.fork()
        if child == 0:
            uart_send(hart, ctypes.addressof(text), each)
            os._exit(0)
        children.append(child)
    count = {65: 0, 66: 0}
    give_up = time.monotonic() + 240
    while sum(count.values()) < HARTS * each and time.monotonic() < give_up:
        got = sent()
        for byte in count:
            count[byte] += got.count(byte)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    assert count == {65: each, 66: each}
    assert sent() == b""
