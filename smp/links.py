"""The supervisor's ends of the socket pairs to the I/O processes (virtio/orders.py): asks them, and hears of changes.

What comes from an I/O process is looked at with distrust: a guest may have taken it over.
"""

import json
import socket
import time
from typing import Any, NamedTuple

from mem.machine import is_ending
from smp.qmp import QmpError
from virtio.orders import MESSAGE, Orders

PATIENCE = 10.0  # seconds that an I/O process has to answer
LASTING = ("demand", "set_link", "poll_statistics")  # what a device is told again when the machine was reset


class Ask(NamedTuple):
    """A question to the device in a slot: the method to be called, and its argument."""

    slot: int
    what: str
    value: Any = None


class Note(NamedTuple):
    """What a device tells by itself."""

    slot: int
    what: str
    value: Any


class Links:
    """One question at a time, to whoever has the device."""

    def __init__(self) -> None:
        self.ends: list[socket.socket] = []
        self.owners: dict[int, int] = {}
        self.lasting: dict[tuple[int, str], Any] = {}
        self.number = 0
        self.asked = Ask(0, "")
        self.answer: dict[str, Any] | None = None
        self.deadline = 0.0

    def open(self, processes: int, owners: dict[int, int]) -> list[Orders]:
        """For a life of the machine: the I/O processes' ends, in which lies already what devices must know again."""
        self.owners = owners
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(processes)]
        self.ends = [ours for ours, _ in pairs]
        for ours in self.ends:
            ours.setblocking(False)
        for (slot, what), value in self.lasting.items():
            self._send(Ask(slot, what, value), 0)
        return [Orders(theirs) for _, theirs in pairs]

    def close(self) -> None:
        for end in self.ends:
            end.close()
        self.ends = []

    def ask(self, ask: Ask) -> None:
        """Send a question; `result` has the answer some time later."""
        self.number += 1
        self.answer = None
        self.deadline = time.monotonic() + PATIENCE
        self.asked = ask
        self._send(ask, self.number)

    def _send(self, ask: Ask, number: int) -> None:
        order = {"number": number, "slot": ask.slot, "what": ask.what, "value": ask.value}
        try:
            self.ends[self.owners.get(ask.slot, 0)].send(json.dumps(order).encode())
        except OSError:
            self.deadline = 0.0

    def has_answer(self) -> bool:
        """Whether `result` does not have to be waited for any more."""
        return self.answer is not None or time.monotonic() > self.deadline or bool(is_ending())

    def result(self) -> Any:
        """What was answered; QmpError if it was refused, or nothing."""
        if self.answer is None:
            raise QmpError("the machine is ending" if is_ending() else "the I/O process does not answer")
        if "value" not in self.answer:
            raise QmpError(str(self.answer.get("error")))
        if self.asked.what in LASTING:
            self.lasting[self.asked.slot, self.asked.what] = self.asked.value
        return self.answer["value"]

    def open_ends(self) -> list[socket.socket]:
        return [end for end in self.ends if end.fileno() >= 0]

    def receive(self, end: socket.socket) -> Note | None:
        """Take a message."""
        try:
            data = end.recv(MESSAGE)
        except BlockingIOError:
            return None
        except OSError:
            data = b""
        try:
            message = json.loads(data)
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict):
            end.close()  # it has ended, of which the supervisor hears elsewhere, or lost its mind
            return None
        if message.get("number") == self.number and self.answer is None:
            self.answer = message
        elif "what" in message:
            return Note(message.get("slot", -1), message["what"], message.get("value"))
        return None
