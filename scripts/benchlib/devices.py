"""A disk and a network for the machines: the file behind the one, what answers at the other end of the other.

Both kinds of machine get the same disk options and, unless asked otherwise, a passt each over a socket pair: Hartbeat
starts its own, for QEMU we do.
"""

import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from benchlib.machine import Guest, Kind, ended_later, started
from benchlib.results import OURS
from benchlib.rows import BenchError
from smp.config import NetdevConfig
from smp.passt_options import command
from virtio.netpasst import ROOM

DISK_BYTES, QUICK_BYTES = 1 << 30, 16 << 20
BLOCK, PIECE = 4096, 1 << 20
NETWORKS = ("passt", "user")  # of QEMU; `user` is its own, libslirp


@dataclass
class Devices:
    """What the machines' devices lead to."""

    disk: Path
    port: int
    network: str

    @contextlib.contextmanager
    def plugged(self, kind: Kind, guest: Guest) -> Iterator[Guest]:
        """The guest with the devices, while they are there.  The disk begins with nothing left to write back."""
        with open(self.disk, "rb") as disk:
            os.fsync(disk.fileno())
        with self._netdev(kind) as (netdev, fds):
            options = (
                *("-drive", f"file={self.disk},format=raw,if=none,id=disk", "-device", "virtio-blk-device,drive=disk"),
                *("-netdev", netdev, "-device", "virtio-net-device,netdev=net"),
            )
            yield replace(guest, before=("devices", f"port={self.port}"), devices=options, fds=fds)

    @contextlib.contextmanager
    def _netdev(self, kind: Kind) -> Iterator[tuple[str, tuple[int, ...]]]:
        if kind.name == OURS or self.network == "user":
            yield "user,id=net", ()
            return
        with passt() as link:
            yield f"stream,id=net,server=off,addr.type=fd,addr.str={link.fileno()}", (link.fileno(),)


@contextlib.contextmanager
def devices(native: Path, work: Path, quick: bool, network: str) -> Iterator[Devices]:
    """Makes the disk and starts the peer."""
    if shutil.which("passt") is None:
        raise BenchError("passt: not found; install it first (Debian package passt)")
    fill(work / "disk", QUICK_BYTES if quick else DISK_BYTES)
    with started([str(native), *["quick"] * quick, "peer"]) as peer:
        assert peer.stdout
        yield Devices(work / "disk", int(peer.stdout.readline()), network)


def fill(disk: Path, size: int) -> None:
    """Blocks of noise that begin with their number, on the host's disk before anything is measured."""
    noise = bytearray(os.urandom(PIECE))
    with disk.open("wb") as file:
        for start in range(0, size, PIECE):
            for at in range(0, PIECE, BLOCK):
                noise[at : at + 8] = ((start + at) // BLOCK).to_bytes(8, "little")
            file.write(noise)


@contextlib.contextmanager
def passt() -> Iterator[socket.socket]:
    """A machine's end of the link to a passt with the options and buffers that Hartbeat gives its own."""
    words, _ = command(NetdevConfig("user", "net"))
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, ROOM)
    with ours, theirs:
        process = subprocess.Popen(
            [*words, "--foreground", "--quiet", "--one-off", "--fd", str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(),),
            start_new_session=True,
        )
        with ended_later(process):
            yield ours
