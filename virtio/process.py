"""The I/O process: an event loop over register requests, queues, the UART's rings and the host's descriptors.

It polls for a short while after there was work, and otherwise sleeps in epoll until a hart kicks it.
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
from mem.memmap import RAM_BASE
from mem.rtc import rtc_ns_until_alarm, rtc_tick
from mem.window import (
    REQUESTS,
    WindowRequest,
    window_answer,
    window_has_work,
    window_poll,
    window_take_asked,
    window_take_notified,
    window_take_queues,
)
from virtio.chardev import Chardev, Stdio
from virtio.device import Device
from virtio.host import Host
from virtio.mmio import Transport, clear_windows
from virtio.queue import Ram
from virtio.serial import TX_HEAD, TX_TAIL, Serial

IO_ASLEEP = regions.MACHINE + Machine.offset("io_asleep")
RECENT = 1_000_000  # ns after the last work in which polling is worth while
LOOK_ROUND = 1_000_000  # ns between looks at the host's descriptors while there is no time to sleep
HURRY = 1.0  # seconds that output may take when the user has ended the machine
PR_SET_PDEATHSIG = 1


@dataclass
class IoConfig:
    """What the I/O process has: devices by slot, the UART's host end, and for how long it polls (0: never).

    others: host ends that belong to no device.
    last_words: seconds that output may take when the guest has ended the machine.
    Make it in the supervisor and call `prepare` before anything is forked.
    """

    devices: dict[int, Device] = field(default_factory=dict)
    serial: Chardev = field(default_factory=Chardev)
    others: list[Host] = field(default_factory=list)
    poll_ns: int = 50_000
    last_words: float = HURRY
    supervisor: int = field(default_factory=os.getpid)
    transports: dict[int, Transport] = field(default_factory=dict)

    def prepare(self) -> None:
        """Fill in the register windows, before a hart can look at them."""
        clear_windows()
        size = machine().ram_bytes
        array = (ctypes.c_uint8 * size).from_address(regions.HOST + RAM_BASE)
        ram = Ram(memoryview(array).cast("B"))
        self.transports = {slot: Transport(slot, device, ram) for slot, device in self.devices.items()}

    def hosts(self) -> list[Host]:
        """Every host end."""
        return [self.serial, *(device.host for device in self.devices.values() if device.host), *self.others]

    def close(self) -> None:
        """Close files and sockets; a terminal gets its mode back."""
        for device in self.devices.values():
            device.close()
        for host in (self.serial, *self.others):
            host.close()


def run_io(io: IoConfig) -> None:
    """Do the machine's I/O until it ends; the main function of a forked process."""
    process = IoProcess(io)
    _die_with(io.supervisor)
    _take_signals(process)
    try:
        for host in io.hosts():
            host.start()
            if isinstance(host, Stdio):
                host.quit = process.quit
        process.run()
        process.finish()
    finally:
        for host in io.hosts():
            host.stop()


def _die_with(supervisor: int) -> None:
    """Have SIGTERM sent when the supervisor dies, were it already dead."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != supervisor:
        os._exit(1)


def _take_signals(process: "IoProcess") -> None:
    """Ctrl-C is the guest's or the supervisor's; SIGTERM means that the supervisor is gone, or wants us gone."""

    def terminate(*_: Any) -> None:
        process.io.close()
        os._exit(1)

    for number in (signal.SIGINT, signal.SIGTTOU, signal.SIGPIPE, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, terminate)
    signal.signal(signal.SIGWINCH, lambda *_: process.resize())
    signal.signal(signal.SIGCONT, lambda *_: process.resume())


class IoProcess:
    """The event loop."""

    def __init__(self, io: IoConfig) -> None:
        if not io.transports:
            io.prepare()
        self.io, self.serial, self.hosts = io, Serial(io.serial), io.hosts()
        self.transports = io.transports
        self.with_host = [t for t in io.transports.values() if t.device.host]
        self.kicks = machine().io_fd
        self.epoll = select.epoll()
        self.epoll.register(self.kicks, select.EPOLLIN)
        self.watched: dict[int, int] = {}
        self.owners: dict[int, Host] = {}
        self.unpollable: set[int] = set()
        self.window = io.poll_ns
        self.worked = self.looked = 0
        self.resized = False

    def run(self) -> None:
        """Work and sleep until the machine ends."""
        while not is_ending():
            now = time.monotonic_ns()
            if self.work():
                self.worked = now
                if now - self.looked > LOOK_ROUND:
                    self.look(0)
                    self.looked = now
            elif not self.poll(now):
                self.sleep()

    def work(self) -> bool:
        """Everything that can be done now; True when there was something."""
        did = bool(window_has_work())
        if did:
            self.serve_requests()
            self.serve_notifies()
        did |= self.serial.drain()
        did |= self.serial.feed()
        for transport in self.with_host:
            did |= transport.poll()
        for host in self.io.others:
            did |= host.poll()
        if self.resized:
            self.resized = False
            for transport in self.transports.values():
                transport.resized()
        return did

    def serve_requests(self) -> None:
        """Register writes that harts wait for."""
        for word in range(2):
            for bit in _bits(window_take_asked(word)):
                hart = word * 64 + bit
                request: Any = WindowRequest.at(REQUESTS + hart * WindowRequest.sizeof())
                transport = self.transports.get(request.slot)
                if transport:
                    transport.write(request.register, request.size, request.value)
                window_answer(hart)

    def serve_notifies(self) -> None:
        """Queues with new requests."""
        for slot in _bits(window_take_notified()):
            queues = window_take_queues(slot)
            if slot in self.transports:
                self.transports[slot].notified(queues)

    def poll(self, now: int) -> bool:
        """Spin for a while when there was work recently; the while grows when that helps and shrinks otherwise."""
        if self.window == 0 or now - self.worked > RECENT:
            return False
        if window_poll(TX_HEAD, py_load32(TX_TAIL), self.window) and self.has_work():
            self.window = min(self.io.poll_ns, self.window * 2)
            return True
        self.window = max(self.io.poll_ns // 16, self.window // 2)
        return False

    def has_work(self) -> bool:
        """Whether a hart has left something to do."""
        return bool(window_has_work() or is_ending()) or self.serial.has_work()

    def sleep(self) -> None:
        """Wait for a kick or for the host.

        io_asleep is set with a locked exchange before the work is looked at; a hart publishes its work and then
        reads io_asleep after a locked operation (kick_io).  One of the two sees the other.
        """
        py_xchg32(IO_ASLEEP, 1)
        alarm = rtc_ns_until_alarm()
        until_alarm = -1 if alarm >= FOREVER_NS else alarm / 1e9
        self.look(0 if self.has_work() else until_alarm)
        py_store32(IO_ASLEEP, 0)
        if alarm < FOREVER_NS:
            rtc_tick()

    def look(self, timeout: float) -> None:
        """Handle what the host's descriptors have, waiting at most `timeout` seconds (-1: any time)."""
        self._watch()
        always = [(fd, self.watched[fd]) for fd in self.unpollable & self.watched.keys()]
        for fd, events in self.epoll.poll(0 if always else timeout) + always:
            if fd == self.kicks:
                os.read(fd, 8)
            elif fd in self.owners:
                self.owners[fd].ready(fd, events)

    def _watch(self) -> None:
        """Bring epoll up to what the hosts are interested in now."""
        wanted: dict[int, int] = {}
        for host in self.hosts:
            for fd, events in host.interest().items():
                wanted[fd], self.owners[fd] = events, host
        if wanted == self.watched:
            return
        for fd in self.watched.keys() - wanted.keys():
            self.unpollable.discard(fd)
            with contextlib.suppress(OSError):  # closed meanwhile
                self.epoll.unregister(fd)
        for fd, events in wanted.items():
            self._register(fd, events)
        self.watched = wanted

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
        self.io.last_words = HURRY
        end_machine(POWER_OFF, 0)

    def finish(self) -> None:
        """The machine has ended: what the guest has sent still goes out."""
        deadline = time.monotonic() + self.io.last_words
        while time.monotonic() < deadline:
            self.serial.drain()
            for host in self.hosts:
                host.flush()
            if not self.serial.waiting() and not any(host.has_output() for host in self.hosts):
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


def _bits(mask: int) -> list[int]:
    """The numbers of the bits that are set."""
    return [n for n in range(mask.bit_length()) if mask >> n & 1]
