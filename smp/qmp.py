"""QMP, the protocol by which a program controls a machine (QEMU's docs/interop/qmp-spec.rst): messages and sessions.

JSON objects without a separator go both ways over a character device. Whoever is at its other end may be slow, or send
what it likes: what is kept for a client is limited in both directions, and nothing here waits.
"""

import codecs
import json
import re
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

from smp.version import VERSION
from virtio.chardev import IN, Chardev, FdChardev

QMP_VERSION = {"qemu": {"major": 10, "minor": 0, "micro": 0}, "package": f"hartbeat {VERSION}"}  # whose QMP it is
GREETING: dict[str, Any] = {"QMP": {"version": QMP_VERSION, "capabilities": []}}
LONGEST = 1 << 16  # characters of a message
DEEPEST = 100  # brackets inside of each other
GENERIC, NOT_FOUND, NO_DEVICE, NOT_ACTIVE = "GenericError", "CommandNotFound", "DeviceNotFound", "DeviceNotActive"
NEGOTIATION = "qmp_capabilities"
KINDS = {int: "integer", str: "string", bool: "boolean"}
# What a message is split at: a string with its end, its beginning only, a bracket, or the end of a line.
TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|"|[{}\[\]\n]', re.DOTALL)


class QmpError(Exception):
    """What a client gets instead of a result."""

    def __init__(self, text: str, kind: str = GENERIC) -> None:
        super().__init__(text)
        self.kind = kind

    def answer(self) -> dict[str, Any]:
        return {"error": {"class": self.kind, "desc": str(self)}}


class Splitter:
    """Finds the ends of messages in a stream; what is no JSON ends with its line."""

    def __init__(self) -> None:
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.rest = ""
        self.seen = self.depth = 0  # of the rest

    def feed(self, data: bytes) -> Iterator[str]:
        """The messages that are complete with this; QmpError for one that is too long, which is dropped."""
        self.rest += self.decoder.decode(data)
        while match := TOKEN.search(self.rest, self.seen):
            if match[0] == '"':
                self.seen = match.start()  # its end is still to come
                break
            self.seen = match.end()
            self.depth += (match[0] in "{[") - (match[0] in "}]") * (self.depth > 0)
            if self.depth == 0 and match[0] in "]}\n":
                message, self.rest, self.seen = self.rest[: self.seen], self.rest[self.seen :], 0
                if message.strip():
                    yield message
            if self.depth > DEEPEST:
                break
        else:
            self.seen = len(self.rest)
        if len(self.rest) > LONGEST or self.depth > DEEPEST:
            self.rest, self.seen, self.depth = "", 0, 0
            raise QmpError(f"JSON parse error, more than {LONGEST} characters or {DEEPEST} levels")


def parse(message: str) -> dict[str, Any]:
    """A request. QmpError for what is none."""
    try:
        request = json.loads(message)
    except (ValueError, RecursionError) as error:
        raise QmpError(f"JSON parse error, {error}") from error
    if not isinstance(request, dict):
        raise QmpError("QMP input must be a JSON object")
    return request


def check_request(request: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Its command and arguments."""
    for name in request:
        if name not in ("execute", "arguments", "id"):
            raise QmpError(f"QMP input member '{name}' is unexpected")
    if "execute" not in request:
        raise QmpError("QMP input lacks member 'execute'")
    if not isinstance(request["execute"], str):
        raise QmpError("QMP input member 'execute' must be a string")
    arguments = request.get("arguments", {})
    if not isinstance(arguments, dict):
        raise QmpError("QMP input member 'arguments' must be an object")
    return request["execute"], arguments


def check_arguments(arguments: dict[str, Any], needed: dict[str, type], optional: dict[str, type]) -> None:
    """QmpError for one that is missing, of another type, or unknown. Of type `object` is anything."""
    for name in needed:
        if name not in arguments:
            raise QmpError(f"Parameter '{name}' is missing")
    for name, value in arguments.items():
        kind = needed.get(name) or optional.get(name)
        if kind is None:
            raise QmpError(f"Parameter '{name}' is unexpected")
        check_type(name, value, kind)


def check_type(name: str, value: Any, kind: type) -> None:
    is_it = type(value) is kind or kind is object
    if not is_it or (kind is int and not -(1 << 63) <= value < 1 << 63):
        raise QmpError(f"Invalid parameter type for '{name}', expected: {KINDS[kind]}")


class Monitor:
    """One client after another at a character device. Its requests wait in `pending`, as far as they were read."""

    def __init__(self, end: Chardev, greeting: dict[str, Any]) -> None:
        self.end, self.greeting = end, greeting
        self.session = 0  # counts up: whoever is told something must be the one who asked
        self.forget()
        end.start()
        self.look()

    def forget(self) -> None:
        """There is no client, or another one."""
        self.splitter = Splitter()
        self.pending: deque[dict[str, Any] | QmpError] = deque()
        self.is_greeted = self.is_ready = self.is_busy = False
        self.session += 1

    def descriptors(self) -> set[int]:
        """Those of the client."""
        return {self.end.source, self.end.sink} if isinstance(self.end, FdChardev) else set()

    def interest(self) -> dict[int, int]:
        """No more is read, and not even the end of the connection, while there are requests to be answered."""
        wanted = self.end.interest()
        if self.is_greeted and (self.pending or self.is_busy or not self.end.has_room()):
            wanted = {fd: events & ~IN for fd, events in wanted.items()}
        return {fd: events for fd, events in wanted.items() if events}

    def ready(self, fd: int, events: int) -> None:
        self.end.ready(fd, events)
        self.look()

    def look(self) -> None:
        """Somebody may have come, gone, or sent something."""
        if not self.end.is_open() and self.is_greeted:
            self.end.read(len(self.end.input))
            self.forget()
        if self.end.is_open() and not self.is_greeted:
            self.is_greeted = True
            self.say(self.greeting)
        if not self.pending:
            self._receive()

    def _receive(self) -> None:
        try:
            for message in self.splitter.feed(self.end.read(LONGEST)):
                try:
                    self.pending.append(parse(message))
                except QmpError as error:
                    self.pending.append(error)
        except QmpError as error:
            self.pending.append(error)

    def next(self) -> dict[str, Any] | None:
        """The next request, if its answer has room; what is none is answered here."""
        while self.pending and self.end.has_room() and not self.is_busy:
            request = self.pending.popleft()
            if isinstance(request, dict):
                return request
            self.say(request.answer())
        return None

    def say(self, message: dict[str, Any]) -> None:
        """Send one; an event is lost if its client reads too slowly."""
        if self.end.is_open() and ("event" not in message or (self.is_ready and self.end.has_room())):
            self.end.write(json.dumps(message).encode() + b"\r\n")

    def close(self) -> None:
        self.end.flush()
        self.end.close()


def event(name: str, data: dict[str, Any] | None = None) -> dict[str, Any]:
    """An event's message, with the time that it is."""
    now = time.time_ns() // 1000
    made: dict[str, Any] = {"timestamp": {"seconds": now // 10**6, "microseconds": now % 10**6}, "event": name}
    return made | ({"data": data} if data else {})
