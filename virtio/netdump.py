"""`-object filter-dump`: a netdev between a card and its netdev, which writes what passes to a pcap file."""

import os
import struct
import sys
import time

from virtio.needs import Needs
from virtio.netdev import Frame, Netdev

MAGIC, MAJOR, MINOR, ETHERNET_LINK = 0xA1B2_C3D4, 2, 4, 1
FILE_HEADER, FRAME_HEADER = struct.Struct("=IHHiIII"), struct.Struct("=IIII")


class Dump(Netdev):
    """Frames sent to `inner` (`rx` of QEMU's filters) and received from it (`tx`), up to `most` bytes of each."""

    def __init__(self, inner: Netdev, path: str, most: int, sent: bool, received: bool) -> None:
        self.inner, self.most, self.sent, self.received = inner, most, sent, received
        self.name, self.queues = inner.name, inner.queues
        self.offloads, self.takes_large = inner.offloads, inner.takes_large
        self.file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        os.write(self.file, FILE_HEADER.pack(MAGIC, MAJOR, MINOR, 0, 0, most, ETHERNET_LINK))

    @property
    def is_up(self) -> bool:
        return self.inner.is_up

    @is_up.setter
    def is_up(self, up: bool) -> None:
        self.inner.is_up = up

    def send(self, queue: int, frames: list[Frame]) -> int:
        # What is written is what is sent, so the guest must not change it between the two.
        copies = [Frame([memoryview(b"".join(frame.parts))], frame.header) for frame in frames]
        taken = self.inner.send(queue, copies)
        if self.sent:
            for frame in copies[:taken]:
                self.write(frame.parts[0])
        return taken

    def receive(self, queue: int) -> Frame | None:
        frame = self.inner.receive(queue)
        if frame and self.received:
            self.write(frame.parts[0])
        return frame

    def write(self, data: memoryview) -> None:
        """One record."""
        if self.file < 0:
            return
        seconds, micros = divmod(time.time_ns() // 1000, 1_000_000)
        kept = data[: self.most]
        try:
            os.writev(self.file, [FRAME_HEADER.pack(seconds, micros, len(kept), len(data)), kept])
        except OSError as error:
            print(f"\rhartbeat: filter-dump of {self.name}: {error.strerror}; it has stopped", file=sys.stderr)
            os.close(self.file)
            self.file = -1

    def configure(self, features: int, queues: int) -> None:
        self.inner.configure(features, queues)

    def needs(self) -> Needs:
        return self.inner.needs()

    def start(self) -> None:
        self.inner.start()

    def interest(self) -> dict[int, int]:
        return self.inner.interest()

    def ready(self, fd: int, events: int) -> None:
        self.inner.ready(fd, events)

    def flush(self) -> None:
        self.inner.flush()

    def stop(self) -> None:
        self.inner.stop()

    def close(self) -> None:
        self.inner.close()
        if self.file >= 0:
            os.close(self.file)
            self.file = -1
