"""A client of a machine's monitor."""

import json
import socket
import time
from collections import deque
from pathlib import Path
from typing import Any

from console import PATIENCE


class Refused(Exception):
    """An error that the monitor answered: its class and description."""


class Qmp:
    """Connected and negotiated; what events came is in `events`."""

    def __init__(self, path: Path, seconds: float = PATIENCE) -> None:
        self.socket = connect(path, seconds)
        self.rest = b""
        self.events: deque[dict[str, Any]] = deque()
        assert "QMP" in self.message()
        self("qmp_capabilities")

    def __enter__(self) -> "Qmp":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def message(self) -> dict[str, Any]:
        while b"\n" not in self.rest:
            data = self.socket.recv(65536)
            assert data, "the monitor has hung up"
            self.rest += data
        line, _, self.rest = self.rest.partition(b"\n")
        found = json.loads(line)
        assert isinstance(found, dict)
        return found

    def __call__(self, command: str, **arguments: Any) -> Any:
        """What a command returns; `_` in a name stands for `-`."""
        named = {name.replace("_", "-"): value for name, value in arguments.items()}
        self.socket.sendall(json.dumps({"execute": command, "arguments": named, "id": [command]}).encode())
        while "event" in (answer := self.message()):
            self.events.append(answer)
        assert answer["id"] == [command]
        if "error" in answer:
            raise Refused(f"{answer['error']['class']}: {answer['error']['desc']}")
        return answer["return"]

    def event(self, name: str) -> dict[str, Any]:
        """The next event of this name; those before it are forgotten."""
        while True:
            event = self.events.popleft() if self.events else self.message()
            if event.get("event") == name:
                return event


def connect(path: Path, seconds: float = PATIENCE) -> socket.socket:
    """A connection to a monitor that may not be there yet."""
    deadline = time.monotonic() + seconds
    while True:
        link = socket.socket(socket.AF_UNIX)
        link.settimeout(seconds)
        try:
            link.connect(str(path))
            return link
        except OSError:
            link.close()
            assert time.monotonic() < deadline, "there is no monitor"
            time.sleep(0.05)
