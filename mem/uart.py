"""16550A: the registers, in the hart that touches them; the bytes lie in two rings shared with the I/O process.

The rings stand for the wire.  A driver sees FIFOs of 16 bytes in front of them (National Semiconductor PC16550D,
without line errors and modem signals, which a ring does not have).
"""

from enum import IntEnum

from mem import memmap, regions
from mem.atomics import aload32, astore32, load8, spin_lock, spin_unlock, store8, xchg32
from mem.layout import Layout, layout, many, u8, u32
from mem.machine import is_ending, kick_io
from mem.mailbox import RUNNING, SLEEPING, mailbox, relax
from mem.native import native, ref
from mem.plic import plic_set_level

RING = 4096  # bytes; a power of two, for head and tail run freely modulo 2**32
FIFO = 16
NOTHING = 0x100  # what uart_take gives when there is no byte
KICK_EVERY = 1024  # turns of the wait for room

IER_RECEIVE, IER_TRANSMIT = 1, 2
IIR_NONE, IIR_TRANSMIT, IIR_RECEIVE, IIR_TIMEOUT, IIR_FIFOS = 1, 2, 4, 12, 0xC0
FCR_ENABLE, FCR_CLEAR_RECEIVE = 1, 2
LCR_DLAB = 0x80
MCR_LOOP = 0x10
LSR_READY, LSR_EMPTY = 1, 0x60  # data ready; THR and transmitter empty
MSR_CONNECTED = 0xB0  # DCD, DSR and CTS


class Register(IntEnum):
    """Offsets; with DLAB set in LCR the first two are the divisor."""

    DATA, IER, IIR_FCR, LCR, MCR, LSR, MSR, SCR = range(8)


@layout
class Uart(Layout):
    """All under `lock` except the rings' indices: each is written by one side and read by the other."""

    lock: u32
    ier: u8
    lcr: u8
    mcr: u8
    scr: u8
    fcr: u8
    dll: u8
    dlm: u8
    transmit: u8  # the latched "THR empty" interrupt
    line: u8  # the level last given to the PLIC
    loop_head: u8  # loop-back has a FIFO of its own, for `rx` belongs to the I/O process's end
    loop_tail: u8
    pad: u8
    loop: list[u8] = many(FIFO)
    tx_head: u32  # harts put bytes here, under the lock
    tx_tail: u32  # the I/O process takes them here
    rx_head: u32  # the I/O process puts bytes here
    rx_tail: u32  # harts take them here, under the lock
    tx: list[u8] = many(RING)
    rx: list[u8] = many(RING)


assert regions.UART + Uart.sizeof() <= regions.WINDOWS


@native
def tx_room(uart: Uart) -> int:
    """Bytes that the transmit ring can take."""
    return RING - ((aload32(ref(uart.tx_head)) - aload32(ref(uart.tx_tail))) & 0xFFFFFFFF)


@native
def rx_count(uart: Uart) -> int:
    """Bytes that came and were not read."""
    if uart.mcr & MCR_LOOP:
        return (uart.loop_head - uart.loop_tail) & 0xFF
    return (aload32(ref(uart.rx_head)) - aload32(ref(uart.rx_tail))) & 0xFFFFFFFF


@native
def update_line(uart: Uart) -> None:
    """Tell the PLIC when the interrupt's level changed."""
    receive = uart.ier & IER_RECEIVE and rx_count(uart)
    level = receive or (uart.ier & IER_TRANSMIT and uart.transmit)
    if level != uart.line:
        uart.line = level
        plic_set_level(memmap.UART_IRQ, level)


@native
def refill(uart: Uart) -> None:
    """Latch the THR-empty interrupt once the ring has room for a FIFO that a driver fills without looking."""
    if tx_room(uart) >= FIFO:
        uart.transmit = 1


# The I/O process's side.


@native
def uart_receive(source: int, count: int) -> int:
    """Put bytes that lie at a host address into the receive ring; gives how many fitted."""
    uart = Uart.at(regions.UART)
    head = uart.rx_head
    done = 0
    while done < count and (head - aload32(ref(uart.rx_tail))) & 0xFFFFFFFF < RING:
        uart.rx[head % RING] = load8(source + done)
        head += 1
        done += 1
    # Release: the bytes come before the index that shows them to the harts.
    astore32(ref(uart.rx_head), head)
    uart_rx_ready()
    return done


@native
def uart_collect(target: int, limit: int) -> int:
    """Move at most `limit` sent bytes to a host address; gives how many there were."""
    uart = Uart.at(regions.UART)
    head = aload32(ref(uart.tx_head))
    tail = uart.tx_tail
    done = 0
    while done < limit and tail & 0xFFFFFFFF != head:
        store8(target + done, uart.tx[tail % RING])
        tail += 1
        done += 1
    # Release: the bytes are read before the index lets harts overwrite them.
    astore32(ref(uart.tx_tail), tail)
    uart_tx_drained()
    return done


@native
def uart_rx_ready() -> None:
    """The I/O process put bytes into `rx` and moved `rx_head`."""
    uart = Uart.at(regions.UART)
    spin_lock(ref(uart.lock))
    update_line(uart)
    spin_unlock(ref(uart.lock))


@native
def uart_tx_drained() -> None:
    """The I/O process took bytes from `tx` and moved `tx_tail`: a transmitter that was full is empty again."""
    uart = Uart.at(regions.UART)
    spin_lock(ref(uart.lock))
    refill(uart)
    update_line(uart)
    spin_unlock(ref(uart.lock))


# The harts' side.


@native
def uart_put(hart: int, byte: int) -> None:
    """Send a byte; the hart waits while the ring is full and the machine goes on."""
    uart = Uart.at(regions.UART)
    if try_put(uart, byte) == 0:
        wait_and_put(hart, uart, byte)
    kick_io()


@native
def uart_send(hart: int, source: int, count: int) -> None:
    """Send bytes that lie at a host address."""
    for done in range(count):
        uart_put(hart, load8(source + done))


@native(cold=True)
def wait_and_put(hart: int, uart: Uart, byte: int) -> None:
    """Send a byte once there is room.

    A waiting hart counts as asleep: the I/O process may want something of it before it comes to the ring.
    """
    activity = ref(mailbox(hart).activity)
    xchg32(activity, SLEEPING)
    spins = 0
    while try_put(uart, byte) == 0 and is_ending() == 0:
        if spins % KICK_EVERY == 0:
            kick_io()
        relax(spins)
        spins += 1
    xchg32(activity, RUNNING)


@native
def try_put(uart: Uart, byte: int) -> int:
    """Put a byte into the transmit ring, or give 0: nobody may wait for the I/O process with the lock."""
    spin_lock(ref(uart.lock))
    room = tx_room(uart)
    if room:
        head = uart.tx_head
        uart.tx[head % RING] = byte
        # Release: the byte comes before the index that shows it to the I/O process.
        astore32(ref(uart.tx_head), head + 1)
    spin_unlock(ref(uart.lock))
    return room


@native
def uart_take() -> int:
    """The next received byte, or NOTHING."""
    uart = Uart.at(regions.UART)
    spin_lock(ref(uart.lock))
    count = rx_count(uart)
    byte = NOTHING
    if count:
        byte = pop(uart)
        update_line(uart)
    spin_unlock(ref(uart.lock))
    if count >= RING:
        kick_io()  # it stopped reading its input
    return byte


@native
def pop(uart: Uart) -> int:
    """Take a byte that is there, with the lock held."""
    if uart.mcr & MCR_LOOP:
        tail = uart.loop_tail
        uart.loop_tail = tail + 1
        return uart.loop[tail % FIFO]
    tail = uart.rx_tail
    byte = uart.rx[tail % RING]
    # Release: the byte is read before the index lets the I/O process overwrite it.
    astore32(ref(uart.rx_tail), tail + 1)
    return byte


@native
def uart_read(offset: int) -> int:
    """A load of the byte register."""
    uart = Uart.at(regions.UART)
    match offset:
        case Register.DATA:
            return read_data(uart)
        case Register.IER:
            return uart.dlm if uart.lcr & LCR_DLAB else uart.ier
        case Register.IIR_FCR:
            return identify(uart)
        case Register.LCR:
            return uart.lcr
        case Register.MCR:
            return uart.mcr
        case Register.LSR:
            return line_status(uart)
        case Register.MSR:
            return modem_status(uart.mcr)
        case Register.SCR:
            return uart.scr
    return 0


@native
def read_data(uart: Uart) -> int:
    """RBR, or the divisor's low byte; an empty receiver gives 0."""
    if uart.lcr & LCR_DLAB:
        return uart.dll
    return uart_take() & 0xFF


@native
def line_status(uart: Uart) -> int:
    """LSR: the transmitter counts as empty as long as the ring has room for a FIFO."""
    empty = LSR_EMPTY if tx_room(uart) >= FIFO else 0
    return empty | (LSR_READY if rx_count(uart) else 0)


@native
def modem_status(mcr: int) -> int:
    """MSR: a terminal that is there, or in loop-back the four outputs (RTS to CTS, DTR to DSR, OUT1, OUT2)."""
    if mcr & MCR_LOOP == 0:
        return MSR_CONNECTED
    return (mcr & 2) << 3 | (mcr & 1) << 5 | (mcr & 4) << 4 | (mcr & 8) << 4


@native
def identify(uart: Uart) -> int:
    """IIR: the most urgent interrupt; naming "THR empty" here takes it back."""
    spin_lock(ref(uart.lock))
    kind = urgent(uart)
    if kind == IIR_TRANSMIT:
        uart.transmit = 0
        update_line(uart)
    fifos = IIR_FIFOS if uart.fcr & FCR_ENABLE else 0
    spin_unlock(ref(uart.lock))
    return kind | fifos


@native
def urgent(uart: Uart) -> int:
    """The interrupt that IIR names."""
    count = rx_count(uart)
    if uart.ier & IER_RECEIVE and count:
        waiting = uart.fcr & FCR_ENABLE and count < trigger(uart.fcr)
        return IIR_TIMEOUT if waiting else IIR_RECEIVE
    return IIR_TRANSMIT if uart.ier & IER_TRANSMIT and uart.transmit else IIR_NONE


@native
def trigger(fcr: int) -> int:
    """Bytes at which the receiver's FIFO interrupts: 1, 4, 8 or 14.  Fewer have waited long enough at once."""
    level = fcr >> 6
    return 14 if level == 3 else 1 if level == 0 else level * 4


@native
def uart_write(hart: int, offset: int, value: int) -> None:
    """A store to the byte register."""
    uart = Uart.at(regions.UART)
    if offset == Register.DATA and uart.lcr & LCR_DLAB == 0:
        write_data(hart, uart, value & 0xFF)
        return
    spin_lock(ref(uart.lock))
    write_register(uart, offset, value & 0xFF)
    update_line(uart)
    spin_unlock(ref(uart.lock))


@native
def write_data(hart: int, uart: Uart, byte: int) -> None:
    """THR: the byte takes back the THR-empty interrupt, and brings it again as soon as it is in the ring."""
    if uart.mcr & MCR_LOOP == 0:
        uart_put(hart, byte)
    spin_lock(ref(uart.lock))
    if uart.mcr & MCR_LOOP and rx_count(uart) < FIFO:
        uart.loop[uart.loop_head % FIFO] = byte
        uart.loop_head += 1
    # The line may stay up: the PLIC has a request pending or in service, and another would follow either way.
    uart.transmit = 0
    refill(uart)
    update_line(uart)
    spin_unlock(ref(uart.lock))


@native
def write_register(uart: Uart, offset: int, value: int) -> None:
    """Every register but THR, with the lock held."""
    match offset:
        case Register.DATA:
            uart.dll = value
        case Register.IER:
            write_ier(uart, value)
        case Register.IIR_FCR:
            write_fcr(uart, value)
        case Register.LCR:
            uart.lcr = value
        case Register.MCR:
            uart.mcr = value & 0x1F
        case Register.SCR:
            uart.scr = value


@native
def write_ier(uart: Uart, value: int) -> None:
    """IER, or the divisor's high byte.  Allowing the THR-empty interrupt of an empty transmitter causes it."""
    if uart.lcr & LCR_DLAB:
        uart.dlm = value
        return
    if (uart.ier ^ value) & IER_TRANSMIT:
        uart.transmit = 0
        if value & IER_TRANSMIT:
            refill(uart)
    uart.ier = value & 0xF


@native
def write_fcr(uart: Uart, value: int) -> None:
    """FCR: switching the FIFOs on or off empties them, as the clear bits do; a byte in `tx` is on the wire."""
    if (uart.fcr ^ value) & FCR_ENABLE:
        value |= FCR_CLEAR_RECEIVE
    if value & FCR_CLEAR_RECEIVE:
        for _ in range(FIFO):
            if rx_count(uart):
                pop(uart)
    uart.fcr = value & 0xC9
