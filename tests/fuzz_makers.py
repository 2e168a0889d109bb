"""Devices for the fuzzer that have a hostile other side too: a back-end process, a peer on a wire, a terminal.

What the event loop calls of a host's end (`ready`) is called here as there: nothing may get out of it.
"""

import contextlib
import os
import select
import socket
from collections import deque
from pathlib import Path
from struct import pack, unpack
from typing import Any

from fuzz_core import Source

from virtio.balloon import Balloon
from virtio.chardev import Chardev
from virtio.console import Console, Port
from virtio.device import Device
from virtio.mmio import Transport
from virtio.net import Net
from virtio.netdev import Frame
from virtio.netdump import Dump
from virtio.nethub import HubPort
from virtio.netstream import Stream
from virtio.queue import Queue, Request
from virtio.vhost_devices import VhostBlock
from virtio.vhost_user import Backend
from virtio.vhost_wire import CONFIG, F_PROTOCOL, HEADER, INFLIGHT, KNOWN_PROTOCOL, Ask, Session

FIRST_PAGE = 0x8000_0000 >> 12
BLOCK_FEATURES = 1 << 32 | F_PROTOCOL | 1 << 28 | 1 << 29 | 1 << 9 | 1 << 12

# Balloon


def make_balloon(folder: Path) -> Device:
    return Balloon(1 << 20, True, True)


def balloon_head(source: Source) -> bytes:
    """Page numbers, or what looks like statistics."""
    first = source.one((0, FIRST_PAGE, FIRST_PAGE + 0x100, FIRST_PAGE + 0x200, FIRST_PAGE + 0x3FF, 0xFFFF_FFFF))
    return pack(f"<{(count := source.number(9))}I", *((first + n) & 0xFFFF_FFFF for n in range(count)))


def balloon_host(window: Transport, source: Source) -> None:
    """Orders from outside, of which nothing may get out but the host's refusal; and the time for statistics comes."""
    device: Any = window.device
    match source.number(4):
        case 0:
            window.order("demand", source.number(1 << 30))
        case 1:
            window.order("poll_statistics", source.number(3))
        case 2:
            window.order("last_statistics", None)
        case 3:
            device.host.due = True
            window.poll()


# Console


class Terminal(Chardev):
    """A host end that is there or not, has input or not, and takes output or not, as the source says."""

    def __init__(self) -> None:
        super().__init__()
        self.there = False
        self.full = False
        self.columns = 80

    def write(self, data: bytes) -> None:
        assert not self.full, "written to without room"

    def has_room(self) -> bool:
        return not self.full

    def is_open(self) -> bool:
        return self.there

    def size(self) -> tuple[int, int]:
        return self.columns, 25


def make_ports(folder: Path) -> Device:
    kinds = {0: True, 1: False, 2: True, 5: False}
    return Console({n: Port(Terminal(), console, b"port%d" % n) for n, console in kinds.items()}, 6)


def ports_head(source: Source) -> bytes:
    """A control message, with more or less of it."""
    number = source.one((0, 1, 2, 3, 5, 6, 31, 0xFFFF_FFFF))
    return pack("<IHH", number, source.number(9), source.number(3))[: source.one((8, 8, 8, 7, 1, 0))]


def ports_host(window: Transport, source: Source) -> None:
    device: Any = window.device
    terminal = source.one(list(device.ports.values())).host
    terminal.there, terminal.full = bool(source.number(2)), not source.number(4)
    terminal.columns = source.number(200)
    terminal.input += source.bytes(source.number(64))
    window.resized()


# Network cards


def make_card(folder: Path) -> Device:
    """On a hub, at which every frame comes back."""
    ports: list[HubPort] = []
    card, other = HubPort("card", ports), HubPort("other", ports)
    other.take = lambda frames: card.take(frames)  # type: ignore[method-assign]
    other.send(0, [Frame([memoryview(bytes(100))])])
    return Net(card, bytes(6), 1500, 2)


def make_dumped(folder: Path) -> Device:
    """The same with all that passes in a file."""
    card: Any = make_card(folder)
    return Net(Dump(card.host, str(folder / "dump"), 200, True, True), bytes(6), 1500)


def check_dump(device: Device, folder: Path) -> None:
    """The file is whole records."""
    data, at = (folder / "dump").read_bytes(), 24
    while at < len(data):
        _, micros, kept, size = unpack("=IIII", data[at : at + 16])
        assert micros < 1_000_000 and kept == min(size, 200)
        at += 16 + kept
    assert at == len(data), "the last record is cut"
    os.truncate(folder / "dump", 24)


def net_head(source: Source) -> bytes:
    """A frame with its header, or a command."""
    if source.number(4) == 0:
        data = source.one((b"\0", b"\0", b"\1", b"\1\0", bytes(8), source.bytes(source.one((0, 1, 2, 6, 8, 24)))))
        return bytes([source.one((0, 0, 1, 2, 3, 4, 5)), source.one((0, 0, 1, 2, 3, 4, 5))]) + data
    header = bytes([source.number(8), source.number(8)]) + source.bytes(10)
    return header + source.bytes(source.number(64))


class Wire(Stream):
    """A stream with its other end at hand."""

    def __init__(self) -> None:
        self.peer_end: socket.socket | None = None
        super().__init__("wire")

    def plug(self) -> socket.socket:
        """The other end; a new connection if the last one is lost."""
        if self.link is None or self.peer_end is None:
            self.unplug()
            if self.link:
                self._lost("it is unplugged")
            mine, self.peer_end = socket.socketpair()
            self.peer_end.setblocking(False)
            self._connected(mine)
        assert self.peer_end
        return self.peer_end

    def unplug(self) -> None:
        if self.peer_end:
            self.peer_end.close()
        self.peer_end = None

    def close(self) -> None:
        super().close()
        self.unplug()


def make_wired(folder: Path) -> Device:
    wire = Wire()
    wire.start()
    return Net(wire, bytes(6), 1500)


def wired_host(window: Transport, source: Source) -> None:
    """The peer sends frames whose lengths are right or not, reads or not, goes or stays."""
    wire: Any = window.device.host
    other = wire.plug()
    if not source.number(8):
        window.order("set_link", bool(source.number(2)))
    length = source.one((0, 1, 5, 6, 13, 14, 60, 60, 60, 1514, 69632, 69633, 0xFFFF_FFFF, 0x80_0000))
    frame = source.bytes(min(length, 60)).ljust(min(length, 70000), b"x")
    data = pack(">I", length) + frame[: source.one((len(frame), len(frame), len(frame), 3, 0))]
    with contextlib.suppress(BlockingIOError):
        other.send(data)
    if source.number(2):
        with contextlib.suppress(BlockingIOError):
            other.recv(1 << 20)
    if not source.number(16):
        wire.unplug()
    wire.ready(wire.link.fileno(), source.one((select.EPOLLIN, select.EPOLLIN | select.EPOLLOUT, select.EPOLLHUP)))


# vhost-user


class HostileBackend:
    """A socket whose other end answers as a disk does, but for what `plan` says: a byte for each answer."""

    def __init__(self, plan: bytes = b"") -> None:
        self.plan = deque(plan)
        self.answer = b""
        self.fds: list[int] = []
        self.is_gone = False
        self.event = os.eventfd(1)  # always ready: whether there is an answer, `recv` says
        self.theirs: socket.socket | None = None  # where to say something by itself

    def say(self, data: bytes) -> None:
        """Something that nobody asked for."""
        if self.theirs:
            with contextlib.suppress(OSError):
                self.theirs.send(data)

    # What a front end calls

    def settimeout(self, seconds: float) -> None:
        assert 0 < seconds < 10

    def fileno(self) -> int:
        return self.event

    def sendmsg(self, parts: list[bytes], rights: Any) -> int:
        if self.is_gone:
            raise BrokenPipeError(32, "Broken pipe")
        data = b"".join(parts)
        request, flags, size = HEADER.unpack_from(data)
        assert len(data) == HEADER.size + size, "a message of another size than it says"
        if request == Ask.SET_BACKEND_REQ_FD:
            self.theirs = socket.socket(fileno=os.dup(rights[0][2][0]))
            self.theirs.setblocking(False)
        payload = self._payload(request, data[HEADER.size :])
        if payload is not None:
            self._answer(request, payload)
        elif flags & 8:
            self._answer(request, bytes(8))
        return len(data)

    def sendall(self, data: bytes) -> None:
        assert not data

    def recv(self, count: int) -> bytes:
        if self.is_gone:
            return b""
        if not self.answer:
            raise TimeoutError(110, "timed out")
        data, self.answer = self.answer[:count], self.answer[count:]
        return data

    def recvmsg(self, count: int, room: int) -> Any:
        data = self.recv(count)
        fds, self.fds = self.fds, []
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, pack(f"{len(fds)}i", *fds))] if fds else []
        return data, rights, 0, None

    def shutdown(self, how: int) -> None:
        self.is_gone = True

    def close(self) -> None:
        self.is_gone = True
        if self.event >= 0:
            os.close(self.event)
            self.event = -1
        if self.theirs:
            self.theirs.close()
        for fd in self.fds:
            os.close(fd)
        self.fds = []

    # What it says

    def _payload(self, request: int, payload: bytes) -> bytes | None:
        if request == Ask.GET_FEATURES:
            return pack("<Q", BLOCK_FEATURES)
        if request == Ask.GET_PROTOCOL_FEATURES:
            return pack("<Q", KNOWN_PROTOCOL)
        if request == Ask.GET_QUEUE_NUM:
            return pack("<Q", 2)
        if request == Ask.GET_CONFIG:
            return payload[: CONFIG.size] + pack("<Q", 128).ljust(len(payload) - CONFIG.size, b"\1")
        if request == Ask.GET_VRING_BASE:
            return payload
        return INFLIGHT.pack(4096, 0, 2, 16) if request == Ask.GET_INFLIGHT_FD else None

    def _answer(self, request: int, payload: bytes) -> None:
        """As it should be for half of all plans, and wrong in some way for the others."""
        how = self.plan.popleft() if self.plan else 0
        count = 1 if request == Ask.GET_INFLIGHT_FD else 0
        flags, size = 5, len(payload)
        match how:
            case 129:
                request ^= 1 << how % 7
            case 130:
                flags = 1
            case 131:
                size = 0xFFFF_FFFF
            case 132:
                payload = payload[:-1]
            case 133:
                payload, size = payload[:-1], size - 1
            case 134:
                payload = b"\xff" * size
            case 135:
                payload, size = b"", 0
            case 136:
                count = 3
            case 137:
                count = 0
            case 138:
                self.is_gone = True
            case 139:
                return
            case 140:
                payload = bytes(byte ^ 1 for byte in payload)
        self.answer += HEADER.pack(request, flags, size) + payload
        if count:
            self.fds += [os.memfd_create("inflight") for _ in range(count)]


class HostileSide(Backend):
    """Connects to a HostileBackend with the plan that it has been given last."""

    def __init__(self) -> None:
        self.plan = b""
        super().__init__("hostile", self.connect, 2, 0.01)

    def connect(self) -> Session:
        plan, self.plan = self.plan, b""
        return Session(HostileBackend(plan))  # type: ignore[arg-type]


def make_vhost(folder: Path) -> Device:
    return VhostBlock(HostileSide(), (64, 64))


def vhost_host(window: Transport, source: Source) -> None:
    """The back-end calls, is to answer by a plan, goes, comes back, or says what nobody asked."""
    side: Any = window.device.host
    plan = bytes(source.number(256) for _ in range(source.number(12)))
    side.plan = plan
    if side.session is not None:
        side.session.link.plan = deque(plan)
    match source.number(6):
        case 5 if side.session is not None and side.session.channel is not None:
            header = source.one((2, 2, 1, 9)), source.one((1, 9, 5, 0)), source.one((0, 0, 8, 4096, 0xFFFF_FFFF))
            side.session.link.say((HEADER.pack(*header) + source.bytes(8))[: source.one((12, 20, 5, 0))])
            side.ready(side.session.channel.fileno(), select.EPOLLIN)
        case 0 | 1:
            side.ready(source.one(side.calls), select.EPOLLIN)
        case 2 if side.session is not None:
            side.ready(side.session.link.fileno(), source.one((select.EPOLLIN, select.EPOLLHUP)))
        case 3 | 4 if side.timer >= 0:
            side.ready(side.timer, select.EPOLLIN)


# A back-end of a user's


class Keeper(Device):
    """Does with its requests all that the interface lets it, at the wrong moments too."""

    kind, name, queue_sizes, features = 4, "keeper", (16, 16), 7

    def __init__(self) -> None:
        self.kept: list[Request] = []
        self.bytes = bytearray(64)

    def config(self) -> bytes:
        return bytes(self.bytes)

    def configure(self, offset: int, data: bytes) -> None:
        self.bytes[offset : offset + len(data)] = data
        del self.bytes[256:]
        self.config_changed()

    def start(self, queues: list[Queue], features: int) -> None:
        super().start(queues, features)
        queues[1].begin_polling()

    def handle(self, index: int) -> None:
        for request in self.queues[index]:
            how = request.read(1) or b"\0"
            self.kept.append(request)
            if how[0] & 3:
                self.use(self.kept.pop(how[0] % len(self.kept)), how[0])

    def use(self, request: Request, how: int) -> None:
        """Answer it, or one that is nobody's any more."""
        if how & 4:
            request.last()[0] = 0
        written = request.write(request.read(how) + bytes(how))
        request.done(written)
        if how & 8:
            request.done(written)
        if how & 16 and self.queues:
            request.queue.finish([(each, 0) for each in self.kept])
            self.kept.clear()

    def poll(self) -> bool:
        if self.queues and self.queues[1].has_work():
            self.handle(1)
        return False


def make_user(folder: Path) -> Device:
    return Keeper()


def user_host(window: Transport, source: Source) -> None:
    """Something that the device has kept is done at last, whatever has become of its queue."""
    device: Any = window.device
    if device.kept:
        window._guarded(device.use, device.kept.pop(source.number(len(device.kept))), source.number(32) & ~4)
    if source.number(2):
        window._guarded(device.config_changed)
