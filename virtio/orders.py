"""What a monitor asks of devices, in the I/O process that serves them: the other end is smp/links.py's.

Messages are JSON texts, each a packet of a socket pair that was there before the fork. An order, {"number", "slot",
"what", "value"}, calls the method `what` of the device, if it is one of its `orders`; the answer has the same number
and a "value" or an "error". What a device tells by itself, a note, has "slot", "what" and "value", and comes at most
once a second: a guest decides how often something changes, and of what came in between only the last counts.
"""

import functools
import json
import select
import socket
from collections.abc import Mapping
from typing import Any

from virtio.host import Host
from virtio.mmio import Transport
from virtio.timer import Timer

MESSAGE = 1 << 16  # bytes of a message at most
NOTES_S = 1.0  # seconds between two notes


class Orders(Host):
    """An I/O process's end."""

    def __init__(self, link: socket.socket) -> None:
        self.link = link
        link.setblocking(False)
        self.is_open = True
        self.transports: Mapping[int, Transport] = {}
        self.timer = Timer()
        self.resting = False  # something was told just now
        self.unsaid: dict[tuple[int, str], Any] = {}

    def serve(self, transports: Mapping[int, Transport]) -> None:
        """These are the devices, by slot."""
        self.transports = transports
        for slot, transport in transports.items():
            transport.device.tell = functools.partial(self.note, slot)

    def interest(self) -> dict[int, int]:
        return {**self.timer.interest(), **({self.link.fileno(): select.EPOLLIN} if self.is_open else {})}

    def ready(self, fd: int, events: int) -> None:
        if fd == self.timer.timer:
            self.timer.ready(fd, events)
            self.resting = False
            self._say()
            return
        try:
            data = self.link.recv(MESSAGE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._send(self._answer(json.loads(data)))
        else:
            self.is_open = False  # the supervisor has gone, and a signal is on its way

    def _answer(self, order: dict[str, Any]) -> dict[str, Any]:
        transport = self.transports[order["slot"]]
        what = order["what"]
        if what not in transport.device.orders:
            return {"number": order["number"], "error": f"{transport.name}: can't do that"}
        try:
            return {"number": order["number"], "value": transport.order(what, order["value"])}
        except OSError as error:
            return {"number": order["number"], "error": str(error.strerror or error)}
        except Exception as error:
            return {"number": order["number"], "error": f"{transport.name}: {type(error).__name__}: {error}"}

    def note(self, slot: int, what: str, value: Any) -> None:
        """Something has changed."""
        self.unsaid[slot, what] = value
        if not self.resting:
            self._say()

    def _say(self) -> None:
        for slot, what in list(self.unsaid):
            if self._send({"slot": slot, "what": what, "value": self.unsaid[slot, what]}):
                del self.unsaid[slot, what]
                self.resting = True
        if self.unsaid or self.resting:
            self.resting = True
            self.timer.wake_in(NOTES_S)

    def _send(self, message: dict[str, Any]) -> bool:
        """Whether it went; a supervisor that does not take it in time does without the answer."""
        try:
            self.link.send(json.dumps(message).encode())
        except OSError:
            return False
        return True

    def stop(self) -> None:
        self.timer.stop()
        self.link.close()
