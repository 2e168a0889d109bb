"""-drive: disks in QEMU's words, and how much they may do."""

import re
from typing import Any

from smp.config import DriveConfig
from smp.cpu import ConfigError
from smp.option_text import one_of, pairs, path, switch
from smp.qemu_options import refuse_flash

FORMATS = ("raw", "qcow2", "qcow", "qed", "vmdk", "vdi", "vpc", "vhdx", "parallels", "bochs", "cloop", "dmg", "luks")

# How QEMU gets at the file, which no guest sees: here it is through the host's cache, as with writeback.
HOST_ONLY = {
    "cache": ("writeback", "none", "unsafe"),
    "aio": ("threads", "native", "io_uring"),
    "discard": ("unmap", "on"),
    "media": ("disk",),
}
THROTTLING = "throttling."
LIMITS = tuple(
    f"{unit}-{way}{more}" for unit in ("iops", "bps") for way in ("total", "read", "write") for more in ("", "-max")
)


def _limits(text: str, given: dict[str, str]) -> tuple[tuple[str, int], ...]:
    """How many requests and bytes a second a disk may do; 0 is no limit."""
    limits: dict[str, int] = {}
    for name in LIMITS:
        number = given.get(THROTTLING + name, "0")
        if not re.fullmatch("[0-9]{1,15}", number):
            raise ConfigError(f"-drive {THROTTLING}{name}={number}: is not a number; write it with digits")
        if int(number):
            limits[name] = int(number)
    for name, value in limits.items():
        unit, way, *more = name.split("-")
        if more and limits.get(f"{unit}-{way}", value + 1) > value:
            raise ConfigError(f"-drive {text}: {name} is what may go at once; make {unit}-{way} less, and not 0")
        if way != "total" and f"{unit}-total" in limits:
            raise ConfigError(f"-drive {text}: {unit}-total is for reads and writes; leave it out, or {name}")
    return tuple(limits.items())


def read_drive(text: str) -> dict[str, Any]:
    refuse_flash("-drive", text)
    known = ("file", "format", "if", "id", "readonly", "snapshot", *HOST_ONLY)
    given = pairs("-drive", text, "file", (*known, *(THROTTLING + name for name in LIMITS)))
    if "file" not in given:
        raise ConfigError(f"-drive {text}: needs file=FILE")
    interface = one_of("-drive if=", given["if"], ("virtio", "none")) if "if" in given else ""
    for name, values in HOST_ONLY.items():
        if name in given:
            one_of(f"-drive {name}=", given[name], values)
    drive = DriveConfig(
        file=path("-drive file", given["file"]),
        id=given.get("id", ""),
        interface=interface,
        readonly=switch("-drive", "readonly", given.get("readonly", "off")),
        snapshot=switch("-drive", "snapshot", given.get("snapshot", "off")),
        format=one_of("-drive format=", given.get("format", "raw"), FORMATS),
        throttle=_limits(text, given),
    )
    if interface == "none" and not drive.id:
        raise ConfigError(f"-drive {text}: needs an id, so that a -device can name it; add id=NAME")
    return {"drives": (drive,)}
