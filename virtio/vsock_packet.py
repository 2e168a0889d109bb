"""The packets of virtio-vsock (virtio 1.3, 5.10.6): a header, and after it data in those that carry some."""

from enum import IntEnum
from struct import Struct
from typing import NamedTuple

HOST_CID = 2
STREAM = 1  # the type of a packet
SHUT_RECEIVE, SHUT_SEND = 1, 2  # flags of SHUTDOWN: what its sender will not do any more
SHUT = SHUT_RECEIVE | SHUT_SEND
WORD = 0xFFFF_FFFF  # counters go round in 32 bits
LAYOUT = Struct("<QQIIIHHIII")  # struct virtio_vsock_hdr
HEADER_BYTES = LAYOUT.size


class Op(IntEnum):
    """What a packet is for."""

    INVALID = 0
    REQUEST = 1
    RESPONSE = 2
    RST = 3
    SHUTDOWN = 4
    RW = 5
    CREDIT_UPDATE = 6
    CREDIT_REQUEST = 7


class Ports(NamedTuple):
    """Between the same two a guest has one connection at most."""

    host: int
    guest: int


class Header(NamedTuple):
    """A packet's header; `size` is the bytes of data that follow it."""

    source_cid: int
    target_cid: int
    source_port: int
    target_port: int
    size: int
    kind: int
    op: int
    flags: int = 0
    buffer: int = 0  # buf_alloc: how much its sender has room for
    forwarded: int = 0  # fwd_cnt: how much its sender has passed on, of what it was sent

    def pack(self) -> bytes:
        """As it is in memory."""
        return LAYOUT.pack(*self)

    def refusal(self) -> "Header":
        """The answer to a packet that no connection is for."""
        return Header(self.target_cid, self.source_cid, self.target_port, self.source_port, 0, self.kind, Op.RST)


def parse(data: bytes) -> Header:
    """The header in 44 bytes."""
    return Header(*LAYOUT.unpack(data))
