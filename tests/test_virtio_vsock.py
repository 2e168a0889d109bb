"""virtio-vsock: connections both ways, how they end, and what a reset leaves of them."""

import contextlib
import os
import select
import socket
from pathlib import Path

import pytest
from vsock_driver import (
    CID,
    CREDIT_REQUEST,
    CREDIT_UPDATE,
    HOST,
    NEITHER,
    NO_RECEIVE,
    NO_SEND,
    PORT,
    REQUEST,
    RESPONSE,
    RST,
    RW,
    SERVICE,
    SHUTDOWN,
    STREAM,
    Guest,
    Peers,
    TestRig,
    new_host,
    open_to_guest,
    open_to_host,
    read_line,
    take,
)

from mem.window import Register
from virtio import vsock_host
from virtio.queue import Ram
from virtio.vsock import RECEIVE, TRANSMIT, Vsock
from virtio.vsock_connection import BUFFER

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
