"""A helper process of the machine's that listens on a unix socket, such as qemu-storage-daemon; it ends with us.

The socket has no name that anybody else could find, so that one can connect again when the helper was started anew.
"""

import contextlib
import ctypes
import os
import select
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable

from virtio.vhost_wire import BackendError, Session, dial

PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38
PATIENCE = 5.0  # seconds to end in
_libc = ctypes.CDLL(None)


class Helper:
    """`command` makes the command line from the number of the descriptor to listen on."""

    def __init__(self, command: Callable[[int], list[str]]) -> None:
        self.command = command
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with tempfile.TemporaryDirectory(prefix="hartbeat-") as folder:
            path = os.path.join(folder, "socket")
            self.listener.bind(path)
            self.listener.listen(1)
            self.place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        self.messages = os.memfd_create("messages")
        self.pid = self.alive = -1
        self.starter: socket.socket | None = None

    def dial(self) -> Session:
        """A connection to it; it is started if it does not run."""
        if not self.is_running():
            self._start()
        try:
            return Session(dial(f"/proc/self/fd/{self.place}"))
        except BackendError as error:
            # A helper that does not like its command line ends and says why.
            if select.select([self.alive], [], [], 0.5)[0]:
                raise BackendError(self.last_words() or str(error)) from error
            raise

    def is_running(self) -> bool:
        """Also in a process that has not started it."""
        return self.alive >= 0 and not select.select([self.alive], [], [], 0)[0]

    def keep_starter(self) -> None:
        """Have a process at hand that starts it again, for this one may not once it is in its sandbox."""
        self.starter, theirs = socket.socketpair()
        with theirs:
            if os.fork() == 0:
                try:
                    self._start_on_demand(theirs, self.starter)
                finally:
                    os._exit(0)

    def _start_on_demand(self, link: socket.socket, other: socket.socket) -> None:
        """The life of that process: what it is asked has no words to it.  It ends when nobody can ask any more."""
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        other.close()
        self.starter = None
        while link.recv(1):
            self._start()
            socket.send_fds(link, [self.pid.to_bytes(4, "little")], [self.alive])

    def _start(self) -> None:
        if self.alive >= 0:
            os.close(self.alive)
            self.alive = -1
        if self.starter:
            self.starter.send(b"+")
            data, fds, _, _ = socket.recv_fds(self.starter, 4, 1)
            if not fds:
                raise BackendError("it can't be started again")
            self.pid, self.alive = int.from_bytes(data, "little"), fds[0]
            return
        if self.pid > 0:
            with contextlib.suppress(ChildProcessError):  # it was another process's child
                os.waitpid(self.pid, os.WNOHANG)
        process = subprocess.Popen(
            self.command(self.listener.fileno()),
            stdin=subprocess.DEVNULL,
            stdout=self.messages,
            stderr=self.messages,
            pass_fds=[self.listener.fileno()],
            start_new_session=True,  # Ctrl-C is the guest's
            preexec_fn=_confine,
        )
        self.pid, self.alive = process.pid, os.pidfd_open(process.pid)
        process.returncode = 0  # it is waited for by its pidfd; nobody is to complain that it still runs

    def last_words(self) -> str:
        """The last line that it wrote, without its name."""
        lines = os.pread(self.messages, 65536, 0).decode(errors="replace").split("\n")
        lines = [line.strip() for line in lines if line.strip()]
        return lines[-1].partition(": ")[2] or lines[-1] if lines else ""

    def close(self) -> None:
        """End it, in order: what it holds back is written."""
        if self.alive >= 0:
            deadline = time.monotonic() + PATIENCE
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.alive, signal.SIGTERM)
            while self.is_running() and time.monotonic() < deadline:
                select.select([self.alive], [], [], 0.1)
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.alive, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.pid, 0)
            os.close(self.alive)
        if self.place >= 0:
            self.listener.close()
            os.close(self.place)
            os.close(self.messages)
        self.alive = self.place = self.messages = -1


def _confine() -> None:
    """It ends with the process that started it and gains no rights by what it executes."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    _libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
