"""QMP: messages, sessions, and clients that are slow or hostile; what the commands do is in test_control.py."""

import contextlib
import json
import random
import select
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from smp.qmp import (
    DEEPEST,
    GREETING,
    LONGEST,
    Monitor,
    QmpError,
    Splitter,
    check_arguments,
    check_request,
    event,
    parse,
)
from virtio.chardev import OUTPUT_LIMIT
from virtio.charsocket import Socket

TEXTS = ['{"a": "}{\\"]"}', "{}", '{"b": [1, {"c": "\\\\"}]}', "42\n", "nonsense\n", "[1, 2]", '{"ü": "€"}', "}"]


def split(data: bytes, sizes: Iterator[int]) -> list[str]:
    splitter, found = Splitter(), []
    while data:
        size = next(sizes)
        found += list(splitter.feed(data[:size]))
        data = data[size:]
    return [text.strip() for text in found]


@pytest.mark.parametrize("gap", ["", "\n", " \r\n\n "])
def test_messages_are_found_however_they_arrive(gap: str) -> None:
    chance = random.Random(3)
    data = gap.join(TEXTS).encode()
    whole = [text.strip() for text in TEXTS]
    for _ in range(50):
        assert split(data, iter(lambda: chance.choice([1, 2, 7, 30]), None)) == whole


def test_what_never_ends_is_dropped() -> None:
    for data in (b'{"a": "' + b"x" * LONGEST, b"[" * (DEEPEST + 1), b'"' + b"\\" * LONGEST, b"7" * (LONGEST + 1)):
        splitter = Splitter()
        with pytest.raises(QmpError, match="more than"):
            list(splitter.feed(data))
        assert list(splitter.feed(b"{}")) == ["{}"]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("42", "must be a JSON object"),
        ("[1]", "must be a JSON object"),
        ('{"execute": }', "JSON parse error"),
        ("7" * 5000, "JSON parse error"),
        ('{"arguments": {}}', "lacks member 'execute'"),
        ('{"execute": 7}', "member 'execute' must be a string"),
        ('{"execute": "x", "arguments": []}', "member 'arguments' must be an object"),
        ('{"exec-oob": "x"}', "member 'exec-oob' is unexpected"),
    ],
)
def test_what_is_no_request_is_refused_in_qemus_words(text: str, error: str) -> None:
    with pytest.raises(QmpError, match=error):
        check_request(parse(text))


def test_arguments_are_checked() -> None:
    needed, optional = {"n": int, "up": bool}, {"name": str, "any": object}
    check_arguments({"n": -(1 << 63), "up": True}, needed, optional)
    check_arguments({"n": 1, "up": False, "name": "", "any": [None]}, needed, optional)
    for wrong, error in (
        ({"n": 1}, "Parameter 'up' is missing"),
        ({"n": True, "up": True}, "Invalid parameter type for 'n', expected: integer"),
        ({"n": 1 << 63, "up": True}, "expected: integer"),
        ({"n": 1.0, "up": True}, "expected: integer"),
        ({"n": 1, "up": 1}, "Invalid parameter type for 'up', expected: boolean"),
        ({"n": 1, "up": True, "name": None}, "expected: string"),
        ({"n": 1, "up": True, "other": 1}, "Parameter 'other' is unexpected"),
    ):
        with pytest.raises(QmpError, match=error):
            check_arguments(wrong, needed, optional)


class Client:
    """A monitor, and the socket of its client."""

    def __init__(self) -> None:
        self.socket, theirs = socket.socketpair()
        self.socket.setblocking(False)
        self.received = b""
        self.monitor = Monitor(Socket(theirs, target=(socket.AF_UNIX, "")), GREETING)

    def turn(self) -> None:
        """The event loop's: only what the monitor is interested in is looked at."""
        poll = select.poll()
        for fd, events in self.monitor.interest().items():
            poll.register(fd, events)
        for fd, events in poll.poll(0):
            self.monitor.ready(fd, events)

    def send(self, *messages: Any) -> None:
        self.socket.sendall("".join(map(json.dumps, messages)).encode())
        self.turn()

    def receive(self) -> list[Any]:
        self.turn()
        with contextlib.suppress(BlockingIOError):
            while more := self.socket.recv(1 << 20):
                self.received += more
        *lines, self.received = self.received.split(b"\r\n")
        return [json.loads(line) for line in lines]


@pytest.fixture
def client() -> Iterator[Client]:
    made = Client()
    yield made
    made.socket.close()
    made.monitor.close()


def test_a_client_is_greeted_and_its_requests_wait_in_order(client: Client) -> None:
    assert client.receive() == [GREETING]
    client.send({"execute": "a"}, [7], {"execute": "b"})
    assert client.monitor.next() == {"execute": "a"}
    assert client.monitor.next() == {"execute": "b"}
    assert client.monitor.next() is None
    (answer,) = client.receive()
    assert answer["error"]["class"] == "GenericError"


def test_nothing_more_is_read_while_requests_wait(client: Client) -> None:
    client.send({"execute": "a"})
    client.send({"execute": "b"})
    assert client.monitor.interest() == {}
    assert client.monitor.next() == {"execute": "a"}
    client.monitor.is_busy = True
    client.turn()
    assert client.monitor.interest() == {} and client.monitor.next() is None
    client.monitor.is_busy = False
    client.turn()
    assert client.monitor.next() == {"execute": "b"}


def test_the_end_of_a_connection_comes_after_its_requests(client: Client) -> None:
    client.send({"execute": "a"}, {"execute": "quit"})
    client.socket.close()
    for name in ("a", "quit"):
        client.turn()
        assert client.monitor.next() == {"execute": name}
    client.turn()
    assert not client.monitor.is_greeted


def test_events_are_for_those_who_have_negotiated(client: Client) -> None:
    client.receive()
    client.monitor.say(event("STOP"))
    client.monitor.is_ready = True
    client.monitor.say(event("RESET", {"guest": False}))
    (only,) = client.receive()
    assert (only["event"], only["data"]) == ("RESET", {"guest": False})
    assert set(only["timestamp"]) == {"seconds", "microseconds"}


def test_a_client_that_does_not_read_is_not_served_and_costs_little(client: Client) -> None:
    """Events are lost to it, its requests wait, and what is kept for it is limited."""
    client.monitor.is_ready = True
    for _ in range(20_000):
        client.monitor.say(event("BALLOON_CHANGE", {"actual": 1}))
    assert len(client.monitor.end.output) < OUTPUT_LIMIT + 1000
    client.send({"execute": "a"})
    assert client.monitor.next() is None
    got = client.receive()
    for _ in range(100):
        got += client.receive()
        if client.monitor.next() == {"execute": "a"}:
            break
    else:
        pytest.fail("the request was never read")
    assert got[0] == GREETING and len(got) < 20_000


def test_a_client_that_sends_garbage_is_answered_and_costs_little(client: Client) -> None:
    chance = random.Random(5)
    for _ in range(300):
        data = bytes(chance.choice(b'{}[]"\\x:,1\n\xff') for _ in range(3000))
        client.socket.send(data)
        client.turn()
        while client.monitor.next() is not None:
            pass
        assert len(client.monitor.splitter.rest) <= LONGEST and len(client.monitor.pending) <= LONGEST
        assert all("error" in message or "QMP" in message for message in client.receive())
