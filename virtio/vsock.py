"""virtio-vsock (virtio 1.3, 5.10): stream sockets between the guest and unix sockets of the host.

Packets go to the connection that they are for; those that nobody is waiting for are answered with RST.  Whatever the
driver is to be told waits in its connection until there is a buffer, so that a driver without any costs no memory.
"""

import socket
from collections import deque
from struct import pack
from typing import NamedTuple

from virtio.device import Device
from virtio.queue import Queue, QueueError, Request, size_of, take
from virtio.vsock_connection import Connection, Parts, Stage
from virtio.vsock_host import Answer, VsockHost
from virtio.vsock_packet import HEADER_BYTES, HOST_CID, SHUT, STREAM, Header, Op, Ports, parse

RECEIVE, TRANSMIT, EVENTS = range(3)
F_STREAM, F_NO_IMPLIED_STREAM = 1 << 0, 1 << 2
TRANSPORT_RESET = 0  # an event
MOST = 512  # connections, with those that begin and those that end
MOST_REFUSALS = 256  # that wait for buffers; then the driver's packets have to wait
BATCH = 64  # packets between two looks at anything else
FIRST_PORT, LAST_PORT = 1 << 30, (1 << 31) - 1  # of the host's, for its own calls: Firecracker's


class Buffer(NamedTuple):
    """A buffer for a packet to the driver: the places of the header and of data."""

    request: Request
    head: Parts
    room: Parts
    size: int


class Vsock(Device):
    """The device with the guest's address `cid`."""

    kind = 19
    name = "vsock"
    queue_sizes = (128, 128, 128)
    features = F_STREAM | F_NO_IMPLIED_STREAM
    host: VsockHost

    def __init__(self, cid: int, host: VsockHost) -> None:
        self.cid, self.host = cid, host
        self.last_port, self.last_dial = LAST_PORT, 0
        self._forget()

    def _forget(self) -> None:
        self.connections: dict[Ports, Connection] = {}
        self.dialled: dict[int, Connection] = {}  # the dialler was asked for them, by number
        self.talkers: dict[Connection, None] = {}  # that have something to tell the driver, in turn
        self.refusals: deque[Header] = deque()
        self.buffers: deque[Buffer] = deque()  # taken from the ring
        self.has_packets = False  # there may be more in the transmit queue
        self.has_buffers = False  # there may be more in the receive queue
        self.owes_event = False

    def config(self) -> bytes:
        """struct virtio_vsock_config: guest_cid."""
        return pack("<Q", self.cid)

    def start(self, queues: list[Queue], features: int) -> None:
        super().start(queues, features)
        self.has_packets = self.has_buffers = True
        self.owes_event = self.host.was_cut()

    def stop(self) -> None:
        self.host.drop_all(list(self.connections.values()))
        self._forget()
        super().stop()

    def queue_reset(self, index: int) -> None:
        if index == RECEIVE:
            self.buffers.clear()

    def handle(self, index: int) -> None:
        self.has_packets |= index == TRANSMIT
        self.has_buffers |= index == RECEIVE
        if self.owes_event:
            self._tell_event()
        self._work()

    def poll(self) -> bool:
        for connection, events in self.host.news():
            connection.notice(events)
            self._settle(connection)
        for number, link in self.host.answers() or self._unanswered():
            self._answered(number, link)
        for link, port in self.host.calls(self._room()):
            self._called(link, port)
        for connection in self.host.overdue():
            connection.reset()
            self._settle(connection)
        self._work()
        return self._is_busy()

    def _room(self) -> int:
        return MOST - len(self.connections) - self.host.held()

    def _is_busy(self) -> bool:
        """Whether there is more to do at once."""
        if self.has_packets and len(self.refusals) < MOST_REFUSALS:
            return True
        return bool(self.talkers or self.refusals) and (bool(self.buffers) or self.has_buffers)

    def _work(self) -> None:
        self._take_packets()
        self._tell()

    def _tell_event(self) -> None:
        """Connections were lost without the driver's doing."""
        request = self.queues[EVENTS].pop()
        if request is None:
            self.queues[EVENTS].arm()
            return
        self.owes_event = False
        request.done(request.write(pack("<I", TRANSPORT_RESET)))

    # From the driver

    def _take_packets(self) -> None:
        queue, count = self.queues[TRANSMIT], 0
        while self.has_packets and count < BATCH and len(self.refusals) < MOST_REFUSALS:
            request = queue.pop()
            if request is None:
                self.has_packets = not queue.arm()
                continue
            count += 1
            header = request.read(HEADER_BYTES)
            if len(header) < HEADER_BYTES:
                raise QueueError(f"a packet has {len(header)} bytes of its header of {HEADER_BYTES}")
            self._take(parse(header), request.readable)
            request.done(0)

    def _take(self, header: Header, payload: Parts) -> None:
        """A packet: it belongs to a connection, asks for one, or is refused.  What has another's address is dropped."""
        if header.source_cid != self.cid:
            return
        known = header.kind == STREAM and header.target_cid == HOST_CID and self._has_streams()
        ports = Ports(header.target_port, header.source_port)
        connection = self.connections.get(ports) if known else None
        if connection and header.op == Op.RST:
            self._end(connection)
        elif connection:
            self._heed(connection, header, payload)
            self._settle(connection)
        elif known and header.op == Op.REQUEST:
            self._requested(ports, header)
        elif header.op != Op.RST:
            self.refusals.append(header.refusal())

    def _has_streams(self) -> bool:
        return bool(self.negotiated & F_STREAM) or not self.negotiated & F_NO_IMPLIED_STREAM

    def _requested(self, ports: Ports, header: Header) -> None:
        """The guest connects."""
        self.last_dial += 1
        if self._room() <= 0 or not self.host.dialler.ask(self.last_dial, ports.host):
            self.refusals.append(header.refusal())
            return
        connection = self.connections[ports] = self.dialled[self.last_dial] = Connection(ports, Stage.DIALLED)
        connection.note(header)

    def _heed(self, connection: Connection, header: Header, payload: Parts) -> None:
        """A packet of a connection's; what makes no sense now is its end."""
        connection.note(header)
        is_open = connection.stage is Stage.OPEN
        if header.op == Op.RW and is_open:
            parts = take(payload, header.size)
            if size_of(parts) < header.size:
                raise QueueError(f"a packet of {header.size} bytes has {size_of(parts)}")
            connection.take(parts, header.size)
        elif header.op == Op.SHUTDOWN and is_open:
            connection.guest_shut |= header.flags & SHUT
        elif header.op == Op.RESPONSE and connection.stage is Stage.CALLED:
            connection.greet()
        elif header.op == Op.CREDIT_REQUEST and is_open:
            connection.owed.add(Op.CREDIT_UPDATE)
        elif header.op != Op.CREDIT_UPDATE and connection.stage is not Stage.DEAD:
            connection.reset()

    # From the host

    def _called(self, link: socket.socket, port: int) -> None:
        """The host connects."""
        ports = self._free_ports(port)
        connection = self.connections[ports] = Connection(ports, Stage.CALLED)
        connection.owed.add(Op.REQUEST)
        self.host.watch(connection, link, is_known=True)
        self._settle(connection)

    def _free_ports(self, guest: int) -> Ports:
        """There are more ports than connections."""
        while True:
            self.last_port = self.last_port + 1 if self.last_port < LAST_PORT else FIRST_PORT
            if (ports := Ports(self.last_port, guest)) not in self.connections:
                return ports

    def _answered(self, number: int, link: socket.socket | None) -> None:
        """Somebody listens at the port that the guest wants, or nobody.  The guest may have given up meanwhile."""
        connection = self.dialled.pop(number, None)
        if connection is None or connection.stage is not Stage.DIALLED:
            if link:
                link.close()
            return
        if link:
            self.host.watch(connection, link)
            connection.stage = Stage.OPEN
            connection.owed.add(Op.RESPONSE)
        else:
            connection.reset()
        self._settle(connection)

    def _unanswered(self) -> list[Answer]:
        """Those for whom there will be no answer any more: the dialler has died."""
        return [(number, None) for number in self.dialled] if self.host.dialler.link is None else []

    # To the driver

    def _settle(self, connection: Connection) -> None:
        """Something has happened to a connection."""
        connection.settle()
        if connection.stage is Stage.DEAD:
            self.host.unwatch(connection)
        self.host.follow(connection)
        if connection.next_op():
            self.talkers[connection] = None

    def _end(self, connection: Connection) -> None:
        """The guest has reset it.  After its SHUTDOWN that is the end of a clean one."""
        if not connection.guest_shut & SHUT:
            connection.output.clear()
        self._remove(connection)

    def _remove(self, connection: Connection) -> None:
        connection.stage = Stage.DEAD
        del self.connections[connection.ports]
        self.talkers.pop(connection, None)
        self.host.part_with(connection)

    def _tell(self) -> None:
        """Tell the driver what there is to tell, as far as it has buffers: everyone in turn."""
        count = 0
        while (self.refusals or self.talkers) and count < BATCH and self._has_buffer():
            if self.refusals:
                self._give([(self.refusals.popleft(), 0)])
                count += 1
                continue
            connection = next(iter(self.talkers))
            del self.talkers[connection]
            op = connection.next_op()
            if op is Op.RW:
                count += self._pass_on(connection)
            elif op is not None:
                self._say(connection, op)
                count += 1
            self._after(connection)

    def _after(self, connection: Connection) -> None:
        if self.connections.get(connection.ports) is connection:
            self._settle(connection)

    def _say(self, connection: Connection, op: Op) -> None:
        self._give([(connection.tell(self.cid, op), 0)])
        if op is Op.RST:
            self._remove(connection)
        elif connection.told_shut == SHUT and op is Op.SHUTDOWN:
            self.host.unwatch(connection)
            self.host.expect_answer(connection)

    def _pass_on(self, connection: Connection) -> int:
        """Data of the host's goes into buffers; gives the number of packets.  A read that fills them is a reason to
        read more the next time.
        """
        while len(self.buffers) < connection.appetite and self._take_buffer():
            pass
        buffers = [self.buffers[n] for n in range(min(connection.appetite, len(self.buffers)))]
        room = sum(buffer.size for buffer in buffers)
        if room == 0:
            raise QueueError(f"a buffer of {HEADER_BYTES} bytes has no room for data")
        count = connection.receive(take([part for buffer in buffers for part in buffer.room], connection.credit()))
        connection.appetite = min(2 * connection.appetite, BATCH // 4) if count == room else 1
        packets = []
        for buffer in buffers:
            if count:
                size = min(count, buffer.size)
                packets.append((connection.tell(self.cid, Op.RW, size), size))
                count -= size
        self._give(packets)
        return max(1, len(packets))

    def _has_buffer(self) -> bool:
        return bool(self.buffers) or self._take_buffer()

    def _take_buffer(self) -> bool:
        """Take a buffer out of the ring, if there is one."""
        queue = self.queues[RECEIVE]
        while self.has_buffers:
            request = queue.pop()
            if request is None:
                self.has_buffers = not queue.arm()
                continue
            head = take(request.writable, HEADER_BYTES)
            if size_of(head) < HEADER_BYTES:
                raise QueueError(f"a buffer has {size_of(head)} bytes for a header of {HEADER_BYTES}")
            self.buffers.append(Buffer(request, head, request.writable, size_of(request.writable)))
            return True
        return False

    def _give(self, packets: list[tuple[Header, int]]) -> None:
        """Give the driver packets whose data is in the first of the buffers already."""
        batch = []
        for header, size in packets:
            buffer = self.buffers.popleft()
            data, at = header.pack(), 0
            for part in buffer.head:
                part[:] = data[at : at + len(part)]
                at += len(part)
            batch.append((buffer.request, HEADER_BYTES + size))
        self.queues[RECEIVE].finish(batch)
