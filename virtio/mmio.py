"""The back half of virtio-mmio (virtio 1.3, 4.2): status, features, queue set-up, interrupts of one slot.

The guest reads the window's memory (mem/window.py) and its writes come here one at a time; this keeps the window
what it should be read as.  It knows no device but through virtio/device.py.
"""

import ctypes
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

from mem import regions
from mem.atomics import py_fence, py_store32
from mem.log import LOG_GUEST_ERRORS
from mem.machine import machine
from mem.memmap import VIRTIO_SLOTS
from mem.window import (
    CONFIG_BYTES,
    MAGIC,
    VERSION,
    Register,
    Window,
    window_raise,
    window_reset_interrupt,
)
from virtio.device import Device
from virtio.features import ACCESS_PLATFORM, RING_RESET, VERSION_1
from virtio.queue import Queue, QueueError, Ram

VENDOR = 0x554D_4551  # the vendor that drivers know from QEMU
ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, NEEDS_RESET, FAILED = 1, 2, 4, 8, 64, 128
USED_BUFFER, CONFIG_CHANGE = 1, 2
FEATURE_WORDS = 4  # that a driver may write; of the last two nothing is offered


def clear_windows() -> None:
    """All slots empty: drivers find the magic and no device."""
    for slot in range(VIRTIO_SLOTS):
        place = regions.WINDOWS + slot * Window.sizeof()
        ctypes.memset(place, 0, Window.sizeof())
        registers = Window.at(place).registers
        registers[Register.MAGIC >> 2] = MAGIC
        registers[Register.VERSION >> 2] = VERSION


def log(text: str) -> None:
    """One line on stderr."""
    print(f"hartbeat: {text}", file=sys.stderr, flush=True)


def origin(error: Exception) -> str:
    """Where a back-end's error came from."""
    place = ""
    for frame, line in traceback.walk_tb(error.__traceback__):  # which reads no source files, as the rest of it does
        place = f" ({os.path.basename(frame.f_code.co_filename)}, line {line})"
    return place


class Transport:
    """One slot's registers with the device behind them."""

    def __init__(self, slot: int, device: Device, ram: Ram) -> None:
        self.slot, self.device, self.ram = slot, device, ram
        self.name = device.name or type(device).__name__
        place = regions.WINDOWS + slot * Window.sizeof()
        self.window: Any = Window.at(place)
        words = ctypes.c_uint32 * (Register.CONFIG >> 2)
        self.registers = memoryview(words.from_address(place)).cast("B").cast("I")  # each store is a single one
        self.offered = device.features | device.ring_features | VERSION_1
        self.queues = [device.queue_kind(ram, size, self._used) for size in device.queue_sizes]
        self.unsignalled: list[Queue] = []
        for queue in self.queues:
            queue.unsignalled = self.unsignalled
        self.status = 0
        device.config_changed = self.config_changed
        device.stop()
        self._clear()
        self._set(Register.VENDOR_ID, VENDOR)
        for register in (0, 4, 8, 12):  # no shared memory: length and base are all ones
            self._set(Register.SHM_LENGTH + register, 0xFFFF_FFFF)
        self._publish_config()
        self._set(Register.DEVICE_ID, device.kind)

    def _clear(self) -> None:
        """Everything that a reset takes back."""
        self.status = self.accepted = self.selected = 0
        self.offer_word = self.accept_word = 0
        for queue in self.queues:
            queue.reset()
        self._set(Register.STATUS, 0)
        self._show()

    def _set(self, register: int, value: int) -> None:
        self.registers[register >> 2] = value & 0xFFFF_FFFF

    def _show(self) -> None:
        """The registers that depend on what the driver has selected."""
        known = self.selected < len(self.queues)
        queue = self.queues[self.selected] if known else None
        self._set(Register.QUEUE_NUM_MAX, queue.maximum if queue else 0)
        self._set(Register.QUEUE_READY, int(queue.ready) if queue else 0)
        self._set(Register.DEVICE_FEATURES, self.offered >> 32 * self.offer_word if self.offer_word < 2 else 0)

    # Interrupts and configuration

    def _used(self) -> None:
        window_raise(self.slot, USED_BUFFER)

    def config_changed(self) -> None:
        """Show the device's configuration anew, and tell the driver."""
        self._publish_config()
        if self.status & DRIVER_OK:
            window_raise(self.slot, CONFIG_CHANGE)

    def _publish_config(self) -> None:
        """The generation is odd while the bytes change: harts that read it wait (mem/window.py)."""
        place = regions.WINDOWS + self.slot * Window.sizeof() + Register.CONFIG_GENERATION
        generation = self.registers[Register.CONFIG_GENERATION >> 2]
        data = bytes(self.device.config()).ljust(CONFIG_BYTES, b"\0")
        if len(data) > CONFIG_BYTES:
            raise ValueError(f"a configuration of {len(data)} bytes: {CONFIG_BYTES} is the limit")
        py_store32(place, generation + 1)
        py_fence()  # the odd generation is visible before the first changed byte
        memoryview(self.window.config).cast("B")[:] = data
        py_store32(place, generation + 2)

    # What the driver does

    def write(self, offset: int, size: int, value: int) -> None:
        """A register or configuration write of the guest."""
        value &= (1 << 8 * size) - 1
        if offset >= Register.CONFIG:
            data = value.to_bytes(8, "little")[:size]
            self._guarded(self.device.configure, offset - Register.CONFIG, data)
            self._guarded(self._publish_config)
        elif offset in _WRITES:
            _WRITES[offset](self, value)
            if offset in _SHOWN:
                self._show()

    def notified(self, queues: int) -> None:
        """Queues that the driver has notified, as bits."""
        for index, queue in enumerate(self.queues):
            if queues >> index & 1 and queue.ready and self.is_running():
                queue.ring.forget()  # until the device waits for more
                self._guarded(self.device.handle, index)

    def poll(self) -> bool:
        """Let the device look after its host side; True when it had something to do."""
        return self.is_running() and bool(self._guarded(self.device.poll))

    def resized(self) -> None:
        """The host's terminal may have another size."""
        self._guarded(self.device.resized)

    def is_running(self) -> bool:
        """Whether the driver is ready and the device is sound."""
        return self.status & (DRIVER_OK | NEEDS_RESET) == DRIVER_OK

    def order(self, what: str, value: Any) -> Any:
        """Have the device do what somebody on the host asks for, who is told of its errors.

        OSError: the host can't do it.  After any other the device needs a reset, as when it fails at the driver's work.
        """
        try:
            return getattr(self.device, what)(value)
        except OSError:
            raise
        except Exception as error:
            self._fail(error)
            raise
        finally:
            self._signal()

    def _guarded(self, function: Callable[..., Any], *args: Any) -> Any:
        try:
            return function(*args)
        except Exception as error:
            self._fail(error)
            return None
        finally:
            self._signal()

    def _signal(self) -> None:
        while self.unsignalled:
            self.unsignalled.pop().signal()

    def _fail(self, error: Exception) -> None:
        what = str(error) if isinstance(error, QueueError) else f"{type(error).__name__}: {error}{origin(error)}"
        log(f"virtio slot {self.slot} ({self.name}): {what}; the device needs a reset")
        for queue in self.queues:
            queue.ready = False
        self.status |= NEEDS_RESET
        self._set(Register.STATUS, self.status)
        if self.status & DRIVER_OK:
            window_raise(self.slot, CONFIG_CHANGE)

    def guest_error(self, text: str) -> None:
        """A line if -d guest_errors asks for it."""
        m = machine()
        if m.log & LOG_GUEST_ERRORS:
            os.write(m.log_fd, f"guest_errors: virtio slot {self.slot} ({self.name}): {text}\n".encode())

    def _select_offer(self, value: int) -> None:
        self.offer_word = value

    def _select_accept(self, value: int) -> None:
        self.accept_word = value

    def _accept(self, value: int) -> None:
        if self.status & FEATURES_OK or self.accept_word >= FEATURE_WORDS:
            return
        shift = 32 * self.accept_word
        self.accepted = self.accepted & ~(0xFFFF_FFFF << shift) | value << shift

    def _select_queue(self, value: int) -> None:
        self.selected = value

    def _queue(self) -> Queue | None:
        """The selected queue while it may be set up."""
        if self.selected >= len(self.queues) or self.queues[self.selected].ready:
            return None
        return self.queues[self.selected]

    def _size(self, value: int) -> None:
        if queue := self._queue():
            queue.size = value

    def _ready(self, value: int) -> None:
        queue = self._queue()
        if value & 1 == 0:
            self._stop_queue()
        elif queue and self.status & (FEATURES_OK | NEEDS_RESET) == FEATURES_OK:
            queue.accept(self.accepted)
            self._guarded(queue.enable)

    def _reset_queue(self, value: int) -> None:
        """It is over when the hart goes on, so the register always reads 0."""
        if value & 1 and self.accepted & RING_RESET:
            self._stop_queue()

    def _stop_queue(self) -> None:
        if self.selected < len(self.queues):
            self.queues[self.selected].reset()
            if self.is_running():
                self._guarded(self.device.queue_reset, self.selected)

    def _status(self, value: int) -> None:
        if value & 0xFF == 0:
            self._guarded(self.device.stop)
            self._clear()
            window_reset_interrupt(self.slot)
            return
        new = (self.status | value & 0xFF) & ~(NEEDS_RESET & ~self.status)
        if new & ~self.status & FEATURES_OK and (wrong := self._wrong_features()):
            self.guest_error(wrong)
            new &= ~FEATURES_OK
        if not new & FEATURES_OK:
            new &= ~DRIVER_OK
        starts = new & ~self.status & DRIVER_OK and not new & NEEDS_RESET
        self.status = new
        self._set(Register.STATUS, new)
        if starts:
            self._guarded(self.device.start, self.queues, self.accepted)
            self.notified(-1)

    def _wrong_features(self) -> str:
        """What speaks against the features that the driver accepts, or ''."""
        beyond = self.accepted & ~self.offered
        if beyond & ACCESS_PLATFORM:
            return "the driver accepts ACCESS_PLATFORM, which is not offered: there is no IOMMU"
        if beyond:
            return f"the driver accepts features {beyond:#x}, which are not offered"
        # A device may go on without it (virtio 1.3, 6.1): drivers of teaching kernels know the first 32 bits only.
        if self.accepted & VERSION_1 or self.device.takes_legacy:
            return ""
        return "the driver is older than virtio 1.0: it does not accept VERSION_1"


def _address(name: str, high: bool) -> Callable[[Transport, int], None]:
    """The write of half a ring's address."""

    def write(transport: Transport, value: int) -> None:
        if queue := transport._queue():
            old = getattr(queue, name)
            setattr(queue, name, old & 0xFFFF_FFFF | value << 32 if high else old >> 32 << 32 | value)

    return write


_WRITES: dict[int, Callable[[Transport, int], None]] = {
    Register.DEVICE_FEATURES_SEL: Transport._select_offer,
    Register.DRIVER_FEATURES_SEL: Transport._select_accept,
    Register.DRIVER_FEATURES: Transport._accept,
    Register.QUEUE_SEL: Transport._select_queue,
    Register.QUEUE_NUM: Transport._size,
    Register.QUEUE_READY: Transport._ready,
    Register.QUEUE_RESET: Transport._reset_queue,
    Register.STATUS: Transport._status,
    Register.QUEUE_DESC: _address("descriptors", False),
    Register.QUEUE_DESC + 4: _address("descriptors", True),
    Register.QUEUE_DRIVER: _address("driver", False),
    Register.QUEUE_DRIVER + 4: _address("driver", True),
    Register.QUEUE_DEVICE: _address("device", False),
    Register.QUEUE_DEVICE + 4: _address("device", True),
}
# After these the driver may read something else.
_SHOWN = (
    Register.DEVICE_FEATURES_SEL,
    Register.QUEUE_SEL,
    Register.QUEUE_READY,
    Register.QUEUE_RESET,
    Register.STATUS,
)
