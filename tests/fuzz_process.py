"""Devices in a real I/O process, sandbox and all, with hostile drivers on harts and one that behaves."""

import contextlib
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from device_fuzz import TARGETS, Player, check_surroundings
from forked_io import Hart, finish, fork_io
from fuzz_core import Fuzzer, NativeFuzzer, Source
from fuzz_memory import CANARY, check_guards, guarded_memory
from fuzz_natives import compile_natives
from fuzz_registers import in_harts, window_storm

from mem.machine import machine
from mem.window import Register
from virtio.chardev import Chardev
from virtio.console import Console, Port
from virtio.device import Device
from virtio.process import IoConfig
from virtio.rng import Rng

SAID = 2000  # of what an I/O process has said, so many characters are shown if it fails


class Quiet:
    """An I/O process whose stderr is kept."""

    def __init__(self, io: IoConfig) -> None:
        self.said: Any = tempfile.TemporaryFile()  # noqa: SIM115
        stderr = os.dup(2)
        os.dup2(self.said.fileno(), 2)
        try:
            self.child = fork_io(io)
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)

    def end(self) -> None:
        """With the machine; raises AssertionError if it does not end well."""
        with self.said:
            status = finish(self.child)
            self.said.seek(0)
            assert status == 0, f"the I/O process ends with {status}: {self.said.read()[-SAID:].decode()}"


def end(process: Quiet, devices: dict[int, Device], stack: contextlib.ExitStack) -> None:
    """Of the process, its devices, and their memory in the end."""
    try:
        process.end()
    finally:
        for device in devices.values():
            device.close()
        devices.clear()  # which hold on to the memory
        stack.close()


class ProcessFuzzer(Fuzzer):
    """An entropy source in a slot of its own must answer all the while.

    A register write whose answer never comes is a hang, which whoever plays the batch finds.
    """

    unit = "a driver of one of the devices of a real I/O process, after which another device has to answer"
    follows: ClassVar[bool] = False  # what is reached is reached in another process
    longest = 250

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.stack = contextlib.ExitStack()
        self.ram = self.stack.enter_context(guarded_memory(io=True))
        (folder / "beside").write_bytes(CANARY)
        self.devices: dict[int, Device] = {}
        for slot, target in enumerate(TARGETS.values(), 1):
            (folder / str(slot)).mkdir()
            self.devices[slot] = target.make(folder / str(slot))
        self.folders = {path.name for path in folder.iterdir()}
        self.process = Quiet(IoConfig({0: Rng(), **self.devices}))
        self.good = Hart(self.ram, Rng(), 0)
        self.offered = {slot: Hart(self.ram, device, slot).features() for slot, device in self.devices.items()}

    def play(self, data: bytes) -> None:
        slot = 1 + data[0] % len(self.devices)
        hart = Hart(self.ram, self.devices[slot], slot)
        Player(hart, list(TARGETS.values())[slot - 1], Source(data[1:]), self.offered[slot]).play()
        self.good.start()
        assert len(self.good.ask(32)[1][0]) == 32
        hart.write(Register.STATUS, 0)

    def check(self) -> None:
        check_surroundings(self.folder, self.folders)

    def close(self) -> None:
        end(self.process, self.devices, self.stack)


class WindowFuzzer(NativeFuzzer):
    """Windows with devices, of a real I/O process; an entropy source in another slot must answer after each batch."""

    unit = "an access to a window"
    depends = True

    @classmethod
    def prepare(cls) -> None:
        super().prepare()
        compile_natives(window_storm)

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.stack = contextlib.ExitStack()
        self.ram = self.stack.enter_context(guarded_memory(io=True))
        self.devices: dict[int, Device] = {slot: Rng() for slot in range(3)}
        self.devices[3] = Console({0: Port(Chardev()), 2: Port(Chardev(), False, b"port")}, 4)
        self.process = Quiet(IoConfig(dict(self.devices)))
        self.good = Hart(self.ram, Rng(), 0)

    def play_seeds(self, first: int, count: int, tell: Callable[[int], None]) -> None:
        tell(first)
        in_harts(window_storm, first, count, lambda: time.sleep(0.001))

    def check(self) -> None:
        check_guards()
        self.good.start(size=16)
        assert len(self.good.ask(32)[1][0]) == 32
        for slot, device in self.devices.items():
            hart = Hart(self.ram, device, slot)
            assert hart.start(size=16).read(Register.STATUS) == 15, f"{device.name} does not come up again"
            hart.write(Register.STATUS, 0)
        assert machine().ending == 0

    def close(self) -> None:
        end(self.process, self.devices, self.stack)
