"""A character device over a connection: listened for, or made again and again.  Output without one is lost.

One that is there at a reset of the machine stays: its descriptor waits in `kept` for the next I/O process.
"""

import contextlib
import errno
import os
import socket

from virtio.chardev import IN, OUT, OUTPUT_LIMIT, FdChardev
from virtio.needs import Needs
from virtio.sockets import Kept, Target, socket_needs
from virtio.timer import new_timer, set_timer


class Socket(FdChardev):
    """One connection at a time: the next client of `listener`, or one to `target`, tried every `retry` seconds."""

    def __init__(
        self,
        connection: socket.socket | None = None,
        listener: socket.socket | None = None,
        target: Target | None = None,
        retry: float = 0.0,
        nodelay: bool = False,
    ) -> None:
        super().__init__(-1, -1)
        self.listener, self.target, self.retry, self.nodelay = listener, target, retry, nodelay
        self.dialling: socket.socket | None = None
        self.timer = -1
        self.kept = Kept()
        if listener:
            listener.setblocking(False)
        if connection:
            self._connected(connection)
            self.stop()

    def start(self) -> None:
        if self.target and self.retry and self.timer < 0:
            self.timer = new_timer()
        if kept := self.kept.take(OUTPUT_LIMIT):
            output, self.source = kept
            self.sink = self.source
            self.output += output[1:]
        if self.source < 0:
            self._dial()

    def stop(self) -> None:
        if self.dialling:
            self.dialling.close()
            self.dialling = None
        if self.source >= 0:
            self.kept.put([b"+", self.output[-OUTPUT_LIMIT // 2 :]], self.source)
            self._hang_up()

    def is_open(self) -> bool:
        return self.source >= 0

    def needs(self) -> Needs:
        return socket_needs(self.listener, self.target if self.retry else None)

    def interest(self) -> dict[int, int]:
        if self.source >= 0:
            return super().interest()
        if self.dialling:
            return {self.dialling.fileno(): OUT}
        waiting = self.listener.fileno() if self.listener else self.timer
        return {waiting: IN} if waiting >= 0 else {}

    def ready(self, fd: int, events: int) -> None:
        if self.source >= 0:
            super().ready(fd, events)
        elif self.dialling:
            self._answered(self.dialling)
        elif self.listener:
            with contextlib.suppress(OSError):
                self._connected(self.listener.accept()[0])
        else:
            with contextlib.suppress(BlockingIOError):
                os.read(fd, 8)
                self._dial()

    def ended(self) -> None:
        self._hang_up()
        self._dial_later()

    def lost(self, error: OSError) -> None:
        self.ended()

    def close(self) -> None:
        super().close()
        for end in (self.kept, self.listener):
            if end:
                end.close()
        if self.timer >= 0:
            os.close(self.timer)
            self.timer = -1

    def _hang_up(self) -> None:
        if self.source >= 0:
            self.let_go(self.source)
            os.close(self.source)
        self.source = self.sink = -1
        self.output.clear()

    def _connected(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        if self.nodelay and connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.source = self.sink = connection.detach()

    def _dial(self) -> None:
        """Begin to connect; whether it works is heard of later."""
        if not self.target or not self.retry:
            return
        family, address = self.target
        link = socket.socket(family, socket.SOCK_STREAM)
        link.setblocking(False)
        self.dialling = link
        error = link.connect_ex(address)
        if error != errno.EINPROGRESS:
            self._answered(link, error)

    def _answered(self, link: socket.socket, error: int = 0) -> None:
        self.dialling = None
        if error or link.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.let_go(link.fileno())
            link.close()
            self._dial_later()
        else:
            self._connected(link)

    def _dial_later(self) -> None:
        if self.timer >= 0:
            set_timer(self.timer, self.retry)
