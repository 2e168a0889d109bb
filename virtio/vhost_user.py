"""Devices whose work is done by another process (vhost-user): that walks the rings, in the guest RAM that it is given.

The driver's notifications go on to the back-end's kick descriptors, what comes at its call descriptors becomes
interrupts.  A back-end that ends is waited for, and gets again what was left to be done.  It gets the driver's rings
(virtio/vhost_ledger.py), or rings of ours (virtio/vhost_shadow.py) where the driver's are none that can be handed over.
"""

import os
import select
import socket
import sys
from collections.abc import Callable
from struct import pack

from mem import regions
from mem.reservation import break_all
from virtio.device import Device
from virtio.features import EVENT_IDX, IN_ORDER, INDIRECT_DESC, RING_PACKED, RING_RESET
from virtio.host import Host
from virtio.needs import Needs
from virtio.queue import Queue
from virtio.timer import new_timer, set_timer
from virtio.vhost_ledger import Ledger
from virtio.vhost_shadow import Shadow, ShadowMemory
from virtio.vhost_wire import F_PROTOCOL, P_INFLIGHT, P_MTU, P_RESET_DEVICE, P_STATUS, Ask, BackendError, Session

DEVICE_BITS = (1 << 24) - 1 | (1 << 64) - (1 << 50)  # virtio 1.3, 2.2: those of the device's type
RING_BITS = INDIRECT_DESC | EVENT_IDX | RING_PACKED | IN_ORDER | RING_RESET
ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK = 1, 2, 4, 8  # of a status
RETRY, RETRY_MOST = 0.1, 5.0  # seconds between attempts to connect; the pause doubles while they fail
IN = select.EPOLLIN


class PassedQueue(Queue):
    """A queue whose ring another process serves: it is checked here and never touched."""

    def enable(self) -> None:
        super().enable()
        self.polled = True  # nobody here is to look at it


class Backend(Host):
    """The host's end: the connection to the back-end, made anew whenever it is lost, and the eventfds of each queue.

    `dial` connects; the first connection is made at once, so that a mistake is the user's to see.  `queues` is how many
    it serves, of the device's first ones; with `shadow` it does so in rings of ours.
    """

    impatient = True
    mtu = 0  # of a network card, that the back-end is told
    preset: tuple[int, bytes] | None = None  # of the configuration, that it has to know before it gets the rings

    def __init__(
        self, name: str, dial: Callable[[], Session], queues: int, retry: float = RETRY, shadow: bool = False
    ) -> None:
        self.name, self.dial, self.retry = name, dial, retry
        self.session: Session | None = dial()
        self.first_features = self.session.features
        self.kicks = [os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(queues)]
        self.calls = [os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(queues)]
        self.index = {fd: index for index, fd in enumerate(self.calls)}
        self.shadow = ShadowMemory(queues) if shadow else None
        self.pause = retry
        self.timer = -1
        self.queues: list[Queue] = []  # while the driver is ready
        self.accepted = 0
        self.rings: dict[int, Ledger | Shadow] = {}  # that the back-end has
        self.called: set[int] = set()  # what it has done in rings of ours, and nobody has looked at
        self.inflight: tuple[bytes, int] | None = None
        self.stale = False  # the configuration may have changed, which the device does not know yet

    # What the device says

    def run(self, queues: list[Queue], features: int) -> None:
        """The driver is ready."""
        self.queues, self.accepted = queues[: len(self.kicks)], features
        self.rings = {index: self._ring_of(index) for index, queue in enumerate(self.queues) if queue.ready}
        self._attempt(self._begin)

    def _ring_of(self, index: int) -> Ledger | Shadow:
        return Shadow(self.queues[index], self.shadow, index) if self.shadow else Ledger(self.queues[index])

    def halt(self) -> None:
        """The driver resets the device: the back-end is to leave the rings alone."""
        given = list(self.rings)
        self.queues, self.rings = [], {}
        self.called.clear()
        self._forget_inflight()
        if given:
            self._attempt(lambda session: self._halt(session, given))

    def _halt(self, session: Session, given: list[int]) -> None:
        for index in given:
            self._take_back(session, index)
        if session.protocol & P_RESET_DEVICE:
            session.send(Ask.RESET_DEVICE)
        session.set_status(0)

    def _take_back(self, session: Session, index: int) -> None:
        if session.features & F_PROTOCOL:
            session.set_vring(Ask.SET_VRING_ENABLE, index, 0)
        session.ask(Ask.GET_VRING_BASE, pack("<II", index, 0))

    def halt_queue(self, index: int) -> None:
        """The driver resets one queue."""
        self.called.discard(index)
        if self.rings.pop(index, None):
            self._attempt(lambda session: self._take_back(session, index))

    def kick(self, index: int) -> None:
        """The driver notifies.  A queue that was reset alone begins again here."""
        if index >= len(self.queues):
            return  # the back-end does not serve it
        if ring := self.rings.get(index):
            if ring.look():
                _ring(self.kicks[index])
        elif self.queues[index].ready:
            self.rings[index] = self._ring_of(index)
            self._attempt(lambda session: self._hand_over(session, index, self.rings[index]))

    def collect(self) -> bool:
        """See what the back-end has done in rings of ours; True when there was something."""
        called, self.called = self.called, set()
        for index in called:
            ring = self.rings.get(index)
            if isinstance(ring, Shadow):
                self._attempt(lambda session, ring=ring, index=index: self._collect(ring, index))  # type: ignore[misc]
        return bool(called)

    def _collect(self, ring: Shadow, index: int) -> None:
        if ring.collect():
            _ring(self.kicks[index])

    def has_other_config(self) -> bool:
        """Whether the back-end has said so since the last time."""
        if self.session is None or not self.session.config_changed:
            return False
        self.session.config_changed = False
        return True

    def read_config(self, size: int) -> bytes | None:
        """The back-end's configuration, if it is there."""
        found: list[bytes] = []
        self._attempt(lambda session: found.append(session.config(size)))
        return found[0] if found else None

    def set_config(self, offset: int, data: bytes) -> None:
        self._attempt(lambda session: session.set_config(offset, data))

    # The connection

    def _attempt(self, work: Callable[[Session], object]) -> None:
        """Do something with the back-end, if it is there; it may turn out to be gone."""
        if self.session is None:
            return
        try:
            work(self.session)
        except (BackendError, OSError) as error:
            self._lost(str(error))

    def _begin(self, session: Session) -> None:
        """Hand over the rings; if they were handed to another before, what that left undone too."""
        accepted = self.accepted & (~RING_BITS if self.shadow else ~0)
        missing = accepted & self.first_features & ~session.features
        if missing:
            raise BackendError(f"it lacks features {missing:#x} that the driver uses")
        session.set_status(ACKNOWLEDGE | DRIVER)
        session.send(Ask.SET_FEATURES, pack("<Q", (accepted | F_PROTOCOL) & session.features))
        session.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK)
        if session.protocol & P_STATUS and not session.ask_number(Ask.GET_STATUS) & FEATURES_OK:
            raise BackendError(f"it does not take the features {accepted:#x} that it has offered")
        if session.protocol & P_INFLIGHT:
            self._share_inflight(session)
        if self.preset:
            session.set_config(*self.preset)
        if self.mtu and session.protocol & P_MTU:
            session.send(Ask.NET_SET_MTU, pack("<Q", self.mtu))
        self._share_memory(session)
        for index, ring in self.rings.items():
            self._hand_over(session, index, ring)
        session.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK)

    def _share_memory(self, session: Session) -> None:
        ram = self.queues[0].ram
        shared = [(ram.base, ram.size, ram.fd)]
        if self.shadow:
            shared.append((Shadow.place(self.shadow, self.queues[0]), self.shadow.size, self.shadow.fd))
        table = b"".join(pack("<QQQQ", base, size, regions.HOST + base, 0) for base, size, _ in shared)
        session.send(Ask.SET_MEM_TABLE, pack("<II", len(shared), 0) + table, [fd for _, _, fd in shared])

    def _share_inflight(self, session: Session) -> None:
        """The record of what the back-end is at.  In rings of ours it begins from nothing."""
        if self.shadow:
            self._forget_inflight()
        if self.inflight is None:
            self.inflight = session.new_inflight(len(self.queues), max(ring.size for ring in self.rings.values()))
        description, fd = self.inflight
        session.send(Ask.SET_INFLIGHT_FD, description, [fd])

    def _forget_inflight(self) -> None:
        if self.inflight:
            os.close(self.inflight[1])
            self.inflight = None

    def _hand_over(self, session: Session, index: int, ring: Ledger | Shadow) -> None:
        base = ring.used_index[0] if self.inflight and isinstance(ring, Ledger) else ring.again()
        _drain(self.kicks[index])  # what came while nobody listened; the ring is to be enabled before it is kicked
        session.set_vring(Ask.SET_VRING_NUM, index, ring.size)
        session.set_vring(Ask.SET_VRING_BASE, index, base)
        session.send(Ask.SET_VRING_ADDR, pack("<IIQQQQ", index, 0, *ring.areas(), 0))
        session.send(Ask.SET_VRING_CALL, pack("<Q", index), [self.calls[index]])
        session.send(Ask.SET_VRING_KICK, pack("<Q", index), [self.kicks[index]])
        if session.features & F_PROTOCOL:
            session.set_vring(Ask.SET_VRING_ENABLE, index, 1)
        _ring(self.kicks[index])
        _ring(self.calls[index])  # whoever served the ring before may have died before it called, or not taken all

    def _lost(self, why: str) -> None:
        if self.session is None:
            return
        self._end_session()
        self._say(f"{why}; waiting for it to come back")
        self._wake_later()

    def _end_session(self) -> None:
        if self.session is not None:
            for end in self.session.ends():
                self.let_go(end.fileno())
            self.session.close()
            self.session = None

    def _wake_later(self) -> None:
        if self.timer < 0:
            self.timer = new_timer()
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
            self.stale = True

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
            if self.session.channel is not None and self.session.listens:
                wanted[self.session.channel.fileno()] = IN
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
        elif self.session is not None and self.session.channel is not None and fd == self.session.channel.fileno():
            self._attempt(Session.hear)

    def _called(self, index: int) -> None:
        """The back-end has given requests back.  It wrote behind the harts' backs: no reservation holds."""
        _drain(self.calls[index])
        ring = self.rings.get(index)
        if ring and self.session is not None:
            self.pause = self.retry
        if isinstance(ring, Ledger):
            ring.look()
            break_all()
            self.queues[index].interrupt()
        elif ring:
            self.called.add(index)  # for when the driver may be told, in `collect`

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
        self._end_session()
        if self.shadow:
            self.shadow.close()


class VhostUser(Device):
    """A device of which this process has the registers and the configuration only."""

    queue_kind: type[Queue] = PassedQueue
    name = "vhost-user"

    def __init__(self, backend: Backend, sizes: tuple[int, ...], features: int) -> None:
        self.host: Backend = backend
        self.queue_sizes = sizes
        self.features = features & backend.first_features & DEVICE_BITS
        if backend.shadow:
            self.queue_kind = Queue
        else:
            self.ring_limit = (INDIRECT_DESC | EVENT_IDX) & backend.first_features | RING_RESET
            self.ring_features = self.ring_limit

    def start(self, queues: list[Queue], features: int) -> None:
        super().start(queues, features)
        self.host.run(queues, features)

    def handle(self, index: int) -> None:
        self.host.kick(index)

    def poll(self) -> bool:
        did = self.host.collect()
        if self.host.stale or self.host.has_other_config():
            self.host.stale = False
            self.renew()
        return did

    def renew(self) -> None:
        """The back-end is there again, perhaps another one, or has said that its configuration changed."""

    def queue_reset(self, index: int) -> None:
        self.host.halt_queue(index)

    def stop(self) -> None:
        self.host.halt()
        super().stop()


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
