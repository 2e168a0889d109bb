"""Sockets of the host's: listened for, connected to, declared to the sandbox, and kept from one life to the next."""

import contextlib
import os
import socket
from collections.abc import Sequence
from typing import Any

from virtio.needs import Needs

Target = tuple[socket.AddressFamily, Any]


class UnixListener(socket.socket):
    """A listening socket in the file system, gone from there when it is closed."""

    def __init__(self, path: str) -> None:
        super().__init__(socket.AF_UNIX, socket.SOCK_STREAM)
        self.path = path
        self.bind(path)
        self.listen(1)

    def close(self) -> None:
        if self.fileno() >= 0:
            super().close()
            with contextlib.suppress(OSError):
                os.unlink(self.path)


def listen(target: Target) -> socket.socket:
    """A listening socket; a file of one that nobody has any more is replaced."""
    family, address = target
    if family == socket.AF_UNIX:
        if os.path.exists(address):
            os.unlink(address)
        return UnixListener(address)
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(1)
    except OSError:
        listener.close()
        raise
    return listener


def connect(target: Target) -> socket.socket:
    """A connection, or an OSError; blocks."""
    family, address = target
    link = socket.socket(family, socket.SOCK_STREAM)
    try:
        link.connect(address)
    except OSError:
        link.close()
        raise
    return link


def socket_needs(listener: socket.socket | None, peer: tuple[int, Any] | None) -> Needs:
    """Of a listener, its file at the end; of connections that are made again, their kind and where they lead."""
    removes = (listener.path,) if isinstance(listener, UnixListener) else ()
    if not peer:
        return Needs(removes=removes)
    family, where = peer
    ports = (where[1],) if family == socket.AF_INET else ()
    return Needs(removes=removes, families=(family,), connects=True, ports=ports)


class Kept:
    """Where a connection waits, with what of it is unread or unsent, while the machine is reset: a socket pair."""

    def __init__(self) -> None:
        self.ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.ends[1].setblocking(False)

    def put(self, pieces: Sequence[bytes | bytearray | memoryview], fd: int) -> None:
        """Keep a connection and at least a byte; it is lost if there is no room."""
        with contextlib.suppress(OSError):
            socket.send_fds(self.ends[0], pieces, [fd])

    def take(self, most: int) -> tuple[bytes, int] | None:
        """What was put, of at most so many bytes, and the connection's descriptor, which is the caller's; once."""
        try:
            data, (fd, *_), _, _ = socket.recv_fds(self.ends[1], most, 1)
        except BlockingIOError:
            return None
        return data, fd

    def close(self) -> None:
        for end in self.ends:
            end.close()
