"""virtio-vsock for the fuzzer (device_fuzz.py): the device with hosts that call, answer, talk and go, and packets."""

import contextlib
import socket
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fake_driver import DATA
from vsock_driver import (
    CID,
    CREDIT_REQUEST,
    CREDIT_UPDATE,
    HOST,
    REQUEST,
    RESPONSE,
    RST,
    RW,
    SHUTDOWN,
    header,
)

from virtio.device import Device
from virtio.sockets import listen
from virtio.vsock import FIRST_PORT, LAST_PORT, RECEIVE, TRANSMIT, Vsock
from virtio.vsock_connection import BUFFER, Connection
from virtio.vsock_host import Answer, VsockHost

KEPT = 4  # ends of the host's that stay open; the oldest goes when there are more
GUEST_PORT = 1  # that the host calls
PORT, SERVICE = 2, 80


class Hosts(VsockHost):
    """In the fuzzer's own process it does without a dialler: somebody listens at every port that is even."""

    def __init__(self, path: Path) -> None:
        super().__init__(listen((socket.AF_UNIX, str(path))), str(path))
        self.asked: list[tuple[int, int]] = []
        self.ends: deque[socket.socket] = deque()
        self.turns = 0

    def begin(self) -> None:
        """What the event loop does before; in an I/O process it has done so."""
        if self.epoll is None:
            self.dialler.start = lambda: None  # type: ignore[method-assign]
            self.dialler.ask = lambda number, port: not self.asked.append((number, port))  # type: ignore[func-returns-value, method-assign]
            self.start()

    def was_cut(self) -> bool:
        """The driver is up: the host calls."""
        self.begin()
        self.turns = 0
        for end in self.ends:
            end.close()
        self.ends.clear()
        if self.dialler.link is None:
            caller = socket.socket(socket.AF_UNIX)
            caller.setblocking(False)
            with contextlib.suppress(OSError):
                caller.connect(self.dialler.path)
                caller.send(b"CONNECT %d\nwords" % GUEST_PORT)
            self._keep(caller)
        return super().was_cut()

    def _keep(self, end: socket.socket) -> None:
        self.ends.append(end)
        if len(self.ends) > KEPT:
            self.ends.popleft().close()

    def news(self) -> Iterator[tuple[Connection, int]]:
        if self.dialler.link is None:
            self.begin()
            self.ready(0, 0)
            self._talk()
        return super().news()

    def _talk(self) -> None:
        """The host's ends read now and then, the last one says something, and sends no more; the first one goes."""
        self.turns += 1
        with contextlib.suppress(OSError, IndexError):
            for end in self.ends if self.turns % 8 == 0 else ():
                end.recv(1 << 16)
            self.ends[-1].send(bytes(3000))
            if self.turns % 5 == 0:
                self.ends[-1].shutdown(self.turns % 3)
            if self.turns % 7 == 0:
                self.ends.popleft().close()

    def answers(self) -> list[Answer]:
        if self.dialler.link is not None:
            return super().answers()
        asked, self.asked = self.asked, []
        return [(number, None if port & 1 else self._answer()) for number, port in asked]

    def _answer(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        theirs.setblocking(False)
        self._keep(theirs)
        return ours

    def close(self) -> None:
        super().close()
        for end in self.ends:
            end.close()


class Numbered(Vsock):
    """The host's calls have the same ports after each reset."""

    def stop(self) -> None:
        super().stop()
        self.last_port = LAST_PORT


def make_vsock(folder: Path) -> Device:
    return Numbered(CID, Hosts(folder / "vsock"))


def packet(source: Any) -> bytes:
    """A packet of the connection that `connect` has made or of one like it; one in four has a header that may be wrong
    anywhere.
    """
    op = source.one((RW, RW, REQUEST, RESPONSE, RST, SHUTDOWN, CREDIT_UPDATE, CREDIT_REQUEST))
    host = source.one((SERVICE, SERVICE, 3, FIRST_PORT, FIRST_PORT + 1))
    guest = GUEST_PORT if host >= FIRST_PORT else PORT
    if source.number(4):
        data = source.bytes(source.one((0, 1, 60))) if op == RW else b""
        return header(op, guest, host, len=len(data), flags=source.number(4)) + data
    data = source.bytes(source.number(16))
    fields = {
        "src_cid": source.one((CID, CID, HOST, 99)),
        "dst_cid": source.one((HOST, HOST, CID, 1 << 33)),
        "len": source.one((len(data), BUFFER, 0xFFFF_FFFF)),
        "type": source.one((1, 1, 2, 9)),
        "buf_alloc": source.one((0, 10, BUFFER, 0xFFFF_FFFF)),
        "fwd_cnt": source.one((0, 10, 0xFFFF_FFFF, source.number(1 << 32))),
    }
    return header(source.one((op, op, 0, 8)), source.one((guest, 0)), host, **fields) + data


def connect(player: Any) -> None:
    """Receive buffers, and a connection to a port at which somebody listens; the answer to a call, if there was one."""
    receive, transmit = player.rig.rings[:2]
    for number in range(8):
        receive.bump = DATA + number * 0x1000
        receive.add(512)
    transmit.bump = DATA + 0x1_0000
    player.ask(RECEIVE)
    for op, guest, host in ((REQUEST, PORT, SERVICE), (RESPONSE, GUEST_PORT, FIRST_PORT)):
        transmit.add(header(op, guest, host))
        player.ask(TRANSMIT)
