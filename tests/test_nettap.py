"""TAP: frames and offloads between a card and the kernel's own network stack, in a network namespace of ours."""

import contextlib
import ctypes
import os
import socket
import struct
import subprocess
from collections.abc import Iterator

import pytest
from fake_driver import Rig
from test_netlinks import FRAMES, both, open_one, send, take
from test_offload import ACK, PSH, check, packet
from wire import MAC, PLAIN, begin, frame, offer, receive, transmit, turn

from smp.cpu import ConfigError
from virtio.net import MAX_PAIRS, Net
from virtio.netdev import Frame, Netdev
from virtio.netfeatures import F_CSUM, F_GUEST_CSUM, F_GUEST_TSO4, F_HOST_TSO4, F_HOST_USO
from virtio.nettap import DEVICE, Tap
from virtio.offload import GSO_TCPV4, HEADER, NEEDS_CSUM
from virtio.queue import Ram

CLONE_NEWNET = 0x4000_0000
SOL_PACKET, PACKET_VNET_HDR = 263, 15
EVERYTHING = 0x0003


@contextlib.contextmanager
def network() -> Iterator[None]:
    """A network namespace with nothing in it; what is opened in it stays there."""
    libc = ctypes.CDLL(None, use_errno=True)
    here = os.open("/proc/self/ns/net", os.O_RDONLY)
    try:
        if not os.access(DEVICE, os.R_OK | os.W_OK) or libc.unshare(CLONE_NEWNET):
            pytest.skip(f"{DEVICE} or a network namespace may not be had here; root may")
        try:
            yield
        finally:
            assert libc.setns(here, CLONE_NEWNET) == 0
    finally:
        os.close(here)


@contextlib.contextmanager
def tap(*properties: tuple[str, str]) -> Iterator[tuple[Netdev, socket.socket]]:
    """A tap and a socket on the kernel's side of it, whose frames have a virtio_net_hdr of 10 bytes."""
    with network():
        host = open_one("tap", ("ifname", "t0"), ("script", "no"), ("downscript", "no"), *properties)
        subprocess.run(["ip", "link", "set", "t0", "address", "52:54:00:12:34:57", "up"], check=True)
        kernel = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(EVERYTHING))
        kernel.bind(("t0", 0))
        kernel.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        kernel.settimeout(60)
    try:
        with both(host):
            yield host, kernel
    finally:
        kernel.close()


def told(kernel: socket.socket) -> tuple[bytes, bytes]:
    """The next frame that the kernel got from us: its header and itself; the kernel talks too, of IPv6."""
    while True:
        data, (_, protocol, kind, *_) = kernel.recvfrom(70000)
        if kind != socket.PACKET_OUTGOING and protocol != 0x86DD:
            return data[:10], data[10:]


def of_kernel(frames: list[bytes]) -> list[bytes]:
    return [data for data in frames if data[12:14] != b"\x86\xdd"]


@pytest.mark.parametrize("vnet_hdr", ["on", "off"])
def test_frames_go_both_ways(vnet_hdr: str) -> None:
    with tap(("vnet_hdr", vnet_hdr)) as (host, kernel):
        assert bool(host.offloads) == (vnet_hdr == "on")
        assert send(host, *FRAMES) == len(FRAMES)
        assert [told(kernel)[1] for _ in FRAMES] == FRAMES
        kernel.send(bytes(10) + FRAMES[3])
        kernel.send(bytes(10) + FRAMES[4])
        assert of_kernel(take(host)) == FRAMES[3:5]


def test_a_card_leaves_segments_to_the_kernel(ram: Ram) -> None:
    with tap() as (host, kernel):
        rig = begin(Rig(ram, Net(host, MAC)))
        wanted = F_CSUM | F_HOST_TSO4 | F_GUEST_CSUM | F_GUEST_TSO4 | F_HOST_USO
        assert rig.features() & wanted == wanted
        data, start, offset = packet(False, False, bytes(range(200)) * 40, ACK | PSH)
        data = b"\x52\x54\0\x12\x34\x57" + MAC + data[12:]
        header = HEADER.pack(NEEDS_CSUM, GSO_TCPV4, start + 20, 1400, start, offset, 0)
        transmit(rig, header, data)
        got, whole = told(kernel)
        assert (got, whole) == (header[:10], data)


def test_a_header_that_makes_no_sense_loses_only_its_frame(ram: Ram) -> None:
    with tap() as (host, kernel):
        rig = begin(Rig(ram, Net(host, MAC)))
        for header in (HEADER.pack(1, 1, 0, 0, 60000, 60000, 0), HEADER.pack(255, 77, 9, 9, 9, 9, 9)):
            assert len(transmit(rig, header, frame(size=400))) == 1
        transmit(rig, PLAIN, frame())
        assert told(kernel)[1] == frame()
        assert not rig.needs_reset()


@pytest.mark.parametrize("is_taken", [True, False])
def test_a_driver_gets_segments_only_if_it_takes_them(ram: Ram, is_taken: bool) -> None:
    """Else the kernel cuts them and fills in the checksums."""
    with tap() as (host, kernel):
        rig = Rig(ram, Net(host, MAC))
        begin(rig, lacks=0 if is_taken else F_GUEST_CSUM | F_GUEST_TSO4)
        offer(rig, 32, 1024)
        payload = bytes(range(250)) * 20
        data, start, offset = packet(False, False, payload, ACK)
        data = MAC + b"\x52\x54\0\x12\x34\x57" + data[12:]
        kernel.send(HEADER.pack(NEEDS_CSUM, GSO_TCPV4, start + 20, 1000, start, offset, 0)[:10] + data)
        turn(rig)
        found, got = [], receive(rig)
        while got:
            count = struct.unpack_from("<H", got[0], 10)[0]
            found.append((got[0][:10], (b"".join(got[:count]))[12:]))
            got = got[count:]
        found = [(header, each) for header, each in found if each[:6] == MAC]
        if is_taken:
            ((header, whole),) = found
            assert whole == data
            assert struct.unpack("<BBHHHH", header) == (NEEDS_CSUM, GSO_TCPV4, start + 20, 1000, start, offset)
        else:
            assert [header for header, _ in found] == [bytes(10)] * 5
            assert b"".join(check(each, False, False, False)[1] for _, each in found) == payload


def test_each_queue_pair_is_a_queue_of_the_kernels(ram: Ram) -> None:
    with tap(("queues", "3")) as (host, kernel):
        rig = begin(Rig(ram, Net(host, MAC, pairs=MAX_PAIRS)))
        assert host.queues == 3 and len(host.interest()) == 1
        host.configure(rig.device.negotiated, 3)
        assert len(host.interest()) == 3
        assert host.send(2, [Frame([memoryview(FRAMES[0])])]) == 1
        assert told(kernel)[1] == FRAMES[0]
        host.stop()
        assert len(host.interest()) == 1
        kernel.send(bytes(10) + FRAMES[1])
        assert of_kernel(take(host)) == [FRAMES[1]]


def test_an_open_tap_is_taken_over() -> None:
    with tap() as (host, kernel):
        assert isinstance(host, Tap)
        with both(open_one("tap", ("fd", str(os.dup(host.fds[0]))))) as (other,):
            send(other, FRAMES[2])
            assert told(kernel)[1] == FRAMES[2]


@pytest.mark.parametrize(
    ("properties", "words"),
    [
        ([("script", "/etc/qemu-ifup")], "script=/etc/qemu-ifup script=no"),
        ([("vhost", "on")], "vhost=on vhost=off"),
        ([("queues", "0")], "queues=0 31"),
        ([("queues", "32")], "queues=32 31"),
        ([("ifname", "a" * 16)], "ifname=aaaa 15 shorter"),
        ([("fd", "9999")], "fds=9999 tap"),
        ([("fds", "0:x")], "fds=0:x tap"),
    ],
)
def test_a_tap_that_can_not_be_is_one_line(properties: list[tuple[str, str]], words: str) -> None:
    with pytest.raises(ConfigError) as error:
        open_one("tap", *properties)
    for word in words.split():
        assert word in str(error.value)


def test_the_remedy_for_an_interface_of_another_kind_is_named() -> None:
    with network():
        subprocess.run(["ip", "tuntap", "add", "dev", "t1", "mode", "tun"], check=True)
        with pytest.raises(ConfigError, match=r"t1.*ip tuntap add dev t1 mode tap"):
            open_one("tap", ("ifname", "t1"))
