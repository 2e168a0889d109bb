"""The vhost-user protocol as a front end speaks it (QEMU, docs/interop/vhost-user.rst): messages over a unix socket.

The back-end is not trusted: what it answers is checked, and it has a limited time to.
"""

import contextlib
import os
import select
import socket
import time
from array import array
from collections.abc import Sequence
from enum import IntEnum
from struct import Struct, pack

from virtio.features import VERSION_1

HEADER = Struct("<III")  # request, flags, bytes of payload
PROTOCOL_VERSION, REPLY, NEED_REPLY = 1, 4, 8
F_PROTOCOL = 1 << 30  # among the features: the protocol has features of its own
P_MQ, P_REPLY_ACK, P_MTU, P_BACKEND_REQ, P_CONFIG = (1 << bit for bit in (0, 3, 4, 5, 9))
P_INFLIGHT, P_RESET_DEVICE, P_STATUS = (1 << bit for bit in (12, 13, 16))
KNOWN_PROTOCOL = P_MQ | P_REPLY_ACK | P_MTU | P_BACKEND_REQ | P_CONFIG | P_INFLIGHT | P_RESET_DEVICE | P_STATUS
CONFIG_CHANGED = 2  # what a back-end says by itself (VHOST_USER_BACKEND_CONFIG_CHANGE_MSG)
REFUSED = 1
INFLIGHT = Struct("<QQHH4x")  # bytes, offset, queues, entries of a queue
CONFIG = Struct("<III")  # offset, bytes, flags
PATIENCE = 2.0  # seconds for an answer
MOST = 4096  # bytes of an answer


class BackendError(Exception):
    """The back-end can't be used; the text says why."""


class Ask(IntEnum):
    """Requests."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    SET_MEM_TABLE = 5
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    NET_SET_MTU = 20
    SET_BACKEND_REQ_FD = 21
    GET_CONFIG = 24
    SET_CONFIG = 25
    GET_INFLIGHT_FD = 31
    SET_INFLIGHT_FD = 32
    RESET_DEVICE = 34
    SET_STATUS = 39
    GET_STATUS = 40


class Session:
    """A connection to a back-end, and what that can do.

    `channel` is for what the back-end says by itself.  Any method may raise BackendError, after which the connection
    is of no use.
    """

    protocol = 0
    queues = 0  # that it has at most; 0 if it does not say
    channel: socket.socket | None = None
    said = b""  # the beginning of what it says by itself
    listens = False  # to the channel
    config_changed = False  # it has said so; whoever reads the configuration again takes it back

    def __init__(self, link: socket.socket) -> None:
        self.link = link
        link.settimeout(PATIENCE)
        try:
            self._introduce()
        except BaseException:
            self.close()
            raise

    def _introduce(self) -> None:
        self.features = self.ask_number(Ask.GET_FEATURES)
        if not self.features & VERSION_1:
            raise BackendError("it is older than virtio 1.0")
        if self.features & F_PROTOCOL:
            protocol = self.ask_number(Ask.GET_PROTOCOL_FEATURES) & KNOWN_PROTOCOL
            self.send(Ask.SET_PROTOCOL_FEATURES, pack("<Q", protocol))
            self.protocol = protocol
        self.send(Ask.SET_OWNER)
        if self.protocol & P_MQ:
            self.queues = self.ask_number(Ask.GET_QUEUE_NUM)
        if self.protocol & P_BACKEND_REQ and self.protocol & P_CONFIG:
            self._open_channel()

    def _open_channel(self) -> None:
        self.channel, theirs = socket.socketpair()
        self.channel.setblocking(False)
        self.listens = True
        with theirs:
            self.send(Ask.SET_BACKEND_REQ_FD, b"", [theirs.fileno()])

    # Messages

    def send(self, request: Ask, payload: bytes = b"", fds: Sequence[int] = ()) -> None:
        """A message without an answer of its own; if it can be, it is acknowledged."""
        acknowledged = bool(self.protocol & P_REPLY_ACK)
        self._send(request, NEED_REPLY if acknowledged else 0, payload, fds)
        if acknowledged and self._number(self._answer(request)[0], request):
            raise BackendError(f"it refuses {request.name}")

    def ask(self, request: Ask, payload: bytes = b"", fds: int = 0) -> tuple[bytes, list[int]]:
        """The answer's payload, and descriptors, which are then the caller's: `fds` of them at most."""
        self._send(request, 0, payload, ())
        return self._answer(request, fds)

    def ask_number(self, request: Ask) -> int:
        return self._number(self.ask(request)[0], request)

    def _number(self, payload: bytes, request: Ask) -> int:
        if len(payload) != 8:
            raise BackendError(f"it answers {request.name} by {len(payload)} bytes")
        return int.from_bytes(payload, "little")

    def _send(self, request: Ask, flags: int, payload: bytes, fds: Sequence[int]) -> None:
        data = HEADER.pack(request, PROTOCOL_VERSION | flags, len(payload)) + payload
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))] if fds else []
        try:
            sent = self.link.sendmsg([data], rights)
            self.link.sendall(data[sent:])
        except OSError as error:
            raise BackendError(f"{request.name}: {error.strerror or 'it takes no messages'}") from error

    def _answer(self, request: Ask, fds: int = 0) -> tuple[bytes, list[int]]:
        deadline = time.monotonic() + PATIENCE
        got: list[int] = []
        try:
            header = self._read(HEADER.size, deadline, request, got if fds else None)
            kind, flags, size = HEADER.unpack(header)
            if kind != request or flags & 3 != PROTOCOL_VERSION or not flags & REPLY or size > MOST:
                raise BackendError(f"its answer to {request.name} is none: {header.hex()}")
            if len(got) > fds:
                raise BackendError(f"its answer to {request.name} has {len(got)} descriptors")
            return self._read(size, deadline, request, None), got
        except BaseException:
            for fd in got:
                os.close(fd)
            raise

    def _read(self, count: int, deadline: float, request: Ask, fds: list[int] | None) -> bytes:
        """Exactly so many bytes; descriptors nobody asked for are dropped by the kernel."""
        data = b""
        while len(data) < count:
            try:
                self._await_answer(deadline)
                if fds is None:
                    more = self.link.recv(count - len(data))
                else:
                    more, found, _, _ = socket.recv_fds(self.link, count - len(data), 8)
                    fds += found
            except OSError as error:
                raise BackendError(f"{request.name}: {error.strerror or 'it does not answer'}") from error
            if not more:
                raise BackendError(f"{request.name}: it has closed the connection")
            data += more
        self.link.settimeout(PATIENCE)
        return data

    def _await_answer(self, deadline: float) -> None:
        """Wait for an answer.  A back-end may first want one from us to what it says by itself."""
        while self.channel is not None and self.listens:
            poll = select.poll()
            for end in (self.link, self.channel):
                poll.register(end, select.POLLIN)
            ready = {fd for fd, _ in poll.poll(max(0.0, 1000 * (deadline - time.monotonic())))}
            if self.channel.fileno() in ready:
                self.hear()
            if not ready or self.link.fileno() in ready:
                break
        self.link.settimeout(max(0.001, deadline - time.monotonic()))

    def hear(self) -> None:
        """What the back-end says by itself, and our answer."""
        assert self.channel is not None
        try:
            data = self.channel.recv(MOST)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self.said += data
        while len(self.said) >= HEADER.size:
            kind, flags, size = HEADER.unpack_from(self.said)
            if flags & 3 != PROTOCOL_VERSION or size > MOST:
                raise BackendError(f"what it says by itself is nothing: {self.said[: HEADER.size].hex()}")
            if len(self.said) < HEADER.size + size:
                break
            self.said = self.said[HEADER.size + size :]
            self._heed(kind, flags)
        self.listens = bool(data)

    def _heed(self, kind: int, flags: int) -> None:
        assert self.channel is not None
        known = kind == CONFIG_CHANGED
        self.config_changed |= known
        if flags & NEED_REPLY:
            answer = HEADER.pack(kind, PROTOCOL_VERSION | REPLY, 8) + (0 if known else REFUSED).to_bytes(8, "little")
            try:
                self.channel.sendall(answer)
            except OSError as error:
                raise BackendError(f"it takes no answer to what it says by itself: {error.strerror}") from error

    # What takes more than one field

    def config(self, size: int) -> bytes:
        """The first `size` bytes of the device's configuration."""
        if not self.protocol & P_CONFIG:
            raise BackendError("it has no configuration (VHOST_USER_PROTOCOL_F_CONFIG)")
        payload, _ = self.ask(Ask.GET_CONFIG, CONFIG.pack(0, size, 0) + bytes(size))
        if len(payload) != CONFIG.size + size or CONFIG.unpack_from(payload)[:2] != (0, size):
            raise BackendError(f"its configuration does not have {size} bytes")
        return payload[CONFIG.size :]

    def set_config(self, offset: int, data: bytes) -> None:
        self.send(Ask.SET_CONFIG, CONFIG.pack(offset, len(data), 0) + data)

    def set_status(self, status: int) -> None:
        """Tell the device's status, if the back-end wants to know."""
        if self.protocol & P_STATUS:
            self.send(Ask.SET_STATUS, pack("<Q", status))

    def set_vring(self, request: Ask, index: int, number: int) -> None:
        self.send(request, pack("<II", index, number))

    def new_inflight(self, queues: int, size: int) -> tuple[bytes, int]:
        """Memory in which the back-end notes what it is at: a description, and a descriptor that is the caller's."""
        payload, fds = self.ask(Ask.GET_INFLIGHT_FD, INFLIGHT.pack(0, 0, queues, size), fds=1)
        if len(fds) == 1 and len(payload) == INFLIGHT.size:
            return payload, fds[0]
        for fd in fds:
            os.close(fd)
        raise BackendError("its answer to GET_INFLIGHT_FD has no descriptor")

    def ends(self) -> list[socket.socket]:
        """The sockets that are open."""
        return [self.link] if self.channel is None else [self.link, self.channel]

    def close(self) -> None:
        """End it for everybody who has the descriptors."""
        for end in self.ends():
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


def dial(path: str) -> socket.socket:
    """Connect to a unix socket."""
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        link.settimeout(PATIENCE)
        link.connect(path)
    except BaseException:
        link.close()
        raise
    return link
