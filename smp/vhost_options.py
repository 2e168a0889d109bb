"""-device vhost-user-NAME: the devices that QEMU has of these names, most of which differ in a few numbers only."""

from typing import NamedTuple

from smp.cpu import ConfigError
from smp.option_text import number
from smp.virtio_options import GENERIC

BACKEND = {"chardev": "id of the -chardev socket at which the back-end listens (needed)", "id": "name"}
SCSI = "vhost-user-scsi-device"
SCSI_DEVICE = BACKEND | {
    "num_queues": "number of request queues, 1 to 32 (default 1)",
    "virtqueue_size": "entries of each queue, a power of two from 4 to 1024 (default 128)",
}
GENERIC_DEVICE = BACKEND | {
    "virtio-id": "the number of the device's type in the virtio specification (needed)",
    "num_vqs": "number of queues, 1 to 64 (default 1)",
    "vq_size": "entries of each queue, a power of two from 2 to 1024 (default 64)",
    "config_size": "bytes of its configuration, 0 to 256 (default 0)",
}


class Standard(NamedTuple):
    """A device of which the back-end is all: its type, queues and their entries, and bytes of its configuration.

    served: how many of the queues the back-end has, if not all; without: features that it may not offer.
    """

    kind: int
    queues: int
    entries: int
    config_bytes: int = 0
    served: int = 0
    without: int = 0


STANDARD = {
    "vhost-user-rng-device": Standard(4, 1, 4),
    "vhost-user-input-device": Standard(18, 2, 4, 136),
    "vhost-user-vsock-device": Standard(19, 3, 128, 8, served=2),  # events are the front end's
    "vhost-user-snd-device": Standard(25, 4, 64, 12, without=1),  # controls, which take a larger configuration
    "vhost-user-scmi-device": Standard(32, 2, 256),
    "vhost-user-i2c-device": Standard(34, 1, 4),
    "vhost-user-gpio-device": Standard(41, 2, 256, 8),
}
LIMITS = {
    SCSI: {"num_queues": (1, 32, 1), "virtqueue_size": (4, 1024, 128)},
    GENERIC: {"virtio-id": (1, 255, 0), "num_vqs": (1, 64, 1), "vq_size": (2, 1024, 64), "config_size": (0, 256, 0)},
}
POWERS_OF_TWO = ("virtqueue_size", "vq_size")
UNAVAILABLE = {
    "vhost-user-gpu": "the machine has no display",
    "vhost-user-vga": "the machine has no display",
    "vhost-user-crypto": "sessions of virtio-crypto are not passed on",
}


def value(driver: str, given: dict[str, str], name: str) -> int:
    """A property of `LIMITS`, or its default."""
    least, most, default = LIMITS[driver][name]
    text = given.get(name)
    if text is None:
        return default
    found = number(f"-device {driver},{name}", text)
    if not least <= found <= most or (name in POWERS_OF_TWO and found & (found - 1)):
        kind = "a power of two from" if name in POWERS_OF_TWO else "must be"
        raise ConfigError(f"-device {driver},{name}={text}: {kind} {least} to {most}")
    return found


def check_vhost(driver: str, given: dict[str, str]) -> None:
    """Raise `ConfigError` for numbers that can't be."""
    for name in LIMITS.get(driver, {}):
        value(driver, given, name)
    if driver == GENERIC and "virtio-id" not in given:
        raise ConfigError(f"-device {driver}: needs virtio-id=NUMBER, the device's type in the virtio specification")


def unavailable(driver: str) -> str:
    """Why there is no such device, of names that QEMU has; '' for all others."""
    for name, why in UNAVAILABLE.items():
        if driver in (name, f"{name}-pci", f"{name}-device"):
            return f" here: {why}; leave it out"
    return ""
