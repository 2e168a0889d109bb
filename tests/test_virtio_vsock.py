"""virtio-vsock: connections both ways, credit, how they end, and what a driver that does not behave gets."""

import contextlib
import os
import random
import select
import socket
from collections.abc import Iterator
from pathlib import Path
from struct import pack

import pytest
from fake_driver import ACKNOWLEDGE_DRIVER, machine_memory
from vsock_driver import (
    CID,
    CREDIT_REQUEST,
    CREDIT_UPDATE,
    HOST,
    INVALID,
    NEITHER,
    NO_RECEIVE,
    NO_SEND,
    REQUEST,
    RESPONSE,
    RST,
    RW,
    SEQPACKET,
    SHUTDOWN,
    STREAM,
    Guest,
    Peers,
    TestRig,
    header,
    new_host,
    read_line,
    set_up,
)

from mem.window import Register
from virtio import vsock, vsock_host
from virtio.features import RING_PACKED
from virtio.queue import Ram
from virtio.vsock import F_NO_IMPLIED_STREAM, F_STREAM, MOST, RECEIVE, TRANSMIT, Vsock
from virtio.vsock_connection import BUFFER

PORT = 1234  # of the guest's
SERVICE = 80


@pytest.fixture
def ram() -> Iterator[Ram]:
    with machine_memory() as ram:
        yield ram


@pytest.fixture
def ends(ram: Ram, tmp_path: Path) -> Iterator[tuple[Guest, Peers]]:
    yield from set_up(ram, tmp_path)


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


# Connections


def test_the_guest_connects_to_a_socket_of_the_hosts(ends: tuple[Guest, Peers]) -> None:
    guest, peers = ends
    listener = peers.listen(SERVICE)
    answer = guest.connect(PORT, SERVICE)
    assert answer[:10] == (HOST, CID, SERVICE, PORT, 0, STREAM, RESPONSE, 0, BUFFER, 0)
    end = peers.accept(listener)
    guest.send(RW, PORT, SERVICE, b"hello host")
    assert end.recv(100) == b"hello host"
    end.sendall(b"hello guest")
    packet = guest.wait(RW)
    assert packet.data == b"hello guest"
    assert packet[:9] == (HOST, CID, SERVICE, PORT, 11, STREAM, RW, 0, BUFFER)
    assert packet.fwd_cnt == 10


def test_the_host_connects_to_a_port_of_the_guests(ends: tuple[Guest, Peers]) -> None:
    guest, peers = ends
    caller = peers.call(PORT, b"CONNECT 1234\nfirst words")
    asked = guest.wait(REQUEST)
    assert asked[:10] == (HOST, CID, 1 << 30, PORT, 0, STREAM, REQUEST, 0, BUFFER, 0)
    assert guest.quiet() == [] and not select.select([caller], [], [], 0)[0]
    guest.send(RESPONSE, PORT, asked.src_port)
    assert read_line(caller) == b"OK 1073741824\n"
    assert guest.wait(RW).data == b"first words"
    guest.send(RW, PORT, asked.src_port, b"an answer")
    assert caller.recv(100) == b"an answer"
    second, port = open_to_guest(guest, peers)
    assert port == asked.src_port + 1
    second.sendall(b"2")
    assert guest.wait(RW).src_port == port


def test_a_call_may_come_in_pieces(ends: tuple[Guest, Peers]) -> None:
    guest, peers = ends
    caller = peers.call(0, b"conn")
    assert guest.quiet() == []
    caller.sendall(b"ect  77")
    assert guest.quiet() == []
    caller.sendall(b"\r\n")
    assert guest.wait(REQUEST).dst_port == 77


@pytest.mark.parametrize(
    "text",
    [b"\n", b"CONNECT\n", b"CONNECT x\n", b"CONNECT -1\n", b"CONNECT 4294967295\n", b"CONNECT 99999999999\n", b"C" * 32,
     b"GET / HTTP/1.1\n", b"CONNECT 1 2\n", b"\0" * 40, b"CONNECT " + b" " * 40 + b"1\n"],
)  # fmt: skip
def test_a_call_that_is_none_is_closed(ends: tuple[Guest, Peers], text: bytes) -> None:
    guest, peers = ends
    caller = peers.call(0, text)
    assert guest.quiet() == []
    with contextlib.suppress(ConnectionResetError):  # not all of it was read
        assert caller.recv(10) == b""


def test_a_caller_that_goes_before_it_is_answered_is_taken_back(ends: tuple[Guest, Peers]) -> None:
    guest, peers = ends
    peers.call(0, b"CONN").close()
    assert guest.quiet() == []
    caller = peers.call(PORT)
    asked = guest.wait(REQUEST)
    caller.close()
    assert guest.wait(RST)[:4] == (HOST, CID, asked.src_port, PORT)
    guest.send(RESPONSE, PORT, asked.src_port)
    assert guest.wait(RST)[:4] == (HOST, CID, asked.src_port, PORT)


def test_a_guest_that_refuses_closes_the_call(ends: tuple[Guest, Peers]) -> None:
    guest, peers = ends
    caller = peers.call(PORT)
    guest.send(RST, PORT, guest.wait(REQUEST).src_port)
    guest.quiet()
    assert caller.recv(10) == b""


def test_where_nobody_listens_is_a_reset(ends: tuple[Guest, Peers], tmp_path: Path) -> None:
    guest, peers = ends
    guest.send(REQUEST, PORT, 99)
    assert guest.wait(RST)[:8] == (HOST, CID, 99, PORT, 0, STREAM, RST, 0)
    peers.listen(98).close()
    (tmp_path / "v_97").write_text("a file")
    (tmp_path / "v_96").symlink_to("/nowhere")
    for port in (98, 97, 96, 0, 0xFFFF_FFFF):
        guest.send(REQUEST, PORT, port)
        assert guest.wait(RST).src_port == port


def test_a_full_backlog_is_a_reset_and_nobody_waits(ends: tuple[Guest, Peers]) -> None:
    guest, peers = ends
    listener = peers.listen(SERVICE)
    listener.listen(0)
    guest.connect(PORT, SERVICE)
    for port in range(2000, 2010):
        guest.send(REQUEST, port, SERVICE)
    answers = guest.several(10)  # the backlog of some kernels has room for one or two
    assert RST in [packet.op for packet in answers]
    assert guest.rig.device.dialled == {} and guest.quiet() == []


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


# Credit


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


def take(end: socket.socket, guest: Guest) -> bytes:
    """What comes next at the host's end, while the device does its part."""
    while not select.select([end], [], [], 0.001)[0]:
        guest.look()
    return end.recv(1 << 16)


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


# The end


def test_the_guest_sends_no_more_and_goes_on_reading(ends: tuple[Guest, Peers]) -> None:
    guest, peers = ends
    end = open_to_host(guest, peers)
    guest.send(RW, PORT, SERVICE, b"the last")
    guest.send(SHUTDOWN, PORT, SERVICE, flags=NO_SEND)
    assert end.recv(100) == b"the last" and end.recv(100) == b""
    end.sendall(b"an answer")
    assert guest.wait(RW).data == b"an answer"
    guest.send(SHUTDOWN, PORT, SERVICE, flags=0)  # what was said stands
    guest.send(SHUTDOWN, PORT, SERVICE, flags=NO_RECEIVE)
    assert guest.wait(RST)[:4] == (HOST, CID, SERVICE, PORT)
    with pytest.raises(BrokenPipeError):
        end.sendall(b"x")


def test_the_guest_reads_no_more_and_goes_on_sending(ends: tuple[Guest, Peers]) -> None:
    guest, peers = ends
    end = open_to_host(guest, peers)
    guest.send(SHUTDOWN, PORT, SERVICE, flags=NO_RECEIVE)
    with pytest.raises(BrokenPipeError):
        end.sendall(b"x")
    guest.send(RW, PORT, SERVICE, b"more")
    assert end.recv(100) == b"more"


def test_the_host_sends_no_more_and_goes_on_reading(ends: tuple[Guest, Peers]) -> None:
    guest, peers = ends
    end, port = open_to_guest(guest, peers)
    end.sendall(b"a question")
    end.shutdown(socket.SHUT_WR)
    assert guest.wait(RW).data == b"a question"
    assert guest.wait(SHUTDOWN).flags == NO_SEND
    guest.send(RW, PORT, port, b"an answer")
    assert end.recv(100) == b"an answer"
    end.close()
    assert guest.wait(SHUTDOWN).flags == NEITHER
    guest.send(RST, PORT, port)
    guest.quiet()
    assert guest.rig.device.connections == {}


def test_the_host_closes_after_everything_was_read(ends: tuple[Guest, Peers]) -> None:
    guest, peers = ends
    end, port = open_to_guest(guest, peers, buf_alloc=4)
    end.sendall(b"question")
    end.close()
    assert guest.wait(RW).data == b"ques"
    assert [packet.op for packet in guest.quiet()] == [CREDIT_REQUEST]
    guest.send(CREDIT_UPDATE, PORT, port, fwd_cnt=4)
    assert guest.wait(RW).data == b"tion"
    assert guest.wait(SHUTDOWN).flags == NEITHER
    guest.send(RW, PORT, port, b"nobody hears it")
    assert guest.quiet() == []


def test_the_host_reads_no_more(ends: tuple[Guest, Peers]) -> None:
    guest, peers = ends
    end = open_to_host(guest, peers)
    end.shutdown(socket.SHUT_RD)
    guest.send(RW, PORT, SERVICE, b"nobody hears it")
    assert guest.wait(SHUTDOWN).flags == NO_RECEIVE
    end.sendall(b"still there")
    assert guest.wait(RW).data == b"still there"


def test_a_host_that_closes_without_reading_is_a_reset(ends: tuple[Guest, Peers]) -> None:
    guest, peers = ends
    end = open_to_host(guest, peers)
    guest.send(RW, PORT, SERVICE, b"lost")
    end.close()
    assert guest.wait(RST).src_port == SERVICE


def test_a_clean_disconnect_comes_after_the_last_byte(ends: tuple[Guest, Peers]) -> None:
    """The host is slow: its buffer and ours are full when the guest closes."""
    guest, peers = ends
    end = open_to_host(guest, peers)
    sent = fill_up(guest)
    guest.send(SHUTDOWN, PORT, SERVICE, flags=NEITHER)
    assert RST not in [packet.op for packet in guest.quiet()]
    got = 0
    while data := take(end, guest):
        got += len(data)
    assert got == sent
    assert guest.wait(RST).src_port == SERVICE


def test_a_guest_that_does_not_wait_for_that_loses_nothing(ends: tuple[Guest, Peers]) -> None:
    guest, peers = ends
    end = open_to_host(guest, peers)
    sent = fill_up(guest)
    guest.send(SHUTDOWN, PORT, SERVICE, flags=NEITHER)
    guest.send(RST, PORT, SERVICE)
    assert guest.rig.device.connections == {} and guest.rig.device.host.has_output()
    got = 0
    while data := take(end, guest):
        got += len(data)
    assert got == sent
    assert guest.rig.device.host.held() == 0 and guest.rig.device.host.links == {}


def fill_up(guest: Guest) -> int:
    """Send until nothing is left of the credit."""
    sent, told = 0, 0
    while sent + 32768 - told <= BUFFER:
        guest.send(RW, PORT, SERVICE, bytes(32768))
        sent += 32768
        told = max([told, *(packet.fwd_cnt for packet in guest.quiet(0.005))])
    return sent


def test_a_reset_by_the_guest_closes_the_hosts_end(ends: tuple[Guest, Peers]) -> None:
    guest, peers = ends
    end = open_to_host(guest, peers)
    guest.send(RST, PORT, SERVICE)
    guest.quiet()
    assert end.recv(10) == b"" and guest.rig.device.connections == {}


def test_a_driver_that_does_not_say_goodbye_is_reset(
    ends: tuple[Guest, Peers], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vsock_host, "FAREWELL", 2)
    guest, peers = ends
    (first, port), (second, other) = open_to_guest(guest, peers), open_to_guest(guest, peers)
    first.close()
    assert guest.wait(SHUTDOWN).flags == NEITHER
    second.close()
    assert guest.wait(SHUTDOWN).flags == NEITHER
    guest.send(RST, PORT, port)
    assert guest.wait(RST).src_port == other
    assert guest.quiet() == []
    assert guest.rig.device.connections == {} == guest.rig.device.host.leaving


# Resets


def test_a_reset_of_the_device_under_load(ends: tuple[Guest, Peers]) -> None:
    guest, peers = ends
    end = open_to_host(guest, peers)
    caller = peers.call(99)
    guest.wait(REQUEST)
    end.sendall(bytes(100_000))
    guest.send(RW, PORT, SERVICE, b"on its way")
    assert guest.event() is None  # nothing was lost yet
    guest.begin()
    assert end.recv(100) == b"on its way"
    with pytest.raises(ConnectionResetError):  # what it had sent was not read
        end.recv(10)
    assert caller.recv(10) == b""
    assert guest.rig.device.connections == {} == guest.rig.device.talkers
    assert guest.event() == 0  # VIRTIO_VSOCK_EVENT_TRANSPORT_RESET
    assert guest.event() is None
    guest.connect(PORT, SERVICE)
    guest.begin()
    guest.begin()
    assert guest.event() is None or guest.event() is None  # no connection was lost the last time


def test_what_was_sent_before_a_reset_still_arrives(ends: tuple[Guest, Peers]) -> None:
    guest, peers = ends
    end = open_to_host(guest, peers)
    sent = fill_up(guest)
    guest.begin()
    assert guest.rig.device.host.held() == 1
    got = 0
    while data := take(end, guest):
        got += len(data)
    assert got == sent and guest.rig.device.host.held() == 0


def test_a_reset_of_the_machine(ram: Ram, tmp_path: Path) -> None:
    """Another I/O process follows: listening goes on, connections do not, and the driver is told once."""
    host, peers = new_host(tmp_path), Peers(tmp_path)
    place = os.stat(peers.path).st_ino
    for life in range(3):
        host.start()
        guest = Guest(TestRig(ram, Vsock(CID, host)))
        assert guest.event() == (0 if life else None)
        assert guest.event() is None
        if life == 0:
            waiting = peers.call(5)  # as it is while there is no guest
        end, _ = open_to_guest(guest, peers) if life else (waiting, guest.wait(REQUEST))
        host.stop()
        assert end.recv(10) == b""
        assert os.stat(peers.path).st_ino == place
    host.close()
    host.close()
    assert not os.path.exists(peers.path)
    peers.close()


def test_a_queue_that_is_reset_alone(ends: tuple[Guest, Peers]) -> None:
    guest, peers = ends
    end = open_to_host(guest, peers)
    end.sendall(bytes(10_000))
    guest.quiet()
    assert guest.rig.device.buffers  # of which the device holds some
    rig = guest.rig
    for index in (RECEIVE, TRANSMIT):
        rig.write(Register.QUEUE_SEL, index)
        rig.write(Register.QUEUE_RESET, 1)
        assert not rig.device.buffers
        end.sendall(b"x")
        rig.turn()
        ring = type(rig.rings[index])(rig.ram, 64, rig.rings[index].table, True)
        rig.set_up(index, ring)
        rig.rings[index] = ring
    guest.offered, guest.free = {}, list(range(guest.wanted))
    guest.offer()
    assert guest.read(2) == b"xx"
    guest.send(RW, PORT, SERVICE, b"goes on")
    assert end.recv(100) == b"goes on"


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


# Much of it


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
