"""An I/O process: an event loop over register requests, queues, the UART's rings and the host's descriptors.

It spins for a short while where that pays, and otherwise sleeps in epoll until a hart kicks it.
"""

import contextlib
import ctypes
import os
import select
import signal
import sys
import time
from dataclasses import dataclass, field
from typing import Any

from mem import regions
from mem.atomics import py_load32, py_store32, py_xchg32
from mem.clock import FOREVER_NS
from mem.machine import POWER_OFF, Machine, end_machine, is_ending, machine
from mem.mailbox import spares_core
from mem.memmap import RAM_BASE
from mem.rtc import rtc_ns_until_alarm, rtc_tick
from mem.window import (
    REQUESTS,
    Window,
    WindowRequest,
    window_answer,
    window_has_work,
    window_poll,
    window_take_asked,
    window_take_notified,
    window_take_queues,
)
from virtio import sandbox
from virtio.chardev import Chardev, Stdio
from virtio.device import Device
from virtio.host import Host
from virtio.mmio import Transport, clear_windows
from virtio.needs import Needs, together
from virtio.orders import Orders
from virtio.queue import Queue, Ram
from virtio.ring import Ring
from virtio.serial import TX_HEAD, TX_TAIL, Serial

IO_ASLEEP = regions.MACHINE + Machine.offset("io_asleep")
IOTHREAD_ASLEEP = regions.MACHINE + Machine.offset("iothread_asleep")
POLL_NS = 200_000  # a hart's way from one request to the next is shorter
SPARE_POLL_NS = 500_000  # so is a frame's, to another program and back
POLL_FIRST = 4_000
POLLED = 64  # rings at most that a process looks at
LOOK_ROUND = 1_000_000  # ns between looks at the host's descriptors while there is no time to sleep
LOOK_SPIN = 5_000  # the same while it spins: what a look costs
HURRY = 1.0  # seconds that output may take when the user has ended the machine
PR_SET_PDEATHSIG = 1


@dataclass
class Polling:
    """For how long an I/O process spins before it sleeps: QEMU's rule for its iothreads, with QEMU's names.

    If work comes later than now but within `most` ns, spin longer next time; if it comes later, spinning is a waste.
    spare: in place of `most`, if it is longer, while the harts leave a core of the host's to others.
    """

    most: int = POLL_NS
    grow: int = 2
    shrink: int = 4
    now: int = 0
    spare: int = 0

    def limit(self) -> int:
        """For how long it may spin, as things are."""
        return self.spare if self.spare > self.most and spares_core() else self.most

    def learn(self, gap: int) -> None:
        """Work has come this many ns after the last was done."""
        limit = self.limit()
        if gap > limit:
            self.now = self.now // self.shrink if self.shrink else 0
        elif gap > self.now:
            self.now = min(limit, self.now * self.grow or POLL_FIRST)


@dataclass
class IoConfig:
    """What the I/O processes have: devices by slot, the UART's host end.

    others: host ends that belong to no device; they and the UART are the main process's, number 0.
    polling: of each process, by number; owners: the process of a slot, where it is not the main one.
    given: what was asked for in each slot (smp/config.py:DeviceConfig); orders: of each process, if there is a monitor.
    descriptors: those that belong to no one device; surplus: those that an I/O process about to start closes.
    last_words: seconds that output may take when the guest has ended the machine.
    Make it in the supervisor and call `prepare` before anything is forked.
    """

    devices: dict[int, Device] = field(default_factory=dict)
    serial: Chardev = field(default_factory=Chardev)
    others: list[Host] = field(default_factory=list)
    polling: list[Polling] = field(default_factory=lambda: [Polling(spare=SPARE_POLL_NS)])
    owners: dict[int, int] = field(default_factory=dict)
    orders: list[Orders] = field(default_factory=list)
    last_words: float = HURRY
    sandbox: bool = True
    descriptors: frozenset[int] = frozenset()
    surplus: set[int] = field(default_factory=set)
    supervisor: int = field(default_factory=os.getpid)
    transports: dict[int, Transport] = field(default_factory=dict)
    given: dict[int, Any] = field(default_factory=dict)
    ram_fd: int = -1  # of guest RAM, for devices that give it to other processes

    def prepare(self) -> None:
        """Fill in the register windows, before a hart can look at them."""
        clear_windows()
        size = machine().ram_bytes
        array = (ctypes.c_uint8 * size).from_address(regions.HOST + RAM_BASE)
        ram = Ram(memoryview(array).cast("B"), fd=self.ram_fd)
        self.transports = {slot: Transport(slot, device, ram) for slot, device in self.devices.items()}
        for slot, number in self.owners.items():
            Window.at(regions.WINDOWS + slot * Window.sizeof()).owner = number

    def of(self, number: int) -> dict[int, Transport]:
        """The transports that the process of this number serves."""
        return {slot: each for slot, each in self.transports.items() if self.owners.get(slot, 0) == number}

    def hosts(self, number: int) -> list[Host]:
        """The host ends that the process of this number looks after."""
        hosts = [host for each in self.of(number).values() for host in each.device.hosts()]
        hosts += self.orders[number : number + 1]
        return hosts if number else [self.serial, *hosts, *self.others]

    def keeps(self, number: int) -> set[int]:
        """The descriptors that the process of this number serves its devices with."""
        links = {each.link.fileno() for each in self.orders[number : number + 1]}
        return links.union(self.descriptors, *(each.device.descriptors for each in self.of(number).values()))

    def needs(self, number: int) -> Needs:
        """What the process of this number opens or connects to later."""
        of_devices = (each.device.needs() for each in self.of(number).values())
        return together((*of_devices, *(host.needs() for host in self.hosts(number))))

    def all_hosts(self) -> list[Host]:
        """The host ends of every process."""
        return [self.serial, *(host for device in self.devices.values() for host in device.hosts()), *self.others]

    def close(self) -> None:
        """Close files and sockets; a terminal gets its mode back."""
        for device in self.devices.values():
            device.close()
        for host in (self.serial, *self.others):
            host.close()


def run_io(io: IoConfig, number: int = 0) -> None:
    """Do the machine's I/O until it ends; the main function of a forked process."""
    sandbox.close_all(io.surplus)
    process = IoProcess(io, number)
    _die_with(io.supervisor)
    _take_signals(process)
    try:
        for host in process.hosts:
            host.start()
            if isinstance(host, Stdio):
                host.quit = process.quit
        if io.sandbox:
            sandbox.enter(io.needs(number))
        process.run()
        process.finish()
    finally:
        for host in process.hosts:
            host.stop()


def _die_with(supervisor: int) -> None:
    """Have SIGTERM sent when the supervisor dies, were it already dead."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != supervisor:
        os._exit(1)


def _take_signals(process: "IoProcess") -> None:
    """Ctrl-C is the guest's or the supervisor's; SIGTERM means that the supervisor is gone, or wants us gone."""

    def terminate(*_: Any) -> None:
        try:
            process.io.close()
        finally:
            os._exit(1)

    for number in (signal.SIGINT, signal.SIGTTOU, signal.SIGPIPE, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, terminate)
    signal.signal(signal.SIGWINCH, lambda *_: process.resize())
    signal.signal(signal.SIGCONT, lambda *_: process.resume())


class IoProcess:
    """The event loop of one process.  Number 0 has the UART and the clock; each device belongs to one process."""

    def __init__(self, io: IoConfig, number: int = 0) -> None:
        if not io.transports:
            io.prepare()
        self.io, self.number, self.polling = io, number, io.polling[number]
        self.serial = None if number else Serial(io.serial)
        self.hosts, self.others = io.hosts(number), [] if number else io.others
        self.transports = io.of(number)
        for orders in io.orders[number : number + 1]:
            orders.serve(self.transports)
        self.with_host = [t for t in self.transports.values() if t.device.hosts()]
        self.impatient = any(host.impatient for host in self.hosts)
        self.kicks = machine().iothread_fd[number] if number else machine().io_fd
        self.asleep = IOTHREAD_ASLEEP + 4 * number if number else IO_ASLEEP
        self.epoll = select.epoll()
        self.epoll.register(self.kicks, select.EPOLLIN)
        self.watched: dict[int, int] = {}
        self.owners: dict[int, Host] = {}
        self.unpollable: set[int] = set()
        Host.let_go = staticmethod(self.let_go)  # one loop a process
        self.polled: list[tuple[Transport, int, Queue, Ring]] = []
        self.watches: Any = (ctypes.c_uint64 * POLLED)()  # addresses of the rings in `polled`
        self.watches_at = ctypes.addressof(self.watches)
        self.looked = 0
        self.resized = False

    def run(self) -> None:
        """Work, spin and sleep until the machine ends."""
        while not is_ending():
            if self.work():
                now = time.monotonic_ns()
                if now - self.looked > LOOK_ROUND:
                    self.look(0)
                    self.looked = now
                    if self.serial:
                        rtc_tick()  # sleep, which sees to the clock's alarm otherwise, may be far off
                continue
            began = time.monotonic_ns()
            if not self.spin():
                self.sleep()
            self.polling.learn(time.monotonic_ns() - began)

    def work(self) -> bool:
        """Everything that can be done now; True when there was something."""
        did = bool(window_has_work(self.number))
        if did:
            self.serve_requests()
            self.serve_notifies()
        did |= self.serve_polled()
        if self.serial:
            did |= self.serial.drain()
            did |= self.serial.feed()
        for transport in self.with_host:
            did |= transport.poll()
        for host in self.others:
            did |= host.poll()
        if self.resized:
            self.resized = False
            for transport in self.transports.values():
                transport.resized()
        return did

    def serve_requests(self) -> None:
        """Register writes that harts wait for."""
        for word in range(2):
            for bit in _bits(window_take_asked(self.number, word)):
                hart = word * 64 + bit
                request: Any = WindowRequest.at(REQUESTS + hart * WindowRequest.sizeof())
                transport = self.transports.get(request.slot)
                if transport:
                    transport.write(request.register, request.size, request.value)
                window_answer(hart)

    def serve_notifies(self) -> None:
        """Queues with new requests; from now on their rings are looked at, if this process spins."""
        for slot in _bits(window_take_notified(self.number)):
            queues = window_take_queues(slot)
            transport = self.transports.get(slot)
            if transport:
                if self.polling.now:
                    self.begin_polling(transport, queues)
                transport.notified(queues)

    def begin_polling(self, transport: Transport, queues: int) -> None:
        """Look at these rings until we sleep."""
        for index in _bits(queues & (1 << len(transport.queues)) - 1):
            queue = transport.queues[index]
            if queue.ready and not queue.polled and len(self.polled) < POLLED:
                queue.begin_polling()
                self.watches[len(self.polled)] = queue.ring.place
                self.polled.append((transport, index, queue, queue.ring))

    def serve_polled(self) -> bool:
        """Requests in rings whose drivers are spared their notifications; True when there were some."""
        found = [each for each in self.polled if each[3].has_work()]
        for each in found:
            self.serve_ring(*each)
        return bool(found)

    def serve_ring(self, transport: Transport, index: int, queue: Queue, ring: Ring) -> None:
        """A request came into a ring that we look at.  The queue may have got another ring meanwhile, after a reset."""
        ring.forget()
        transport.notified(1 << index)

    def end_polling(self) -> bool:
        """Have drivers notify again; True when one did not, for it put something in just before."""
        missed = [each for each in self.polled if each[2].polled and not each[2].end_polling()]
        self.polled.clear()
        for transport, index, _, _ in missed:
            transport.notified(1 << index)
        return bool(missed)

    def spin(self) -> bool:
        """Wait without sleeping, for as long as that has paid lately; True when there is work."""
        if not self.polling.now or self.impatient:
            return False
        self._watch()
        began = last = time.monotonic_ns()
        while (now := time.monotonic_ns()) < last + (limit := min(self.polling.now, self.polling.limit())):
            place, value = (TX_HEAD, py_load32(TX_TAIL)) if self.serial else (self.asleep, 0)
            turn = LOOK_SPIN if self.watched else limit
            found = window_poll(self.number, self.watches_at, len(self.polled), place, value, turn)
            if found == 1:
                return self.has_work()
            if found:
                self.serve_ring(*self.polled[found - 2])
                if self.with_host or self.others or now > began + LOOK_ROUND:
                    return True
                last = time.monotonic_ns()
            elif self.watched and self._handle(self.epoll.poll(0)):
                return True
        return False

    def has_work(self) -> bool:
        """Whether a hart has left something to do."""
        if window_has_work(self.number) or is_ending() or any(each[3].has_work() for each in self.polled):
            return True
        return self.serial is not None and self.serial.has_work()

    def sleep(self) -> None:
        """Wait for a kick or for the host.

        io_asleep is set with a locked exchange before the work is looked at; a hart publishes its work and then
        reads io_asleep after a locked operation (kick_io).  One of the two sees the other.
        """
        if self.end_polling():
            return
        py_xchg32(self.asleep, 1)
        alarm = FOREVER_NS if self.number else rtc_ns_until_alarm()
        until_alarm = -1 if alarm >= FOREVER_NS else alarm / 1e9
        self.look(0 if self.has_work() else until_alarm)
        py_store32(self.asleep, 0)
        if alarm < FOREVER_NS:
            rtc_tick()

    def look(self, timeout: float) -> None:
        """Handle what the host's descriptors have, waiting at most `timeout` seconds (-1: any time)."""
        self._watch()
        always = [(fd, self.watched[fd]) for fd in self.unpollable & self.watched.keys()]
        self._handle(self.epoll.poll(0 if always else timeout) + always)

    def _handle(self, found: list[tuple[int, int]]) -> bool:
        """Have events seen to by those whose descriptors they are of; True when there are any."""
        for fd, events in found:
            if fd == self.kicks:
                os.read(fd, 8)
            elif fd in self.watched:
                self.owners[fd].ready(fd, events)
        return bool(found)

    def _watch(self) -> None:
        """Bring epoll up to what the hosts are interested in now."""
        wanted: dict[int, int] = {}
        for host in self.hosts:
            for fd, events in host.interest().items():
                wanted[fd], self.owners[fd] = events, host
        if wanted == self.watched:
            return
        for fd in self.watched.keys() - wanted.keys():
            self.let_go(fd)
        for fd, events in wanted.items():
            self._register(fd, events)
        self.watched = wanted

    def let_go(self, fd: int) -> None:
        """A host is about to close a descriptor.

        It has to go while it is open: where another process has it too, epoll would keep it under a number that may
        soon be another descriptor's.  And that one must not be taken for what was watched before.
        """
        self.unpollable.discard(fd)
        if self.watched.pop(fd, None) is not None:
            with contextlib.suppress(OSError):
                self.epoll.unregister(fd)

    def _register(self, fd: int, events: int) -> None:
        if fd in self.unpollable or self.watched.get(fd) == events:
            return
        try:
            if fd in self.watched:
                self.epoll.modify(fd, events)
            else:
                self.epoll.register(fd, events)
        except PermissionError:  # a regular file or /dev/null: always ready
            self.unpollable.add(fd)

    def quit(self) -> None:
        """The user has had enough."""
        hurry_end()

    def finish(self) -> None:
        """The machine has ended: what the guest has sent still goes out."""
        began = time.monotonic()
        while time.monotonic() < began + (HURRY if machine().hurry else self.io.last_words):
            if self.serial:
                self.serial.drain()
            for host in self.hosts:
                host.flush()
            waiting = self.serial is not None and self.serial.waiting()
            if not waiting and not any(host.has_output() for host in self.hosts):
                return
            time.sleep(0.002)

    def resize(self) -> None:
        """SIGWINCH: have the loop look at the terminal's size."""
        self.resized = True
        os.write(self.kicks, (1).to_bytes(8, sys.byteorder))

    def resume(self) -> None:
        """SIGCONT: the shell has put the terminal into its own mode."""
        for host in self.hosts:
            if isinstance(host, Stdio):
                host.enter_raw()


def hurry_end() -> None:
    """The user ends the machine: what has no reader soon is lost."""
    machine().hurry = 1
    end_machine(POWER_OFF, 0)


def _bits(mask: int) -> list[int]:
    """The numbers of the bits that are set."""
    return [n for n in range(mask.bit_length()) if mask >> n & 1]
