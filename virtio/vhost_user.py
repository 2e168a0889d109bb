"""Devices whose work is done by another process (vhost-user): that walks the rings, in the guest RAM that it is given.

The driver's notifications go on to the back-end's kick descriptors, what comes at its call descriptors becomes
interrupts.  A back-end that ends is waited for, and gets again what was left to be done.
"""

import ctypes
import os
import select
import socket
import sys
from collections.abc import Callable
from struct import pack

from mem import regions
from mem.reservation import break_all
from virtio.device import Device
from virtio.features import EVENT_IDX, INDIRECT_DESC
from virtio.host import Host
from virtio.needs import Needs
from virtio.netstream import CLOCK_MONOTONIC, TFD_FLAGS, set_timer
from virtio.queue import Queue
from virtio.vhost_ledger import Ledger
from virtio.vhost_wire import F_PROTOCOL, P_INFLIGHT, Ask, BackendError, Session

DEVICE_BITS = (1 << 24) - 1
RETRY, RETRY_MOST = 0.1, 5.0  # seconds between attempts to connect; the pause doubles while they fail
IN = select.EPOLLIN


class PassedQueue(Queue):
    """A queue that another process serves: its ring is checked here and never touched."""

    def enable(self) -> None:
        super().enable()
        self.polled = True  # nobody here is to look at it


class Backend(Host):
    """The host's end: the connection to the back-end, made anew whenever it is lost, and the eventfds of each queue.

    `dial` connects; the first connection is made at once, so that a mistake is the user's to see.
    """

    impatient = True

    def __init__(self, name: str, dial: Callable[[], Session], queues: int, retry: float = RETRY) -> None:
        self.name, self.dial, self.retry = name, dial, retry
        self.session: Session | None = dial()
        self.first_features = self.session.features
        self.kicks = [os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(queues)]
        self.calls = [os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(queues)]
        self.index = {fd: index for index, fd in enumerate(self.calls)}
        self.pause = retry
        self.timer = -1
        self.queues: list[Queue] = []  # while the driver is ready
        self.accepted = 0
        self.ledgers: dict[int, Ledger] = {}
        self.inflight: tuple[bytes, int] | None = None
        self.returned = False  # the back-end is there again, which the device does not know yet

    # What the device says

    def run(self, queues: list[Queue], features: int) -> None:
        """The driver is ready."""
        self.queues, self.accepted = queues, features
        self.ledgers = {index: Ledger(queue) for index, queue in enumerate(queues) if queue.ready}
        self._attempt(self._begin)

    def halt(self) -> None:
        """The driver resets the device: the back-end is to leave the rings alone."""
        ready = list(self.ledgers)
        self.queues, self.ledgers = [], {}
        if self.inflight:
            os.close(self.inflight[1])
            self.inflight = None
        if ready:
            self._attempt(lambda session: self._halt(session, ready))

    def _halt(self, session: Session, ready: list[int]) -> None:
        for index in ready:
            if session.features & F_PROTOCOL:
                session.set_vring(Ask.SET_VRING_ENABLE, index, 0)
            session.ask(Ask.GET_VRING_BASE, pack("<II", index, 0))

    def kick(self, index: int) -> None:
        """The driver notifies."""
        if ledger := self.ledgers.get(index):
            ledger.look()
            _ring(self.kicks[index])

    def set_config(self, offset: int, data: bytes) -> None:
        self._attempt(lambda session: session.set_config(offset, data))

    # The connection

    def _attempt(self, work: Callable[[Session], None]) -> None:
        """Do something with the back-end, if it is there; it may turn out to be gone."""
        if self.session is None:
            return
        try:
            work(self.session)
        except (BackendError, OSError) as error:
            self._lost(str(error))

    def _begin(self, session: Session) -> None:
        """Hand over the rings; if they were handed to another before, what that left undone too."""
        missing = self.accepted & self.first_features & ~session.features
        if missing:
            raise BackendError(f"it lacks features {missing:#x} that the driver uses")
        session.send(Ask.SET_FEATURES, pack("<Q", (self.accepted | F_PROTOCOL) & session.features))
        if session.protocol & P_INFLIGHT:
            self._share_inflight(session)
        ram = self.queues[0].ram
        region = pack("<QQQQ", ram.base, ram.size, regions.HOST + ram.base, 0)
        session.send(Ask.SET_MEM_TABLE, pack("<II", 1, 0) + region, [ram.fd])
        for index, ledger in self.ledgers.items():
            self._hand_over(session, index, ledger)

    def _share_inflight(self, session: Session) -> None:
        if self.inflight is None:
            self.inflight = session.new_inflight(len(self.queues), max(queue.size for queue in self.queues))
        description, fd = self.inflight
        session.send(Ask.SET_INFLIGHT_FD, description, [fd])

    def _hand_over(self, session: Session, index: int, ledger: Ledger) -> None:
        queue, host = self.queues[index], regions.HOST
        base = ledger.used_index[0] if self.inflight else ledger.again()
        _drain(self.kicks[index])  # what came while nobody listened; the ring is to be enabled before it is kicked
        session.set_vring(Ask.SET_VRING_NUM, index, queue.size)
        session.set_vring(Ask.SET_VRING_BASE, index, base)
        areas = (host + queue.descriptors, host + queue.device, host + queue.driver)
        session.send(Ask.SET_VRING_ADDR, pack("<IIQQQQ", index, 0, *areas, 0))
        session.send(Ask.SET_VRING_CALL, pack("<Q", index), [self.calls[index]])
        session.send(Ask.SET_VRING_KICK, pack("<Q", index), [self.kicks[index]])
        if session.features & F_PROTOCOL:
            session.set_vring(Ask.SET_VRING_ENABLE, index, 1)
        _ring(self.kicks[index])
        _ring(self.calls[index])  # whoever served the ring before may have died before it called

    def _lost(self, why: str) -> None:
        if self.session is None:
            return
        self.let_go(self.session.link.fileno())
        self.session.close()
        self.session = None
        self._say(f"{why}; waiting for it to come back")
        self._wake_later()

    def _wake_later(self) -> None:
        if self.timer < 0:
            self.timer = ctypes.CDLL(None).timerfd_create(CLOCK_MONOTONIC, TFD_FLAGS)
        set_timer(self.timer, self.pause)

    def _redial(self) -> None:
        self.pause = min(2 * self.pause, max(RETRY_MOST, self.retry))
        try:
            self.session = self.dial()
        except (BackendError, OSError):
            self._wake_later()
            return
        if self.queues:
            self._attempt(self._begin)
        if self.session:
            self._say("is there again")
            self.returned = True

    def _say(self, text: str) -> None:
        print(f"hartbeat: vhost-user {self.name}: {text}", file=sys.stderr, flush=True)

    # What the event loop says

    def start(self) -> None:
        if self.session is None:  # lost in the last life of the machine
            self._wake_later()

    def needs(self) -> Needs:
        return Needs(families=(socket.AF_UNIX,), connects=True)

    def interest(self) -> dict[int, int]:
        wanted = dict.fromkeys(self.calls, IN)
        if self.session is not None:
            wanted[self.session.link.fileno()] = IN
        elif self.timer >= 0:
            wanted[self.timer] = IN
        return wanted

    def ready(self, fd: int, events: int) -> None:
        if fd in self.index:
            self._called(self.index[fd])
        elif fd == self.timer:
            _drain(fd)
            if self.session is None:
                self._redial()
        elif self.session is not None and fd == self.session.link.fileno():
            self._lost("it has ended" if events & select.EPOLLHUP else "it says what nobody asked")

    def _called(self, index: int) -> None:
        """The back-end has given requests back.  It wrote behind the harts' backs: no reservation holds."""
        _drain(self.calls[index])
        if ledger := self.ledgers.get(index):
            if self.session is not None:
                self.pause = self.retry
            ledger.look()
            break_all()
            self.queues[index].interrupt()

    def stop(self) -> None:
        self.halt()
        if self.timer >= 0:
            os.close(self.timer)
            self.timer = -1

    def close(self) -> None:
        self.stop()
        for fd in (*self.kicks, *self.calls):
            os.close(fd)
        self.kicks, self.calls = [], []
        if self.session is not None:
            self.session.close()
            self.session.link.close()
            self.session = None


class VhostUser(Device):
    """A device of which this process has the registers and the configuration only."""

    queue_kind = PassedQueue
    name = "vhost-user"

    def __init__(self, backend: Backend, sizes: tuple[int, ...], features: int) -> None:
        self.host: Backend = backend
        self.queue_sizes = sizes
        self.features = features & backend.first_features & DEVICE_BITS
        self.ring_features = self.ring_limit = (INDIRECT_DESC | EVENT_IDX) & backend.first_features

    def start(self, queues: list[Queue], features: int) -> None:
        super().start(queues, features)
        self.host.run(queues, features)

    def handle(self, index: int) -> None:
        self.host.kick(index)

    def stop(self) -> None:
        self.host.halt()
        super().stop()


class VhostBlock(VhostUser):
    """vhost-user-blk: the configuration is the back-end's."""

    kind = 2
    name = "vhost-user-blk"
    orders = ("size",)
    CONFIG_BYTES = 60  # up to what came with WRITE_ZEROES
    NUM_QUEUES, WRITEBACK = 34, 32  # offsets

    def __init__(self, backend: Backend, sizes: tuple[int, ...], features: int = DEVICE_BITS) -> None:
        super().__init__(backend, sizes, features)
        assert backend.session is not None
        self.bytes = self._patched(backend.session.config(self.CONFIG_BYTES))

    def _patched(self, data: bytes) -> bytes:
        """The number of queues is ours to choose."""
        return data[: self.NUM_QUEUES] + pack("<H", len(self.queue_sizes)) + data[self.NUM_QUEUES + 2 :]

    def config(self) -> bytes:
        return self.bytes

    def size(self, _: None = None) -> int:
        """Bytes that the driver sees: the configuration begins with the number of sectors."""
        return int.from_bytes(self.bytes[:8], "little") * 512

    def configure(self, offset: int, data: bytes) -> None:
        if offset == self.WRITEBACK and len(data) == 1:
            self.bytes = self.bytes[:offset] + data + self.bytes[offset + 1 :]
            self.host.set_config(offset, data)

    def poll(self) -> bool:
        """The back-end that came back has perhaps another disk, larger or smaller, and has not heard of the cache."""
        if not self.host.returned:
            return False
        self.host.returned = False
        self.host._attempt(self._renew)
        return True

    def _renew(self, session: Session) -> None:
        data = self._patched(session.config(self.CONFIG_BYTES))
        if data[self.WRITEBACK] != self.bytes[self.WRITEBACK]:
            cache = self.bytes[self.WRITEBACK : self.WRITEBACK + 1]
            session.set_config(self.WRITEBACK, cache)
            data = data[: self.WRITEBACK] + cache + data[self.WRITEBACK + 1 :]
        if data != self.bytes:
            self.bytes = data
            self.config_changed()


class VhostFs(VhostUser):
    """vhost-user-fs: a file system of the host; the configuration is ours."""

    kind = 26
    name = "vhost-user-fs"

    def __init__(self, backend: Backend, sizes: tuple[int, ...], tag: bytes) -> None:
        super().__init__(backend, sizes, 0)
        self.tag = tag

    def config(self) -> bytes:
        return self.tag.ljust(36, b"\0") + pack("<I", len(self.queue_sizes) - 1)


def _ring(fd: int) -> None:
    """Ring an eventfd, which may be full already."""
    try:
        os.write(fd, (1).to_bytes(8, sys.byteorder))
    except BlockingIOError:
        return


def _drain(fd: int) -> None:
    try:
        os.read(fd, 8)
    except BlockingIOError:
        return
