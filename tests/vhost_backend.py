"""A vhost-user disk over a file, written from the protocol's text: a process of its own, which checks what it is told.

    vhost_backend.py SOCKET FILE [die] [inflight] [net]

net: a network card in its place, which sends every frame back.
die: take 8 requests, give every other one back, and end.  inflight: keep a record of requests in shared memory.
"""

import mmap
import os
import select
import socket
import sys
from pathlib import Path
from struct import pack, unpack, unpack_from
from typing import Any

VERSION_1, PROTOCOL = 1 << 32, 1 << 30
MQ, REPLY_ACK, CONFIG, INFLIGHT = 1, 8, 1 << 9, 1 << 12
FEATURES = VERSION_1 | PROTOCOL | 1 << 9 | 1 << 12  # FLUSH, MQ
QUEUES = 4
ENTRIES = 1024  # of a queue in the record of what is in flight: a byte each


class Ring:
    num = base = desc = used = avail = enabled = 0
    kick = call = -1


class Disk:
    """One connection."""

    def __init__(self, link: socket.socket, path: str, modes: list[str]) -> None:
        self.link, self.modes = link, modes
        self.file = os.open(path, os.O_RDWR)
        self.rings = [Ring() for _ in range(2 if "net" in modes else QUEUES)]
        self.ram: Any = None
        self.record: Any = None
        self.protocol = self.features = 0
        self.held: list[tuple[int, int]] = []

    def serve(self) -> None:
        """Until the front end hangs up."""
        while True:
            kicks = {ring.kick: n for n, ring in enumerate(self.rings) if ring.kick >= 0}
            ready, _, _ = select.select([self.link, *kicks], [], [])
            if self.link in ready:
                if not self.message():
                    return
                continue
            for fd in ready:
                os.read(fd, 8)
                assert self.rings[kicks[fd]].enabled, "a kick before the ring was enabled"
                self.run(kicks[fd])

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
        assert not self.features & ~FEATURES and self.features & VERSION_1 and self.features & PROTOCOL

    def on_3(self, payload: bytes, fds: list[int]) -> None:  # SET_OWNER
        assert not payload

    def on_5(self, payload: bytes, fds: list[int]) -> None:  # SET_MEM_TABLE
        count, _, self.gpa, size, self.user, offset = unpack("<IIQQQQ", payload)
        assert count == len(fds) == 1 and offset == 0 and os.fstat(fds[0]).st_size == size
        self.ram = mmap.mmap(fds[0], size)

    def on_8(self, payload: bytes, fds: list[int]) -> None:  # SET_VRING_NUM
        _, self.rings[unpack_from("<I", payload)[0]].num = unpack("<II", payload)

    def on_9(self, payload: bytes, fds: list[int]) -> None:  # SET_VRING_ADDR
        index, flags, *areas, _ = unpack("<IIQQQQ", payload)
        assert flags == 0 and all(self.user <= area < self.user + len(self.ram) for area in areas)
        ring = self.rings[index]
        ring.desc, ring.used, ring.avail = (area - self.user for area in areas)

    def on_10(self, payload: bytes, fds: list[int]) -> None:  # SET_VRING_BASE
        _, self.rings[unpack_from("<I", payload)[0]].base = unpack("<II", payload)

    def on_11(self, payload: bytes, fds: list[int]) -> bytes:  # GET_VRING_BASE
        index, _ = unpack("<II", payload)
        ring = self.rings[index]
        answer = pack("<II", index, ring.base)
        self.rings[index] = Ring()
        return answer

    def on_12(self, payload: bytes, fds: list[int]) -> None:  # SET_VRING_KICK
        self.rings[unpack("<Q", payload)[0]].kick = fds[0]

    def on_13(self, payload: bytes, fds: list[int]) -> None:  # SET_VRING_CALL
        self.rings[unpack("<Q", payload)[0]].call = fds[0]

    def on_15(self, payload: bytes, fds: list[int]) -> bytes:  # GET_PROTOCOL_FEATURES
        return pack("<Q", MQ | REPLY_ACK | CONFIG | (INFLIGHT if "inflight" in self.modes else 0))

    def on_16(self, payload: bytes, fds: list[int]) -> None:  # SET_PROTOCOL_FEATURES
        (self.protocol,) = unpack("<Q", payload)

    def on_17(self, payload: bytes, fds: list[int]) -> bytes:  # GET_QUEUE_NUM
        return pack("<Q", QUEUES)

    def on_18(self, payload: bytes, fds: list[int]) -> None:  # SET_VRING_ENABLE
        _, self.rings[unpack_from("<I", payload)[0]].enabled = unpack("<II", payload)

    def on_24(self, payload: bytes, fds: list[int]) -> bytes:  # GET_CONFIG
        offset, size, _ = unpack_from("<III", payload)
        config = pack("<Q", os.fstat(self.file).st_size // 512).ljust(256, b"\0")
        return payload[:12] + config[offset : offset + size]

    def on_25(self, payload: bytes, fds: list[int]) -> None:  # SET_CONFIG
        assert len(payload) == 12 + unpack_from("<I", payload, 4)[0]

    def on_31(self, payload: bytes, fds: list[int]) -> tuple[bytes, list[int]]:  # GET_INFLIGHT_FD
        fd = os.memfd_create("inflight")
        os.ftruncate(fd, QUEUES * ENTRIES)
        _, _, queues, size = unpack("<QQHH4x", payload)
        return pack("<QQHH4x", QUEUES * ENTRIES, 0, queues, size), [fd]

    def on_32(self, payload: bytes, fds: list[int]) -> None:  # SET_INFLIGHT_FD
        self.record = mmap.mmap(fds[0], unpack_from("<Q", payload)[0])

    # Rings

    def word(self, place: int) -> int:
        return int(unpack_from("<H", self.ram, place)[0])

    def run(self, index: int) -> None:
        ring = self.rings[index]
        if self.record is not None:
            mine = self.record[index * ENTRIES : (index + 1) * ENTRIES]
            heads = [head for head in range(ring.num) if mine[head]]
            known = {head for _, head in self.held}
            for head in heads:
                if head not in known:
                    ring.base = (ring.base + 1) & 0xFFFF
                    self.finish(index, head)
        while ring.base != self.word(ring.avail + 2):
            head = self.word(ring.avail + 4 + 2 * (ring.base % ring.num))
            ring.base = (ring.base + 1) & 0xFFFF
            if self.record is not None:
                self.record[index * ENTRIES + head] = 1
            self.held.append((index, head))
            if "die" not in self.modes:
                self.finish(*self.held.pop())
        if "die" in self.modes and len(self.held) >= 8:
            for each in self.held[1::2]:
                self.finish(*each)
            os._exit(0)

    def finish(self, index: int, head: int) -> None:
        """Do a request and give it back."""
        ring, parts, at = self.rings[index], [], head
        while True:
            address, size, flags, following = unpack_from("<QIHH", self.ram, ring.desc + 16 * at)
            parts.append((address - self.gpa, size))
            if not flags & 1:
                break
            at = following
        (start, size), *data, (status, _) = parts
        kind, _, sector = unpack("<IIQ", self.ram[start : start + 16])
        offset = sector * 512
        for place, size in data:
            if kind == 1:
                os.pwrite(self.file, self.ram[place : place + size], offset)
            elif kind == 0:  # IN
                self.ram[place : place + size] = os.pread(self.file, size, offset)
            offset += size
        self.ram[status] = 0
        self.use(index, head, 1)

    def use(self, index: int, head: int, written: int) -> None:
        ring = self.rings[index]
        used = self.word(ring.used + 2)
        place = ring.used + 4 + 8 * (used % ring.num)
        self.ram[place : place + 8] = pack("<II", head, written)
        self.ram[ring.used + 2 : ring.used + 4] = pack("<H", (used + 1) & 0xFFFF)
        if self.record is not None:
            self.record[index * ENTRIES + head] = 0
        os.write(ring.call, (1).to_bytes(8, "little"))


class Card(Disk):
    """Sends back what it gets; of a queue of pairs it counts one."""

    def on_17(self, payload: bytes, fds: list[int]) -> bytes:
        return pack("<Q", 1)

    def next(self, index: int) -> tuple[int, int, int]:
        """Head, place and size of a request of one part."""
        ring = self.rings[index]
        head = self.word(ring.avail + 4 + 2 * (ring.base % ring.num))
        address, size, flags, _ = unpack_from("<QIHH", self.ram, ring.desc + 16 * head)
        assert flags == 2 * (index == 0)
        ring.base = (ring.base + 1) & 0xFFFF
        return head, address - self.gpa, size

    def run(self, index: int) -> None:
        receive, send = self.rings
        while send.num and send.base != self.word(send.avail + 2) and receive.base != self.word(receive.avail + 2):
            sent, place, size = self.next(1)
            got, room, _ = self.next(0)
            self.ram[room : room + size] = self.ram[place : place + size]
            self.use(1, sent, 0)
            self.use(0, got, size)


def main() -> None:
    place, file, *modes = sys.argv[1:]
    Path(place).unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(place + ".new")
        listener.listen(1)
        os.rename(place + ".new", place)  # it is there when it can be connected to
        while True:
            link, _ = listener.accept()
            (Card if "net" in modes else Disk)(link, file, modes).serve()


if __name__ == "__main__":
    main()
