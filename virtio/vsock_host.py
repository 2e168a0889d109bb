"""The host's side of virtio-vsock: a listening unix socket, its callers, and the sockets of connections.

As Firecracker has it: who connects to PATH and says "CONNECT <port>\\n" reaches that port of the guest's, and a guest
that connects to a port of the host's reaches who listens at PATH_<port>.  Listening goes on when the machine is reset.
"""

import math
import os
import re
import select
import socket
import time
from collections.abc import Iterator

from virtio.host import Host
from virtio.needs import Needs
from virtio.sockets import socket_needs
from virtio.timer import new_timer, set_timer
from virtio.vsock_connection import Connection
from virtio.vsock_dialler import Dialler

IN, OUT, EDGE = select.EPOLLIN | select.EPOLLRDHUP, select.EPOLLOUT, select.EPOLLET
GREETING = re.compile(rb"connect +([0-9]{1,10}) *\r?\n", re.IGNORECASE)
GREETING_BYTES = 32
ANY_PORT = 0xFFFF_FFFF  # no port: VMADDR_PORT_ANY
FAREWELL = 8.0  # seconds that the driver has to answer a SHUTDOWN, as in Linux
Call = tuple[socket.socket, int]
Answer = tuple[int, socket.socket | None]


class VsockHost(Host):
    """Notes what epoll says (`ready`); the device takes it up in its own turn.

    Descriptors are in an epoll of its own, which the event loop watches, so that thousands of them cost it nothing.
    Events come when something changes (EPOLLET): what is there is read until there is no more.
    """

    def __init__(self, listener: socket.socket, path: str) -> None:
        self.listener, self.dialler = listener, Dialler(path)
        listener.setblocking(False)
        self.cut = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)  # for the next I/O process: connections were lost
        self.epoll: select.epoll | None = None
        self.timer = -1
        self._forget()

    def _forget(self) -> None:
        self.events: dict[int, int] = {}  # by descriptor, since the device last looked
        self.links: dict[int, Connection] = {}  # by descriptor
        self.callers: dict[int, socket.socket] = {}  # that have not said yet whom they want
        self.drains: set[Connection] = set()  # over for the guest; the host has not taken everything yet
        self.leaving: dict[Connection, float] = {}  # until when the driver may answer
        self.alarm = math.inf  # when the timer rings for one of them
        self.is_called = True  # somebody may be waiting to be accepted
        self.is_answered = False  # by the dialler

    # The event loop

    def start(self) -> None:
        self.dialler.start()
        self.epoll = select.epoll()
        self.timer = new_timer()
        watched = [self.listener.fileno(), self.timer, *([self.dialler.link.fileno()] if self.dialler.link else [])]
        for fd in watched:
            self.epoll.register(fd, IN | EDGE)

    def needs(self) -> Needs:
        return socket_needs(self.listener, None)

    def interest(self) -> dict[int, int]:
        return {self.epoll.fileno(): select.EPOLLIN} if self.epoll else {}

    def ready(self, fd: int, events: int) -> None:
        assert self.epoll
        for number, what in self.epoll.poll(0):
            self.events[number] = self.events.get(number, 0) | what

    def has_output(self) -> bool:
        return any(connection.output for connection in self.links.values())

    def flush(self) -> None:
        for connection in list(self.links.values()):
            connection.flush()

    def stop(self) -> None:
        if self.links:
            os.eventfd_write(self.cut, 1)
        for link in [*self.callers.values(), *(connection.link for connection in self.links.values())]:
            if link:
                link.close()
        self.dialler.stop()
        if self.epoll:
            self.epoll.close()
            os.close(self.timer)
        self.epoll, self.timer = None, -1
        self._forget()

    def close(self) -> None:
        super().close()
        self.listener.close()
        if self.cut >= 0:
            os.close(self.cut)
            self.cut = -1

    # What the device asks

    def was_cut(self) -> bool:
        """Whether connections were lost since it was last asked, be it by a reset of the machine."""
        try:
            return os.eventfd_read(self.cut) > 0
        except BlockingIOError:
            return False

    def held(self) -> int:
        """Connections that the device does not have: of callers, and those that are only flushed."""
        return len(self.callers) + len(self.drains)

    def news(self) -> Iterator[tuple[Connection, int]]:
        """Connections of which epoll has said something, and what."""
        events, self.events = self.events, {}
        for fd, what in events.items():
            if fd == self.listener.fileno():
                self.is_called = True
            elif self.dialler.link and fd == self.dialler.link.fileno():
                self.is_answered = True
            elif connection := self.links.get(fd):
                if connection in self.drains:
                    self._drain(connection)
                else:
                    yield connection, what
            elif fd in self.callers:
                self.events[fd] = what  # for `calls`

    def answers(self) -> list[Answer]:
        """What the dialler has answered."""
        answers = list(self.dialler.answers()) if self.is_answered else []
        self.is_answered = False
        return answers

    def calls(self, room: int) -> list[Call]:
        """Callers that have said which port they want; as many are let in as there is room for connections."""
        while self.is_called and room > 0:
            try:
                caller = self.listener.accept()[0]
            except BlockingIOError:
                self.is_called = False
            except OSError:
                break  # too many open files: another time
            else:
                room -= 1
                self._let_in(caller)
        heard = [self.callers[fd] for fd in self.events if fd in self.callers]
        return [call for caller in heard if (call := self._hear(caller))]

    def _let_in(self, caller: socket.socket) -> None:
        assert self.epoll
        caller.setblocking(False)
        self.callers[caller.fileno()] = caller
        self.epoll.register(caller.fileno(), IN | EDGE)
        self.events[caller.fileno()] = IN

    def _hear(self, caller: socket.socket) -> Call | None:
        """What follows the line belongs to the connection, so it stays where it is, and so do events."""
        try:
            text = caller.recv(GREETING_BYTES, socket.MSG_PEEK)
        except OSError as error:
            text = b"" if not isinstance(error, BlockingIOError) else b" "
        found = GREETING.match(text)
        if not found and text and len(text) < GREETING_BYTES and b"\n" not in text:
            del self.events[caller.fileno()]
            return None
        del self.callers[caller.fileno()]
        if not found or int(found[1]) >= ANY_PORT:
            self._close(caller)
            return None
        caller.recv(found.end())
        return caller, int(found[1])

    # Connections' sockets

    def watch(self, connection: Connection, link: socket.socket, is_known: bool = False) -> None:
        """It has a socket from now on, which epoll may know already."""
        assert self.epoll
        link.setblocking(False)
        connection.link = link
        self.links[link.fileno()] = connection
        if not is_known:
            self.epoll.register(link.fileno(), IN | EDGE)

    def follow(self, connection: Connection) -> None:
        """Wait for room in the socket while something is kept for it."""
        wanted = bool(connection.output)
        if connection.link and self.epoll and wanted != connection.waits_for_room:
            connection.waits_for_room = wanted
            self.epoll.modify(connection.link.fileno(), IN | EDGE | (OUT if wanted else 0))

    def unwatch(self, connection: Connection) -> None:
        """Close its socket."""
        if link := connection.link:
            connection.link = None
            self.links.pop(link.fileno(), None)
            self.drains.discard(connection)
            self._close(link)

    def _close(self, link: socket.socket) -> None:
        """A number is used again, and the dialler may still have the same socket: no event is to come of it."""
        self.events.pop(link.fileno(), None)
        if self.epoll:
            self.epoll.unregister(link.fileno())
        link.close()

    def part_with(self, connection: Connection) -> None:
        """The guest is done with it; what is kept for the host still goes there."""
        self.leaving.pop(connection, None)
        if connection.output and connection.link and not connection.deaf:
            self.drains.add(connection)
            self.follow(connection)
        else:
            self.unwatch(connection)

    def _drain(self, connection: Connection) -> None:
        connection.flush()
        if not connection.output or connection.deaf:
            self.unwatch(connection)

    def expect_answer(self, connection: Connection) -> None:
        """The driver has been told that it is over, and is to answer in time."""
        self.leaving[connection] = time.monotonic() + FAREWELL
        if self.alarm == math.inf:
            self._set_alarm()

    def overdue(self) -> list[Connection]:
        """Those whose answer has not come in time."""
        now = time.monotonic()
        if now < self.alarm:
            return []
        found = [connection for connection, until in self.leaving.items() if until <= now]
        for connection in found:
            del self.leaving[connection]
        self._set_alarm()
        return found

    def _set_alarm(self) -> None:
        """For the first whose time is up."""
        self.alarm = next(iter(self.leaving.values()), math.inf)
        if self.leaving and self.timer >= 0:
            set_timer(self.timer, max(self.alarm - time.monotonic(), 0.001))

    def drop_all(self, connections: list[Connection]) -> None:
        """The driver has reset the device."""
        if connections:
            os.eventfd_write(self.cut, 1)
        for connection in connections:
            self.part_with(connection)
