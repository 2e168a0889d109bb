"""Parsers alone, without a device around them: bytes in, and what comes out is compared with a slow reading."""

import contextlib
import os
import select
from collections.abc import Sequence
from pathlib import Path
from struct import pack, unpack

from fuzz_core import Fuzzer, Source, silence
from fuzz_makers import HostileBackend, Wire

from virtio.netdev import MAX_FRAME
from virtio.netfilter import BROADCAST, ReceiveFilter
from virtio.ninep_messages import FIELDS, FIELDS_SIZE, Malformed, parse
from virtio.offload import GSO_ECN, HEADER, MOST_SEGMENTS, finish
from virtio.vhost_wire import BackendError, Session

WIDTHS = {"B": 1, "H": 2, "I": 4, "Q": 8}
MOST_HEADERS = 512  # bytes in front of a segment's payload


class NinepMessages(Fuzzer):
    """9P2000.L: what was parsed, put together again, is the message's front."""

    unit = "a 9p message"

    def play(self, data: bytes) -> None:
        source = Source(data)
        message = source.one(tuple(FIELDS))
        body = source.rest()
        if len(body) % 3 == 0:
            body = spelled(FIELDS[message], Source(body))
        with contextlib.suppress(Malformed):
            values = parse(message, body)
            again = encode(FIELDS[message], values)
            assert body.startswith(again), f"{message.name}: {values} is not what was sent"
            assert message not in FIELDS_SIZE or len(again) == FIELDS_SIZE[message]


def spelled(codes: str, source: Source) -> bytes:
    """A body that is right, or nearly."""
    made = b""
    for code in codes:
        if code in WIDTHS:
            made += source.bytes(WIDTHS[code])
        count = {"s": 1, "*": source.number(18)}.get(code, 0)
        made += pack("<H", count) if code == "*" else b""
        for _ in range(count):
            name = source.bytes(source.number(9))
            made += pack("<H", len(name) + (source.number(32) == 31)) + name
    return made


def encode(codes: str, values: Sequence[object]) -> bytes:
    """Fields as they are sent."""
    made = b""
    for code, value in zip(codes, values, strict=True):
        if isinstance(value, int):
            made += value.to_bytes(WIDTHS[code], "little")
        else:
            names = value if isinstance(value, list) else [value]
            made += pack("<H", len(names)) if code == "*" else b""
            made += b"".join(pack("<H", len(name)) + name for name in names)
    return made


class Offload(Fuzzer):
    """Headers of a network card: what is cut is all of the payload, in frames of the right size with right sums."""

    unit = "a frame and its header"
    longest = 200

    def play(self, data: bytes) -> None:
        source = Source(data)
        frame = some_frame(source)
        header = HEADER.pack(
            source.one((1, 1, 1, 0, source.number(256))),
            source.one((1, 4, 5, 0x81, 0x84, 0, 3, source.number(256))),
            0,
            source.one((1, 2, 48, 1400, 1448, 0, 0xFFFF, source.number(0x1_0000))),
            source.one((34, 54, 38, 58, source.number(200), source.number(0x1_1000) & 0xFFFF)),
            source.one((16, 6, source.number(40), source.number(0x1_0000))),
            0,
        )
        before = bytes(frame)
        made = finish(header, frame, takes_large=not source.number(8))
        total = sum(map(len, made))
        assert total <= len(before) + MOST_SEGMENTS * MOST_HEADERS, f"{total} bytes of a frame of {len(before)}"
        if len(made) > 1:
            check_segments(header, before, made)


def some_frame(source: Source) -> bytearray:
    """Ethernet, perhaps VLAN tags, IPv4 or IPv6, TCP or UDP; or nearly."""
    tags = b"\x81\x00\0\1" * source.one((0, 0, 0, 1, 2, 3))
    transport = source.bytes(12) + bytes([source.one((0x50, 0x50, 0x80, 0xF0, 0x10, source.number(256)))])
    transport += source.bytes(source.number(60))
    if source.number(2):
        network = b"\x08\0" + bytes([source.one((0x45, 0x45, 0x46, 0x4F, source.number(256)))]) + source.bytes(19)
    else:
        network = b"\x86\xdd" + source.bytes(40)
    payload = bytes(source.one((0, 1, 100, 1448, 5000, 65000 - len(transport), source.number(MAX_FRAME - 300))))
    return bytearray(bytes(12) + tags + network + transport + payload + source.bytes(3))


def check_segments(header: bytes, before: bytes, made: list[bytearray]) -> None:
    """All of the payload in its order, and sums that a receiver finds right."""
    _, kind, _, size, start, _, _ = HEADER.unpack(header)
    is_udp = kind & ~GSO_ECN == 5
    length = 8 if is_udp else 4 * (before[start + 12] >> 4)
    front = start + length
    assert b"".join(bytes(segment[front:]) for segment in made) == before[front:]
    assert all(len(segment) == front + size for segment in made[:-1])
    is_v4 = before[start - 20 :] and kind & ~GSO_ECN == 1
    for segment in made[:: max(1, len(made) // 8)]:
        ip = segment.index(b"\x08\0" if is_v4 else b"\x86\xdd", 12) + 2 if not is_udp else 0
        if is_udp:
            continue
        addresses = segment[ip + 12 : ip + 20] if is_v4 else segment[ip + 8 : ip + 40]
        pseudo = bytes(addresses) + pack(">IBBH", len(segment) - start, 0, 0, 6)
        assert ones_sum(pseudo + bytes(segment[start:])) in (0, 0xFFFF), "a segment's checksum is wrong"


def ones_sum(data: bytes) -> int:
    """The Internet checksum's sum, a word at a time."""
    data += b"\0" * (len(data) & 1)
    total = sum(unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


class Framing(Fuzzer):
    """A stream's peer: frames are found wherever its bytes are cut, and nothing after a length that is too large."""

    unit = "a connection: lengths and frames, in pieces"

    def play(self, data: bytes) -> None:
        source = Source(data)
        sent = b""
        for _ in range(source.number(12)):
            size = source.one((0, 1, 60, 60, 1514, 9000, MAX_FRAME, MAX_FRAME + 1, 0xFFFF_FFFF, source.number(300)))
            sent += pack(">I", size) + bytes([size & 0xFF]) * min(size, MAX_FRAME)
        sent += source.bytes(source.number(8))
        with silence():
            found = receive_pieces(sent, source)
        assert found == slow_frames(sent)


def receive_pieces(sent: bytes, source: Source) -> list[bytes]:
    """The frames that a stream finds."""
    wire, found, at = Wire(), [], 0
    sizes = (1, 2, 3, 5, 100) if len(sent) < 500 else (1000, 70000, 200000)
    wire.start()
    other = wire.plug()
    first = wire.link
    while at < len(sent) and wire.link is first:
        with contextlib.suppress(BlockingIOError):
            at += other.send(sent[at : at + source.one(sizes)])
        wire.ready(first.fileno(), select.EPOLLIN)
        while (frame := wire.receive(0)) is not None:
            found.append(bytes(frame.parts[0]))
    wire.close()
    return found


def slow_frames(sent: bytes) -> list[bytes]:
    found, at = [], 0
    while at + 4 <= len(sent):
        (size,) = unpack(">I", sent[at : at + 4])
        if size > MAX_FRAME or at + 4 + size > len(sent):
            break
        found.append(sent[at + 4 : at + 4 + size])
        at += 4 + size
    return found


class Filters(Fuzzer):
    """The commands of a card's receive filter, against one that keeps lists."""

    unit = "a command's bytes, then three addresses"
    longest = 80

    def play(self, data: bytes) -> None:
        source = Source(data)
        made = ReceiveFilter(b"\x52\0\0\0\0\1")
        table: list[bytes] = []
        modes = [source.number(2) for _ in range(6)]
        for mode, on in enumerate(modes):
            assert made.set_mode(mode, bytes([on]))
        assert not made.set_mode(source.number(6), b"\2") and not made.set_mode(6, b"\0")
        lists = [[source.bytes(6) for _ in range(source.number(4))] for _ in range(2)]
        body = b"".join(pack("<I", len(each)) + b"".join(each) for each in lists)
        body = body[: len(body) - source.one((0, 0, 0, 1, 5, 20))] + source.bytes(source.one((0, 0, 0, 1)))
        if made.set_table(body):
            assert len(body) == 8 + 6 * sum(map(len, lists))
            table = [body[at : at + 6] for at in slots(list(map(len, lists)))]
        for target in (*table[:1], source.bytes(6), BROADCAST):
            assert made.accepts(target) == accepted(target, made.mac, table, modes)


def slots(counts: list[int]) -> list[int]:
    """Where the addresses of two lists lie, each behind its number of entries."""
    first = [4 + 6 * n for n in range(counts[0])]
    return first + [8 + 6 * (counts[0] + n) for n in range(counts[1])]


def accepted(target: bytes, mac: bytes, table: list[bytes], modes: list[int]) -> bool:
    """The specification's table of modes (virtio 1.3, 5.1.6.5.1)."""
    promiscuous, all_multi, all_uni, no_multi, no_uni, no_broadcast = modes
    if promiscuous:
        return True
    if target == BROADCAST:
        return not no_broadcast
    is_known = target in table
    if target[0] & 1:
        return not no_multi and bool(all_multi or is_known)
    return not no_uni and bool(all_uni or is_known or target == mac)


class VhostAnswers(Fuzzer):
    """A back-end's answers to all that is asked at the beginning: it is a session, or an error that says why not."""

    unit = "a connection to a back-end"
    longest = 60

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.kept: list[int] = []

    def play(self, data: bytes) -> None:
        link, session = HostileBackend(data), None
        try:
            session = Session(link)  # type: ignore[arg-type]
            assert len(session.config(60)) == 60
            session.set_config(32, b"\1")
            _, fd = session.new_inflight(2, 64)
            self.kept.append(fd)
        except BackendError:
            pass
        finally:
            if session:
                session.close()
            self.close()

    def close(self) -> None:
        while self.kept:
            os.close(self.kept.pop())


PARSERS: dict[str, type[Fuzzer]] = {
    "parse-9p": NinepMessages,
    "parse-offload": Offload,
    "parse-stream": Framing,
    "parse-filter": Filters,
    "parse-vhost-user": VhostAnswers,
}
