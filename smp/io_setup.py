"""From the configuration to the I/O process's devices: which slot each takes and what the host's ends are.

Opens files, sockets and pseudo-terminals, so it runs in the supervisor, where a mistake is still one line.
"""

import os
from collections.abc import Callable

from mem.memmap import VIRTIO_SLOTS
from smp.config import DeviceConfig, DriveConfig, MachineConfig, SerialConfig
from smp.cpu import ConfigError
from virtio.blk import Block
from virtio.chardev import Chardev, Stdio, Unix, open_file, open_pty
from virtio.console import Console
from virtio.device import Device
from virtio.image import Image, Overlay
from virtio.process import IoConfig
from virtio.rng import Rng


def io_config(config: MachineConfig) -> IoConfig:
    """Everything opened: disks take the slots from 0 upward, then the other devices in the order given.

    Raises ConfigError for what the host refuses.  `prepare` the result before the first fork.
    """
    devices: list[Device] = [block(drive, device, config) for drive, device in config.block_devices()]
    for device in config.devices:
        if device.driver == "virtio-rng-device":
            devices.append(Rng())
    devices += consoles(config)
    if len(devices) > VIRTIO_SLOTS:
        raise ConfigError(f"-device: {len(devices)} virtio devices do not fit in {VIRTIO_SLOTS} slots; take some away")
    serial = chardev(config.serials[0], "serial0") if config.serials else Chardev()
    return IoConfig(dict(enumerate(devices)), serial)


def block(drive: DriveConfig, device: DeviceConfig, config: MachineConfig) -> Block:
    """A disk."""
    try:
        if drive.snapshot or config.snapshot:
            image: Image = Overlay(drive.file, drive.readonly)
        else:
            image = Image(drive.file, drive.readonly)
    except OSError as error:
        raise ConfigError(f"-drive file {drive.file}: {error.strerror}; choose another file") from error
    queues = int(device.get("num-queues", "1"))
    return Block(image, device.get("serial"), queues, device.get("write-cache", "on") == "on")


def consoles(config: MachineConfig) -> list[Device]:
    """A virtio console for each virtio-serial-device; the virtconsoles belong to them in the order given."""
    ends = {end.id: end for end in config.chardevs}
    names = [device.get("chardev") for device in config.devices if device.driver == "virtconsole"]
    buses = sum(device.driver == "virtio-serial-device" for device in config.devices)
    if len(names) > buses:
        raise ConfigError(
            f"-device virtconsole,chardev={names[buses]}: a virtio-serial-device has one console; "
            "add another -device virtio-serial-device"
        )
    made: list[Device] = [Console(chardev(ends[name], name)) for name in names]
    return made + [Console(Chardev()) for _ in range(buses - len(names))]


def chardev(end: SerialConfig, label: str) -> Chardev:
    """The host's end of a character device."""
    kinds: dict[str, Callable[[], Chardev]] = {
        "mon:stdio": lambda: Stdio(mux=True),
        "stdio": lambda: Stdio(mux=False),
        "file": lambda: open_file(end.arg),
        "unix": lambda: Unix(end.arg),
        "pty": lambda: open_pty(label),
        "null": Chardev,
        "none": Chardev,
    }
    if end.kind not in kinds:
        raise ConfigError(f"-serial {end.kind}: not available; use {', '.join(kinds)}")
    try:
        return kinds[end.kind]()
    except OSError as error:
        reason = error.strerror or os.strerror(error.errno or 0)
        raise ConfigError(f"-serial {end.kind}:{end.arg}: {reason}; choose another place") from error
