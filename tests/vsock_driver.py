"""A driver of virtio-vsock without a guest, and the host's ends that it talks to."""

import select
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from struct import pack, unpack
from typing import Any, NamedTuple

from fake_driver import DATA, Rig

from virtio.queue import Ram
from virtio.sockets import listen
from virtio.vsock import EVENTS, RECEIVE, TRANSMIT, Vsock
from virtio.vsock_host import VsockHost

CID, HOST = 3, 2
PORT = 1234  # of the guest's
SERVICE = 80
INVALID, REQUEST, RESPONSE, RST, SHUTDOWN, RW, CREDIT_UPDATE, CREDIT_REQUEST = range(8)
STREAM, SEQPACKET = 1, 2
NO_RECEIVE, NO_SEND, NEITHER = 1, 2, 3
ROOM = 1 << 18  # the driver's buf_alloc
BUFFER_BYTES = 4096  # of a receive buffer, as Linux has them
AREA = 0x1000


class Packet(NamedTuple):
    """What the device has sent: the header's fields as the specification orders them, and data."""

    src_cid: int
    dst_cid: int
    src_port: int
    dst_port: int
    len: int
    type: int
    op: int
    flags: int
    buf_alloc: int
    fwd_cnt: int
    data: bytes


def header(op: int, guest: int, host: int, **given: int) -> bytes:
    """struct virtio_vsock_hdr of a packet to the device, written from the specification."""
    fields = {"src_cid": CID, "dst_cid": HOST, "src_port": guest, "dst_port": host, "len": 0, "type": STREAM}
    fields |= {"op": op, "flags": 0, "buf_alloc": ROOM, "fwd_cnt": 0} | given
    return pack("<QQIIIHHIII", *fields.values())


class Guest:
    """The driver; `buffers` are kept in the receive ring all the time."""

    def __init__(self, rig: Any, buffers: int = 16, size: int = BUFFER_BYTES) -> None:
        self.rig, self.size, self.wanted = rig, size, buffers
        self.begin()

    def begin(self, features: int | None = None) -> None:
        """The driver comes up, perhaps once more."""
        self.rig.start(features)
        self.offered: dict[int, tuple[int, int]] = {}  # by head: number and address of a receive buffer
        self.free = list(range(self.wanted))
        self.place = 0
        self.packets: list[Packet] = []
        self.offer()

    def offer(self) -> None:
        """Put all receive buffers that are free into the ring."""
        ring = self.rig.rings[RECEIVE]
        while self.free and ring.room():
            number = self.free.pop(0)
            ring.bump = DATA + number * AREA
            (buffer,) = ring.add(self.size)
            known = ring.chains if hasattr(ring, "chains") else ring.taken
            self.offered[next(reversed(known))] = number, buffer.address
        self.rig.kick(RECEIVE)

    def send(self, op: int, guest: int, host: int, data: bytes = b"", **given: int) -> None:
        """One packet; its buffers are the device's until it has been given back."""
        self.send_raw(header(op, guest, host, **({"len": len(data)} | given)), data)

    def send_raw(self, *parts: bytes) -> None:
        ring = self.rig.rings[TRANSMIT]
        ring.collect()
        if self.place > 0x6_0000:  # what was sent so long ago has been given back
            self.place = 0
        ring.bump = DATA + 0x8_0000 + self.place
        ring.add(*[part for part in parts if part])
        self.place = ring.bump - DATA - 0x8_0000
        self.rig.kick(TRANSMIT)

    def look(self) -> None:
        """Take what has been received, and offer the buffers anew."""
        self.rig.turn()
        for head, size in self.rig.rings[RECEIVE].collect():
            number, address = self.offered.pop(head)
            data = bytes(self.rig.ram.view(address, size))
            self.packets.append(Packet(*unpack("<QQIIIHHIII", data[:44]), data[44:]))
            assert self.packets[-1].len == size - 44
            self.free.append(number)
        if self.free and self.wanted:
            self.offer()

    def wait(self, op: int, seconds: float = 60) -> Packet:
        """The next packet of this kind; those before it are dropped, unless they are RST."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.look()
            while self.packets:
                packet = self.packets.pop(0)
                if packet.op == op:
                    return packet
                assert packet.op != RST, f"the connection was reset: {packet}"
            time.sleep(0.0005)
        raise AssertionError(f"no packet {op} has come")

    def several(self, count: int, seconds: float = 60) -> list[Packet]:
        """The next packets of any kind, so many."""
        deadline = time.monotonic() + seconds
        while len(self.packets) < count:
            assert time.monotonic() < deadline, f"only {len(self.packets)} packets have come"
            self.look()
            time.sleep(0.0005)
        found, self.packets = self.packets[:count], self.packets[count:]
        return found

    def quiet(self, seconds: float = 0.05) -> list[Packet]:
        """What comes within a short while; a few looks at least, the last of them behind it."""
        deadline, looks, is_over = time.monotonic() + seconds, 0, False
        while not is_over or looks < 5:
            is_over = time.monotonic() > deadline
            self.look()
            looks += 1
            time.sleep(0.001)
        packets, self.packets = self.packets, []
        return packets

    def read(self, size: int, seconds: float = 60) -> bytes:
        """So many bytes of data."""
        data = b""
        while len(data) < size:
            data += self.wait(RW, seconds).data
        return data

    def connect(self, guest: int, host: int, **given: int) -> Packet:
        self.send(REQUEST, guest, host, **given)
        return self.wait(RESPONSE)

    def event(self) -> int | None:
        """The next event, from a buffer that is offered for it."""
        ring = self.rig.rings[EVENTS]
        if not ring.has_used() and ring.room() == ring.size:
            ring.bump = DATA + 2 * 0x8_0000
            ring.add(4)
            self.rig.kick(EVENTS)
        self.rig.turn()
        if not ring.collect():
            return None
        return int(unpack("<I", self.rig.ram.view(DATA + 2 * 0x8_0000, 4))[0])


class TestRig(Rig):
    """The event loop's part is played too."""

    __test__ = False

    def kick(self, index: int) -> None:
        self.notify(index)

    def turn(self) -> None:
        """What the I/O process does in one round."""
        host = self.device.host
        assert host
        for fd in host.interest():
            if select.select([fd], [], [], 0)[0]:
                host.ready(fd, select.EPOLLIN)
        while self.transport.poll():
            pass


def new_host(folder: Path) -> VsockHost:
    """The host's end, with its socket at `v` in the folder."""
    path = str(folder / "v")
    listener = listen((socket.AF_UNIX, path))
    listener.listen(600)
    return VsockHost(listener, path)


class Peers:
    """Programs of the host's."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "v")
        self.sockets: list[socket.socket] = []

    def listen(self, port: int) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(f"{self.path}_{port}")
        listener.listen(600)
        return self._kept(listener)

    def call(self, port: int, greeting: bytes = b"") -> socket.socket:
        caller = socket.socket(socket.AF_UNIX)
        caller.connect(self.path)
        caller.sendall(greeting or b"CONNECT %d\n" % port)
        return self._kept(caller)

    def accept(self, listener: socket.socket) -> socket.socket:
        listener.settimeout(60)
        return self._kept(listener.accept()[0])

    def _kept(self, end: socket.socket) -> socket.socket:
        end.settimeout(60)
        self.sockets.append(end)
        return end

    def close(self) -> None:
        for end in self.sockets:
            end.close()


def read_line(end: socket.socket) -> bytes:
    """Up to the end of a line and not a byte more."""
    text = b""
    while not text.endswith(b"\n"):
        byte = end.recv(1)
        assert byte, f"ended after {text!r}"
        text += byte
    return text


def set_up(ram: Ram, folder: Path, **given: int) -> Iterator[tuple[Guest, Peers]]:
    """A driver in front of the device, and the host behind it."""
    host, peers = new_host(folder), Peers(folder)
    host.start()
    guest = Guest(TestRig(ram, Vsock(CID, host)), **given)
    try:
        yield guest, peers
    finally:
        host.close()
        peers.close()


def open_to_host(guest: Guest, peers: Peers, port: int = PORT, **given: int) -> socket.socket:
    """A connection that the guest has asked for; the host's end of it."""
    listener = peers.listen(SERVICE)
    guest.connect(port, SERVICE, **given)
    return peers.accept(listener)


def open_to_guest(guest: Guest, peers: Peers, port: int = PORT, **given: int) -> tuple[socket.socket, int]:
    """A connection that the host has asked for; the host's end of it and its port."""
    caller = peers.call(port)
    asked = guest.wait(REQUEST)
    guest.send(RESPONSE, port, asked.src_port, **given)
    assert read_line(caller) == b"OK %d\n" % asked.src_port
    return caller, asked.src_port


def take(end: socket.socket, guest: Guest) -> bytes:
    """What comes next at the host's end, while the device does its part."""
    while not select.select([end], [], [], 0.001)[0]:
        guest.look()
    return end.recv(1 << 16)
