"""Links between machines: streams that are cut, lost and made again, datagrams, and lives of the I/O process."""

import contextlib
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wire import Wire, frame, watch

from smp.config import NetdevConfig
from smp.cpu import ConfigError
from smp.net_setup import open_netdev
from virtio.netdev import MAX_FRAME, Frame, Netdev
from virtio.netpasst import Passt
from virtio.netstream import Stream


def open_one(kind: str, *properties: tuple[str, str]) -> Netdev:
    return open_netdev(NetdevConfig(kind, "n0", properties))


@contextlib.contextmanager
def both(*hosts: Netdev) -> Iterator[tuple[Netdev, ...]]:
    """Started, and closed afterwards."""
    for host in hosts:
        host.start()
    try:
        yield hosts
    finally:
        for host in hosts:
            host.close()


def send(host: Netdev, *frames: bytes) -> int:
    """In pieces, as they would lie in a guest's buffers."""
    return host.send(0, [Frame([memoryview(data)[:20], memoryview(data)[20:]]) for data in frames])


def take(host: Netdev, seconds: float = 1) -> list[bytes]:
    """Everything that has come, after waiting for the first."""
    found = []
    watch(host, seconds=seconds)
    while got := host.receive(0):
        (data,) = got.parts
        found.append(bytes(data))
        watch(host)
    return found


FRAMES = [frame(fill=n, size=60 + 100 * n) for n in range(12)]


def unix(path: Path, *more: tuple[str, str]) -> Netdev:
    return open_one("stream", ("addr.type", "unix"), ("addr.path", str(path)), *more)


def test_a_stream_over_a_unix_socket(tmp_path: Path) -> None:
    with both(unix(tmp_path / "s", ("server", "on"))) as (server,):
        assert not server.is_up
        with both(unix(tmp_path / "s")) as (client,):
            watch(server, seconds=1)
            assert server.is_up and client.is_up
            assert send(client, *FRAMES) == len(FRAMES)
            assert take(server) == FRAMES
            assert send(server, *FRAMES) == len(FRAMES)
            assert take(client) == FRAMES
        assert take(server) == []
        assert not server.is_up
        assert send(server, *FRAMES) == len(FRAMES)  # lost, as without a cable
        with both(unix(tmp_path / "s")) as (client,):
            watch(server, seconds=1)
            send(server, FRAMES[0])
            assert take(client) == FRAMES[:1]
    assert not (tmp_path / "s").exists()


def free_port(kind: int = socket.SOCK_STREAM) -> str:
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def inet(port: str, prefix: str = "addr.") -> list[tuple[str, str]]:
    return [(prefix + "type", "inet"), (prefix + "host", "127.0.0.1"), (prefix + "port", port)]


@pytest.mark.parametrize("is_old", [False, True])
def test_a_stream_over_tcp_in_new_and_old_words(is_old: bool) -> None:
    port = free_port()
    old = ("listen", f"127.0.0.1:{port}"), ("connect", f"127.0.0.1:{port}")
    opened = open_one("socket", old[0]) if is_old else open_one("stream", *inet(port), ("server", "on"))
    with both(opened) as (server,), both(open_one("socket", old[1])) as (client,):
        watch(server, seconds=1)
        send(client, *FRAMES)
        assert take(server) == FRAMES
    with pytest.raises(ConfigError, match="reconnect-ms"):
        open_one("stream", *inet(port))


def test_a_client_connects_when_the_server_comes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="reconnect-ms"):
        unix(tmp_path / "s")
    with both(unix(tmp_path / "s", ("reconnect-ms", "10"))) as (client,):
        watch(client, seconds=1)
        assert not client.is_up
        for _ in range(2):
            with both(unix(tmp_path / "s", ("server", "on"))) as (server,):
                while not client.is_up:
                    watch(client, seconds=1)
                watch(server, seconds=1)
                send(server, *FRAMES)
                assert take(client) == FRAMES
            assert take(client) == []
            assert not client.is_up


@given(st.lists(st.integers(0, 3000), max_size=6), st.lists(st.integers(1, 4000), max_size=8))
@settings(max_examples=60)
def test_a_stream_cut_anywhere_gives_the_same_frames(sizes: list[int], cuts: list[int]) -> None:
    ours, theirs = socket.socketpair()
    with both(Stream("n0", ours)) as (host,):
        data = b"".join(struct.pack(">I", size) + bytes([size & 255]) * size for size in sizes)
        got = []
        for cut in [*cuts, len(data)]:
            theirs.sendall(data[:cut])
            data = data[cut:]
            got += take(host, 0.01)
        assert got == [bytes([size & 255]) * size for size in sizes]
    theirs.close()


def test_nonsense_on_a_stream_ends_the_link(capsys: pytest.CaptureFixture[str]) -> None:
    ours, theirs = socket.socketpair()
    with both(Stream("n0", ours)) as (host,):
        theirs.sendall(struct.pack(">I", MAX_FRAME + 1) + bytes(100))
        assert take(host) == []
        assert not host.is_up
        assert str(MAX_FRAME + 1) in capsys.readouterr().err
    theirs.close()


def test_a_full_stream_keeps_no_more_than_the_rest_of_a_frame() -> None:
    ours, theirs = socket.socketpair()
    wire = Wire(theirs)
    with both(Stream("n0", ours)) as (host,):
        frames = [frame(fill=n % 251, size=9000) for n in range(300)]
        sent, got = 0, []
        while sent < len(frames):
            taken = send(host, *frames[sent : sent + 7])
            sent += taken
            if not taken:
                assert send(host, frames[sent]) == 0
                got += wire.frames()
                watch(host, seconds=1)
        while len(got) < len(frames):
            got += wire.frames()
            watch(host, seconds=0.1)
        assert got == frames
    theirs.close()


def test_a_message_to_passt_has_one_large_frame_or_several_small_ones() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # shows where messages end
    stream = Stream("n0", ours)
    stream.message = Passt.message
    with both(stream) as (host,):
        assert send(host, *(frame(size=size) for size in (60, 30_000, 60_000, 61_000, 1514, 20_000, 20_000))) == 7
        sizes = [len(theirs.recv(1 << 20)) for _ in range(5)]
        assert sizes == [30_068, 60_004, 61_004, 21_522, 20_004]
    theirs.close()


def test_a_reset_cuts_no_frame(tmp_path: Path) -> None:
    """Half of a frame in each direction is kept for the next I/O process; whole ones may be lost."""
    ours, theirs = socket.socketpair()
    wire = Wire(theirs)
    host = Stream("n0", ours)
    host.start()
    data = struct.pack(">I", 5000) + frame(size=5000)
    wire.send(frame(fill=3))
    theirs.sendall(data[:3000])
    watch(host, seconds=1)
    assert host.receive(0)
    assert host.receive(0) is None
    sent = 0
    while not host.output:
        sent += send(host, frame(size=60_000, fill=sent))
    host.stop()
    assert not host.is_up
    host.start()
    assert host.is_up
    theirs.sendall(data[3000:])
    assert take(host) == [data[4:]]
    got = wire.frames()
    watch(host, seconds=1)
    got += wire.frames()
    assert [len(each) for each in got] == [60_000] * sent
    host.close()
    theirs.close()


def test_datagrams(tmp_path: Path) -> None:
    a, b = str(tmp_path / "a"), str(tmp_path / "b")

    def end(local: str, remote: str) -> Netdev:
        names = (("local.type", "unix"), ("local.path", local), ("remote.type", "unix"), ("remote.path", remote))
        return open_one("dgram", *names)

    with both(end(a, b)) as (first,):
        assert send(first, *FRAMES) == len(FRAMES)  # nobody there yet: lost
        with both(end(b, a)) as (second,):
            assert send(first, *FRAMES[:5]) == 5
            assert take(second) == FRAMES[:5]
            count = 0
            while send(first, FRAMES[0]):
                count += 1
            assert first.interest()[first.link.fileno()] & 4
            assert len(take(second)) == count
            watch(first, seconds=1)
            assert send(first, FRAMES[1]) == 1
            assert take(second) == [FRAMES[1]]
        assert send(first, *FRAMES) == len(FRAMES)
    assert not (tmp_path / "a").exists()


def test_datagrams_over_udp() -> None:
    first, second = free_port(socket.SOCK_DGRAM), free_port(socket.SOCK_DGRAM)
    new = open_one("dgram", *inet(first, "local."), *inet(second, "remote."))
    old = open_one("socket", ("udp", f"127.0.0.1:{first}"), ("localaddr", f"127.0.0.1:{second}"))
    with both(new, old):
        assert send(new, *FRAMES) == len(FRAMES)
        assert take(old) == FRAMES
        assert send(old, *FRAMES) == len(FRAMES)
        assert take(new) == FRAMES


def test_an_open_socket_is_taken_over() -> None:
    ours, theirs = socket.socketpair()
    with both(open_one("stream", ("addr.type", "fd"), ("addr.str", str(ours.detach())))) as (host,):
        send(host, *FRAMES)
        assert Wire(theirs).frames() == FRAMES
    theirs.close()


@pytest.mark.parametrize(
    ("kind", "properties", "words"),
    [
        ("stream", [], "addr.type"),
        ("stream", [("addr.type", "vsock")], "addr.type=vsock unix"),
        ("stream", [("addr.type", "unix")], "addr.path"),
        ("stream", [("addr.type", "inet")], "addr.port"),
        ("stream", [("addr.type", "inet"), ("addr.host", "no host"), ("addr.port", "1")], "no host:1"),
        ("stream", [("addr.type", "unix"), ("addr.path", "/nowhere/s"), ("server", "on")], "n0 No such file"),
        ("stream", [("addr.type", "unix"), ("addr.path", "/nowhere/s"), ("reconnect", "x")], "reconnect=x"),
        ("stream", [("addr.type", "unix"), ("addr.path", "s"), ("server", "on"), ("reconnect", "1")], "server"),
        ("stream", [("addr.type", "fd"), ("addr.str", "9999")], "9999 socket"),
        ("dgram", [("remote.type", "unix"), ("remote.path", "/s")], "local.path"),
        ("dgram", [*inet("1", "remote.")], "local.host"),
        ("dgram", [*inet("1", "remote."), ("local.type", "unix"), ("local.path", "/s")], "different types"),
        ("socket", [], "listen="),
        ("socket", [("listen", ":1"), ("connect", "a:1")], "one of"),
        ("socket", [("udp", "127.0.0.1:1")], "localaddr"),
        ("socket", [("connect", "localhost")], "localhost HOST:PORT"),
    ],
)
def test_a_link_that_can_not_be_is_one_line(kind: str, properties: list, words: str) -> None:
    with pytest.raises(ConfigError) as error:
        open_one(kind, *properties)
    for word in words.split():
        assert word in str(error.value)
    assert "\n" not in str(error.value)
