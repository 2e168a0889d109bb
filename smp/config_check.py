"""What can be wrong with a configuration, before anything is started: limits, missing files, names that lead nowhere.

It looks at files and folders of the host; it writes and starts nothing.
"""

import os
import re
from collections import Counter
from pathlib import Path

from mem.memmap import MAX_HARTS, RAM_MAX, RAM_MIN, VIRTIO_SLOTS
from mem.regions import CODE_BYTES, IO_PROCESSES, PAGE
from smp.config import (
    FS_DEVICE,
    NET_DEVICE,
    NO_FIRMWARE,
    VHOST_USER,
    VIRTIOFSD,
    DriveConfig,
    FsdevConfig,
    MachineConfig,
    SerialConfig,
)
from smp.cpu import ConfigError, near
from smp.option_text import size
from smp.serial_ports import BUS, PORTS, buses, offered_ports

MOUNT_TAG = 31  # bytes of a shared folder's name, as in QEMU
FS_TAG = 36  # bytes of a virtio file system's name
SOCKET_PATH = 107  # unix(7): sun_path less its NUL
MONITORED = ("unix", "tcp", "stdio", "pty", "pipe")  # kinds of host ends that a client can be at
TB_SIZE_MIN = 128 << 10  # room for several of the largest blocks


def check(config: MachineConfig) -> None:
    """Raise `ConfigError` for what can't be started: limits, missing files, names that lead nowhere."""
    _check_sizes(config)
    _check_ram(config)
    _check_boot(config)
    for drive in config.drives:
        _check_drive(drive, config.snapshot or drive.snapshot)
    _check_block_devices(config)
    for folder in config.fsdevs:
        _check_folder(folder)
    _check_shares(config)
    _check_tags(config)
    _check_consoles(config)
    _check_monitors(config)
    _check_networks(config)
    _check_rngs(config)
    _check_balloons(config)
    _check_iothreads(config)
    _check_engine(config)
    if config.log_file is not None:
        _check_output("-D", config.log_file)
        if not config.log:
            raise ConfigError(f"-D {config.log_file}: nothing is logged; add -d ITEMS (-d help lists them)")


def _check_engine(config: MachineConfig) -> None:
    wanted = config.wants_blocks()
    if wanted and "exec" in config.log:
        raise ConfigError(f"{wanted}: with -d exec every instruction is interpreted; leave exec out")
    if wanted and not config.translates:
        raise ConfigError(f"{wanted}: the interpreter translates nothing; use --engine jit")
    if config.engine == "check" and config.harts > 1:
        raise ConfigError(f"--engine check: compares one hart, not {config.harts}; use -smp 1")


def _check_sizes(config: MachineConfig) -> None:
    if not 1 <= config.harts <= MAX_HARTS:
        raise ConfigError(f"-smp {config.harts}: a machine has 1 to {MAX_HARTS} harts")
    if config.ram < RAM_MIN:
        raise ConfigError(f"-m {_size_text(config.ram)}: RAM must be at least {_size_text(RAM_MIN)}")
    if config.ram > RAM_MAX:
        raise ConfigError(f"-m {_size_text(config.ram)}: RAM can be at most {_size_text(RAM_MAX)}")
    if config.ram % 4096:
        raise ConfigError(f"-m {config.ram}b: RAM must be a multiple of 4096 bytes")
    if not TB_SIZE_MIN <= config.tb_size <= CODE_BYTES:
        least, most = _size_text(TB_SIZE_MIN), _size_text(CODE_BYTES)
        raise ConfigError(f"-accel tcg,tb-size={_size_text(config.tb_size)}: the code cache has {least} to {most}")
    if config.tb_size % PAGE:
        raise ConfigError(f"-accel tcg,tb-size={config.tb_size}b: must be a multiple of {PAGE} bytes")


def _size_text(size: int) -> str:
    """Bytes as `-m` takes them, in the largest unit that is exact."""
    for shift, unit in ((40, "T"), (30, "G"), (20, "M"), (10, "K")):
        if size and size % (1 << shift) == 0:
            return f"{size >> shift}{unit}"
    return f"{size}b"


def _check_ram(config: MachineConfig) -> None:
    """Each back-end is all of RAM, and each name leads to one."""
    ids = [backend.id for backend in config.ram_backends]
    for option, name in config.ram_users:
        if name not in ids:
            hint = near(name, ids)
            raise ConfigError(f"{option}={name}: no such object{hint} (add -object memory-backend-memfd,id={name})")
    if len(config.nodes) > 1:
        raise ConfigError(f"-numa {config.nodes[1]}: all harts and all RAM are one node; leave it out")
    everyone = {f"0-{config.harts - 1}"} | ({"0"} if config.harts == 1 else set())
    for text in config.nodes:
        cpus = re.search("(?:^|,)cpus=([0-9-]+)", text)
        if cpus and cpus[1] not in everyone:
            raise ConfigError(f"-numa {text}: a node has all harts; give cpus=0-{config.harts - 1}, or leave it out")
    for backend in config.ram_backends:
        if backend.bytes != config.ram:
            raise ConfigError(f"-object {backend.text}: RAM has {config.ram >> 20}M; make size and -m the same")


def _check_boot(config: MachineConfig) -> None:
    if config.kernel is None:
        if config.initrd is not None:
            raise ConfigError(f"-initrd {config.initrd}: needs a kernel; add -kernel FILE")
        if config.append:
            raise ConfigError(f"-append {config.append!r}: needs a kernel; add -kernel FILE")
        loaded = config.loaders and config.bios == NO_FIRMWARE
        if not isinstance(config.bios, Path) and config.dumpdtb is None and not loaded:
            raise ConfigError("nothing to start: give -kernel FILE (or -bios FILE)")
    for option in ("kernel", "initrd", "bios", "dtb"):
        if isinstance(path := getattr(config, option), Path):
            _check_input(f"-{option}", path)
    for loader in config.loaders:
        _check_input("-device loader,file", loader.file)
    if config.dumpdtb is not None:
        _check_output("-machine dumpdtb", config.dumpdtb)


def _check_input(option: str, path: Path) -> None:
    """`path` is a file that can be read, or a `ConfigError`."""
    if os.path.isdir(path):
        raise ConfigError(f"{option} {path}: is a directory; give a file")
    if not os.path.exists(path):
        raise ConfigError(f"{option} {path}: no such file{_near_file(path)}")
    if not os.access(path, os.R_OK):
        raise ConfigError(f"{option} {path}: may not be read; give yourself permission (chmod u+r)")


def _near_file(path: Path) -> str:
    try:
        return near(path.name, os.listdir(path.parent)) or "; check the path"
    except OSError:
        return f"; there is no directory {path.parent} either"


def _check_output(option: str, path: Path) -> None:
    if os.path.isdir(path):
        raise ConfigError(f"{option} {path}: is a directory; give a file")
    if not os.path.isdir(path.parent):
        raise ConfigError(f"{option} {path}: there is no directory {path.parent}; make it first")
    if not os.access(path if os.path.exists(path) else path.parent, os.W_OK):
        raise ConfigError(f"{option} {path}: may not be written; choose another place")


def _check_drive(drive: DriveConfig, snapshot: bool) -> None:
    _check_input("-drive file", drive.file)
    if not (drive.readonly or snapshot or os.access(drive.file, os.W_OK)):
        raise ConfigError(f"-drive file {drive.file}: may not be written; add readonly=on or snapshot=on")


def _check_block_devices(config: MachineConfig) -> None:
    ids = [drive.id for drive in config.drives if drive.id]
    _check_unique("-drive id", ids)
    written = [drive for drive in config.drives if not (drive.readonly or drive.snapshot or config.snapshot)]
    _check_unique("-drive file", [os.path.realpath(drive.file) for drive in written])
    _check_unique("-device id", [device.get("id") for device in config.devices if device.get("id")])
    wanted = [device.get("drive") for device in config.devices if device.driver == "virtio-blk-device"]
    for name in wanted:
        if name not in ids:
            raise ConfigError(
                f"-device virtio-blk-device,drive={name}: no such drive{near(name, ids)} "
                f"(add -drive file=FILE,if=none,id={name})"
            )
    _check_unique("-device virtio-blk-device,drive", wanted)
    for drive in config.drives:
        if drive.interface == "virtio" and drive.id in wanted:
            raise ConfigError(f"-device virtio-blk-device,drive={drive.id}: in use already; give the drive if=none")
        if drive.interface == "none" and drive.id not in wanted:
            raise ConfigError(
                f"-drive id={drive.id},if=none: no device uses it; add -device virtio-blk-device,drive={drive.id}"
            )
    own = [device for device in config.devices if device.driver not in ("virtio-blk-device", *PORTS)]
    others = len(config.block_devices()) + len(config.nics) + len(config.backends)
    if (slots := len(own) + others) > VIRTIO_SLOTS:
        raise ConfigError(f"-device: {slots} virtio devices do not fit in {VIRTIO_SLOTS} slots; take some away")


def _check_folder(folder: FsdevConfig) -> None:
    where = f"{folder.option} {folder.path}"
    if not os.path.exists(folder.path):
        raise ConfigError(f"{where}: no such folder{_near_file(folder.path)}")
    if not os.path.isdir(folder.path):
        raise ConfigError(f"{where}: is not a folder; give one, or a file as a -drive")
    if not os.access(folder.path, os.R_OK | os.X_OK):
        raise ConfigError(f"{where}: may not be read; give yourself permission (chmod u+rx)")
    if not folder.readonly and not os.access(folder.path, os.W_OK):
        raise ConfigError(f"{where}: may not be written; share it by -virtfs with readonly=on")
    if folder.model == "passthrough" and os.geteuid() != 0:
        raise ConfigError(
            f"{folder.option} security_model=passthrough: gives files the guest's owners, which takes root; "
            "use security_model=mapped-xattr or none"
        )


def _check_shares(config: MachineConfig) -> None:
    ids = [folder.id for folder in config.fsdevs]
    _check_unique("-fsdev id", ids)
    devices = [device for device in config.devices if device.driver == "virtio-9p-device"]
    users = devices + [device for device in config.devices if device.driver == FS_DEVICE and device.get("fsdev")]
    wanted = [device.get("fsdev") for device in users]
    models = {folder.id: folder.model for folder in config.fsdevs}
    for device in users:
        if (name := device.get("fsdev")) not in ids:
            kind = VIRTIOFSD if device.driver == FS_DEVICE else "local,security_model=none"
            raise ConfigError(
                f"-device {device.driver},fsdev={name}: no such fsdev{near(name, ids)} "
                f"(add -fsdev {kind},path=FOLDER,id={name})"
            )
        if (models[name] == VIRTIOFSD) != (device.driver == FS_DEVICE):
            other = FS_DEVICE if models[name] == VIRTIOFSD else "virtio-9p-device"
            raise ConfigError(f"-device {device.driver},fsdev={name}: is not for it; use -device {other}")
    _check_unique("-device fsdev", wanted)
    for name, model in models.items():
        if name not in wanted:
            kind = f"{FS_DEVICE},tag=NAME" if model == VIRTIOFSD else "virtio-9p-device"
            raise ConfigError(f"-fsdev id={name}: no device uses it; add -device {kind},fsdev={name}")
    tags = [device.get("mount_tag") for device in devices]
    for device, tag in zip(devices, tags, strict=True):
        if not 1 <= len(os.fsencode(tag)) <= MOUNT_TAG:
            raise ConfigError(
                f"-device virtio-9p-device,fsdev={device.get('fsdev')},mount_tag={tag}: "
                f"a tag has 1 to {MOUNT_TAG} bytes; give mount_tag=NAME"
            )
    _check_unique("-device virtio-9p-device,mount_tag", tags)


def _check_tags(config: MachineConfig) -> None:
    devices = [device for device in config.devices if device.driver == FS_DEVICE]
    for device in devices:
        if bool(device.get("fsdev")) == bool(device.get("chardev")):
            raise ConfigError(f"-device {FS_DEVICE}: needs one of chardev=ID and fsdev=ID")
        if not 1 <= len(os.fsencode(device.get("tag"))) <= FS_TAG:
            raise ConfigError(
                f"-device {device.driver},tag={device.get('tag')}: has 1 to {FS_TAG} bytes; give tag=NAME"
            )
    _check_unique(f"-device {FS_DEVICE},tag", [device.get("tag") for device in devices])


def _check_unique(what: str, names: list[str]) -> None:
    for name, count in Counter(names).items():
        if count > 1:
            raise ConfigError(f"{what}={name}: given {count} times; each needs one of its own")


def _check_consoles(config: MachineConfig) -> None:
    ends = [end for end in (*config.serials, *config.chardevs, *config.qmps) if end.kind.endswith("stdio")]
    if len(ends) > 1:
        option = f"-chardev stdio,id={ends[1].id}" if ends[1].id else "-qmp stdio"
        raise ConfigError(f"{option}: the terminal is in use already; give -serial none too")
    ids = [chardev.id for chardev in config.chardevs]
    _check_unique("-chardev id", ids)
    for bus, ports in buses(config.devices):
        if 0 in ports and ports[0].get("name") and offered_ports(bus, ports) == 1:
            raise ConfigError(f"-device {BUS},max_ports=1: its console can have no name; leave max_ports out")
    ports_given = [device for device in config.devices if device.driver in PORTS]
    _check_unique("-device name", [port.get("name") for port in ports_given if port.get("name")])
    users = [device for device in config.devices if device.driver in PORTS or device.driver.startswith(VHOST_USER)]
    wanted = [(f"-device {device.driver}", device.get("chardev")) for device in users if not device.get("fsdev")]
    netdevs, _ = config.networks()
    wanted += [(f"-netdev {VHOST_USER}", netdev.get("chardev")) for netdev in netdevs if netdev.kind == VHOST_USER]
    for user, name in wanted:
        if name not in ids:
            kind = "socket,path=FILE" if VHOST_USER in user else "pty"
            raise ConfigError(
                f"{user},chardev={name}: no such chardev{near(name, ids)} "
                f"(add -chardev {kind},id={name} or another kind)"
            )
    for option, end in [("-serial", end) for end in config.serials] + [("-qmp or -mon", end) for end in config.qmps]:
        if end.kind == "chardev":
            if end.arg not in ids:
                raise ConfigError(f"{option} chardev:{end.arg}: no such chardev{near(end.arg, ids)}")
            wanted.append((option, end.arg))
    _check_unique("-device, -netdev, -serial, -qmp or -mon, chardev", [name for _, name in wanted])
    users_of = {name: user for user, name in wanted}
    for end in (*config.serials, *config.chardevs, *config.qmps):
        if end.id and end.id not in users_of:
            raise ConfigError(f"-chardev id={end.id}: no device uses it; add -device virtconsole,chardev={end.id}")
        if VHOST_USER in users_of.get(end.id, ""):
            _check_backend(end, users_of[end.id])
        else:
            _check_end("-chardev" if end.id else "-qmp" if end in config.qmps else "-serial", end)


def _check_monitors(config: MachineConfig) -> None:
    for end in config.monitor_ends():
        if end.kind not in MONITORED:
            where = f"-chardev id={end.id}" if end.id else f"-qmp {end.kind}"
            raise ConfigError(f"{where}: a monitor can't be at {end.kind}; use {', '.join(MONITORED)}")
    if config.paused and not config.qmps:
        raise ConfigError("-S: nobody could let the machine go on; add -qmp unix:PATH,server=on,wait=off")
    for name in config.monitors:
        if not any(end.id == name and end.kind == "mon:stdio" for end in config.chardevs):
            raise ConfigError(f"-mon chardev={name}: there is no such -chardev stdio,mux=on; leave -mon out")


def _check_backend(end: SerialConfig, user: str) -> None:
    """A vhost-user back-end's socket is connected to."""
    where = f"-chardev socket,id={end.id}"
    if end.kind != "unix":
        raise ConfigError(f"-chardev {end.kind},id={end.id}: {user} takes a socket; use -chardev socket,path=FILE")
    if end.get("server") == "on":
        raise ConfigError(f"{where},server=on: the back-end listens; start it with this path, and use server=off")
    if not os.path.exists(end.arg):
        raise ConfigError(f"{where},path={end.arg}: no such file; start the back-end first")


def _check_networks(config: MachineConfig) -> None:
    """Each netdev leads to one card or one port of a hub, and each card and filter to a netdev."""
    netdevs, cards = config.networks()
    ids = [netdev.id for netdev in netdevs]
    _check_unique("-netdev id", ids)
    asked = [(f"-device {NET_DEVICE}", card.get("netdev")) for card in cards]
    asked += [("-netdev hubport", netdev.get("netdev")) for netdev in netdevs if netdev.get("netdev")]
    for who, name in (*asked, *(("-object filter-dump", given.get("netdev")) for given in config.objects)):
        if name not in ids:
            raise ConfigError(f"{who},netdev={name}: no such netdev{near(name, ids)} (add -netdev KIND,id={name})")
        if VHOST_USER in [netdev.kind for netdev in netdevs if netdev.id == name] and "-device" not in who:
            raise ConfigError(f"{who},netdev={name}: its frames are never here; use a netdev of another kind")
    _check_unique("-device or -netdev hubport, netdev", [name for _, name in asked])
    for netdev in netdevs:
        if netdev.id not in {name for _, name in asked} and not netdev.get("netdev"):
            raise ConfigError(f"-netdev id={netdev.id}: no device uses it; add -device {NET_DEVICE},netdev={netdev.id}")
    for dump in config.objects:
        _check_output("-object filter-dump,file", Path(dump.get("file")))
    _check_unique("-object id", [dump.get("id") for dump in config.objects])
    _check_unique("-object filter-dump,file", [os.path.realpath(dump.get("file")) for dump in config.objects])


def _check_balloons(config: MachineConfig) -> None:
    for device in config.devices:
        text = device.get("size", "0")
        if device.driver == "virtio-balloon-device" and size("-device size", text) >= config.ram:
            ram = _size_text(config.ram)
            raise ConfigError(f"-device virtio-balloon-device,size={text}: the guest has {ram} in all; ask for less")


def _check_rngs(config: MachineConfig) -> None:
    for device in config.devices:
        name = device.get("rng")
        if name and name not in config.rngs:
            raise ConfigError(
                f"-device {device.driver},rng={name}: no such object{near(name, config.rngs)} "
                f"(add -object rng-random,id={name})"
            )


def _check_iothreads(config: MachineConfig) -> None:
    ids = [iothread.id for iothread in config.iothreads]
    _check_unique("-object id", [*ids, *config.rngs])
    for device in config.devices:
        name = device.get("iothread")
        if name and name not in ids:
            raise ConfigError(
                f"-device {device.driver},iothread={name}: no such iothread{near(name, ids)} "
                f"(add -object iothread,id={name})"
            )
        if name and device.driver == NET_DEVICE:
            raise ConfigError(f"-device {device.driver},iothread={name}: a card stays with its netdev; leave it out")
    if (count := len(ids) + config.spread) > IO_PROCESSES - 1:
        raise ConfigError(f"-object iothread, -machine iothreads: {count} are too many; {IO_PROCESSES - 1} at most")


def _check_end(option: str, end: SerialConfig) -> None:
    """A character device's file or socket can be made; one that a socket can't replace is not overwritten."""
    if end.kind == "fd" and not os.path.exists(f"/proc/self/fd/{end.arg}"):
        raise ConfigError(f"{option} fd {end.arg}: is not open; start the command with {end.arg}>FILE")
    if end.get("input-path"):
        _check_input(f"{option} input-path", Path(end.get("input-path")))
    if end.kind == "pipe" and not any(os.path.exists(end.arg + ending) for ending in ("", ".in")):
        raise ConfigError(f"{option} pipe {end.arg}: no such FIFO; make it first (mkfifo {end.arg})")
    if end.kind != "file" and not (end.kind == "unix" and end.get("server") == "on"):
        return
    _check_output(option, Path(end.arg))
    if end.kind == "unix" and len(os.fsencode(end.arg)) > SOCKET_PATH:
        raise ConfigError(f"{option} {end.arg}: a socket's path has at most {SOCKET_PATH} bytes; shorten it")
    if end.kind == "unix" and os.path.exists(end.arg) and not Path(end.arg).is_socket():
        raise ConfigError(f"{option} {end.arg}: is there and is not a socket; choose another path")
