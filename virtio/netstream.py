"""Frames over a connection, each after its length in four bytes: `-netdev stream`, as QEMU and passt speak it.

The connection may come, go and come again, and there is a carrier while it is there.  At a reset of the machine it
waits for the next I/O process, with the frames that were cut, in `kept`.
"""

import contextlib
import os
import select
import socket
import struct
import sys
from bisect import bisect_right
from collections.abc import Callable
from typing import Any

from virtio.needs import Needs
from virtio.netdev import MAX_FRAME, PLAIN, Frame, Netdev
from virtio.sockets import Kept, socket_needs
from virtio.timer import new_timer, set_timer

IN, OUT = select.EPOLLIN, select.EPOLLOUT
LENGTH = struct.Struct(">I")
BUFFER = 256 << 10  # bytes received at once
PIECES = 1000  # of a single sendmsg, which takes 1024
KEPT = LENGTH.size + 2 * (LENGTH.size + MAX_FRAME)


class Stream(Netdev):
    """One connection: made already, accepted from `listener`, or made by `dial` again and again.

    peer: family and address that `dial` connects to.
    """

    header = PLAIN  # of what comes
    message = 1 << 30  # bytes at most that several frames may have which are sent by one system call

    def __init__(
        self,
        name: str,
        connection: socket.socket | None = None,
        listener: socket.socket | None = None,
        dial: Callable[[], socket.socket] | None = None,
        retry: float = 0.0,
        peer: tuple[int, Any] | None = None,
    ) -> None:
        self.name, self.listener, self.dial, self.retry = name, listener, dial, retry
        self.peer = peer if retry else None
        self.link: socket.socket | None = None
        self.timer = -1
        self.kept = Kept()
        self.buffer = memoryview(b"")
        self._forget()
        if listener:
            listener.setblocking(False)
        if connection:
            self._connected(connection)
            self.stop()

    def _forget(self) -> None:
        self.begin = self.filled = 0  # what of the buffer is not read yet
        self.output = bytearray()  # the rest of a frame
        self.readable = self.blocked = False
        self.is_up = False

    # A life of the I/O process

    def start(self) -> None:
        self.buffer = memoryview(bytearray(BUFFER))
        if kept := self.kept.take(KEPT):
            data, fd = kept
            (size,) = LENGTH.unpack_from(data)
            received, self.output = data[LENGTH.size :][:size], bytearray(data[LENGTH.size + size :])
            self._connected(socket.socket(fileno=fd))
            self.buffer[:size], self.filled = received, size
        if self.link is None:
            self._dial_later()

    def stop(self) -> None:
        if self.link is None:
            return
        received = self.buffer[self.begin : self.filled]
        whole = 0  # frames that are there are lost; one of which a part is there must not be
        while len(received) >= whole + LENGTH.size and len(received) >= (end := _end(received, whole)):
            whole = end
        rest = received[whole:]
        self.kept.put([LENGTH.pack(len(rest)), rest, self.output], self.link.fileno())
        self.link.close()
        self.link = None
        self._forget()

    def close(self) -> None:
        self.stop()
        for end in (self.kept, self.listener):
            if end:
                end.close()
        if self.timer >= 0:
            os.close(self.timer)
            self.timer = -1

    def needs(self) -> Needs:
        return socket_needs(self.listener, self.peer)

    # The event loop

    def interest(self) -> dict[int, int]:
        wanted: dict[int, int] = {}
        if self.link:
            events = (0 if self.readable else IN) | (OUT if self.blocked else 0)
            if events:
                wanted[self.link.fileno()] = events
        elif self.listener:
            wanted[self.listener.fileno()] = IN
        elif self.timer >= 0:
            wanted[self.timer] = IN
        return wanted

    def ready(self, fd: int, events: int) -> None:
        if self.link:
            self.readable |= bool(events & ~OUT)
            if events & ~IN:
                self.blocked = False
                self.flush()
        elif self.listener:
            with contextlib.suppress(OSError):
                self._connected(self.listener.accept()[0])
        else:
            os.read(fd, 8)
            self._dial_now()

    # Connections

    def _connected(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        if connection.family in (socket.AF_INET, socket.AF_INET6):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.link, self.is_up = connection, True
        self.blocked = bool(self.output)

    def _lost(self, why: str) -> None:
        print(f"\rhartbeat: netdev {self.name}: {why}", file=sys.stderr, flush=True)
        if self.link:
            self.let_go(self.link.fileno())
            self.link.close()
            self.link = None
        self._forget()
        self._dial_later()

    def _dial_later(self) -> None:
        if self.dial is None or not self.retry:
            return
        if self.timer < 0:
            self.timer = new_timer()
        set_timer(self.timer, self.retry)

    def _dial_now(self) -> None:
        assert self.dial
        try:
            self._connected(self.dial())
        except OSError:
            self._dial_later()

    # Frames

    def send(self, queue: int, frames: list[Frame]) -> int:
        taken = 0
        while taken < len(frames) and self.link and not self.blocked:
            taken += self._send_message(frames, taken)
        return taken if self.link else len(frames)

    def _send_message(self, frames: list[Frame], first: int) -> int:
        """Send some of the frames from the first on, as many as go into a message; gives how many were taken."""
        pieces: list[memoryview | bytes] = []
        ends = [0]
        for frame in frames[first:]:
            size = LENGTH.size + frame.size()
            if pieces and (len(pieces) + len(frame.parts) >= PIECES or ends[-1] + size > self.message):
                break
            ends.append(ends[-1] + size)
            pieces.append(LENGTH.pack(size - LENGTH.size))
            pieces += frame.parts
        assert self.link
        try:
            sent = self.link.sendmsg(pieces)
        except BlockingIOError:
            self.blocked = True
            return 0
        except OSError as error:
            self._lost(f"{error.strerror}; the link is down")
            return 0
        return self._sent(sent, pieces, ends)

    def _sent(self, sent: int, pieces: list[memoryview | bytes], ends: list[int]) -> int:
        """What of a frame that was cut did not go is kept; gives the number of frames taken."""
        taken = bisect_right(ends, sent) - 1
        if sent == ends[-1]:
            return taken
        self.blocked = True
        if sent == ends[taken]:
            return taken
        self.output += b"".join(pieces)[sent : ends[taken + 1]]
        return taken + 1

    def flush(self) -> None:
        while self.output and self.link:
            try:
                del self.output[: self.link.send(self.output)]
            except BlockingIOError:
                self.blocked = True
                return
            except OSError as error:
                self._lost(f"{error.strerror}; the link is down")

    def receive(self, queue: int) -> Frame | None:
        while self.link:
            start = self.begin + LENGTH.size
            if self.filled >= start:
                end = _end(self.buffer, self.begin)
                if end - start > MAX_FRAME:
                    self._lost(f"a frame of {end - start} bytes: the other side does not send frames; the link is down")
                    return None
                if self.filled >= end:
                    self.begin = end
                    return Frame([self.buffer[start:end]], self.header)
            if not self._fill():
                return None
        return None

    def _fill(self) -> bool:
        """Receive more; True when there is some."""
        if not self.readable or not self.link:
            return False
        rest = self.filled - self.begin
        self.buffer[:rest] = self.buffer[self.begin : self.filled]
        self.begin, self.filled = 0, rest
        try:
            count = self.link.recv_into(self.buffer[rest:])
        except BlockingIOError:
            self.readable = False
            return False
        except OSError as error:
            self._lost(f"{error.strerror}; the link is down")
            return False
        if count == 0:
            self._lost("the other side has gone; the link is down")
            return False
        self.filled += count
        self.readable = self.filled == BUFFER  # else there is no more, or epoll says so again
        return True


def _end(buffer: memoryview, begin: int) -> int:
    """Where the frame that begins there ends."""
    return begin + LENGTH.size + int.from_bytes(buffer[begin : begin + LENGTH.size], "big")
