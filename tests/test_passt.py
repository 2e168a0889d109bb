"""-netdev user: QEMU's words in passt's, and passt itself: started, asked for an address, ended."""

import os
import socket
import struct
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from test_netlinks import both, free_port, open_one
from wire import watch

from smp import passt_options
from smp.config import NetdevConfig
from smp.cpu import ConfigError
from virtio.netdev import Frame
from virtio.netfeatures import F_GUEST_CSUM
from virtio.netpasst import Passt, PasstError
from virtio.offload import DATA_VALID

CARD = bytes.fromhex("525400123456")


def words(*properties: tuple[str, str]) -> str:
    command, _ = passt_options.command(NetdevConfig("user", "n0", properties))
    return " ".join(command[1:])


@pytest.fixture
def new(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passt_options, "_help", lambda program: "--dns-forward --dns-host --hostname")


def test_the_addresses_are_qemus(new: None) -> None:
    assert words() == "--address 10.0.2.15 --netmask 24 --gateway 10.0.2.2 --dns-forward 10.0.2.3"


def test_an_old_passt_leaves_the_guest_to_the_hosts_name_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passt_options, "_help", lambda program: "--dns-forward")
    assert words() == "--address 10.0.2.15 --netmask 24 --gateway 10.0.2.2"
    for key, value in (("dns", "10.0.2.8"), ("ipv6-dns", "fec0::3")):
        with pytest.raises(ConfigError, match=f"{key}={value}: this passt can't; leave it out"):
            words((key, value))


@pytest.mark.parametrize(
    ("properties", "expected"),
    [
        ([("net", "192.168.7.0/255.255.255.128")], "--address 192.168.7.15 --netmask 25 --gateway 192.168.7.2"),
        ([("net", "10.1.2.3/16")], "--address 10.1.0.15 --netmask 16"),
        ([("host", "10.0.2.9"), ("dns", "10.0.2.8")], "--gateway 10.0.2.9 --dns-forward 10.0.2.8"),
        ([("dhcpstart", "10.0.2.99")], "--address 10.0.2.99"),
        ([("ipv6", "off")], "--ipv4-only --address"),
        ([("ipv6-dns", "fec0::3")], "--dns-forward fec0::3"),
        ([("mtu", "1400")], "--mtu 1400"),
        ([("dnssearch", "a.b"), ("dnssearch", "c.d")], "--search a.b c.d"),
        ([("hostfwd", "tcp::2222-:22")], "--tcp-ports 2222:22"),
        ([("hostfwd", "::2222-:22"), ("hostfwd", ":80-:80")], "--tcp-ports 2222:22 --tcp-ports 80:80"),
        ([("hostfwd", "udp:127.0.0.1:53-10.0.2.15:5353")], "--udp-ports 127.0.0.1/53:5353"),
        ([("restrict", "off")], "--address"),
    ],
)
def test_qemus_words_in_passts(new: None, properties: list[tuple[str, str]], expected: str) -> None:
    assert expected in words(*properties)


def test_without_ipv4_nothing_of_it_is_said() -> None:
    assert words(("ipv4", "off")) == "--ipv6-only"


@pytest.mark.parametrize(
    ("properties", "named"),
    [
        ([("net", "10.0.2.0/99")], "99 10.0.2.2"),
        ([("host", "10.0.2")], "10.0.2"),
        ([("host", "10.0.3.2")], "10.0.3.2 net=10.0.2.0/24"),
        ([("dns", "10.0.2.2")], "10.0.2.2 three"),
        ([("ipv4", "off"), ("ipv6", "off")], "ipv4=off,ipv6=off"),
        ([("ipv6-dns", "x")], "ipv6-dns=x"),
        ([("mtu", "70000")], "mtu=70000 65520"),
        ([("restrict", "on")], "restrict=on hubport"),
        ([("hostfwd", "tcp::22")], "tcp::22 GUEST"),
        ([("hostfwd", "sctp::1-:1")], "sctp::1-:1"),
        ([("hostfwd", "tcp::0-:22")], "0 port"),
        ([("hostfwd", "tcp::22-:65536")], "65536 port"),
        ([("hostfwd", "tcp:1.2.3:22-:22")], "1.2.3"),
        ([("hostfwd", "tcp::22-10.0.2.16:22")], "10.0.2.15"),
    ],
)
def test_what_can_not_be_is_one_line(new: None, properties: list[tuple[str, str]], named: str) -> None:
    with pytest.raises(ConfigError) as error:
        words(*properties)
    for word in named.split():
        assert word in str(error.value)


def test_the_remedy_for_a_missing_passt_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="apt install passt"):
        words()


def test_what_passt_says_is_passed_on() -> None:
    with pytest.raises(ConfigError, match=r"passt says: .*192\.0\.2\.77"):
        open_one("user", ("hostfwd", "tcp:192.0.2.77:2222-:22"))


def test_a_passt_that_ends_before_it_is_asked_is_heard_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "passt").write_text("#!/bin/sh\necho no luck\nexit 3\n")
    (tmp_path / "passt").chmod(0o755)
    popen = subprocess.Popen

    def ended(*words: Any, **more: Any) -> subprocess.Popen[bytes]:
        process = popen(*words, **more)
        process.wait()
        return process

    monkeypatch.setattr("virtio.netpasst.subprocess.Popen", ended)
    with pytest.raises(PasstError, match="no luck"):
        Passt("n0", [str(tmp_path / "passt")], "10.0.2.2")


def checksum(data: bytes) -> bytes:
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return struct.pack(">H", 0xFFFF - total - (total >> 16))


def discover() -> bytes:
    """A DHCPDISCOVER as a client broadcasts it (RFC 2131)."""
    body = struct.pack(">BBBBIHH16x16s192x4s", 1, 1, 6, 0, 4242, 0, 0, CARD, b"\x63\x82\x53\x63") + b"\x35\1\1\xff"
    udp = struct.pack(">HHHH", 68, 67, 8 + len(body), 0) + body
    ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0, bytes(4), b"\xff" * 4)
    return b"\xff" * 6 + CARD + b"\x08\0" + ip[:10] + checksum(ip) + ip[12:] + udp


def answers(host: Passt, data: bytes) -> bytes:
    """The first frame of IPv4 that comes back."""
    host.send(0, [Frame([memoryview(data)])])
    return comes(host)


def comes(host: Passt, seconds: float = 60) -> bytes:
    """The next frame of IPv4."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        watch(host, seconds=0.1)
        while got := host.receive(0):
            found = bytes(got.parts[0])
            if found[12:14] == b"\x08\0":
                return found
    raise AssertionError("nothing comes")


def test_passt_gives_an_address_and_ends_with_the_link() -> None:
    with both(open_one("user", ("net", "10.9.8.0/24"), ("ipv6", "off"))) as (host,):
        assert isinstance(host, Passt)
        child = psutil.Process(host.process.pid)
        offer = answers(host, discover())
        assert offer[:6] == CARD
        assert offer[58:62] == bytes([10, 9, 8, 15])  # yiaddr
        assert child.is_running()
    assert not child.is_running()


def test_the_link_is_down_when_passt_has_gone(capsys: pytest.CaptureFixture[str]) -> None:
    with both(open_one("user", ("ipv6", "off"))) as (host,):
        assert isinstance(host, Passt) and host.is_up
        host.process.kill()
        host.process.wait()
        watch(host, seconds=60)
        assert host.receive(0) is None
        assert not host.is_up
        assert "netdev n0: passt has ended" in capsys.readouterr().err


def test_a_forwarded_port_reaches_the_guest() -> None:
    """Somebody connects on the host: a SYN for the guest's port arrives."""
    port = free_port()
    with both(open_one("user", ("hostfwd", f"tcp:127.0.0.1:{port}-:22"), ("ipv6", "off"))) as (host,):
        assert isinstance(host, Passt)
        answers(host, discover())
        with socket.socket() as client:
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", int(port)))
            ip = comes(host)[14:]
            assert (ip[9], ip[16:20]) == (6, bytes([10, 0, 2, 15]))
            assert struct.unpack_from(">H", ip, 22)[0] == 22
            assert ip[33] == 2  # SYN


def segment(port: int, sequence: int, acknowledged: int, flags: int) -> bytes:
    """A segment of the guest's for the host, without data."""
    addresses = bytes([10, 0, 2, 15, 10, 0, 2, 2])
    tcp = struct.pack(">HHIIBBHHH", 4000, port, sequence, acknowledged, 5 << 4, flags, 65535, 0, 0)
    tcp = tcp[:16] + checksum(addresses + struct.pack(">HH", 6, 20) + tcp) + tcp[18:]
    ip = struct.pack(">BBHHHBBH", 0x45, 0, 40, 0, 0, 64, 6, 0) + addresses
    return b"\xff" * 6 + CARD + b"\x08\0" + ip[:10] + checksum(ip) + ip[12:] + tcp


def is_summed(frame: bytes) -> bool:
    """Whether the checksums of a frame of IPv4 are right; 0 is none, in UDP (RFC 768)."""
    ip, payload = frame[14:34], frame[34 : 14 + int.from_bytes(frame[16:18], "big")]
    if ip[9] == 17 and payload[6:8] == b"\0\0":
        return checksum(ip) == b"\0\0"
    pseudo = ip[12:20] + struct.pack(">HH", ip[9], len(payload))
    return checksum(ip) == checksum(pseudo + payload + b"\0" * (len(payload) & 1)) == b"\0\0"


def test_what_comes_from_passt_need_not_be_summed_up() -> None:
    """Its checksums are right, so a guest that forwards may leave them, and a driver that asked is told."""
    with socket.create_server(("127.0.0.1", 0)) as server, both(open_one("user", ("ipv6", "off"))) as (host,):
        assert isinstance(host, Passt)
        host.configure(F_GUEST_CSUM, 1)
        port, got = server.getsockname()[1], [answers(host, discover())]
        got.append(answers(host, segment(port, 1, 0, 2)))
        assert got[-1][47] == 0x12  # SYN and ACK
        first = int.from_bytes(got[-1][38:42], "big") + 1
        link = server.accept()[0]
        with link:
            link.sendall(bytes(range(256)) * 40 + b"odd")
            got.append(answers(host, segment(port, 2, first, 0x10)))
            while len(got[-1]) < 60:
                got.append(answers(host, segment(port, 2, first, 0x10)))
        assert all(map(is_summed, got))
        assert not is_summed(got[-1][:-1] + bytes([got[-1][-1] ^ 1]))
        assert host.header[0] == DATA_VALID
        host.configure(0, 1)
        assert not any(host.header)


def test_it_runs_as_nobody_for_root() -> None:
    if os.geteuid() != 0:
        return
    with both(open_one("user")) as (host,):
        assert isinstance(host, Passt)
        assert psutil.Process(host.process.pid).uids().effective != 0
