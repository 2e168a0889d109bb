"""Monitors of a machine, in the supervisor: they outlive its resets, and no guest and no I/O process has their sockets.

The supervisor waits by `Control.wait`, which does what clients ask for meanwhile, one command at a time and never
waiting for anybody.
"""

import select
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import Any

from mem.clock import mtime
from mem.machine import FAILED, POWER_OFF, RESET, machine
from mem.pause import pause_machine
from smp import qmp
from smp.char_setup import open_chardev
from smp.commands import COMMANDS, Steps
from smp.config import MachineConfig
from smp.descriptors import Opened
from smp.links import Ask, Links, Note
from smp.qmp import GREETING, NEGOTIATION, NOT_FOUND, Monitor, QmpError
from virtio.process import IoConfig

TICK = 0.001  # seconds between two looks at what a command waits for
# What an end of the machine is called that no command brought about.
CAUSES = {POWER_OFF: "guest-shutdown", RESET: "guest-reset", FAILED: "guest-panic"}


@dataclass
class Task:
    """A command that is being done; `session` is the client's, who may have gone by its end."""

    monitor: Monitor
    session: int
    request: dict[str, Any]
    steps: Steps
    waits: Ask | None = None


class Control:
    """All monitors of a machine, and its state as they know it."""

    def __init__(self, config: MachineConfig, io: IoConfig) -> None:
        self.config, self.io = config, io
        self.is_paused, self.paused_at = config.paused, 0
        self.status = "prelaunch" if config.paused else "running"
        self.cause = ""  # of the machine's end, if it was not the guest
        self.harts: list[Any] = []
        self.io_processes: list[Any] = []
        self.ports: dict[str, bool] = {}  # whether the guest has a port open, by the label of its chardev
        self.links = Links()
        self.task: Task | None = None
        opened = Opened()
        self.monitors = [
            Monitor(open_chardev(end, end.id or f"compat_monitor{number}"), GREETING)
            for number, end in enumerate(config.monitor_ends())
        ]
        self.own = opened.lately()  # descriptors

    # The lives of the machine

    def open(self, harts: list[Any], io_processes: list[Any]) -> None:
        """A life begins: its records are there, and the lists of its processes, which are still empty."""
        self.harts, self.io_processes, self.cause = harts, io_processes, ""
        named = [device for device in self.config.devices if device.driver == "virtserialport"]
        self.ports = {device.get("chardev"): False for device in named}
        if self.monitors:
            self.io.orders = self.links.open(len(self.io.polling), self.io.owners)
        if self.task and self.task.waits:
            self.links.ask(self.task.waits)  # once more: who was asked before has gone
        if self.is_paused:
            self.status = "prelaunch"
            pause_machine()
            self.paused_at = mtime()

    def forked(self) -> None:
        """The processes are there, and have their ends."""
        for orders in self.io.orders:
            orders.link.close()

    def ended(self, why: int, cause: str = "") -> None:
        """The machine ends, or will be started anew."""
        by_host = self.cause or cause
        resets = why == RESET and self.config.reboot
        data = {"guest": not by_host, "reason": by_host or CAUSES[why]}
        self.event("RESET" if resets else "SHUTDOWN", data)

    def closed(self) -> None:
        """All processes have ended."""
        self.links.close()
        self.io.orders = []

    def close(self) -> None:
        for monitor in self.monitors:
            monitor.close()
        self.monitors = []

    def descriptors(self, number: int = -1) -> set[int]:
        """Those that are no business of a hart, or of the I/O process of this number."""
        ends = [*self.links.open_ends(), *(orders.link for n, orders in enumerate(self.io.orders) if n != number)]
        clients = {fd for monitor in self.monitors for fd in monitor.descriptors()}
        return ({end.fileno() for end in ends} | self.own | clients) - {-1, 0, 1, 2}

    # Waiting

    def wait(self, fds: Iterable[int], timeout: float | None = None) -> set[int]:
        """Which of these descriptors can be read, after at most so many seconds; there may be none before.

        What has come is done when this is called the next time.
        """
        while self.advance():
            pass
        wanted = set(fds)
        poll = select.poll()
        for fd in wanted:
            poll.register(fd, select.POLLIN)
        links = {end.fileno(): end for end in self.links.open_ends()}
        clients = {fd: (monitor, events) for monitor in self.monitors for fd, events in monitor.interest().items()}
        for fd in links:
            poll.register(fd, select.POLLIN)
        for fd, (_, events) in clients.items():
            poll.register(fd, events)
        if self.task:
            timeout = TICK if timeout is None else min(timeout, TICK)
        ready = poll.poll(None if timeout is None else timeout * 1000)
        for fd, events in ready:
            if fd in links:
                self.heard(self.links.receive(links[fd]))
            elif fd in clients:
                clients[fd][0].ready(fd, events)
        return wanted & {fd for fd, _ in ready}

    def heard(self, note: Note | None) -> None:
        """A device tells of a change."""
        if note is None:
            return
        if note.what == "balloon" and type(note.value) is int:
            self.event("BALLOON_CHANGE", {"actual": self.left(note.value)})
        label = str(note.what).removeprefix("port ")
        if label in self.ports:
            self.ports[label] = note.value is True
            port = next(device for device in self.config.devices if device.get("chardev") == label)
            self.event("VSERPORT_CHANGE", {"id": port.get("id"), "open": self.ports[label]})

    def left(self, size: int) -> int:
        """Bytes that the guest has when its balloon has so many."""
        return max(self.config.ram - size, 0)

    def event(self, name: str, data: dict[str, Any] | None = None) -> None:
        for monitor in self.monitors:
            monitor.say(qmp.event(name, data))

    # Commands

    def advance(self) -> bool:
        """Go on with a command, or begin one; whether there was anything to do.  After a reset they go on."""
        if machine().ending == RESET and self.config.reboot:
            return False
        if self.task:
            return self._go_on(self.task)
        for monitor in list(self.monitors):
            if (request := monitor.next()) is not None:
                self.monitors.remove(monitor)  # to the end: the others' turns come first
                self.monitors.append(monitor)
                self._begin(monitor, request)
                return True
        return False

    def _begin(self, monitor: Monitor, request: dict[str, Any]) -> None:
        try:
            name, arguments = qmp.check_request(request)
            result = self._obey(monitor, name, arguments)
        except QmpError as error:
            self._answer(monitor, monitor.session, request, error.answer())
            return
        if isinstance(result, Generator):
            monitor.is_busy = True
            self.task = Task(monitor, monitor.session, request, result)
        else:
            self._answer(monitor, monitor.session, request, {"return": result})

    def _obey(self, monitor: Monitor, name: str, arguments: dict[str, Any]) -> Any:
        """A command's result, or its steps."""
        if name == NEGOTIATION and not monitor.is_ready:
            qmp.check_arguments(arguments, {}, {"enable": list})
            for capability in arguments.get("enable", []):
                raise QmpError(f"Capability '{capability}' is not available")
            monitor.is_ready = True
            return {}
        if not monitor.is_ready:
            raise QmpError(f"Expecting capabilities negotiation with '{NEGOTIATION}'", NOT_FOUND)
        if name == NEGOTIATION:
            raise QmpError("Capabilities negotiation is already complete, command ignored", NOT_FOUND)
        if name not in COMMANDS:
            raise QmpError(f"The command {name} has not been found", NOT_FOUND)
        command = COMMANDS[name]
        qmp.check_arguments(arguments, command.needed, command.optional)
        return command.function(self, **{key.replace("-", "_"): value for key, value in arguments.items()})

    def _go_on(self, task: Task) -> bool:
        """One more step of a command, unless that has to wait."""
        try:
            if task.waits is None:
                task.waits = next(task.steps)
            elif self.links.has_answer():
                task.waits = task.steps.send(self.links.result())
            else:
                return False
        except StopIteration as stop:
            self._finish(task, {"return": stop.value})
            return True
        except QmpError as error:
            task.steps.close()
            self._finish(task, error.answer())
            return True
        if task.waits:
            self.links.ask(task.waits)
        return task.waits is not None

    def _finish(self, task: Task, answer: dict[str, Any]) -> None:
        self.task = None
        task.monitor.is_busy = False
        self._answer(task.monitor, task.session, task.request, answer)

    def _answer(self, monitor: Monitor, session: int, request: dict[str, Any], answer: dict[str, Any]) -> None:
        if monitor.session == session:
            monitor.say(answer | ({"id": request["id"]} if "id" in request else {}))
            monitor.look()
