"""Frames as datagrams, one each: `-netdev dgram` over UDP, multicast or a unix socket, as in QEMU."""

import contextlib
import os
import select
import socket
from typing import Any

from virtio.needs import Needs
from virtio.netdev import ETHERNET, MAX_FRAME, Frame, Netdev

IN, OUT = select.EPOLLIN, select.EPOLLOUT


class Datagram(Netdev):
    """A bound socket and where its datagrams go; `path` is a socket file to take away.

    A unix socket is connected when there is somebody to connect to, for epoll says only of a connected one whether
    the other side has room.
    """

    def __init__(self, name: str, link: socket.socket, remote: Any, path: str = "") -> None:
        self.name, self.link, self.remote, self.path = name, link, remote, path
        self.lazy = link.family == socket.AF_UNIX and remote is not None
        self.connected = False
        link.setblocking(False)
        self.buffer = memoryview(bytearray(MAX_FRAME))
        self.readable = self.blocked = False

    def needs(self) -> Needs:
        return Needs(connects=self.lazy, removes=(self.path,) if self.path else ())

    def interest(self) -> dict[int, int]:
        events = (0 if self.readable else IN) | (OUT if self.blocked else 0)
        return {self.link.fileno(): events} if events else {}

    def ready(self, fd: int, events: int) -> None:
        self.readable |= bool(events & ~OUT)
        if events & ~IN:
            self.blocked = False

    def send(self, queue: int, frames: list[Frame]) -> int:
        for taken, frame in enumerate(frames):
            if self.blocked:
                return taken
            try:
                self._send(frame)
            except BlockingIOError:
                self.blocked = True
                return taken
            except OSError:  # nobody there, or too long: lost
                self.connected = False
        return len(frames)

    def _send(self, frame: Frame) -> None:
        if self.lazy and not self.connected:
            self.link.connect(self.remote)
            self.connected = True
        if self.lazy or self.remote is None:
            self.link.sendmsg(frame.parts)
        else:
            self.link.sendmsg(frame.parts, [], 0, self.remote)

    def receive(self, queue: int) -> Frame | None:
        while self.readable:
            try:
                size = self.link.recv_into(self.buffer)
            except OSError:  # nothing more, or what became of something sent: connection refused
                self.readable = False
            else:
                if size >= ETHERNET:
                    return Frame([self.buffer[:size]])
        return None

    def close(self) -> None:
        if self.link.fileno() >= 0:
            self.link.close()
            if self.path:
                with contextlib.suppress(OSError):
                    os.unlink(self.path)
