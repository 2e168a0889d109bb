"""A vhost-user disk over a file, written from the protocol's text: a process of its own, which checks what it is told.

    vhost_backend.py SOCKET FILE [die] [inflight] [full] [through] [net|rng]

net: a network card in its place, which sends every frame back.  rng: a source of entropy, all of whose bytes are 7.
die: take 8 requests, give every other one back, and end.  inflight: keep a record of requests in shared memory.
through: has a write cache, which must be off before there are requests.
full: be told the device's status and of resets, and say when the file has got another size.
"""

import mmap
import os
import select
import socket
import sys
from pathlib import Path
from struct import pack, unpack, unpack_from
from typing import Any, NamedTuple

VERSION_1, PROTOCOL = 1 << 32, 1 << 30
MQ, REPLY_ACK, BACKEND_REQ, CONFIG, INFLIGHT, RESET_DEVICE, STATUS = (1 << bit for bit in (0, 3, 5, 9, 12, 13, 16))
FEATURES = VERSION_1 | PROTOCOL | 1 << 9 | 1 << 11 | 1 << 12  # FLUSH, CONFIG_WCE, MQ
WRITEBACK = 32  # where that is in the configuration
QUEUES = 4
ENTRIES = 1024  # of a queue in the record of what is in flight: a byte each, ...
LAST, KNOWN, STRIDE = 1024, 1026, 1028  # ... then the head that was given back last, and used.idx after that


class Region(NamedTuple):
    guest: int
    size: int
    user: int
    memory: Any  # mmap


class Ring:
    memory: Any = None
    num = base = desc = used = avail = 0
    enabled: int | None = None
    kick = call = -1


class Disk:
    """One connection."""

    def __init__(self, link: socket.socket, path: str, modes: list[str]) -> None:
        self.link, self.modes = link, modes
        self.file = os.open(path, os.O_RDWR)
        self.rings = [Ring() for _ in range(2 if "net" in modes else QUEUES)]
        self.regions: list[Region] = []
        self.record: Any = None
        self.protocol = self.features = 0
        self.held: list[tuple[int, int]] = []
        self.channel: socket.socket | None = None
        self.status = 0
        self.writeback = 1
        self.size = os.fstat(self.file).st_size

    def serve(self) -> None:
        """Until the front end hangs up."""
        while True:
            kicks = {ring.kick: n for n, ring in enumerate(self.rings) if ring.kick >= 0}
            ready, _, _ = select.select([self.link, *kicks], [], [], 0.02)
            self.tell_size()
            if self.link in ready:
                if not self.message():
                    return
                continue
            for fd in ready:
                os.read(fd, 8)
                assert self.rings[kicks[fd]].enabled is not None, "a kick before the ring was enabled"
                self.run(kicks[fd])

    def tell_size(self) -> None:
        """Wait for the answer, as some back-ends do."""
        size = os.fstat(self.file).st_size
        if self.channel and size != self.size:
            self.size = size
            self.channel.sendall(pack("<III", 2, 1 | 8, 0))
            assert self.channel.recv(20) == pack("<IIIQ", 2, 5, 8, 0)

    def message(self) -> bool:
        data, fds, _, _ = socket.recv_fds(self.link, 12, 8)
        if not data:
            return False
        request, flags, size = unpack("<III", data)
        assert flags & ~8 == 1, f"flags {flags:#x}"
        payload = self.link.recv(size, socket.MSG_WAITALL) if size else b""
        answer = getattr(self, f"on_{request}")(payload, fds)
        if answer is not None:
            data, out = answer if isinstance(answer, tuple) else (answer, [])
            socket.send_fds(self.link, [pack("<III", request, 5, len(data)) + data], out)
        elif flags & 8:
            assert self.protocol & REPLY_ACK
            self.link.sendall(pack("<IIIQ", request, 5, 8, 0))
        return True

    def on_1(self, payload: bytes, fds: list[int]) -> bytes:  # GET_FEATURES
        return pack("<Q", FEATURES)

    def on_2(self, payload: bytes, fds: list[int]) -> None:  # SET_FEATURES
        (self.features,) = unpack("<Q", payload)
        assert not self.protocol & STATUS or self.status == 3
        assert not self.features & ~FEATURES and self.features & VERSION_1 and self.features & PROTOCOL

    def on_3(self, payload: bytes, fds: list[int]) -> None:  # SET_OWNER
        assert not payload

    def on_5(self, payload: bytes, fds: list[int]) -> None:  # SET_MEM_TABLE
        count, _ = unpack_from("<II", payload)
        assert count == len(fds) and len(payload) == 8 + 32 * count
        self.regions = []
        for number, fd in enumerate(fds):
            guest, size, user, offset = unpack_from("<QQQQ", payload, 8 + 32 * number)
            assert offset == 0 and os.fstat(fd).st_size == size
            assert all(guest >= other.guest + other.size for other in self.regions)
            self.regions.append(Region(guest, size, user, mmap.mmap(fd, size)))
            os.close(fd)

    def place(self, address: int, size: int) -> tuple[Any, int]:
        """Memory and offset of a guest address."""
        for each in self.regions:
            if each.guest <= address and address + size <= each.guest + each.size:
                return each.memory, address - each.guest
        raise AssertionError(f"{size} bytes at {address:#x} are nowhere")

    def on_8(self, payload: bytes, fds: list[int]) -> None:  # SET_VRING_NUM
        _, self.rings[unpack_from("<I", payload)[0]].num = unpack("<II", payload)

    def on_9(self, payload: bytes, fds: list[int]) -> None:  # SET_VRING_ADDR
        index, flags, *areas, _ = unpack("<IIQQQQ", payload)
        (region,) = (each for each in self.regions if each.user <= areas[0] < each.user + each.size)
        assert flags == 0 and all(region.user <= area < region.user + region.size for area in areas)
        ring = self.rings[index]
        ring.memory = region.memory
        ring.desc, ring.used, ring.avail = (area - region.user for area in areas)

    def on_10(self, payload: bytes, fds: list[int]) -> None:  # SET_VRING_BASE
        _, self.rings[unpack_from("<I", payload)[0]].base = unpack("<II", payload)

    def on_11(self, payload: bytes, fds: list[int]) -> bytes:  # GET_VRING_BASE
        index, _ = unpack("<II", payload)
        ring = self.rings[index]
        answer = pack("<II", index, ring.base)
        self.rings[index] = Ring()
        return answer

    def on_12(self, payload: bytes, fds: list[int]) -> None:  # SET_VRING_KICK
        assert not ("through" in self.modes and self.writeback)
        self.rings[unpack("<Q", payload)[0]].kick = fds[0]

    def on_13(self, payload: bytes, fds: list[int]) -> None:  # SET_VRING_CALL
        self.rings[unpack("<Q", payload)[0]].call = fds[0]

    def on_15(self, payload: bytes, fds: list[int]) -> bytes:  # GET_PROTOCOL_FEATURES
        full = BACKEND_REQ | RESET_DEVICE | STATUS if "full" in self.modes else 0
        return pack("<Q", MQ | REPLY_ACK | CONFIG | full | (INFLIGHT if "inflight" in self.modes else 0))

    def on_16(self, payload: bytes, fds: list[int]) -> None:  # SET_PROTOCOL_FEATURES
        (self.protocol,) = unpack("<Q", payload)

    def on_17(self, payload: bytes, fds: list[int]) -> bytes:  # GET_QUEUE_NUM
        return pack("<Q", QUEUES)

    def on_18(self, payload: bytes, fds: list[int]) -> None:  # SET_VRING_ENABLE
        _, self.rings[unpack_from("<I", payload)[0]].enabled = unpack("<II", payload)

    def on_21(self, payload: bytes, fds: list[int]) -> None:  # SET_BACKEND_REQ_FD
        assert self.protocol & BACKEND_REQ
        self.channel = socket.socket(fileno=fds[0])

    def on_34(self, payload: bytes, fds: list[int]) -> None:  # RESET_DEVICE
        assert self.protocol & RESET_DEVICE and all(ring.kick < 0 for ring in self.rings)

    def on_39(self, payload: bytes, fds: list[int]) -> None:  # SET_STATUS
        (status,) = unpack("<Q", payload)
        assert self.protocol & STATUS and (status == 0 or status & self.status == self.status)
        self.status = status

    def on_40(self, payload: bytes, fds: list[int]) -> bytes:  # GET_STATUS
        return pack("<Q", self.status)

    def on_24(self, payload: bytes, fds: list[int]) -> bytes:  # GET_CONFIG
        offset, size, _ = unpack_from("<III", payload)
        config = bytearray(pack("<Q", os.fstat(self.file).st_size // 512).ljust(256, b"\0"))
        config[WRITEBACK] = self.writeback
        return payload[:12] + config[offset : offset + size]

    def on_25(self, payload: bytes, fds: list[int]) -> None:  # SET_CONFIG
        assert unpack_from("<III", payload) == (WRITEBACK, 1, 0)
        self.writeback = payload[12]

    def on_31(self, payload: bytes, fds: list[int]) -> tuple[bytes, list[int]]:  # GET_INFLIGHT_FD
        fd = os.memfd_create("inflight")
        os.ftruncate(fd, QUEUES * STRIDE)
        _, _, queues, size = unpack("<QQHH4x", payload)
        return pack("<QQHH4x", QUEUES * STRIDE, 0, queues, size), [fd]

    def on_32(self, payload: bytes, fds: list[int]) -> None:  # SET_INFLIGHT_FD
        self.record = mmap.mmap(fds[0], unpack_from("<Q", payload)[0])

    # Rings

    def word(self, ring: Ring, place: int) -> int:
        return int(unpack_from("<H", ring.memory, place)[0])

    def run(self, index: int) -> None:
        ring = self.rings[index]
        if self.record is not None:
            self.go_on(index, ring)
        while ring.base != self.word(ring, ring.avail + 2):
            head = self.word(ring, ring.avail + 4 + 2 * (ring.base % ring.num))
            if self.record is not None:
                self.record[index * STRIDE + head] = 1
            ring.base = (ring.base + 1) & 0xFFFF
            self.held.append((index, head))
            if "die" not in self.modes:
                self.finish(*self.held.pop())
        if "die" in self.modes and len(self.held) >= 8:
            for each in self.held[1::2]:
                self.finish(*each)
            os._exit(0)

    def go_on(self, index: int, ring: Ring) -> None:
        """Do what another has begun.  It may have died before it noted what it had given back."""
        at, used = index * STRIDE, ring.memory[ring.used + 2 : ring.used + 4]
        if self.record[at + KNOWN : at + STRIDE] != used:
            self.record[at + unpack_from("<H", self.record, at + LAST)[0]] = 0
            self.record[at + KNOWN : at + STRIDE] = used
        known = {head for _, head in self.held}
        for head in range(ring.num):
            if self.record[at + head] and head not in known:
                ring.base = (ring.base + 1) & 0xFFFF
                self.finish(index, head)

    def finish(self, index: int, head: int) -> None:
        """Do a request and give it back."""
        ring, parts, at = self.rings[index], [], head
        while True:
            address, size, flags, following = unpack_from("<QIHH", ring.memory, ring.desc + 16 * at)
            parts.append((*self.place(address, size), size))
            if not flags & 1:
                break
            at = following
        self.use(index, head, self.answer(parts))

    def answer(self, parts: list[tuple[Any, int, int]]) -> int:
        """Do what a request's parts say; gives how much was written."""
        (ram, start, size), *data, (last, status, _) = parts
        kind, _, sector = unpack("<IIQ", ram[start : start + 16])
        offset = sector * 512
        for ram, place, size in data:
            if kind == 1:
                os.pwrite(self.file, ram[place : place + size], offset)
            elif kind == 0:  # IN
                ram[place : place + size] = os.pread(self.file, size, offset)
            offset += size
        last[status] = 0
        return 1

    def use(self, index: int, head: int, written: int) -> None:
        ring, at = self.rings[index], index * STRIDE
        used = self.word(ring, ring.used + 2)
        place = ring.used + 4 + 8 * (used % ring.num)
        ring.memory[place : place + 8] = pack("<II", head, written)
        after = pack("<H", (used + 1) & 0xFFFF)
        if self.record is not None:
            self.record[at + LAST : at + KNOWN] = pack("<H", head)
        ring.memory[ring.used + 2 : ring.used + 4] = after
        if self.record is not None:
            self.record[at + head] = 0
            self.record[at + KNOWN : at + STRIDE] = after
        os.write(ring.call, (1).to_bytes(8, "little"))


class Card(Disk):
    """Sends back what it gets; of a queue of pairs it counts one."""

    def on_17(self, payload: bytes, fds: list[int]) -> bytes:
        return pack("<Q", 1)

    def next(self, index: int) -> tuple[int, Any, int, int]:
        """Head, memory, place and size of a request of one part."""
        ring = self.rings[index]
        head = self.word(ring, ring.avail + 4 + 2 * (ring.base % ring.num))
        address, size, flags, _ = unpack_from("<QIHH", ring.memory, ring.desc + 16 * head)
        assert flags == 2 * (index == 0)
        ring.base = (ring.base + 1) & 0xFFFF
        return head, *self.place(address, size), size

    def run(self, index: int) -> None:
        receive, send = self.rings
        while all(ring.memory and ring.base != self.word(ring, ring.avail + 2) for ring in (send, receive)):
            sent, ram, place, size = self.next(1)
            got, _, room, _ = self.next(0)
            ram[room : room + size] = ram[place : place + size]
            self.use(1, sent, 0)
            self.use(0, got, size)


class Entropy(Disk):
    """Its configuration is a byte that can be written, and the number of times that was done."""

    bytes = b"\5\0"

    def on_24(self, payload: bytes, fds: list[int]) -> bytes:
        offset, size, _ = unpack_from("<III", payload)
        return payload[:12] + self.bytes[offset : offset + size]

    def on_25(self, payload: bytes, fds: list[int]) -> None:
        assert unpack_from("<III", payload) == (0, 1, 0)
        self.bytes = payload[12:] + pack("<B", self.bytes[1] + 1)

    def answer(self, parts: list[tuple[Any, int, int]]) -> int:
        for ram, place, size in parts:
            ram[place : place + size] = b"\7" * size
        return sum(size for _, _, size in parts)


def main() -> None:
    place, file, *modes = sys.argv[1:]
    Path(place).unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(place + ".new")
        listener.listen(1)
        os.rename(place + ".new", place)  # it is there when it can be connected to
        while True:
            link, _ = listener.accept()
            kind = Card if "net" in modes else Entropy if "rng" in modes else Disk
            kind(link, file, modes).serve()


if __name__ == "__main__":
    main()
