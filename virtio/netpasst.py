"""`-netdev user`: passt, a process of its own that makes the guest's connections with ordinary sockets of the host.

It is started by the supervisor and speaks frames over a socket pair, as `-netdev stream` does.  It ends with the
machine: it is killed, or the kernel does it with the supervisor, or (as root it becomes nobody, which takes the
kernel's word back) it sees the last end of the socket pair close.
"""

import contextlib
import ctypes
import os
import select
import signal
import socket
import struct
import subprocess
import time

from virtio.netdev import HEADER_BYTES, PLAIN
from virtio.netfeatures import F_GUEST_CSUM
from virtio.netstream import LENGTH, Stream
from virtio.offload import DATA_VALID

PR_SET_PDEATHSIG = 1
PATIENCE = 10.0  # seconds for passt to answer or to give up
NO_ANSWER = 0.3  # the same where it has nothing to answer
ROOM = 4 << 20  # bytes on their way that we ask for: passt drops what does not fit, and sends it all again
PROBE_MAC = bytes.fromhex("020000000001")
VALID = bytes([DATA_VALID]).ljust(HEADER_BYTES, b"\0")  # the guest need not sum it up
REQUEST = struct.Struct(">HHBBH6s4s6s4s")  # ARP (RFC 826)


class PasstError(Exception):
    """passt can't be used; the text says why, in its own words."""


class Passt(Stream):
    """The link to a passt of our own.  It terminates the guest's connections itself, so large frames are welcome."""

    takes_large = True
    # What comes has never been on a wire: passt made it of what the kernel had checked, and of the host's own data.
    offloads = F_GUEST_CSUM
    # The kernel cuts what is sent into pieces of 36 KiB, each of which may be received before the next is there. passt
    # of 2023 waits for one piece more when it has a part of a frame, and loses one that is in three, and what follows.
    message = 32 << 10

    def __init__(self, name: str, command: list[str], gateway: str) -> None:
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, ROOM)
        self.messages = os.memfd_create("passt")
        with theirs:
            self.process = subprocess.Popen(
                [*command, "--foreground", "--quiet", "--one-off", "--fd", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=self.messages,
                stderr=self.messages,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is the guest's
                preexec_fn=_die_with_parent,
            )
        try:
            self._wait_for(ours, gateway)
        except BaseException:
            ours.close()
            self._end()
            raise
        super().__init__(name, ours)

    def _wait_for(self, link: socket.socket, gateway: str) -> None:
        """Until it answers to its address, or has given up; its mistakes are the user's options."""
        if gateway:
            with contextlib.suppress(ConnectionError):  # it has given up already
                link.sendall(_who_has(gateway))
        deadline = time.monotonic() + (PATIENCE if gateway else NO_ANSWER)
        while self.process.poll() is None and time.monotonic() < deadline:
            if not select.select([link], [], [], 0.01)[0]:
                continue
            if _take_answer(link):
                return
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(PATIENCE)
        if self.process.poll() is not None:
            raise PasstError(self._last_words() or f"exit status {self.process.returncode}")

    def configure(self, features: int, queues: int) -> None:
        self.header = VALID if features & F_GUEST_CSUM else PLAIN

    def _last_words(self) -> str:
        """The last line that passt wrote, but for complaints about a host without a system log."""
        lines = os.pread(self.messages, 65536, 0).decode(errors="replace").splitlines()
        lines = [line.strip() for line in lines if line.strip() and "syslog" not in line]
        return lines[-1] if lines else ""

    def _lost(self, why: str) -> None:
        super()._lost(f"passt has ended: {self._last_words() or why}; the link is down")

    def _end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.messages)
        self.messages = -1

    def close(self) -> None:
        super().close()
        if self.messages >= 0:
            self._end()


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _who_has(address: str) -> bytes:
    """An ARP request for passt's address, framed."""
    body = REQUEST.pack(1, 0x800, 6, 4, 1, PROBE_MAC, bytes(4), bytes(6), socket.inet_aton(address))
    data = b"\xff" * 6 + PROBE_MAC + b"\x08\x06" + body
    return LENGTH.pack(len(data)) + data


def _take_answer(link: socket.socket) -> bool:
    """Read the answer, which is not the guest's; False if passt is ending."""
    try:
        size = link.recv(LENGTH.size, socket.MSG_WAITALL)
        return len(size) == LENGTH.size and bool(link.recv(LENGTH.unpack(size)[0], socket.MSG_WAITALL))
    except ConnectionError:
        return False
