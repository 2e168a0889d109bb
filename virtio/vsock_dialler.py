"""Connects to the sockets PATH_PORT of the host for an I/O process that may not, once it is in its sandbox.

A process of its own does it, which can be asked for a port and nothing else: a guest that had taken over the I/O
process would reach the sockets that it was given, and no other of the user's.
"""

import ctypes
import errno
import os
import signal
import socket
from collections.abc import Iterator
from struct import Struct

from virtio.helper import PR_SET_PDEATHSIG
from virtio.sandbox import close_all, open_descriptors

ASK = Struct("<QI")  # a number to tell the answers apart by, and the port
ANSWER = Struct("<QI")  # that number, and an errno


class Dialler:
    """What the I/O process has of it; nothing here blocks."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.link: socket.socket | None = None

    def start(self) -> None:
        """Fork the process."""
        self.link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            if os.fork() == 0:
                try:
                    self._live(theirs)
                finally:
                    os._exit(0)
        self.link.setblocking(False)

    def _live(self, asked: socket.socket) -> None:
        """The life of that process; it ends when nobody can ask any more."""
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.setsid()
        close_all(open_descriptors() - {2, asked.fileno()})
        while data := asked.recv(ASK.size):
            number, port = ASK.unpack(data)
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
                link.setblocking(False)
                error = self._connect(link, port)
                socket.send_fds(asked, [ANSWER.pack(number, error)], [] if error else [link.fileno()])

    def _connect(self, link: socket.socket, port: int) -> int:
        try:
            return link.connect_ex(f"{self.path}_{port}")
        except OSError as failure:  # the path is too long
            return failure.errno or errno.EINVAL

    def ask(self, number: int, port: int) -> bool:
        """Have it connect; False when it can't be asked now."""
        try:
            return self.link is not None and self.link.send(ASK.pack(number, port)) > 0
        except OSError:
            return False

    def answers(self) -> Iterator[tuple[int, socket.socket | None]]:
        """What it has answered: a number and a connection, or None where nobody listens."""
        while self.link:
            try:
                data, fds, _, _ = socket.recv_fds(self.link, ANSWER.size, 1)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if len(data) < ANSWER.size:  # it has died
                self.stop()
                return
            yield ANSWER.unpack(data)[0], socket.socket(fileno=fds[0]) if fds else None

    def stop(self) -> None:
        """That process ends with our end of the link."""
        if self.link:
            self.link.close()
            self.link = None
