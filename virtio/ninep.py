"""virtio-9p (virtio 1.2, 5.9): a 9P2000.L server for a folder of the host, over a queue of messages."""

import errno
from struct import Struct

from virtio.device import Device
from virtio.host_tree import HostTree, raise_limits
from virtio.needs import Needs
from virtio.ninep_messages import COUNT, FIELDS_SIZE, HEADER, Malformed, Message, parse
from virtio.ninep_session import HANDLERS, LEAST_MSIZE, Session
from virtio.queue import Queue, QueueError, Request, size_of, take

F_MOUNT_TAG = 1 << 0
FRONT = HEADER.size + 4  # an answer's header and a number: an error, or what a read's data come behind
TAG = Struct("<H")


class Ninep(Device):
    """A shared folder."""

    kind = 9
    name = "9p"
    queue_sizes = (128,)
    features = F_MOUNT_TAG

    def __init__(self, tree: HostTree, tag: bytes) -> None:
        self.session, self.tag = Session(tree), tag

    def needs(self) -> Needs:
        return self.session.tree.needs()

    def config(self) -> bytes:
        """struct virtio_9p_config."""
        return TAG.pack(len(self.tag)) + self.tag

    def start(self, queues: list[Queue], features: int) -> None:
        super().start(queues, features)
        raise_limits()

    def stop(self) -> None:
        super().stop()
        self.session.forget()

    def handle(self, index: int) -> None:
        for request in self.queues[index]:
            request.done(self._answer(request))

    def _answer(self, request: Request) -> int:
        """Do what a message asks and write the answer; its size."""
        header = request.read(HEADER.size)
        room = size_of(request.writable)
        if len(header) < HEADER.size or room < FRONT:
            raise QueueError(f"a message of {len(header)} bytes with room for an answer of {room}")
        size, number, tag = HEADER.unpack(header)
        front = take(request.writable, FRONT)
        placed = 0
        try:
            body, placed = self._serve(request, size, number)
            if HEADER.size + len(body) > room:
                raise OSError(errno.EMSGSIZE, "no room for the answer")
        except (OSError, Malformed) as error:
            number = Message.LERROR
            body = COUNT.pack(getattr(error, "errno", None) or errno.EINVAL)
        request.writable[:0] = front
        total = HEADER.size + len(body) + placed
        request.write(HEADER.pack(total, number + 1, tag) + body)
        return total

    def _serve(self, request: Request, size: int, number: int) -> tuple[bytes, int]:
        """An answer without its header, and how many bytes lie behind it already."""
        message = self._message(number)
        left = size - HEADER.size
        if left < 0 or left > size_of(request.readable) or size > max(self.session.msize, LEAST_MSIZE):
            raise Malformed(f"a message of {size} bytes")
        fields = parse(message, request.read(min(left, FIELDS_SIZE.get(message, left))))
        if message is Message.READ:
            return self._read(request, *fields)
        if message is Message.WRITE:
            fid, offset, count = fields
            if count > left - FIELDS_SIZE[message]:
                raise Malformed(f"{count} bytes in a message of {size}")
            fields = fid, offset, take(request.readable, count)
        return HANDLERS[message](self.session, *fields), 0

    def _message(self, number: int) -> Message:
        if number not in HANDLERS:
            raise OSError(errno.EOPNOTSUPP, "no such message")
        message = Message(number)
        if not self.session.msize and message is not Message.VERSION:
            raise Malformed("a message before the version is agreed on")
        return message

    def _read(self, request: Request, fid: int, offset: int, count: int) -> tuple[bytes, int]:
        """The data go straight behind the answer's front."""
        most = min(count, self.session.msize - FRONT)
        done = self.session.read(fid, offset, take(request.writable, most))
        return COUNT.pack(done), done
