"""Checksums and segmentation in software, against packets taken apart by other code than cut them."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smp import engine
from virtio.offload import (
    GSO_ECN,
    GSO_NONE,
    GSO_TCPV4,
    GSO_TCPV6,
    GSO_UDP_L4,
    HEADER,
    LARGEST,
    NEEDS_CSUM,
    finish,
    folded,
)


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    engine.load()


FIN, SYN, PSH, ACK, CWR = 1, 2, 8, 16, 128


def checksum(data: bytes) -> int:
    """RFC 1071, word by word."""
    data += bytes(len(data) & 1)
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


@given(st.binary(max_size=700), st.integers(0, 9), st.integers(1, 120))
def test_a_sum_is_that_of_the_words(data: bytes, start: int, times: int) -> None:
    for large in (data * times, b"\xff" * len(data) * times):
        found = folded(memoryview(bytearray(large))[start:])
        assert found == checksum(large[start:]) % 0xFFFF == folded(large[start:])


def packet(
    v6: bool, udp: bool, payload: bytes, flags: int = ACK, vlan: bool = False, options: bytes = b""
) -> tuple[bytes, int, int]:
    """A frame with the sum of its pseudo-header where the checksum goes; csum_start and csum_offset."""
    protocol, offset = (17, 6) if udp else (6, 16)
    if udp:
        transport = struct.pack(">HHHH", 5000, 7, 8 + len(payload), 0)
    else:
        transport = struct.pack(">HHIIBBHHH", 80, 4242, 0xFFFF_FF00, 99, (5 + len(options) // 4) << 4, flags, 500, 0, 0)
        transport += options
    size = len(transport) + len(payload)
    if v6:
        addresses = bytes(range(32))
        ip = struct.pack(">IHBB", 6 << 28, size, protocol, 64) + addresses
    else:
        addresses = bytes([10, 0, 2, 15, 10, 0, 2, 2])
        ip = struct.pack(">BBHHHBBH", 0x45, 0, 20 + size & 0xFFFF, 0xFFFE, 0, 64, protocol, 0) + addresses
        ip = ip[:10] + struct.pack(">H", 0xFFFF - checksum(ip)) + ip[12:]
    pseudo = checksum(addresses + struct.pack(">IHH", size, 0, protocol))
    transport = transport[:offset] + struct.pack(">H", pseudo) + transport[offset + 2 :]
    tag = b"\x81\x00\0\5" if vlan else b""
    head = bytes(12) + tag + (b"\x86\xdd" if v6 else b"\x08\0") + ip
    return head + transport + payload, len(head), offset


def check(data: bytes, v6: bool, udp: bool, vlan: bool) -> tuple[bytes, bytes]:
    """Lengths and checksums hold; gives transport header and payload."""
    ip = 18 if vlan else 14
    if v6:
        addresses, start = data[ip + 8 : ip + 40], ip + 40
        assert struct.unpack_from(">H", data, ip + 4)[0] == len(data) - start
    else:
        addresses, start = data[ip + 12 : ip + 20], ip + 20
        assert struct.unpack_from(">H", data, ip + 2)[0] == len(data) - ip
        assert checksum(data[ip:start]) == 0xFFFF
    transport = data[start:]
    pseudo = addresses + struct.pack(">IHH", len(transport), 0, 17 if udp else 6)
    assert checksum(pseudo + transport) == 0xFFFF
    length = 8 if udp else (transport[12] >> 4) * 4
    if udp:
        assert struct.unpack_from(">H", transport, 4)[0] == len(transport)
    return transport[:length], transport[length:]


def far(padding: int) -> tuple[bytes, bytes]:
    """A UDP header far behind the network header, with its own: each segment would have a copy of all between."""
    start = 54 + padding
    data = bytes(12) + b"\x86\xdd" + bytes(start - 14) + bytes(8) + bytes(4800)
    return HEADER.pack(NEEDS_CSUM, GSO_UDP_L4, 0, 48, start, 6, 0), data


@pytest.mark.parametrize(("padding", "count"), [(0, 100), (400, 100), (460, 0), (60000, 0)])
def test_headers_that_are_copied_for_each_segment_are_short(padding: int, count: int) -> None:
    """Else a frame of 64 KiB would become 90 MiB in the host's memory."""
    header, data = far(padding)
    assert len(finish(header, bytearray(data))) == count


@given(st.booleans(), st.booleans(), st.booleans(), st.binary(max_size=300))
@settings(max_examples=200)
def test_a_checksum_is_filled_in(v6: bool, udp: bool, vlan: bool, payload: bytes) -> None:
    data, start, offset = packet(v6, udp, payload, vlan=vlan)
    (done,) = finish(HEADER.pack(NEEDS_CSUM, GSO_NONE, 0, 0, start, offset, 0), bytearray(data))
    transport = bytes(done)[start:]
    addresses = data[start - 32 : start] if v6 else data[start - 8 : start]
    pseudo = addresses + struct.pack(">IHH", len(transport), 0, 17 if udp else 6)
    assert checksum(pseudo + transport) == 0xFFFF
    assert done[start + offset : start + offset + 2] != b"\0\0"  # which would mean "none" in UDP


@given(
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.binary(min_size=1, max_size=9000),
    st.integers(50, 1500),
    st.sampled_from([b"", b"\1" * 12]),
)
@settings(max_examples=200)
def test_a_large_frame_is_cut(v6: bool, udp: bool, vlan: bool, payload: bytes, size: int, options: bytes) -> None:
    data, start, offset = packet(v6, udp, payload, ACK | PSH | FIN | CWR, vlan, b"" if udp else options)
    kind = GSO_UDP_L4 if udp else (GSO_TCPV6 if v6 else GSO_TCPV4) | GSO_ECN
    segments = finish(HEADER.pack(NEEDS_CSUM, kind, 0, size, start, offset, 0), bytearray(data))
    parts = [check(bytes(segment), v6, udp, vlan) for segment in segments]
    assert b"".join(part for _, part in parts) == payload
    assert {len(part) for _, part in parts[:-1]} <= {size}
    assert all(segment[:12] == data[:12] for segment in segments)
    if udp:
        return
    for n, (head, _) in enumerate(parts):
        assert struct.unpack_from(">I", head, 4)[0] == (0xFFFF_FF00 + n * size) & 0xFFFF_FFFF
        is_first, is_last = n == 0, n + 1 == len(parts)
        assert head[13] == ACK | (CWR if is_first else 0) | (PSH | FIN if is_last else 0)
    if not v6:
        at = 22 if vlan else 18
        ids = [struct.unpack_from(">H", segment, at)[0] for segment in segments]
        assert ids == [(0xFFFE + n) & 0xFFFF for n in range(len(segments))]


def test_who_takes_large_frames_gets_them_whole() -> None:
    data, start, offset = packet(False, False, bytes(60_000))
    header = HEADER.pack(NEEDS_CSUM, GSO_TCPV4, 0, 1400, start, offset, 0)
    (whole,) = finish(header, bytearray(data), takes_large=True)
    assert check(bytes(whole), False, False, False)[1] == bytes(60_000)
    data, start, offset = packet(False, False, bytes(LARGEST - 50))
    assert len(finish(header, bytearray(data), takes_large=True)) == 47
    data, start, offset = packet(False, True, bytes(4000))
    header = HEADER.pack(NEEDS_CSUM, GSO_UDP_L4, 0, 1000, start, offset, 0)
    assert len(finish(header, bytearray(data), takes_large=True)) == 4  # datagrams have their bounds


V4 = packet(False, False, bytes(1000))[0]


@pytest.mark.parametrize(
    "fields",
    [
        (NEEDS_CSUM, GSO_NONE, 0, 0, 0xFFFF, 0xFFFF),
        (NEEDS_CSUM, GSO_NONE, 0, 0, len(V4) - 1, 0),
        (0, GSO_TCPV4, 0, 100, 34, 16),
        (NEEDS_CSUM, GSO_TCPV4, 0, 0, 34, 16),
        (NEEDS_CSUM, GSO_TCPV4, 0, 100, 33, 16),
        (NEEDS_CSUM, GSO_TCPV4, 0, 100, len(V4), 16),
        (NEEDS_CSUM, GSO_TCPV6, 0, 100, 34, 16),
        (NEEDS_CSUM, 3, 0, 100, 34, 16),
        (NEEDS_CSUM, 0x7F, 0, 100, 34, 16),
    ],
)
def test_a_header_that_makes_no_sense_loses_the_frame(fields: tuple[int, ...]) -> None:
    assert finish(HEADER.pack(*fields, 0), bytearray(V4)) == []


def test_a_frame_is_not_cut_into_crumbs() -> None:
    data, start, offset = packet(False, False, bytes(60_000))
    assert finish(HEADER.pack(NEEDS_CSUM, GSO_TCPV4, 0, 1, start, offset, 0), bytearray(data)) == []


@given(
    st.builds(HEADER.pack, *[st.integers(0, 255)] * 2, *[st.integers(0, 65535) | st.integers(0, 60)] * 5),
    st.binary(min_size=14, max_size=200) | st.builds(lambda n, d: V4[:n] + d, st.integers(14, 60), st.binary()),
    st.booleans(),
)
@settings(max_examples=500)
def test_any_header_gives_frames_or_nothing(header: bytes, data: bytes, takes_large: bool) -> None:
    for made in finish(header, bytearray(data), takes_large):
        assert 14 <= len(made) <= len(data)
