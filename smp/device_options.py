"""-device: which there are, the properties of each, and what can be told of a property from its text alone."""

from collections.abc import Iterator
from typing import Any

from smp.config import NET_DEVICE, DeviceConfig
from smp.cpu import ConfigError, near
from smp.loader_options import LOADER, is_loader, read_loader
from smp.net_options import CARD, check_card
from smp.option_text import Help, number, pairs, split_commas
from smp.serial_ports import check_port
from smp.vhost_options import BACKEND, GENERIC_DEVICE, SCSI_DEVICE, STANDARD, check_vhost, unavailable
from smp.virtio_options import (
    COMMON,
    GENERIC,
    OF_DRIVER,
    OF_PCI,
    USERS,
    Property,
    canonical,
    check_property,
    properties,
)
from smp.vsock_options import OF_VSOCK, VSOCK, check_vsock, instead

OF_PORT = {
    "chardev": "id of its -chardev (needed)",
    "name": "what the guest finds it by: /dev/virtio-ports/NAME, or 'name' in its folder of /sys/class/virtio-ports",
    "nr": "its number, 0 to 30; 0 is a virtconsole's",
    "bus": "ID.0 of its virtio-serial-device; without, the last one before it",
    "id": "name",
}
# Properties of a -device; one that is listed is honoured.
DEVICES = {
    "virtio-blk-device": {
        "drive": "id of its -drive (needed)",
        "id": "name",
        "serial": "what the guest reads as its serial number, at most 20 bytes",
        "num-queues": "number of request queues, 1 to 32 (default 1)",
    },
    "virtio-rng-device": {"id": "name"},
    "virtio-9p-device": {
        "fsdev": "id of its -fsdev (needed)",
        "mount_tag": "what the guest mounts it by, at most 31 bytes (needed)",
        "id": "name",
    },
    "vhost-user-blk-device": BACKEND
    | {
        "num-queues": "number of request queues, 1 to 32 (default 1)",
    },
    "vhost-user-fs-device": {
        "chardev": "id of the -chardev socket at which the back-end listens",
        "fsdev": "in its place: id of an -fsdev virtiofsd",
        "tag": "what the guest mounts it by, at most 36 bytes (needed)",
        "id": "name",
        "num-request-queues": "number of request queues, 1 to 32 (default 1)",
    },
    "vhost-user-scsi-device": SCSI_DEVICE,
    GENERIC: GENERIC_DEVICE,
    **dict.fromkeys(STANDARD, BACKEND),
    "virtio-serial-device": {"id": "name", "max_ports": "ports that its driver makes room for, 1 to 31"},
    "virtio-balloon-device": {"size": "memory that the guest is asked to do without (default 0)", "id": "name"},
    VSOCK: OF_VSOCK,
    NET_DEVICE: CARD,
    "virtconsole": OF_PORT,
    "virtserialport": OF_PORT,
}
MAX_QUEUES = 32
NEEDED = {
    "virtio-blk-device": "drive",
    "virtio-9p-device": "fsdev",
    "virtconsole": "chardev",
    "virtserialport": "chardev",
    "vhost-user-blk-device": "chardev",
    "vhost-user-scsi-device": "chardev",
    GENERIC: "chardev",
    **dict.fromkeys(STANDARD, "chardev"),
    NET_DEVICE: "netdev",
}


def read_device(text: str) -> dict[str, Any]:
    if text == "help":
        raise Help("\n".join(_device_help()))
    items = split_commas(text)
    asked = items[0].removeprefix("driver=")
    if is_loader(text):
        return read_loader(text)
    if asked.startswith(USERS):
        return read_users_device(text, asked, items)
    driver, on_pci = canonical(asked, tuple(DEVICES))
    if driver not in DEVICES:
        hint = instead(driver) or unavailable(driver) or near(driver, DEVICES) or f"; there are {', '.join(DEVICES)}"
        raise ConfigError(f"-device {driver}: no such device{hint}")
    mmio = asked == driver
    if items[1:] == ["help"]:
        raise Help("\n".join(_driver_help(driver, mmio)))
    given = pairs("-device", text, "driver", ("driver", *DEVICES[driver], *properties(driver, mmio)))
    del given["driver"]
    for name, value in given.items():
        check_property(driver, name, value, mmio)
    needed = NEEDED.get(driver)
    if needed and not given.get(needed):
        raise ConfigError(f"-device {text}: needs {needed}=ID")
    if driver == NET_DEVICE:
        check_card(given)
    if driver == VSOCK:
        check_vsock(given)
    check_port(given)
    check_vhost(driver, given)
    if len(given.get("serial", "").encode(errors="surrogateescape")) > 20:
        raise ConfigError(f"-device serial={given['serial']}: has more than 20 bytes; shorten it")
    for name, what in (("num-queues", "a disk"), ("num-request-queues", "a shared folder")):
        if not 1 <= (queues := number(f"-device {name}", given.get(name, "1"))) <= MAX_QUEUES:
            raise ConfigError(f"-device {name}={queues}: {what} has 1 to {MAX_QUEUES} queues")
    return {"devices": (DeviceConfig(driver, tuple(given.items()), asked if on_pci else ""),)}


def read_users_device(text: str, driver: str, items: list[str]) -> dict[str, Any]:
    """Which properties the class takes is known when it is loaded."""
    keys = dict.fromkeys(item.partition("=")[0] for item in items[1:])
    given = pairs("-device", text, "driver", ("driver", *keys))
    del given["driver"]
    for name, value in given.items():
        check_property(driver, name, value, True)
    return {"devices": (DeviceConfig(driver, tuple(given.items())),)}


def _device_help() -> Iterator[str]:
    yield "Devices and their properties; virtio-NAME-device may be written virtio-NAME or virtio-NAME-pci:"
    for driver, own in DEVICES.items():
        yield f"  {driver}"
        yield from (f"    {name:14} {about}" for name, about in own.items())
        yield from _property_help(OF_DRIVER.get(driver, {}))
    yield f"  {LOADER}"
    yield "    file           what is put into RAM at first: an ELF file, or bytes"
    yield "    addr           where bytes go, like 0x80200000"
    yield "    force-raw      ELF files are bytes, too (default off)"
    yield f"  {USERS}MODULE.CLASS   a device of your own (docs/BACKENDS.md); its properties are what the class takes"
    for title, table in (("all virtio devices", COMMON), ("a device written without -device", OF_PCI)):
        yield f"  {title}"
        yield from _property_help(table)


def _driver_help(driver: str, mmio: bool) -> Iterator[str]:
    yield f"{driver} options:"
    yield from (f"    {name:14} {about}" for name, about in DEVICES[driver].items())
    yield from _property_help(properties(driver, mmio))


def _property_help(table: dict[str, Property]) -> Iterator[str]:
    for name, row in table.items():
        yield f"    {name:14} {row.about}{f' (default {row.default})' if row.default else ''}"
