"""virtio-net (virtio 1.3, 5.1): frames between the driver's queues and a netdev, and the control queue.

A frame goes out of guest RAM straight to the host, unless something is left to do in it that the netdev can't; then
a copy is completed (virtio/offload.py). Buffers for receiving are taken from the ring when a frame has come
(virtio/merge.py).
"""

from collections.abc import Callable
from struct import pack, unpack
from typing import NamedTuple

from virtio.device import Device
from virtio.merge import FILLED, MISSING, Merger
from virtio.netdev import ETHERNET, HEADER_BYTES, MAX_FRAME, PLAIN, Frame, Netdev
from virtio.netfeatures import (
    ALWAYS,
    CONTROL,
    F_CSUM,
    F_CTRL_GUEST_OFFLOADS,
    F_CTRL_MAC_ADDR,
    F_CTRL_RX,
    F_CTRL_RX_EXTRA,
    F_CTRL_VQ,
    F_GUEST_ANNOUNCE,
    F_GUEST_CSUM,
    F_HOST_TSO4,
    F_HOST_TSO6,
    F_HOST_USO,
    F_MQ,
    F_MRG_RXBUF,
    F_MTU,
    IN_SOFTWARE,
    TO_GUEST,
)
from virtio.netfilter import ReceiveFilter
from virtio.offload import GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, finish
from virtio.queue import Queue, QueueError, Request, size_of

S_LINK_UP, S_ANNOUNCE = 1, 2
# What the host must be able to do with a frame of a gso_type.
LEFT_TO_HOST = {GSO_NONE: F_CSUM, GSO_TCPV4: F_HOST_TSO4, GSO_TCPV6: F_HOST_TSO6, GSO_UDP_L4: F_HOST_USO}
OK, ERR = 0, 1
CTRL_RX, CTRL_MAC, CTRL_ANNOUNCE, CTRL_MQ, CTRL_GUEST_OFFLOADS = 0, 1, 3, 4, 5
MAX_PAIRS = 31  # with the control queue, what a window has notification bits for
CONTROL_SIZE = 64  # entries of the control queue
COMMAND_LIMIT = 65536  # bytes of a command: some 10,000 addresses
BATCH = 64  # frames between two looks at anything else
PIECES = 64  # of a frame; one in more is copied


class Outgoing(NamedTuple):
    """A request of a transmit queue and what of it has not been sent yet."""

    request: Request
    frames: list[Frame]


class Pair:
    """A receive and a transmit queue, and what is between the rings and the host."""

    def __init__(self) -> None:
        self.merger = Merger()  # of received frames
        self.late: Frame | None = None  # came, but there are too few buffers
        self.held: list[Outgoing] = []  # the host's end is full
        self.is_busy = False  # there may be more to send


class Net(Device):
    """A network card on a netdev.

    mtu: 0 to say nothing of it. pairs: queue pairs, at most those of the netdev. lacks: features not to be offered.
    """

    kind = 1
    name = "net"
    orders = ("set_link",)
    host: Netdev

    def __init__(
        self,
        host: Netdev,
        mac: bytes,
        mtu: int = 0,
        pairs: int = 1,
        lacks: int = 0,
        sizes: tuple[int, int] = (256, 256),
    ) -> None:
        self.host, self.own_mac, self.mtu, self.pairs = host, mac, mtu, min(pairs, host.queues, MAX_PAIRS)
        self.features = _features(host, mtu, self.pairs) & ~lacks
        if not self.features & F_CTRL_VQ:
            self.features &= ~CONTROL
        self.queue_sizes = sizes * self.pairs + (CONTROL_SIZE,) * bool(self.features & F_CTRL_VQ)
        self.is_down = False  # a monitor has pulled the plug
        self.status = S_LINK_UP * host.is_up
        self.state = [Pair() for _ in range(self.pairs)]
        self.filter = ReceiveFilter(mac)
        self.active = 1  # pairs in use
        self.queues = []

    def config(self) -> bytes:
        """struct virtio_net_config: mac, status, max_virtqueue_pairs, mtu."""
        return pack("<6sHHH", self.filter.mac, self.status, self.pairs, self.mtu)

    def start(self, queues: list[Queue], features: int) -> None:
        self._watch_link()  # before anything is negotiated: nobody needs an announcement of a machine that starts
        super().start(queues, features)
        self.host.configure(features, self.active)
        for number in range(self.pairs):
            queues[2 * number].arm()

    def stop(self) -> None:
        super().stop()
        self.state = [Pair() for _ in range(self.pairs)]
        changed = self.filter.mac != self.own_mac or self.status & S_ANNOUNCE
        self.filter, self.active = ReceiveFilter(self.own_mac), 1
        self.status &= ~S_ANNOUNCE
        self.host.configure(0, 1)
        if changed:
            self.config_changed()

    def queue_reset(self, index: int) -> None:
        pair = self.state[index >> 1] if index < 2 * self.pairs else Pair()
        if index & 1:
            pair.held, pair.is_busy = [], False

    def handle(self, index: int) -> None:
        if self.negotiated & F_CTRL_VQ and index == (2 * self.pairs if self.negotiated & F_MQ else 2):
            self._obey(self.queues[index])
        elif index & 1 and index < 2 * self.active:
            self.queues[index].disarm()
            self.state[index >> 1].is_busy = True
            self._transmit(index >> 1)
        elif index < 2 * self.active:
            self._receive(index >> 1)

    def poll(self) -> bool:
        did = False
        for number in range(self.active):
            did |= self._receive(number)
            if self.state[number].is_busy:
                did |= self._transmit(number)
        return self._watch_link() or did  # last, for the other side's end is found when it is read from

    def set_link(self, is_up: bool) -> None:
        """Plug the cable in or out: while it is out, frames are lost both ways."""
        self.is_down = not is_up
        self._watch_link()

    def _watch_link(self) -> bool:
        """Tell the driver when the carrier comes or goes, and ask it to make itself known when it has come."""
        if (self.host.is_up and not self.is_down) == bool(self.status & S_LINK_UP):
            return False
        self.status ^= S_LINK_UP
        if self.status & S_LINK_UP and self.negotiated & F_GUEST_ANNOUNCE:
            self.status |= S_ANNOUNCE
        self.config_changed()
        return True

    # Transmission

    def _transmit(self, number: int) -> bool:
        """Send a batch; True when something went.  The pair stays busy until its ring is empty."""
        pair, queue = self.state[number], self.queues[2 * number + 1]
        batch = pair.held or self._collect(queue)
        if not batch:
            pair.is_busy = False
            return False
        frames = [frame for item in batch for frame in item.frames]
        taken = len(frames) if self.is_down or not frames else self.host.send(number, frames)
        done = 0
        while done < len(batch) and taken >= len(batch[done].frames):
            taken -= len(batch[done].frames)
            done += 1
        queue.finish([(item.request, 0) for item in batch[:done]])
        pair.held = batch[done:]
        if taken:
            pair.held[0] = Outgoing(pair.held[0].request, pair.held[0].frames[taken:])
        return done > 0

    def _collect(self, queue: Queue) -> list[Outgoing]:
        """Requests, up to a batch; the driver is to notify again when there were none."""
        batch: list[Outgoing] = []
        while len(batch) < BATCH:
            request = queue.pop()
            if request is not None:
                batch.append(Outgoing(request, self._outgoing(request)))
            elif batch or queue.arm():
                break
        return batch

    def _outgoing(self, request: Request) -> list[Frame]:
        """The frames of a request: one, none if it is nonsense, several if it is to be cut."""
        header = request.read(HEADER_BYTES)
        if len(header) < HEADER_BYTES:
            raise QueueError(f"a frame to send has {len(header)} bytes of its header of {HEADER_BYTES}")
        size = size_of(request.readable)
        if not ETHERNET <= size <= MAX_FRAME:
            return []
        needed = LEFT_TO_HOST.get(header[1] & ~GSO_ECN, 0)
        if header[:2] == PLAIN[:2] or self.host.offloads & needed:
            if len(request.readable) > PIECES:
                request.readable = [memoryview(request.read(size))]
            return [Frame(request.readable, header)]
        completed = finish(header, bytearray().join(request.readable), self.host.takes_large)
        return [Frame([memoryview(frame)]) for frame in completed]

    # Reception

    def _receive(self, number: int) -> bool:
        """Take what has come, up to a batch of frames; True when there was something."""
        pair, queue = self.state[number], self.queues[2 * number]
        is_merging = bool(self.negotiated & F_MRG_RXBUF)
        count = filled = 0
        while count < BATCH and (frame := pair.late or self.host.receive(number)):
            if self._wants(frame):
                header = frame.header if self.negotiated & F_GUEST_CSUM else PLAIN
                found = pair.merger.put(queue, frame.parts[0], header, is_merging)
                if found == MISSING:
                    pair.late = frame
                    break
                filled += found == FILLED
            else:
                pair.merger.drop()
            pair.late = None
            count += 1
        if filled:
            queue.given_back()
        return count > 0

    def _wants(self, frame: Frame) -> bool:
        """Whether the driver is to have it; what is too short to have addresses is no frame."""
        if self.is_down or frame.size() < ETHERNET or not self.filter.accepts(bytes(frame.parts[0][:6])):
            return False
        if self.negotiated & F_MTU and frame.header[1] == 0:
            return frame.size() <= self.mtu + ETHERNET + 4  # a VLAN tag is not part of the MTU
        return True

    # Control

    def _obey(self, queue: Queue) -> None:
        """Commands of the control queue."""
        for request in queue:
            command = request.read(2)
            data = request.read(COMMAND_LIMIT)
            is_ok = len(command) == 2 and self._command(command[0], command[1], data)
            if request.write(bytes([OK if is_ok else ERR])) == 0:
                raise QueueError("a command has no room for its answer")
            request.done(1)

    def _command(self, kind: int, command: int, data: bytes) -> bool:
        """Do what a command says; False if it is not understood."""
        known: dict[int, tuple[int, Callable[[int, bytes], bool]]] = {
            CTRL_RX: (F_CTRL_RX, self._set_mode),
            CTRL_MAC: (F_CTRL_RX | F_CTRL_MAC_ADDR, self._set_address),
            CTRL_ANNOUNCE: (F_GUEST_ANNOUNCE, self._announced),
            CTRL_MQ: (F_MQ, self._set_pairs),
            CTRL_GUEST_OFFLOADS: (F_CTRL_GUEST_OFFLOADS, self._set_offloads),
        }
        feature, obey = known.get(kind, (0, None))
        return bool(self.negotiated & feature) and obey is not None and obey(command, data)

    def _set_mode(self, command: int, data: bytes) -> bool:
        if command > 1 and not self.negotiated & F_CTRL_RX_EXTRA:
            return False
        return self.filter.set_mode(command, data)

    def _set_address(self, command: int, data: bytes) -> bool:
        if command == 0 and self.negotiated & F_CTRL_RX:
            return self.filter.set_table(data)
        if command != 1 or len(data) != 6:
            return False
        self.filter.mac = data
        self.config_changed()
        return True

    def _announced(self, command: int, data: bytes) -> bool:
        if command or not self.status & S_ANNOUNCE:
            return False
        self.status &= ~S_ANNOUNCE
        self.config_changed()
        return True

    def _set_pairs(self, command: int, data: bytes) -> bool:
        if command or len(data) != 2 or not 1 <= (pairs := int.from_bytes(data, "little")) <= self.pairs:
            return False
        self.active = pairs
        self.host.configure(self.negotiated, pairs)
        return True

    def _set_offloads(self, command: int, data: bytes) -> bool:
        if command or len(data) != 8:
            return False
        (wanted,) = unpack("<Q", data)
        if wanted & ~(self.negotiated & TO_GUEST):
            return False
        self.host.configure(self.negotiated & ~TO_GUEST | wanted, self.active)
        return True


def _features(host: Netdev, mtu: int, pairs: int) -> int:
    """What a card on this netdev can offer."""
    features = ALWAYS | IN_SOFTWARE | host.offloads
    if host.offloads & TO_GUEST:
        features |= F_CTRL_GUEST_OFFLOADS
    if mtu:
        features |= F_MTU
    if pairs > 1:
        features |= F_MQ
    return features
