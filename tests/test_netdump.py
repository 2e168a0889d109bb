"""filter-dump: the file is what passed, in pcap's format, wherever the filter sits."""

import resource
import signal
import socket
import struct
import time
from pathlib import Path

import pytest
from test_netlinks import FRAMES, both, send, take
from wire import Wire

from smp.config import MachineConfig
from smp.cpu import ConfigError
from smp.net_setup import open_networks
from smp.options import parse
from virtio.netdev import Netdev
from virtio.netdump import Dump
from virtio.nethub import HubPort
from virtio.netstream import Stream


def records(path: Path) -> list[tuple[float, int, bytes]]:
    """Time, length on the wire and bytes kept of every frame (the pcap format of libpcap's savefiles)."""
    data = path.read_bytes()
    magic, major, minor, zone, accuracy, most, link = struct.unpack_from("=IHHiIII", data)
    assert (magic, major, minor, zone, accuracy, link) == (0xA1B2C3D4, 2, 4, 0, 0, 1)
    at, found = 24, []
    while at < len(data):
        seconds, micros, kept, size = struct.unpack_from("=IIII", data, at)
        assert micros < 1_000_000 and kept == min(size, most)
        found.append((seconds + micros / 1e6, size, data[at + 16 : at + 16 + kept]))
        at += 16 + kept
    assert at == len(data)
    return found


def dumped(path: Path, most: int = 65536, sent: bool = True, received: bool = True) -> tuple[Netdev, Wire]:
    ours, theirs = socket.socketpair()
    return Dump(Stream("n0", ours), str(path), most, sent, received), Wire(theirs)


@pytest.mark.parametrize(("sent", "received"), [(True, True), (True, False), (False, True), (False, False)])
def test_what_passes_is_written_in_order(tmp_path: Path, sent: bool, received: bool) -> None:
    host, wire = dumped(tmp_path / "a.pcap", 65536, sent, received)
    before = time.time()
    with both(host):
        assert host.is_up
        assert send(host, *FRAMES[:4]) == 4
        assert wire.frames() == FRAMES[:4]
        wire.send(*FRAMES[4:])
        assert take(host) == FRAMES[4:]
        found = records(tmp_path / "a.pcap")
    assert [data for _, _, data in found] == FRAMES[:4] * sent + FRAMES[4:] * received
    times = [moment for moment, _, _ in found]
    assert times == sorted(times) and all(before - 1 < moment < time.time() + 1 for moment in times)
    wire.link.close()


def test_only_what_was_taken_is_written(tmp_path: Path) -> None:
    host, wire = dumped(tmp_path / "a.pcap", most=10)
    with both(host):
        count = 0
        while send(host, bytes(50_000)):
            count += 1
        assert [(size, len(data)) for _, size, data in records(tmp_path / "a.pcap")] == [(50_000, 10)] * count
    wire.link.close()


def test_a_full_disk_stops_the_file_and_not_the_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    host, wire = dumped(tmp_path / "a.pcap")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with both(host):
            resource.setrlimit(resource.RLIMIT_FSIZE, (24, limits[1]))
            assert send(host, *FRAMES) == len(FRAMES)
            assert wire.frames() == FRAMES
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert "filter-dump of n0: File too large" in capsys.readouterr().err
    wire.link.close()


def config(*arguments: str) -> MachineConfig:
    return parse(["-kernel", "k", *arguments])


def test_a_filter_sits_before_its_netdev_also_behind_a_hub(tmp_path: Path) -> None:
    dump = f"filter-dump,netdev={{}},id={{}},file={tmp_path}/{{}}.pcap"
    listen = f"stream,id=world,server=on,addr.type=unix,addr.path={tmp_path}/s"
    cards, others = open_networks(
        config(
            *("-netdev", listen, "-netdev", "hubport,id=up,hubid=0,netdev=world"),
            *("-netdev", "hubport,id=a,hubid=0", "-device", "virtio-net,netdev=a"),
            *("-netdev", "hubport,id=b,hubid=0", "-device", "virtio-net,netdev=b"),
            *(word for name in ("world", "up", "a") for word in ("-object", dump.format(name, name, name))),
            *("-object", dump.format("a", "more", "more") + ",maxlen=20,queue=rx,status=on"),
        )
    )
    a, b = (card.host for _, card in cards)
    (up,) = others
    assert isinstance(a, Dump) and isinstance(b, HubPort) and isinstance(up, HubPort)
    send(a, FRAMES[0])
    send(b, FRAMES[1])
    assert take(a, 0) == [FRAMES[1]]
    for host in (a, b, up):
        host.close()
    kept = {name: [data for _, _, data in records(tmp_path / f"{name}.pcap")] for name in ("world", "up", "a", "more")}
    assert kept == {"world": FRAMES[:2], "up": FRAMES[:2], "a": FRAMES[:2], "more": [FRAMES[0][:20]]}


def test_a_file_that_can_not_be_made_is_one_line() -> None:
    hub = ("-nic", "hubport,id=n,hubid=0", "-object", "filter-dump,id=f,netdev=n,file=/proc/nowhere")
    with pytest.raises(ConfigError, match=r"/proc/nowhere: .*choose another"):
        open_networks(config(*hub))
