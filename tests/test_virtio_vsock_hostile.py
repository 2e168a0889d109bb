"""virtio-vsock: what a driver that does not behave gets, and the limits of one that asks for much."""

import select
from pathlib import Path
from struct import pack

import pytest
from fake_driver import ACKNOWLEDGE_DRIVER
from vsock_driver import (
    CID,
    CREDIT_REQUEST,
    CREDIT_UPDATE,
    HOST,
    INVALID,
    PORT,
    REQUEST,
    RESPONSE,
    RST,
    RW,
    SEQPACKET,
    SERVICE,
    SHUTDOWN,
    STREAM,
    Guest,
    Peers,
    header,
    open_to_host,
    set_up,
)

from mem.window import Register
from virtio import vsock
from virtio.queue import Ram
from virtio.vsock import F_NO_IMPLIED_STREAM, F_STREAM, MOST, RECEIVE, TRANSMIT

# Packets that belong to nothing


@pytest.mark.parametrize("op", [INVALID, RESPONSE, SHUTDOWN, RW, CREDIT_UPDATE, CREDIT_REQUEST, 8, 0xFFFF])
def test_what_nobody_waits_for_is_reset(ends: tuple[Guest, Peers], op: int) -> None:
    guest, _ = ends
    guest.send(op, PORT, SERVICE, b"data" if op == RW else b"")
    assert guest.quiet() == [(HOST, CID, SERVICE, PORT, 0, STREAM, RST, 0, 0, 0, b"")]


def test_a_reset_is_never_answered(ends: tuple[Guest, Peers]) -> None:
    guest, _ = ends
    guest.send(RST, PORT, SERVICE)
    guest.send(RST, PORT, SERVICE, type=7)
    assert guest.quiet() == []


@pytest.mark.parametrize("kind", [0, SEQPACKET, 3, 0xFFFF])
def test_other_types_are_reset_in_kind(ends: tuple[Guest, Peers], kind: int) -> None:
    guest, peers = ends
    end = open_to_host(guest, peers)
    for op in (REQUEST, RW):
        guest.send(op, PORT, SERVICE, type=kind)
        assert guest.wait(RST)[:7] == (HOST, CID, SERVICE, PORT, 0, kind, RST)
    guest.send(RW, PORT, SERVICE, b"the stream is as it was")
    assert end.recv(100) == b"the stream is as it was"


def test_addresses_of_others(ends: tuple[Guest, Peers]) -> None:
    """To another than the host: refused in its name.  From another than the guest: dropped."""
    guest, peers = ends
    end = open_to_host(guest, peers)
    for cid in (0, 1, CID, 99, 0xFFFF_FFFF, HOST | 1 << 32):
        guest.send(REQUEST, 1, 2, dst_cid=cid)
        assert guest.wait(RST)[:4] == (cid, CID, 2, 1)
        guest.send(RW, PORT, SERVICE, b"x", dst_cid=cid)
        assert guest.wait(RST).src_cid == cid
    for cid in (0, HOST, 4, CID | 1 << 32, (1 << 64) - 1):
        guest.send(REQUEST, 1, 2, src_cid=cid)
        guest.send(RW, PORT, SERVICE, b"x", src_cid=cid)
    assert guest.quiet() == [] and not select.select([end], [], [], 0)[0]


def test_without_streams_nothing_can_be_connected(ends: tuple[Guest, Peers]) -> None:
    guest, peers = ends
    peers.listen(SERVICE)
    assert guest.rig.features() & 7 == F_STREAM | F_NO_IMPLIED_STREAM
    guest.begin(guest.rig.features() & ~F_STREAM)
    guest.send(REQUEST, PORT, SERVICE)
    assert guest.wait(RST).src_port == SERVICE
    guest.begin(guest.rig.features() & ~(F_STREAM | F_NO_IMPLIED_STREAM))
    guest.connect(PORT, SERVICE)


@pytest.mark.parametrize(
    "wrong", [REQUEST, RESPONSE, INVALID, 8], ids=["a second request", "a response", "invalid", "unknown"]
)
def test_nonsense_on_a_connection_ends_it(ends: tuple[Guest, Peers], wrong: int) -> None:
    guest, peers = ends
    end = open_to_host(guest, peers)
    guest.send(wrong, PORT, SERVICE)
    assert guest.wait(RST)[:4] == (HOST, CID, SERVICE, PORT)
    assert end.recv(10) == b""
    guest.send(REQUEST, PORT, SERVICE)
    assert guest.wait(RESPONSE).dst_port == PORT  # the ports are free again


def test_data_before_a_connection_is_open_ends_it(ends: tuple[Guest, Peers]) -> None:
    guest, peers = ends
    caller = peers.call(PORT)
    port = guest.wait(REQUEST).src_port
    guest.send(CREDIT_UPDATE, PORT, port)
    assert guest.quiet() == []
    guest.send(RW, PORT, port, b"too early")
    assert guest.wait(RST).src_port == port
    assert caller.recv(10) == b""


# Limits


def test_connections_are_limited_whoever_asks(ends: tuple[Guest, Peers]) -> None:
    guest, peers = ends
    peers.listen(SERVICE)
    for port in range(MOST - 1):
        guest.send(REQUEST, port, SERVICE)
    assert {packet.op for packet in guest.several(MOST - 1)} == {RESPONSE}
    first, second = peers.call(1), peers.call(2)
    assert [packet.dst_port for packet in guest.quiet()] == [1]
    guest.send(REQUEST, MOST, SERVICE)
    assert guest.wait(RST).dst_port == MOST
    guest.send(RST, 7, SERVICE)
    assert guest.wait(REQUEST).dst_port == 2  # it has waited for its turn
    for end in (first, second):
        end.close()


def test_without_buffers_nothing_is_heaped_up(ram: Ram, tmp_path: Path) -> None:
    for guest, peers in set_up(ram, tmp_path, buffers=0):
        end_of_queue = 0
        for port in range(2000):
            ring = guest.rig.rings[TRANSMIT]
            if not ring.room():
                end_of_queue += 1
                break
            guest.send(RW, port, SERVICE, b"x")
            guest.rig.turn()
        assert end_of_queue and len(guest.rig.device.refusals) == vsock.MOST_REFUSALS
        caller = peers.call(5)
        guest.rig.turn()
        guest.wanted, guest.free = 16, list(range(16))
        guest.offer()
        packets = guest.several(port + 1) + guest.quiet()
        assert [packet.dst_port for packet in packets if packet.op == RST] == list(range(port))
        assert [packet.dst_port for packet in packets if packet.op == REQUEST] == [5]
        caller.close()


# Drivers that break the rules


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ((b"x" * 43,), "43 bytes of its header"),
        ((header(RW, PORT, SERVICE, len=100), b"x" * 99), "of 100 bytes has 99"),
        ((header(RW, PORT, SERVICE, len=0xFFFF_FFFF), b"x"), "of 4294967295 bytes has 1"),
    ],
)
def test_a_packet_that_is_cut_needs_a_reset(
    ends: tuple[Guest, Peers], parts: tuple[bytes, ...], words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    guest, peers = ends
    end = open_to_host(guest, peers)
    guest.send_raw(*parts)
    assert guest.rig.needs_reset() and words in capfd.readouterr().err
    guest.begin()
    assert guest.rig.read(Register.STATUS) == ACKNOWLEDGE_DRIVER | 8 | 4
    assert end.recv(10) == b""


@pytest.mark.parametrize("size", [1, 43, 44])
def test_a_buffer_without_room_needs_a_reset(
    ram: Ram, tmp_path: Path, size: int, capfd: pytest.CaptureFixture[str]
) -> None:
    for guest, peers in set_up(ram, tmp_path, size=size):
        peers.listen(SERVICE)
        guest.send(REQUEST, PORT, SERVICE)
        for _ in range(100):
            guest.look()
            if guest.rig.needs_reset():
                break
            select.select([], [], [], 0.002)
        assert guest.rig.needs_reset() and "bytes" in capfd.readouterr().err


def test_headers_and_data_in_pieces(ends: tuple[Guest, Peers]) -> None:
    guest, peers = ends
    end = open_to_host(guest, peers)
    text = header(RW, PORT, SERVICE, len=6) + b"pieces and more than was said"
    guest.send_raw(text[:1], text[1:30], text[30:46], text[46:])
    assert end.recv(100) == b"pieces"


def test_a_receive_buffer_in_pieces(ends: tuple[Guest, Peers]) -> None:
    guest, peers = ends
    end = open_to_host(guest, peers)
    guest.wanted = 0
    device = guest.rig.device
    while device.buffers or device.has_buffers:  # what was offered before is used up
        end.sendall(b"x")
        guest.rig.turn()
    guest.look()
    guest.rig.rings[RECEIVE].collect()
    ring = guest.rig.rings[RECEIVE]
    ring.bump = 0x8030_0000
    pieces = ring.add(10, 30, 6, 100)
    guest.rig.kick(RECEIVE)
    end.sendall(b"scattered")
    guest.rig.turn()
    (found,) = ring.collect()
    data = b"".join(bytes(guest.rig.ram.view(piece.address, piece.size)) for piece in pieces)
    assert found[1] == 53 and data[44:53] == b"scattered"
    assert data[:4] == pack("<I", HOST)
