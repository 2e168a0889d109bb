"""virtio-vsock: nobody sends more than the other has room for, and all that is sent arrives."""

import contextlib
import random
import socket
from pathlib import Path

import pytest
from vsock_driver import (
    CREDIT_REQUEST,
    CREDIT_UPDATE,
    NO_SEND,
    PORT,
    RST,
    RW,
    SERVICE,
    SHUTDOWN,
    Guest,
    Peers,
    open_to_host,
    set_up,
    take,
)

from virtio.features import RING_PACKED
from virtio.queue import Ram
from virtio.vsock_connection import BUFFER


def test_what_the_host_does_not_take_is_kept_up_to_the_credit(ends: tuple[Guest, Peers]) -> None:
    guest, peers = ends
    end = open_to_host(guest, peers)
    data = random.Random(1).randbytes(3 << 20)
    sent = told = 0
    received = b""
    piece = 32768
    stalls = 0
    while sent < len(data):
        packets = guest.quiet(0.005)
        for packet in packets:
            assert packet.op == CREDIT_UPDATE and packet.buf_alloc == BUFFER
            told = packet.fwd_cnt
        if sent + piece - told <= BUFFER:
            guest.send(RW, PORT, SERVICE, data[sent : sent + piece])
            sent += piece
        elif not packets:  # out of credit: nothing changes until the host reads
            assert 0 < len(guest.rig.device.connections[(SERVICE, PORT)].output) <= BUFFER
            received += end.recv(1 << 16)
            stalls += 1
    assert stalls > 10
    guest.send(SHUTDOWN, PORT, SERVICE, flags=NO_SEND)
    while piece_of := take(end, guest):
        received += piece_of
    assert received == data


def test_a_driver_that_sends_more_than_it_may_loses_the_connection(ends: tuple[Guest, Peers]) -> None:
    guest, peers = ends
    open_to_host(guest, peers)
    most = 0
    for _ in range(100):
        guest.send(RW, PORT, SERVICE, bytes(32768))
        if connection := guest.rig.device.connections.get((SERVICE, PORT)):
            most = max(most, len(connection.output))
    assert guest.wait(RST).src_port == SERVICE
    assert 0 < most <= BUFFER


def test_a_request_for_credit_is_answered(ends: tuple[Guest, Peers]) -> None:
    guest, peers = ends
    end = open_to_host(guest, peers)
    guest.send(RW, PORT, SERVICE, b"12345")
    assert end.recv(10) == b"12345" and guest.quiet() == []
    guest.send(CREDIT_REQUEST, PORT, SERVICE)
    answer = guest.wait(CREDIT_UPDATE)
    assert (answer.buf_alloc, answer.fwd_cnt) == (BUFFER, 5)


def test_the_driver_gets_no_more_than_it_has_room_for(ends: tuple[Guest, Peers]) -> None:
    guest, peers = ends
    end = open_to_host(guest, peers, buf_alloc=5000)
    data = random.Random(2).randbytes(12000)
    end.sendall(data)
    assert guest.read(5000) == data[:5000]
    (asked,) = guest.quiet()  # once, and no more
    assert asked.op == CREDIT_REQUEST
    guest.send(CREDIT_UPDATE, PORT, SERVICE, buf_alloc=5000, fwd_cnt=1)
    assert guest.wait(RW).data == data[5000:5001]
    assert guest.wait(CREDIT_REQUEST).op
    guest.send(CREDIT_UPDATE, PORT, SERVICE, buf_alloc=100, fwd_cnt=5001)  # less room than there was
    assert guest.read(100) == data[5001:5101]
    guest.send(CREDIT_UPDATE, PORT, SERVICE, buf_alloc=0xFFFF_FFFF, fwd_cnt=5101)
    assert guest.read(6899) == data[5101:]
    for alloc, forwarded in ((0, 0), (0, 12001), (0xFFFF_FFFF, 0xFFFF_0000), (1, 0x8000_0000)):
        guest.send(CREDIT_UPDATE, PORT, SERVICE, buf_alloc=alloc, fwd_cnt=forwarded)
        assert RST not in [packet.op for packet in guest.quiet(0.01)]


def test_the_counters_go_round(ends: tuple[Guest, Peers]) -> None:
    guest, peers = ends
    end = open_to_host(guest, peers, fwd_cnt=0)
    connection = guest.rig.device.connections[(SERVICE, PORT)]
    near = 0xFFFF_FFF0
    connection.received = connection.forwarded = connection.told = connection.sent = near
    data = random.Random(3).randbytes(200_000)
    end.sendall(data[:100_000])
    assert guest.quiet(0.02)[0].op == CREDIT_REQUEST
    guest.send(CREDIT_UPDATE, PORT, SERVICE, fwd_cnt=near)
    assert guest.read(100_000) == data[:100_000]
    for at in range(0, 200_000, 20_000):
        guest.send(RW, PORT, SERVICE, data[at : at + 20_000], fwd_cnt=near + 100_000 & 0xFFFF_FFFF)
        assert b"".join(take(end, guest) for _ in range(1)) == data[at : at + 20_000]
    guest.send(CREDIT_REQUEST, PORT, SERVICE)
    packets = [guest.wait(CREDIT_UPDATE), *guest.quiet()]
    assert packets[-1].fwd_cnt == near + 200_000 & 0xFFFF_FFFF


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("size", [60, 1500, 4096])
def test_a_lot_of_data_both_ways_at_once(ram: Ram, tmp_path: Path, size: int, packed: bool) -> None:
    amount = (1 << 17) * (1 if size == 60 else 16)
    for guest, peers in set_up(ram, tmp_path, size=size):
        if packed:
            guest.rig.device.ring_features |= RING_PACKED
            guest.rig.transport.offered |= RING_PACKED
            guest.begin()
        end = open_to_host(guest, peers)
        source = random.Random(size)
        out, back = source.randbytes(amount), source.randbytes(amount)
        exchange(guest, end, source, out, back)


def exchange(guest: Guest, end: socket.socket, source: random.Random, out: bytes, back: bytes) -> None:
    """`out` from the guest and `back` to it, in pieces of all sizes, by whoever has credit."""
    sent = told = passed = returned = 0
    received, heard = bytearray(), bytearray()
    end.setblocking(False)
    while len(received) < len(back) or len(heard) < len(out):
        piece = out[sent : sent + source.randrange(1, 20_000)]
        if piece and sent + len(piece) - told <= BUFFER:
            guest.send(RW, PORT, SERVICE, piece, fwd_cnt=len(received))
            sent += len(piece)
        elif len(received) - passed > 50_000:
            guest.send(CREDIT_UPDATE, PORT, SERVICE, fwd_cnt=len(received))
            passed = len(received)
        guest.look()
        for packet in guest.packets:
            assert packet.op in (RW, CREDIT_UPDATE, CREDIT_REQUEST)
            told = packet.fwd_cnt
            received += packet.data
            if packet.op == CREDIT_REQUEST:
                guest.send(CREDIT_UPDATE, PORT, SERVICE, fwd_cnt=len(received))
        guest.packets.clear()
        with contextlib.suppress(BlockingIOError):
            heard += end.recv(source.randrange(1, 100_000))
        with contextlib.suppress(BlockingIOError):
            returned += end.send(back[returned : returned + source.randrange(1, 100_000)])
    assert bytes(received) == back and bytes(heard) == out
