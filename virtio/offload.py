"""What a driver leaves to the device, done in software: checksums, and cutting large frames (virtio 1.3, 5.1.6.2).

The header and the frame are the guest's: whatever they say, the result is frames or nothing.
"""

from ctypes import addressof, c_char
from struct import Struct
from typing import NamedTuple

from virtio.checksum import checksum_words

HEADER = Struct("<BBHHHHH")  # struct virtio_net_hdr
NEEDS_CSUM, DATA_VALID = 1, 2
GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4 = 0, 1, 4, 5
GSO_ECN = 0x80
LARGEST = 0xFFFF  # bytes of a frame that is sent uncut
MOST_SEGMENTS = 1400  # a frame of 64 KiB in segments of 48 bytes, the least that TCP has
SHORT = 128  # bytes that Python sums up sooner than it finds out where they lie
MOST_HEADERS = 512  # bytes in front of the payload, which each segment has a copy of
ETHERTYPE = 12
VLAN = (b"\x81\x00", b"\x88\xa8")
IPV4, IPV6 = b"\x08\x00", b"\x86\xdd"
TCP, UDP = 6, 17
FIN, PSH, CWR = 0x01, 0x08, 0x80


class Layout(NamedTuple):
    """Where things lie in a frame that is to be cut."""

    ip: int
    transport: int
    payload: int
    protocol: int
    addresses: slice
    is_v4: bool


def finish(header: bytes, frame: bytearray, takes_large: bool = False) -> list[bytearray]:
    """The frames to send in place of this one; none if the header makes no sense."""
    flags, kind, _, size, start, offset, _ = HEADER.unpack(header)
    kind &= ~GSO_ECN
    if kind == GSO_NONE:
        return [frame] if not flags & NEEDS_CSUM or fill_checksum(frame, start, offset) else []
    if not flags & NEEDS_CSUM or kind not in (GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4):
        return []
    if takes_large and kind in (GSO_TCPV4, GSO_TCPV6) and len(frame) <= LARGEST:
        return [frame] if fill_checksum(frame, start, offset) else []
    layout = find(frame, kind, start)
    if layout is None or layout.payload > MOST_HEADERS:
        return []
    if not size or len(frame) - layout.payload > size * MOST_SEGMENTS:
        return []
    return cut(frame, layout, size)


def folded(data: bytes | bytearray | memoryview) -> int:
    """The sum of 16-bit words that Internet checksums are made of, modulo 0xFFFF."""
    if len(data) > SHORT and not isinstance(data, bytes):
        words = checksum_words.entry(addressof(c_char.from_buffer(data)), len(data))
        return (words >> 8 | words << 8 & 0xFF00) % 0xFFFF  # bytes the other way round, so is the sum
    return (int.from_bytes(data, "big") << (8 * (len(data) & 1))) % 0xFFFF


def fill_checksum(frame: bytearray, start: int, offset: int) -> bool:
    """Replace the sum of the pseudo-header by the checksum of all from `start` on; False if it lies outside."""
    place = start + offset
    if place + 2 > len(frame):
        return False
    frame[place : place + 2] = (0xFFFF - folded(memoryview(frame)[start:])).to_bytes(2, "big")
    return True


def find(frame: bytearray, kind: int, transport: int) -> Layout | None:
    """The parts of a TCP or UDP frame; None if they are not what the kind says, or outside of the frame."""
    at = ETHERTYPE
    while frame[at : at + 2] in VLAN and at < ETHERTYPE + 8:
        at += 4
    ip, is_v4 = at + 2, frame[at : at + 2] == IPV4
    if (not is_v4 and frame[at : at + 2] != IPV6) or kind == (GSO_TCPV6 if is_v4 else GSO_TCPV4):
        return None
    least, addresses = (20, slice(ip + 12, ip + 20)) if is_v4 else (40, slice(ip + 8, ip + 40))
    protocol = UDP if kind == GSO_UDP_L4 else TCP
    if transport < ip + least or transport + (8 if protocol == UDP else 20) > len(frame):
        return None
    if is_v4 and ip + 4 * (frame[ip] & 15) != transport:
        return None
    length = 8 if protocol == UDP else 4 * (frame[transport + 12] >> 4)
    if length < 8 or (protocol == TCP and length < 20) or transport + length > len(frame):
        return None
    return Layout(ip, transport, transport + length, protocol, addresses, is_v4)


def cut(frame: bytearray, layout: Layout, size: int) -> list[bytearray]:
    """The frame as segments of `size` bytes of payload, each with headers of its own."""
    headers, payload = frame[: layout.payload], memoryview(frame)[layout.payload :]
    count = max(1, -(-len(payload) // size))
    segments = []
    for number in range(count):
        segment = headers + payload[number * size : (number + 1) * size]
        if layout.protocol == TCP:
            _tcp(segment, layout, number * size, number == 0, number + 1 == count)
        _lengths(segment, layout, number)
        _transport_checksum(segment, layout)
        segments.append(segment)
    return segments


def _tcp(segment: bytearray, layout: Layout, offset: int, is_first: bool, is_last: bool) -> None:
    """Sequence number, and the flags that belong to the first or the last segment only."""
    at = layout.transport
    sequence = int.from_bytes(segment[at + 4 : at + 8], "big") + offset & 0xFFFF_FFFF
    segment[at + 4 : at + 8] = sequence.to_bytes(4, "big")
    if not is_last:
        segment[at + 13] &= ~(FIN | PSH)
    if not is_first:
        segment[at + 13] &= ~CWR


def _lengths(segment: bytearray, layout: Layout, number: int) -> None:
    """Lengths and checksum of the network header, and UDP's length."""
    ip, at = layout.ip, layout.transport
    if layout.is_v4:
        segment[ip + 2 : ip + 4] = (len(segment) - ip & 0xFFFF).to_bytes(2, "big")
        identity = int.from_bytes(segment[ip + 4 : ip + 6], "big") + number & 0xFFFF
        segment[ip + 4 : ip + 6] = identity.to_bytes(2, "big")
        segment[ip + 10 : ip + 12] = bytes(2)
        fill_checksum_of(segment, ip, at, ip + 10)
    else:
        segment[ip + 4 : ip + 6] = (len(segment) - ip - 40 & 0xFFFF).to_bytes(2, "big")
    if layout.protocol == UDP:
        segment[at + 4 : at + 6] = (len(segment) - at & 0xFFFF).to_bytes(2, "big")


def fill_checksum_of(segment: bytearray, start: int, end: int, place: int) -> None:
    """Put the checksum of a range into the two bytes at `place`, which are 0."""
    segment[place : place + 2] = (0xFFFF - folded(segment[start:end])).to_bytes(2, "big")


def _transport_checksum(segment: bytearray, layout: Layout) -> None:
    at = layout.transport
    place = at + (6 if layout.protocol == UDP else 16)
    pseudo = folded(segment[layout.addresses]) + layout.protocol + len(segment) - at
    segment[place : place + 2] = (pseudo % 0xFFFF).to_bytes(2, "big")
    fill_checksum(segment, at, place - at)
