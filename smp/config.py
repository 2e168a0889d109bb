"""What a machine is, as values: the dataclasses that the command line fills in and the machine reads."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from smp.cpu import CpuConfig, parse_cpu
from smp.host import default_engine

# What of -bios is not a file.
BUILT_IN_SBI = "default"
NO_FIRMWARE = "none"

NET_DEVICE = "virtio-net-device"
VHOST_USER = "vhost-user"  # a netdev, and with what its back-end does a device
FS_DEVICE = "vhost-user-fs-device"
VIRTIOFSD = "virtiofsd"


@dataclass(frozen=True)
class SerialConfig:
    """The host's end of a character device.

    `kind` is stdio, mon:stdio, file, pipe, unix, tcp, fd, pty, null, none, or chardev of a -serial; `arg` the path of
    a file or a socket, HOST:PORT, the number of a descriptor, or the name of a -chardev; `id` the name of a -chardev;
    `properties` have QEMU's names.
    """

    kind: str = "mon:stdio"
    arg: str = ""
    id: str = ""
    properties: tuple[tuple[str, str], ...] = ()

    def get(self, name: str, default: str = "") -> str:
        return dict(self.properties).get(name, default)

    @property
    def retry(self) -> float:
        """Seconds after which a connection is tried again, or 0."""
        return int(self.get("reconnect", "0")) + int(self.get("reconnect-ms", "0")) / 1000


@dataclass(frozen=True)
class DriveConfig:
    """A -drive. Interface 'virtio' makes it a virtio-blk device, with 'none' a -device names its id.

    With '' it is 'none' if a -device does, as in QEMU before 8, and otherwise 'virtio'.
    """

    file: Path
    id: str = ""
    interface: str = ""
    readonly: bool = False
    snapshot: bool = False
    format: str = "raw"
    throttle: tuple[tuple[str, int], ...] = ()  # limits as virtio/throttle.py:Throttle takes them


@dataclass(frozen=True)
class FsdevConfig:
    """A folder of the host for a virtio-9p device; `model` says whose the files are, `option` where it was given.

    Of model virtiofsd it is for a vhost-user-fs device.
    """

    path: Path
    id: str
    model: str
    readonly: bool = False
    multidevs: str = "warn"
    option: str = "-fsdev"
    modes: tuple[int, int] = (0o600, 0o700)  # of files and folders on the host, where the guest's are mapped


@dataclass(frozen=True)
class DeviceConfig:
    """A -device: the driver's name and its properties as (name, value) in the order given.

    `on_pci` is the name that was asked for, if that was a PCI device's: it sits on virtio-mmio all the same.
    """

    driver: str
    properties: tuple[tuple[str, str], ...] = ()
    on_pci: str = ""

    def get(self, name: str, default: str = "") -> str:
        return dict(self.properties).get(name, default)


@dataclass(frozen=True)
class NetdevConfig:
    """A -netdev, or the host's half of a -nic: its kind and properties, of which some may be there several times."""

    kind: str
    id: str
    properties: tuple[tuple[str, str], ...] = ()

    def get(self, name: str, default: str = "") -> str:
        return dict(self.properties).get(name, default)

    def get_all(self, name: str) -> list[str]:
        return [value for key, value in self.properties if key == name]

    def is_on(self, name: str, default: str = "off") -> bool:
        return self.get(name, default) == "on"


@dataclass(frozen=True)
class IothreadConfig:
    """An -object iothread. None where nothing was said; times are nanoseconds."""

    id: str
    poll_max_ns: int | None = None
    poll_grow: int = 0
    poll_shrink: int | None = None


@dataclass(frozen=True)
class LoaderConfig:
    """A -device loader: a file, and where its bytes go, or None for an ELF file, which says that itself."""

    file: Path
    address: int | None = None
    raw: bool = False  # ELF files are bytes, too


@dataclass(frozen=True)
class RamBackendConfig:
    """An -object memory-backend-*; `bytes` is its size."""

    id: str
    bytes: int
    text: str  # as it was given


@dataclass(frozen=True)
class MachineConfig:
    """Everything that is fixed when the machine starts. `bios` is 'default', 'none' or a file."""

    harts: int = 1
    ram: int = 128 << 20
    cpu: CpuConfig = field(default_factory=lambda: parse_cpu("rv64"))
    kernel: Path | None = None
    initrd: Path | None = None
    append: str = ""
    bios: str | Path = BUILT_IN_SBI
    dtb: Path | None = None
    dumpdtb: Path | None = None
    dtb_randomness: bool = True
    drives: tuple[DriveConfig, ...] = ()
    fsdevs: tuple[FsdevConfig, ...] = ()
    devices: tuple[DeviceConfig, ...] = ()
    netdevs: tuple[NetdevConfig, ...] = ()
    nics: tuple[tuple[NetdevConfig, DeviceConfig], ...] = ()
    objects: tuple[DeviceConfig, ...] = ()
    loaders: tuple[LoaderConfig, ...] = ()
    ram_backends: tuple[RamBackendConfig, ...] = ()
    ram_users: tuple[tuple[str, str], ...] = ()  # options that name one of them
    nodes: tuple[str, ...] = ()  # -numa
    rngs: tuple[str, ...] = ()  # ids of -object rng-random and rng-builtin
    iothreads: tuple[IothreadConfig, ...] = ()
    spread: int = 0  # more I/O processes, to which devices go in turn
    poll_max_ns: int | None = None
    backends: tuple[Any, ...] = ()  # virtio/device.py:Device that the caller has made
    serials: tuple[SerialConfig, ...] = (SerialConfig(),)
    chardevs: tuple[SerialConfig, ...] = ()
    monitors: tuple[str, ...] = ()  # ids of chardevs whose mux is asked for a monitor
    qmps: tuple[SerialConfig, ...] = ()  # host ends of -qmp, and of kind chardev of -mon mode=control
    paused: bool = False  # when it starts
    escape: int = 1  # the character of the terminal's commands
    nographic: bool = False
    reboot: bool = True
    snapshot: bool = False
    log: frozenset[str] = frozenset()
    log_file: Path | None = None
    engine: str = field(default_factory=default_engine)
    tb_size: int = 128 << 20  # bytes of the translator's code cache
    stats: bool = False
    perfmap: bool = False
    sandbox: bool = True

    @property
    def translates(self) -> bool:
        """Whether harts run translated code."""
        return self.engine in ("jit", "check")

    def uart(self) -> SerialConfig:
        """The host's end of the UART."""
        return self._end(self.serials[0] if self.serials else SerialConfig("none"))

    def monitor_ends(self) -> list[SerialConfig]:
        """The host's ends at which QMP is spoken."""
        return [self._end(end) for end in self.qmps]

    def _end(self, end: SerialConfig) -> SerialConfig:
        return next(other for other in self.chardevs if other.id == end.arg) if end.kind == "chardev" else end

    def wants_blocks(self) -> str:
        """The option that asks for every translated block, or ''."""
        items = [item for item in ("in_asm", "out_asm") if item in self.log]
        return f"-d {','.join(items)}" if items else "-perfmap" if self.perfmap else ""

    def networks(self) -> tuple[list[NetdevConfig], list[DeviceConfig]]:
        """Every netdev, and every network card in the order of default addresses; a -nic is one of each."""
        netdevs, cards = list(self.netdevs), []
        for number, (netdev, card) in enumerate(self.nics):
            name = netdev.id or f"nic{number}"
            netdevs.append(replace(netdev, id=name))
            cards.append(replace(card, properties=(*card.properties, ("netdev", name))))
        return netdevs, cards + [device for device in self.devices if device.driver == NET_DEVICE]

    def block_devices(self) -> list[tuple[DriveConfig, DeviceConfig]]:
        """Every disk with its device, in the order of their slots: drives with if=virtio come first."""
        by_id = {drive.id: drive for drive in self.drives if drive.id}
        named = [dev for dev in self.devices if dev.driver == "virtio-blk-device"]
        wanted = {device.get("drive") for device in named}
        own = [d for d in self.drives if d.interface == "virtio" or (not d.interface and d.id not in wanted)]
        own = [replace(drive, id=drive.id or f"virtio{number}") for number, drive in enumerate(own)]
        made = [(drive, DeviceConfig("virtio-blk-device", (("drive", drive.id),))) for drive in own]
        return made + [(by_id[device.get("drive")], device) for device in named]
