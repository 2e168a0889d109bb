"""I/O processes of their own for devices: -object iothread with iothread=ID of a -device, and -machine iothreads=N."""

from smp.config import NET_DEVICE, DeviceConfig, IothreadConfig, MachineConfig
from virtio.chardev import Stdio
from virtio.device import Device
from virtio.process import SPARE_POLL_NS, IoConfig, Polling


def assign(io: IoConfig, config: MachineConfig, given: dict[int, DeviceConfig]) -> None:
    """Say which process serves each slot.

    The processes of -object iothread come first, then those of -machine iothreads, to which all devices without an
    iothread of their own go in turn.  A network card stays with its netdev, and the terminal with the UART.
    """
    numbers = {iothread.id: n for n, iothread in enumerate(config.iothreads, 1)}
    threads = [IothreadConfig(""), *config.iothreads, *[IothreadConfig("")] * config.spread]
    io.polling = [polling(thread, config.poll_max_ns) for thread in threads]
    turns = 0
    for slot, device in sorted(io.devices.items()):
        if name := given[slot].get("iothread"):
            io.owners[slot] = numbers[name]
        elif config.spread and may_move(given[slot], device):
            io.owners[slot] = 1 + len(config.iothreads) + turns % config.spread
            turns += 1


def may_move(given: DeviceConfig, device: Device) -> bool:
    """Whether another process than the main one may serve a device."""
    return given.driver != NET_DEVICE and not any(isinstance(host, Stdio) for host in device.hosts())


def polling(thread: IothreadConfig, machines: int | None) -> Polling:
    """For how long a process spins: its own -object says, or the machine, or nobody."""
    most = machines if thread.poll_max_ns is None else thread.poll_max_ns
    made = Polling(spare=SPARE_POLL_NS) if most is None else Polling(most)
    made.grow = thread.poll_grow or made.grow  # as with QEMU 0 is the default
    made.shrink = made.shrink if thread.poll_shrink is None else thread.poll_shrink
    return made
