"""Devices whose work is done by another process: the user's own, or a qemu-storage-daemon or virtiofsd of ours."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from smp.config import VIRTIOFSD, DeviceConfig, DriveConfig, FsdevConfig, MachineConfig, NetdevConfig
from smp.cpu import ConfigError
from smp.option_text import escape, number
from smp.vhost_options import SCSI, STANDARD, Standard, value
from smp.virtio_options import GENERIC
from virtio.blk import F_CONFIG_WCE, F_DISCARD, F_MQ, F_WRITE_ZEROES
from virtio.helper import Helper
from virtio.vhost_devices import VhostBlock, VhostDevice, VhostFs, VhostScsi
from virtio.vhost_user import DEVICE_BITS, RETRY, Backend
from virtio.vhost_wire import BackendError, Session, dial

STORAGE_DAEMON = "qemu-storage-daemon"
BLOCK_BITS = {"config-wce": F_CONFIG_WCE, "discard": F_DISCARD, "write-zeroes": F_WRITE_ZEROES}
FS_QUEUE = "128"  # entries
VIRTIOFSD_FOLDERS = ("/usr/libexec", "/usr/lib/qemu")  # where Debian has it


def open_block(given: DeviceConfig, config: MachineConfig) -> VhostBlock:
    """-device vhost-user-blk-device."""
    queues = number(f"-device {given.driver},num-queues", given.get("num-queues", "1"))
    return _block(given, connect(given, config, queues), queues)


def needs_shadow(given: DeviceConfig) -> bool:
    """Whether the device's rings can't be a back-end's (virtio/vhost_shadow.py)."""
    return "on" in (given.get("packed"), given.get("in_order"))


def open_standard(given: DeviceConfig, config: MachineConfig) -> VhostDevice:
    """-device vhost-user-device, and the names of what it is with certain numbers."""
    what = STANDARD.get(given.driver) or _generic(given)
    backend = connect(given, config, what.served or what.queues)
    try:
        return VhostDevice(backend, what.kind, (what.entries,) * what.queues, what.config_bytes, ~what.without)
    except BackendError as error:
        backend.close()
        raise ConfigError(f"-device {given.driver}: {error}; give another back-end") from error


def _generic(given: DeviceConfig) -> Standard:
    names = ("virtio-id", "num_vqs", "vq_size", "config_size")
    return Standard(*(value(GENERIC, dict(given.properties), name) for name in names))


def open_scsi(given: DeviceConfig, config: MachineConfig) -> VhostScsi:
    """-device vhost-user-scsi-device: queues for control and events, and those for requests."""
    properties = dict(given.properties)
    queues = 2 + value(SCSI, properties, "num_queues")
    return VhostScsi(connect(given, config, queues), (value(SCSI, properties, "virtqueue_size"),) * queues)


def open_fs(given: DeviceConfig, config: MachineConfig) -> VhostFs:
    """-device vhost-user-fs-device: a queue for urgent requests, and as many for the others as are asked for."""
    queues = 1 + number(f"-device {given.driver},num-request-queues", given.get("num-request-queues", "1"))
    sizes = (int(given.get("queue-size", FS_QUEUE)),) * queues
    if given.get("fsdev"):
        folder = next(folder for folder in config.fsdevs if folder.id == given.get("fsdev"))
        backend = _virtiofsd(folder, queues, needs_shadow(given))
    else:
        backend = connect(given, config, queues)
    return VhostFs(backend, sizes, os.fsencode(given.get("tag")))


def _virtiofsd(folder: FsdevConfig, queues: int, shadow: bool) -> Backend:
    """A virtiofsd of ours."""
    where = f"-fsdev {VIRTIOFSD},id={folder.id},path={folder.path}"
    program = find_virtiofsd()
    if program is None:
        remedy = f"apt install {VIRTIOFSD} (or qemu-system-common, until Debian 12), or use -virtfs"
        raise ConfigError(f"{where}: {VIRTIOFSD} is not installed; {remedy}")
    words = virtiofsd_words(program, os.path.abspath(folder.path))
    helper = Helper(lambda listener: [*words, f"--fd={listener}"])

    def make() -> Backend:
        return HelperBackend(folder.id, helper, queues, shadow=shadow)

    return _helped(make, helper, queues, where, f"see {VIRTIOFSD}(1), or use -virtfs")


def find_virtiofsd() -> str | None:
    return shutil.which(VIRTIOFSD, path=os.pathsep.join((os.environ.get("PATH", ""), *VIRTIOFSD_FOLDERS)))


def takes_root(program: str) -> bool:
    """Whether it is QEMU's virtiofsd in C; its successor can be anybody's."""
    text = subprocess.run([program, "--help"], capture_output=True, text=True, errors="replace", timeout=10).stdout
    return "--shared-dir" not in text


def virtiofsd_words(program: str, folder: str) -> list[str]:
    """The program there is: QEMU's own in C, or its successor."""
    if takes_root(program):
        return [program, "-f", "-o", f"source={folder},log_level=err"]
    sandbox = "namespace" if os.geteuid() == 0 or shutil.which("newuidmap") else "none"
    return [program, "--shared-dir", folder, "--sandbox", sandbox, "--log-level", "error"]


def connect(given: DeviceConfig, config: MachineConfig, queues: int, netdev: NetdevConfig | None = None) -> Backend:
    """The back-end that listens at the socket of the device's chardev, or of its netdev's."""
    chardev = (netdev or given).get("chardev")
    end = next(end for end in config.chardevs if end.id == chardev)
    where = f"-netdev {netdev.kind},id={netdev.id}: " if netdev else ""
    asked = 1 if netdev else queues  # a back-end of networks counts pairs
    where += f"-chardev socket,id={end.id},path={end.arg}"

    def call() -> Session:
        return Session(dial(end.arg))

    retry, remedy = end.retry or RETRY, "start the back-end first"
    return _made(lambda: Backend(end.id, call, queues, retry, needs_shadow(given)), asked, where, remedy)


def _made(make: Callable[[], Backend], queues: int, where: str, remedy: str) -> Backend:
    try:
        backend = make()
    except OSError as error:
        raise ConfigError(f"{where}: {error.strerror or error}; {remedy}") from error
    except BackendError as error:
        raise ConfigError(f"{where}: {error}; {remedy}") from error
    most = backend.session.queues if backend.session else 0
    if most and queues > most:
        backend.close()
        raise ConfigError(f"{where}: the back-end has {most} queues, not {queues}; ask for fewer")
    return backend


def _block(given: DeviceConfig, backend: Backend, queues: int) -> VhostBlock:
    features = DEVICE_BITS & ~sum(bit for name, bit in BLOCK_BITS.items() if given.get(name) == "off")
    features &= ~(F_MQ if queues == 1 else 0)
    try:
        return VhostBlock(backend, (int(given.get("queue-size", "256")),) * queues, features)
    except BackendError as error:
        backend.close()
        raise ConfigError(f"-device {given.driver}: the back-end is no disk: {error}; give another") from error


# Images that are not raw


class HelperBackend(Backend):
    """A back-end that is ours to start and to end; `folder` goes with it."""

    def __init__(
        self,
        name: str,
        helper: Helper,
        queues: int,
        folder: tempfile.TemporaryDirectory[str] | None = None,
        shadow: bool = False,
    ) -> None:
        self.helper, self.folder = helper, folder
        super().__init__(name, helper.dial, queues, shadow=shadow)

    def start(self) -> None:
        self.helper.keep_starter()
        super().start()

    def close(self) -> None:
        super().close()
        self.helper.close()
        if self.folder:
            self.folder.cleanup()
            self.folder = None


def _helped(make: Callable[[], Backend], helper: Helper, queues: int, where: str, remedy: str) -> Backend:
    try:
        return _made(make, queues, where, remedy)
    except ConfigError:
        helper.close()
        raise


def open_image(drive: DriveConfig, given: DeviceConfig, snapshot: bool) -> VhostBlock:
    """A disk whose image QEMU's storage daemon reads and writes."""
    where = f"-drive file={drive.file},format={drive.format}"
    program = shutil.which(STORAGE_DAEMON)
    if program is None:
        remedy = "apt install qemu-system-common qemu-utils, or convert it by qemu-img convert -O raw"
        raise ConfigError(f"{where}: takes {STORAGE_DAEMON}, which is not installed; {remedy}")
    if given.get("serial"):
        raise ConfigError(f"{where}: its disk has no serial=; leave it out, or use format=raw")
    if drive.throttle:
        raise ConfigError(f"{where}: throttling.{drive.throttle[0][0]} is for format=raw; leave it out")
    folder = _overlay(drive, where) if snapshot else None
    queues = number("-device num-queues", given.get("num-queues", "1"))
    image = (os.path.join(folder.name, "overlay"), "qcow2") if folder else (str(drive.file), drive.format)
    writable = not drive.readonly

    helper = Helper(lambda listener: [program, *daemon_words(*image, writable, queues, listener)])

    def make() -> Backend:
        return HelperBackend(drive.id or drive.file.name, helper, queues, folder, needs_shadow(given))

    try:
        disk = _block(given, _helped(make, helper, queues, where, "choose another file or format"), queues)
    except ConfigError:
        if folder:
            folder.cleanup()
        raise
    if given.get("write-cache") == "off":
        disk.configure(VhostBlock.WRITEBACK, b"\0")
    return disk


def daemon_words(file: str, form: str, writable: bool, queues: int, listener: int) -> list[str]:
    """What qemu-storage-daemon(1) is told."""
    access = f"read-only={'off' if writable else 'on'}"
    return [
        "--blockdev",
        f"driver=file,node-name=file,filename={escape(os.path.abspath(file))},{access},discard=unmap",
        "--blockdev",
        f"driver={form},node-name=disk,file=file,{access},discard=unmap",
        "--export",
        f"type=vhost-user-blk,id=disk,node-name=disk,addr.type=fd,addr.str={listener},num-queues={queues},"
        f"writable={'on' if writable else 'off'}",
    ]


def _overlay(drive: DriveConfig, where: str) -> tempfile.TemporaryDirectory[str]:
    """A throw-away image over the drive's, in a folder of its own."""
    program = shutil.which("qemu-img")
    if program is None:
        raise ConfigError(f"{where},snapshot=on: takes qemu-img, which is not installed; apt install qemu-utils")
    folder = tempfile.TemporaryDirectory(prefix="hartbeat-")
    base = ["-b", str(Path(drive.file).absolute()), "-F", drive.format]
    words = [program, "create", "-q", "-f", "qcow2", *base, os.path.join(folder.name, "overlay")]
    done = subprocess.run(words, capture_output=True, text=True, errors="replace")
    if done.returncode:
        folder.cleanup()
        raise ConfigError(f"{where},snapshot=on: {done.stderr.strip() or 'qemu-img failed'}; choose another file")
    return folder
