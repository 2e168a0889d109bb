"""`-netdev tap`: an interface of the host's kernel, with virtio_net_hdr before each frame where the kernel has it.

Then checksums and segmentation are left to whoever needs them, in both directions.  Each queue pair is a descriptor
of its own, and the kernel sends a flow's frames to the queue that the flow's were last sent from.
"""

import errno
import fcntl
import os
import select
import struct

from virtio.needs import Needs
from virtio.netdev import ETHERNET, HEADER_BYTES, MAX_FRAME, PLAIN, Frame, Netdev
from virtio.netfeatures import (
    F_CSUM,
    F_GUEST_CSUM,
    F_GUEST_ECN,
    F_GUEST_TSO4,
    F_GUEST_TSO6,
    F_GUEST_USO4,
    F_GUEST_USO6,
    F_HOST_ECN,
    F_HOST_TSO4,
    F_HOST_TSO6,
    F_HOST_USO,
)

IN, OUT = select.EPOLLIN, select.EPOLLOUT
DEVICE = "/dev/net/tun"
# linux/if_tun.h
TUNGETFEATURES, TUNSETOFFLOAD, TUNSETVNETHDRSZ, TUNSETVNETLE = 0x8004_54CF, 0x4004_54D0, 0x4004_54D8, 0x4004_54DC
TUNSETIFF, TUNGETIFF, TUNSETQUEUE = 0x4004_54CA, 0x8004_54D2, 0x4004_54D9
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR, IFF_MULTI_QUEUE = 0x0002, 0x1000, 0x4000, 0x0100
IFF_ATTACH_QUEUE, IFF_DETACH_QUEUE = 0x0200, 0x0400
IFREQ = struct.Struct("16sH22x")
# What the guest takes, and TUN_F_* for it.
OFFLOADS = {
    F_GUEST_CSUM: 0x01,
    F_GUEST_TSO4: 0x02,
    F_GUEST_TSO6: 0x04,
    F_GUEST_ECN: 0x08,
    F_GUEST_USO4: 0x20,
    F_GUEST_USO6: 0x40,
}
TUN_CSUM, TUN_USO = 0x01, 0x60
SEGMENTS = F_CSUM | F_HOST_TSO4 | F_HOST_TSO6 | F_HOST_ECN | F_GUEST_CSUM | F_GUEST_TSO4 | F_GUEST_TSO6 | F_GUEST_ECN
DATAGRAMS = F_HOST_USO | F_GUEST_USO4 | F_GUEST_USO6  # Linux 6.2


def open_tap(ifname: str, queues: int, vnet_hdr: bool) -> list[int]:
    """A descriptor for each queue of a new interface, or of one that is there."""
    flags = IFF_TAP | IFF_NO_PI | (IFF_MULTI_QUEUE if queues > 1 else 0)
    fds: list[int] = []
    try:
        for _ in range(queues):
            fds.append(os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC))
            if vnet_hdr and struct.unpack("I", fcntl.ioctl(fds[0], TUNGETFEATURES, bytes(4)))[0] & IFF_VNET_HDR:
                flags |= IFF_VNET_HDR
            made = fcntl.ioctl(fds[-1], TUNSETIFF, IFREQ.pack(ifname.encode(), flags))
            ifname = IFREQ.unpack(made)[0].rstrip(b"\0").decode()
    except OSError:
        for fd in fds:
            os.close(fd)
        raise
    return fds


class Tap(Netdev):
    """The interface with these descriptors, one a queue."""

    def __init__(self, name: str, fds: list[int]) -> None:
        self.name, self.fds, self.queues = name, fds, len(fds)
        flags = IFREQ.unpack(fcntl.ioctl(fds[0], TUNGETIFF, bytes(IFREQ.size)))[1]
        self.is_multi = bool(flags & IFF_MULTI_QUEUE)
        self.header = HEADER_BYTES if flags & IFF_VNET_HDR else 0
        for fd in fds:
            os.set_blocking(fd, False)
            if self.header:
                fcntl.ioctl(fd, TUNSETVNETHDRSZ, struct.pack("i", HEADER_BYTES))
                fcntl.ioctl(fd, TUNSETVNETLE, struct.pack("i", 1))
        if self.header:
            self.offloads = SEGMENTS | (DATAGRAMS if self._set_offloads(TUN_CSUM | TUN_USO) else 0)
        self.buffers = [memoryview(bytearray(HEADER_BYTES + MAX_FRAME)) for _ in fds]
        self.readable, self.blocked = [False] * len(fds), [False] * len(fds)
        self.attached = len(fds)
        self.configure(0, 1)

    def _set_offloads(self, flags: int) -> bool:
        try:
            fcntl.ioctl(self.fds[0], TUNSETOFFLOAD, flags)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return False
        return True

    def configure(self, features: int, queues: int) -> None:
        if self.header:
            self._set_offloads(sum(flag for feature, flag in OFFLOADS.items() if features & feature))
        for number in range(min(queues, self.attached), max(queues, self.attached)) if self.is_multi else ():
            flags = IFF_ATTACH_QUEUE if queues > self.attached else IFF_DETACH_QUEUE
            fcntl.ioctl(self.fds[number], TUNSETQUEUE, IFREQ.pack(b"", flags))
        self.attached = queues

    def needs(self) -> Needs:
        return Needs(ioctls=(TUNSETOFFLOAD, TUNSETQUEUE))

    def interest(self) -> dict[int, int]:
        wanted = {}
        for fd, readable, blocked in zip(self.fds[: self.attached], self.readable, self.blocked, strict=False):
            if events := (0 if readable else IN) | (OUT if blocked else 0):
                wanted[fd] = events
        return wanted

    def ready(self, fd: int, events: int) -> None:
        number = self.fds.index(fd)
        self.readable[number] |= bool(events & ~OUT)
        if events & ~IN:
            self.blocked[number] = False

    def send(self, queue: int, frames: list[Frame]) -> int:
        fd = self.fds[queue]
        for taken, frame in enumerate(frames):
            if self.blocked[queue]:
                return taken
            try:
                os.writev(fd, [frame.header, *frame.parts] if self.header else frame.parts)
            except BlockingIOError:
                self.blocked[queue] = True
                return taken
            except OSError:  # the interface is down, or the header makes no sense: lost
                continue
        return len(frames)

    def receive(self, queue: int) -> Frame | None:
        buffer = self.buffers[queue]
        while self.readable[queue]:
            try:
                size = os.readv(self.fds[queue], [buffer])
            except OSError:  # nothing more, or the interface is down
                self.readable[queue] = False
                return None
            if size >= self.header + ETHERNET:
                header = bytes(buffer[:HEADER_BYTES]) if self.header else PLAIN
                return Frame([buffer[self.header : size]], header)
        return None

    def stop(self) -> None:
        if self.fds:
            self.configure(0, 1)  # the kernel remembers what was attached, and the next I/O process does not

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)
        self.fds = []
        self.attached = 0
