"""The devices that other processes serve (virtio/vhost_user.py): what is known here of their configurations."""

from struct import pack

from virtio.vhost_user import DEVICE_BITS, Backend, VhostUser
from virtio.vhost_wire import P_CONFIG, BackendError


class VhostBlock(VhostUser):
    """vhost-user-blk: the configuration is the back-end's."""

    kind = 2
    name = "vhost-user-blk"
    orders = ("size",)
    CONFIG_BYTES = 60  # up to what came with WRITE_ZEROES
    NUM_QUEUES, WRITEBACK = 34, 32  # offsets
    F_CONFIG_WCE = 1 << 11

    def __init__(self, backend: Backend, sizes: tuple[int, ...], features: int = DEVICE_BITS) -> None:
        super().__init__(backend, sizes, features)
        assert backend.session is not None
        self.bytes = self._patched(backend.session.config(self.CONFIG_BYTES))

    def _patched(self, data: bytes) -> bytes:
        """The number of queues is ours to choose."""
        return data[: self.NUM_QUEUES] + pack("<H", len(self.queue_sizes)) + data[self.NUM_QUEUES + 2 :]

    def config(self) -> bytes:
        return self.bytes

    def size(self, _: None = None) -> int:
        """Bytes that the driver sees: the configuration begins with the number of sectors."""
        return int.from_bytes(self.bytes[:8], "little") * 512

    def configure(self, offset: int, data: bytes) -> None:
        if offset == self.WRITEBACK and len(data) == 1 and self.host.first_features & self.F_CONFIG_WCE:
            self.bytes = self.bytes[:offset] + data + self.bytes[offset + 1 :]
            self.host.preset = offset, data
            self.host.set_config(offset, data)

    def renew(self) -> None:
        """It may be a disk of another size.  Of the cache the driver decides."""
        data = self.host.read_config(self.CONFIG_BYTES)
        if data is None:
            return
        data, at = self._patched(data), self.WRITEBACK
        data = data[:at] + self.bytes[at : at + 1] + data[at + 1 :]
        if data != self.bytes:
            self.bytes = data
            self.config_changed()


class VhostFs(VhostUser):
    """vhost-user-fs: a file system of the host; the configuration is ours."""

    kind = 26
    name = "vhost-user-fs"

    def __init__(self, backend: Backend, sizes: tuple[int, ...], tag: bytes) -> None:
        super().__init__(backend, sizes, 0)
        self.tag = tag

    def config(self) -> bytes:
        return self.tag.ljust(36, b"\0") + pack("<I", len(self.queue_sizes) - 1)


class VhostDevice(VhostUser):
    """Any device: the back-end's are the features, the configuration and the meaning of the queues."""

    def __init__(
        self, backend: Backend, kind: int, sizes: tuple[int, ...], config_bytes: int = 0, features: int = DEVICE_BITS
    ) -> None:
        super().__init__(backend, sizes, features)
        self.kind = kind
        self.config_bytes = config_bytes
        assert backend.session is not None
        if config_bytes and not backend.session.protocol & P_CONFIG:
            raise BackendError("it has no configuration (VHOST_USER_PROTOCOL_F_CONFIG)")
        self.bytes = backend.session.config(config_bytes) if config_bytes else b""

    def config(self) -> bytes:
        return self.bytes

    def configure(self, offset: int, data: bytes) -> None:
        """What a write changes is the back-end's to say: of virtio-input it selects what is read next."""
        if offset + len(data) <= self.config_bytes:
            self.host.set_config(offset, data)
            self.bytes = self.host.read_config(self.config_bytes) or self.bytes

    def renew(self) -> None:
        data = self.host.read_config(self.config_bytes) if self.config_bytes else None
        if data is not None and data != self.bytes:
            self.bytes = data
            self.config_changed()


class VhostScsi(VhostUser):
    """vhost-user-scsi: the configuration is ours, as QEMU has it, and so are the features of its devices."""

    kind = 8
    name = "vhost-user-scsi"
    SEGMENTS, SECTORS, COMMANDS = 126, 0xFFFF, 128  # most of a request, and at once for a unit
    EVENT_BYTES, SENSE_BYTES, CDB_BYTES = 16, 96, 32
    CHANNEL, TARGET, LUN = 0, 255, 16383  # the highest
    F_HOTPLUG, F_CHANGE = 1 << 1, 1 << 2

    def __init__(self, backend: Backend, sizes: tuple[int, ...]) -> None:
        super().__init__(backend, sizes, self.F_HOTPLUG | self.F_CHANGE)

    def config(self) -> bytes:
        """struct virtio_scsi_config (virtio 1.3, 5.6.4); of the queues two are for control and events."""
        limits = (len(self.queue_sizes) - 2, self.SEGMENTS, self.SECTORS, self.COMMANDS)
        sizes = (self.EVENT_BYTES, self.SENSE_BYTES, self.CDB_BYTES)
        return pack("<7I2HI", *limits, *sizes, self.CHANNEL, self.TARGET, self.LUN)
