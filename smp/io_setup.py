"""From the configuration to the I/O process's devices: which slot each takes and what the host's ends are.

Opens files, sockets and pseudo-terminals, so it runs in the supervisor, where a mistake is still one line.
"""

import errno
import functools
import os
import socket
import stat
from collections.abc import Callable, Iterator

from mem.memmap import VIRTIO_SLOTS
from smp import user_backends, vhost_setup
from smp.char_setup import open_chardev
from smp.config import DeviceConfig, DriveConfig, FsdevConfig, MachineConfig, SerialConfig
from smp.cpu import ConfigError
from smp.descriptors import Opened, inherited
from smp.iothreads import assign
from smp.net_setup import open_networks
from smp.option_text import size
from smp.serial_ports import CONSOLE, buses, offered_ports
from smp.vhost_options import SCSI, STANDARD
from smp.virtio_options import GENERIC, USERS, slot_of
from smp.vsock_options import VSOCK
from virtio.balloon import Balloon
from virtio.blk import F_CONFIG_WCE, F_DISCARD, F_WRITE_ZEROES, Block
from virtio.chardev import Stdio
from virtio.console import Console, Port
from virtio.device import Device
from virtio.features import EVENT_IDX, IN_ORDER, INDIRECT_DESC, RING_PACKED, RING_RESET
from virtio.host_owners import MODELS, MappedOwners
from virtio.host_tree import HostTree
from virtio.image import Image, Overlay
from virtio.ninep import Ninep
from virtio.process import IoConfig
from virtio.rng import Rng
from virtio.sockets import listen
from virtio.throttle import Throttle
from virtio.vsock import Vsock
from virtio.vsock_host import VsockHost

Made = tuple[DeviceConfig, Device]


def io_config(config: MachineConfig) -> IoConfig:
    """Everything opened: disks take the free slots from 0 upward, then the other devices in the order given.

    Raises ConfigError for what the host refuses.  `prepare` the result before the first fork.
    """
    opened = Opened()
    made: list[Made] = []
    for given, make in makers(config):
        made.append((given, make()))
        made[-1][1].descriptors = opened.lately()
    made += consoles(config)
    networks, others = open_networks(config)
    made += networks
    for given, device in made:
        device.ring_features = ring_features(given, device.ring_features) & device.ring_limit
    for device in config.backends:
        user_backends.check(type(device).__name__, device)
        made.append((DeviceConfig(USERS), device))
    serial = open_chardev(config.uart(), "serial0")
    slots = place(made)
    io = IoConfig({slot: device for slot, (_, device) in slots.items()}, serial, others)
    io.given = {slot: given for slot, (given, _) in slots.items()}
    io.sandbox = config.sandbox
    io.descriptors = opened.lately() | inherited(config)
    for host in io.all_hosts():
        if isinstance(host, Stdio):
            host.escape = config.escape
    assign(io, config, io.given)
    return io


def makers(config: MachineConfig) -> Iterator[tuple[DeviceConfig, Callable[[], Device]]]:
    """Each device that stands alone, and how it is made."""
    for drive, device in config.block_devices():
        yield device, functools.partial(block, drive, device, config)
    for given in config.devices:
        if given.driver.startswith(USERS):
            yield given, functools.partial(user_backends.make, given)
        elif given.driver in MAKERS:
            yield given, functools.partial(MAKERS[given.driver], given, config)


# Devices of one -device each; the others have functions of their own.
MAKERS: dict[str, Callable[[DeviceConfig, MachineConfig], Device]] = {
    "virtio-rng-device": lambda given, config: Rng(),
    "vhost-user-blk-device": vhost_setup.open_block,
    "vhost-user-fs-device": vhost_setup.open_fs,
    SCSI: vhost_setup.open_scsi,
    **dict.fromkeys((GENERIC, *STANDARD), vhost_setup.open_standard),
    "virtio-balloon-device": lambda given, config: Balloon(
        size("-device size", given.get("size", "0")),
        given.get("deflate-on-oom") == "on",
        given.get("free-page-reporting") == "on",
    ),
    VSOCK: lambda given, config: vsock(given),
    "virtio-9p-device": lambda given, config: share(given, {folder.id: folder for folder in config.fsdevs}),
}
RING_BITS = {
    "event_idx": EVENT_IDX,
    "indirect_desc": INDIRECT_DESC,
    "packed": RING_PACKED,
    "in_order": IN_ORDER,
    "queue_reset": RING_RESET,
}


def ring_features(given: DeviceConfig, own: int) -> int:
    """What the driver is offered for its rings: the device's own choice, and what the properties say."""
    asked = {bit: given.get(name) for name, bit in RING_BITS.items()}
    on, off = (sum(bit for bit, value in asked.items() if value == word) for word in ("on", "off"))
    return own & ~off | on


def place(made: list[Made]) -> dict[int, Made]:
    """A slot for each device: the one its bus names, or the first that is free."""
    taken: dict[int, Made] = {}
    for given, device in made:
        slot = slot_of(given.get("bus"))
        if slot in taken:
            raise ConfigError(f"-device {given.driver},bus={given.get('bus')}: is taken; choose another bus")
        if slot is not None:
            taken[slot] = given, device
    free = (slot for slot in range(VIRTIO_SLOTS) if slot not in taken)
    for given, device in made:
        if slot_of(given.get("bus")) is None:
            slot = next(free, None)
            if slot is None:
                raise ConfigError(
                    f"-device: {len(made)} virtio devices do not fit in {VIRTIO_SLOTS} slots; take some away"
                )
            taken[slot] = given, device
    return taken


VSOCK_BACKLOG = 128  # calls of the host's that may wait
BLOCK_BITS = {"config-wce": F_CONFIG_WCE, "discard": F_DISCARD, "write-zeroes": F_WRITE_ZEROES}


def block(drive: DriveConfig, device: DeviceConfig, config: MachineConfig) -> Device:
    """A disk."""
    if drive.format != "raw":
        return vhost_setup.open_image(drive, device, drive.snapshot or config.snapshot)
    try:
        if drive.snapshot or config.snapshot:
            image: Image = Overlay(drive.file, drive.readonly)
        else:
            image = Image(drive.file, drive.readonly)
    except OSError as error:
        raise ConfigError(f"-drive file {drive.file}: {error.strerror}; choose another file") from error
    queues = int(device.get("num-queues", "1"))
    throttle = Throttle(dict(drive.throttle)) if drive.throttle else None
    made = Block(image, device.get("serial"), queues, device.get("write-cache") != "off", throttle)
    made.queue_sizes = (int(device.get("queue-size", "256")),) * queues
    made.features &= ~sum(bit for name, bit in BLOCK_BITS.items() if device.get(name) == "off")
    return made


def share(given: DeviceConfig, folders: dict[str, FsdevConfig]) -> Ninep:
    """A shared folder."""
    folder = folders[given.get("fsdev")]
    model = MODELS[folder.model]
    owners = MappedOwners(*folder.modes) if model is MappedOwners else model()
    try:
        tree = HostTree(folder.path, owners, folder.readonly, folder.multidevs)
    except OSError as error:
        text = f"{folder.option} {folder.path}: {error.strerror}"
        if error.errno == errno.EOPNOTSUPP:
            text = f"{folder.option} {folder.path}: its file system has no extended attributes"
        raise ConfigError(f"{text}; choose another folder, or security_model=none") from error
    return Ninep(tree, os.fsencode(given.get("mount_tag")))


def vsock(given: DeviceConfig) -> Vsock:
    """Stream sockets, with the socket for the host's calls; a file of one that nobody has any more is replaced."""
    path = given.get("path")
    where = f"-device {VSOCK},path={path}"
    if os.path.exists(path) and not stat.S_ISSOCK(os.stat(path).st_mode):
        raise ConfigError(f"{where}: is there and is not a socket; choose another path")
    try:
        listener = listen((socket.AF_UNIX, path))
        listener.listen(VSOCK_BACKLOG)
    except OSError as error:
        raise ConfigError(f"{where}: {error.strerror}; choose another place") from error
    return Vsock(int(given.get("guest-cid")), VsockHost(listener, path))


def consoles(config: MachineConfig) -> list[Made]:
    """A virtio console for each virtio-serial-device, with its ports."""
    ends = {end.id: end for end in config.chardevs}
    made: list[Made] = []
    for bus, given in buses(config.devices):
        ports = {number: port(device, ends) for number, device in given.items()}
        made.append((bus, Console(ports, offered_ports(bus, given))))
    return made


def port(given: DeviceConfig, ends: dict[str, SerialConfig]) -> Port:
    """A port of a virtio console with its host end."""
    label = given.get("chardev")
    return Port(open_chardev(ends[label], label), given.driver == CONSOLE, os.fsencode(given.get("name")))
