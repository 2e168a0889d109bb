"""One stream of virtio-vsock: a guest's port on one side, a socket of the host's on the other (virtio 1.3, 5.10.6).

Data goes from guest RAM straight to the socket and back.  What the socket does not take at once is kept, and the
driver may send no more than there is room for; what came from the host waits in the socket until the driver has room.
"""

import select
import socket
from enum import Enum, auto

from virtio.vsock_packet import HOST_CID, SHUT, SHUT_RECEIVE, SHUT_SEND, STREAM, WORD, Header, Op, Ports

BUFFER = 256 << 10  # bytes that the driver may send ahead of what the host's end has taken
UPDATE = BUFFER // 4  # the driver is told of room when there is so much more of it
PIECES = 1000  # of a single sendmsg, which takes 1024
FIRST = (Op.RST, Op.REQUEST, Op.RESPONSE, Op.SHUTDOWN, Op.CREDIT_REQUEST)  # before data; CREDIT_UPDATE comes after
Parts = list[memoryview]


class Stage(Enum):
    """How far a connection has come."""

    DIALLED = auto()  # the guest has asked for it, the host's end is not there yet
    CALLED = auto()  # the host has asked for it, the guest has not answered yet
    OPEN = auto()
    DEAD = auto()  # the driver is still to be told


class Connection:
    """`owed` is what the driver is to be told; the device looks for it after each call that changes something."""

    def __init__(self, ports: Ports, stage: Stage, link: socket.socket | None = None) -> None:
        self.ports, self.stage, self.link = ports, stage, link
        self.owed: set[Op] = set()
        self.output = bytearray()  # of the guest's, for the host
        self.received = self.forwarded = self.told = 0  # bytes of the guest's: come, passed on, and what it was told
        self.sent = self.room = self.taken = 0  # bytes for the guest: sent, and its buf_alloc and fwd_cnt
        self.guest_shut = self.told_shut = 0  # flags of SHUTDOWN packets from and to the driver
        self.readable = True  # there may be data
        self.ended = False  # the host's end sends no more
        self.deaf = False  # the host's end takes no more
        self.hung = False  # the host's end is closed
        self.asked = False  # for room
        self.appetite = 1  # the driver's buffers that the next read is to fill
        self.waits_for_room = False  # in the socket, by epoll

    # From the host

    def notice(self, events: int) -> None:
        """What epoll says of the socket."""
        self.readable |= bool(events & ~select.EPOLLOUT)
        self.hung |= bool(events & select.EPOLLHUP)
        if self.hung and self.stage is Stage.CALLED:
            self.reset()
        if events & select.EPOLLOUT:
            self.flush()

    def credit(self) -> int:
        """Bytes that the driver has room for, as far as it has said."""
        return max(0, self.room - (self.sent - self.taken & WORD))

    def can_read(self) -> bool:
        """Whether there may be data for the guest."""
        open_for_it = self.stage is Stage.OPEN and not self.guest_shut & SHUT_RECEIVE
        return open_for_it and self.readable and not self.ended and self.link is not None

    def receive(self, room: Parts) -> int:
        """Read into guest RAM; the number of bytes, 0 when there is nothing now or for good."""
        assert self.link
        try:
            count = self.link.recvmsg_into(room)[0]
        except BlockingIOError:
            self.readable = False
            return 0
        except OSError:  # it has gone without having taken everything
            self.reset()
            return 0
        self.ended = count == 0
        self.sent = self.sent + count & WORD
        return count

    # From the guest

    def note(self, header: Header) -> None:
        """Every packet says how much room the driver has."""
        self.room, self.taken = header.buffer, header.forwarded
        if self.credit():
            self.asked = False

    def take(self, parts: Parts, size: int) -> None:
        """Data for the host.  A driver that sends more than it was given room for loses the connection."""
        if (self.received - self.forwarded & WORD) + size > BUFFER:
            self.reset()
            return
        self.received = self.received + size & WORD
        sent = 0 if self.output else self._send(parts)
        if sent < size and not self.deaf:
            self.output += b"".join(parts)[sent:]
        self._forward(size if self.deaf else sent)

    def _send(self, parts: Parts) -> int:
        """What the socket takes now of this."""
        if self.link is None or self.deaf:
            self.deaf = True
            return 0
        try:
            return self.link.sendmsg(parts if len(parts) <= PIECES else [b"".join(parts)])
        except BlockingIOError:
            return 0
        except OSError:
            self.deaf = True
            return 0

    def flush(self) -> None:
        """Pass on what is kept, as far as the socket takes it."""
        while self.output:
            sent = self._send([memoryview(self.output)])
            sent = len(self.output) if self.deaf else sent
            if not sent:
                return
            del self.output[:sent]
            self._forward(sent)

    def _forward(self, count: int) -> None:
        self.forwarded = self.forwarded + count & WORD

    def greet(self) -> None:
        """The guest has taken a call: say so to the caller.  Not a byte of this is the guest's."""
        self.stage = Stage.OPEN
        text = b"OK %d\n" % self.ports.host
        assert self.link
        try:
            if self.link.send(text) == len(text):
                return
        except OSError:
            pass
        self.reset()

    # What follows

    def reset(self) -> None:
        """It is over; the driver is to be told."""
        self.stage, self.owed = Stage.DEAD, {Op.RST}
        self.output.clear()

    def shut(self) -> int:
        """The host's side of SHUTDOWN's flags."""
        deaf = self.deaf or (self.ended and self.hung)
        return (SHUT_SEND if self.ended else 0) | (SHUT_RECEIVE if deaf else 0)

    def settle(self) -> None:
        """Draw the conclusions of whatever has happened."""
        if self.stage is not Stage.OPEN:
            return
        if self.guest_shut and self.link:
            self._shut_link(self.link)
        if self.guest_shut == SHUT and not self.output:
            self.reset()  # the answer to a clean disconnect
            return
        if self.shut() & ~self.told_shut:
            self.owed.add(Op.SHUTDOWN)
        if self.can_read() and not self.asked and not self.credit():
            self.asked = True
            self.owed.add(Op.CREDIT_REQUEST)
        if (self.forwarded - self.told & WORD) >= UPDATE:
            self.owed.add(Op.CREDIT_UPDATE)

    def _shut_link(self, link: socket.socket) -> None:
        try:
            if self.guest_shut & SHUT_RECEIVE:
                link.shutdown(socket.SHUT_RD)
            if self.guest_shut & SHUT_SEND and not self.output:
                link.shutdown(socket.SHUT_WR)
        except OSError:
            self.deaf = True

    def next_op(self) -> Op | None:
        """What the driver is to be told next."""
        if self.owed:
            for op in FIRST:
                if op in self.owed:
                    return op
        if self.can_read() and self.credit():
            return Op.RW
        return Op.CREDIT_UPDATE if self.owed else None

    def tell(self, cid: int, op: Op, size: int = 0) -> Header:
        """The header of the next packet to the driver; what it says counts as told."""
        flags = 0
        if op is Op.SHUTDOWN:
            flags = self.told_shut = self.shut()
        self.owed -= {op, Op.CREDIT_UPDATE}
        self.told = self.forwarded
        return Header(HOST_CID, cid, *self.ports, size, STREAM, op, flags, BUFFER, self.forwarded)
