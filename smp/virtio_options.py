"""What every virtio -device takes, in QEMU's words: the spellings of its name, and properties of rings and transport.

The machine has virtio over MMIO only.  A command line that was written for PCI runs all the same: what says how a
device sits on a PCI bus is accepted where it changes nothing that a driver sees, and refused where it would.
"""

import re
from typing import NamedTuple

from mem.memmap import VIRTIO_SLOTS
from smp.cpu import ConfigError

MMIO = "-device"
GENERIC = "vhost-user-device"  # of any kind; the name ends like those of -device spellings and is none
USERS = "py:"  # before the module and class of a user's own device
PCI = ("-pci-non-transitional", "-pci-transitional", "-pci")
BUS = re.compile(r"virtio-mmio-bus\.([0-9]{1,3})")
SWITCH = ("on", "off")
QUEUE_SIZES = tuple(str(1 << n) for n in range(1, 11))
ANY: tuple[str, ...] = ()


class Property(NamedTuple):
    """`values`: those that are accepted, or ANY; `remedy` is what to do instead of the others."""

    about: str
    values: tuple[str, ...] = SWITCH
    default: str = ""
    remedy: str = ""


# fmt: off
# Ring features that the driver is offered.
RINGS = {
    "event_idx":     Property("notifications and interrupts when an index is passed", default="on"),
    "indirect_desc": Property("descriptors in tables of their own", default="on"),
    "packed":        Property("packed rings; without, they are split", default="off"),
    "in_order":      Property("requests are given back in the order in which they came", default="off"),
    "queue_reset":   Property("a queue may be reset alone", default="on"),
}
COMMON = RINGS | {
    "iommu_platform":         Property("off: there is no IOMMU", ("off",), "off", "there is no IOMMU, leave it off"),
    "any_layout":             Property("of drivers older than virtio 1.0, and of no consequence"),
    "notify_on_empty":        Property("of drivers older than virtio 1.0, and of no consequence"),
    "use-started":            Property("of QEMU's migration, and of no consequence"),
    "use-disabled-flag":      Property("of QEMU's migration, and of no consequence"),
    "x-disable-legacy-check": Property("of QEMU's migration, and of no consequence"),
    "bootindex":              Property("of firmware that asks QEMU, and of no consequence", ANY),
    "iothread":               Property("id of the -object iothread whose process serves the device", ANY),
    "bus":                    Property(f"virtio-mmio-bus.N: the slot, 0 to {VIRTIO_SLOTS - 1}", ANY),
}
# Of a -pci name; none of them changes what a driver sees here.
OF_PCI = {
    "addr":              Property("the place on the bus", ANY),
    "multifunction":     Property("the place on the bus"),
    "acpi-index":        Property("the place on the bus", ANY),
    "disable-legacy":    Property("the device is of virtio 1.x in any case", ("on", "off", "auto")),
    "disable-modern":    Property("off: it is of virtio 1.x", ("off",), remedy="leave it off"),
    "ioeventfd":         Property("how notifications reach QEMU"),
    "vectors":           Property("MSI-X; a device here has one interrupt", ANY),
    "page-per-vq":       Property("the layout of PCI's registers"),
    "modern-pio-notify": Property("the layout of PCI's registers"),
    "migrate-extra":     Property("of QEMU's migration"),
    "romfile":           Property("'': there is no option ROM", ("",), remedy="there is no option ROM, leave it empty"),
    "rombar":            Property("of the option ROM", ANY),
    "ats":               Property("off: there is no IOMMU", ("off",), "off", "there is no IOMMU, leave it off"),
    "aer":               Property("off: there is no PCI", ("off",), remedy="there is no PCI, leave it off"),
}
OF_DRIVER = {
    "virtio-blk-device": {
        "write-cache":         Property("off: a write is finished when it lasts", ("on", "off", "auto"), "on"),
        "config-wce":          Property("the driver may change that", default="on"),
        "discard":             Property("the driver may give space back", default="on"),
        "write-zeroes":        Property("the driver may ask for zeroes without sending them", default="on"),
        "queue-size":          Property("entries of each queue", QUEUE_SIZES, "256"),
        "logical_block_size":  Property("a disk has sectors of 512 bytes", ("0", "512")),
        "physical_block_size": Property("a disk has sectors of 512 bytes", ("0", "512")),
        "werror":              Property("the guest is told of errors", ("auto", "report")),
        "rerror":              Property("the guest is told of errors", ("auto", "report")),
        "share-rw":            Property("images are not locked"),
    },
    "vhost-user-blk-device": {
        "config-wce":          Property("the driver may change the write cache", default="on"),
        "discard":             Property("the driver may give space back", default="on"),
        "write-zeroes":        Property("the driver may ask for zeroes without sending them", default="on"),
        "queue-size":          Property("entries of each queue", QUEUE_SIZES, "256"),
    },
    "vhost-user-fs-device": {"queue-size": Property("entries of each queue", QUEUE_SIZES, "128")},
    "virtio-balloon-device": {
        "deflate-on-oom":      Property("the guest may take memory back when it has none left", default="off"),
        "free-page-reporting": Property("the guest tells of free pages, and they go to the host", default="off"),
        "free-page-hint":      Property("off: of QEMU's migration", ("off",), "off", "there is none, leave it off"),
    },
    "virtio-rng-device": {"rng": Property("id of its -object rng-random or rng-builtin", ANY)},
}
# fmt: on


def canonical(name: str, known: tuple[str, ...]) -> tuple[str, bool]:
    """The device that a name of QEMU's stands for, as its -device spelling, and whether the name says PCI.

    Without an ending it is QEMU's alias for what the machine has; an unknown name is given back.
    """
    if name in known or not name.startswith(("virtio-", "vhost-user-")):
        return name, False
    if name.removesuffix("-pci") == GENERIC:
        return GENERIC, True
    for ending in (*PCI, ""):
        if name.endswith(ending) and (found := name.removesuffix(ending) + MMIO) in known:
            return found, ending != ""
    return name, False


def properties(driver: str, mmio: bool) -> dict[str, Property]:
    """The properties beyond the device's own."""
    if not driver.endswith(MMIO) and not driver.startswith(USERS):
        return {}
    return (COMMON if mmio else COMMON | OF_PCI) | OF_DRIVER.get(driver, {})


def check_property(driver: str, name: str, value: str, mmio: bool) -> None:
    """Raise `ConfigError` for a value that can't be honoured."""
    known = properties(driver, mmio).get(name)
    if known is None:
        return
    if name == "bus" and mmio and slot_of(value) is None:
        raise ConfigError(f"-device bus={value}: no such bus; use virtio-mmio-bus.0 to .{VIRTIO_SLOTS - 1}")
    if known.values and value not in known.values:
        remedy = known.remedy or "use " + " or ".join(f"{name}={text}" for text in known.values)
        raise ConfigError(f"-device {driver},{name}={value}: not available; {remedy}")


def slot_of(bus: str) -> int | None:
    """The slot that a bus's name stands for."""
    match = BUS.fullmatch(bus)
    return int(match[1]) if match and int(match[1]) < VIRTIO_SLOTS else None
