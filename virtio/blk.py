"""virtio-blk (virtio 1.2, 5.2): a disk over an image of virtio/image.py."""

import sys
import time
from collections.abc import Iterator
from enum import IntEnum
from struct import Struct, pack

from virtio.device import Device
from virtio.image import Image
from virtio.queue import Queue, Request, size_of
from virtio.throttle import Throttle

SECTOR = 512
SEG_MAX = 254
MAX_SECTORS = 1 << 22  # of one discard or write-zeroes segment: 2 GiB
MAX_SEGMENTS = 32
UNMAP = 1
HEADER = Struct("<IIQ")
SEGMENT = Struct("<QII")
F_SEG_MAX, F_RO, F_BLK_SIZE, F_FLUSH = 1 << 2, 1 << 5, 1 << 6, 1 << 9
F_CONFIG_WCE, F_MQ, F_DISCARD, F_WRITE_ZEROES = 1 << 11, 1 << 12, 1 << 13, 1 << 14
MEASURE_S = 1.0  # seconds after which an image in use is measured again
CONFIG_WCE = 32  # offset of `writeback`


class Kind(IntEnum):
    """Request types."""

    IN = 0
    OUT = 1
    FLUSH = 4
    GET_ID = 8
    DISCARD = 11
    WRITE_ZEROES = 13


OK, IOERR, UNSUPP = range(3)


class Refused(Exception):
    """A request that gets this status and does nothing."""

    def __init__(self, status: int) -> None:
        self.status = status


class Block(Device):
    """A disk."""

    kind = 2
    name = "blk"
    orders = ("resize", "size")
    takes_legacy = True

    def __init__(
        self,
        image: Image,
        serial: str = "",
        queues: int = 1,
        writeback: bool = True,
        throttle: Throttle | None = None,
    ) -> None:
        self.host: Throttle | None = throttle
        self.held: dict[int, Request] = {}  # by queue, what has to wait
        self.image, self.serial = image, serial.encode()[:20]
        self.queue_sizes = (256,) * queues
        self.writeback = self.initial_writeback = writeback
        self.sectors = -(-image.size // SECTOR)
        self.measured = time.monotonic()
        self.reported: set[str] = set()
        self.features = F_SEG_MAX | F_BLK_SIZE | F_FLUSH | F_CONFIG_WCE | (F_MQ if queues > 1 else 0)
        self.features |= F_RO if image.readonly else F_DISCARD | F_WRITE_ZEROES

    def config(self) -> bytes:
        """struct virtio_blk_config."""
        size = pack("<QIIHBBI", self.sectors, 0, SEG_MAX, 0, 0, 0, SECTOR)
        rest = pack("<BBHIBBH", 0, 0, 0, 0, self.writeback, 0, len(self.queue_sizes))
        limits = (MAX_SECTORS, MAX_SEGMENTS, 1, MAX_SECTORS, MAX_SEGMENTS, 1)
        return size + rest + pack("<IIIIIB", *limits)

    def configure(self, offset: int, data: bytes) -> None:
        if offset == CONFIG_WCE and len(data) == 1 and self.negotiated & F_CONFIG_WCE:
            self.writeback = bool(data[0])

    def start(self, queues: list[Queue], features: int) -> None:
        super().start(queues, features)
        if not features & (F_FLUSH | F_CONFIG_WCE):
            self.writeback = False  # a driver that can't flush expects finished writes to last

    def stop(self) -> None:
        super().stop()
        self.held = {}
        self.writeback = self.initial_writeback
        sectors = -(-self.image.measure() // SECTOR)
        if sectors != self.sectors:  # a monitor has changed it in the last life of the machine
            self.sectors = sectors
            self.config_changed()

    def handle(self, index: int) -> None:
        if (now := time.monotonic()) > self.measured + MEASURE_S:
            self.measured = now
            self.grow()
        for request in self._admitted(index) if self.host else self.queues[index]:
            status = request.last()
            data = size_of(request.writable)
            try:
                self._serve(request)
                status[0] = OK
            except Refused as refused:
                status[0] = refused.status
            except OSError as error:
                status[0] = IOERR
                self._report(error)
            request.done(data + 1)

    def grow(self) -> None:
        """Show the driver an image that has become larger; one that is smaller reads as zeroes at its end."""
        sectors = -(-self.image.measure() // SECTOR)
        if sectors > self.sectors:
            self.sectors = sectors
            self.config_changed()

    def resize(self, size: int) -> None:
        """Make the image larger or smaller, in bytes, and show the driver.  OSError if that can't be."""
        self.image.resize(size)
        self.sectors = -(-size // SECTOR)
        self.config_changed()

    def size(self, _: None = None) -> int:
        """Bytes that the driver sees."""
        return self.sectors * SECTOR

    def _admitted(self, index: int) -> Iterator[Request]:
        """The requests that the limits let through now; the next one waits, and all that come after it."""
        assert self.host
        while request := self.held.pop(index, None) or next(iter(self.queues[index]), None):
            readable, writable = size_of(request.readable), size_of(request.writable)
            seconds = self.host.wait(writable <= 1, max(readable - HEADER.size, writable - 1, 0))
            if seconds:
                self.held[index] = request
                self.host.wake_in(seconds)
                return
            yield request

    def poll(self) -> bool:
        """Go on with what has waited."""
        if self.host is None or not self.host.due:
            return False
        self.host.due = False
        for index in list(self.held):
            self.handle(index)
        return True

    def queue_reset(self, index: int) -> None:
        self.held.pop(index, None)

    def _serve(self, request: Request) -> None:
        header = request.read(HEADER.size)
        if len(header) < HEADER.size:
            raise Refused(IOERR)
        kind, _, sector = HEADER.unpack(header)
        match kind:
            case Kind.IN:
                self._check(sector, size_of(request.writable))
                self.image.read(request.writable, sector * SECTOR)
            case Kind.OUT:
                self._check_writable()
                self._check(sector, size_of(request.readable))
                self.image.write(request.readable, sector * SECTOR)
                self._settle()
            case Kind.FLUSH:
                self.image.flush()
            case Kind.GET_ID:
                request.write(self.serial.ljust(20, b"\0"))
            case Kind.DISCARD | Kind.WRITE_ZEROES:
                self._check_writable()
                self._clear(kind, request.read(SEGMENT.size * (MAX_SEGMENTS + 1)))
                self._settle()
            case _:
                raise Refused(UNSUPP)

    def _check(self, sector: int, size: int) -> None:
        if size % SECTOR or sector + size // SECTOR > self.sectors:
            raise Refused(IOERR)

    def _check_writable(self) -> None:
        if self.features & F_RO:
            raise Refused(IOERR)

    def _clear(self, kind: int, data: bytes) -> None:
        """Discard or zero each segment, when all of them are in order."""
        if not data or len(data) % SEGMENT.size or len(data) > SEGMENT.size * MAX_SEGMENTS:
            raise Refused(IOERR)
        segments = list(SEGMENT.iter_unpack(data))
        for sector, count, flags in segments:
            if flags & ~UNMAP or (flags and kind == Kind.DISCARD):
                raise Refused(UNSUPP)
            if count > MAX_SECTORS:
                raise Refused(IOERR)
            self._check(sector, count * SECTOR)
        for sector, count, flags in segments:
            if count and kind == Kind.DISCARD:
                self.image.discard(sector * SECTOR, count * SECTOR)
            elif count:
                self.image.zero(sector * SECTOR, count * SECTOR, bool(flags & UNMAP))

    def _settle(self) -> None:
        """Without a write-back cache a write is finished when it lasts."""
        if not self.writeback:
            self.image.flush()

    def _report(self, error: OSError) -> None:
        """The guest sees an I/O error, the user once why."""
        text = f"hartbeat: disk {self.image.path}: {error.strerror}; the guest gets I/O errors"
        if text not in self.reported:
            self.reported.add(text)
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        super().close()
        self.image.close()
