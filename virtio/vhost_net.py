"""vhost-user-net: a network card whose frames another process sends and receives; one pair of queues."""

from struct import pack

from virtio.netfeatures import F_MAC, F_MRG_RXBUF, F_MTU, F_STATUS, IN_SOFTWARE, TO_GUEST
from virtio.vhost_user import Backend, VhostUser

QUEUES = 2
BACKENDS = IN_SOFTWARE | TO_GUEST | F_MRG_RXBUF
LINK_UP = 1


class VhostNet(VhostUser):
    """The address, the MTU and the carrier are ours: the carrier is there as long as the back-end is."""

    kind = 1
    name = "vhost-user-net"

    def __init__(self, backend: Backend, mac: bytes, mtu: int, missing: int, sizes: tuple[int, int]) -> None:
        super().__init__(backend, sizes, 0)
        self.mac, self.mtu, self.status = mac, mtu, LINK_UP
        backend.mtu = mtu
        self.features = backend.first_features & BACKENDS & ~missing | F_MAC | (F_MTU if mtu else 0)
        self.features |= F_STATUS & ~missing

    def config(self) -> bytes:
        """struct virtio_net_config."""
        return pack("<6sHHH", self.mac, self.status, QUEUES // 2, self.mtu)

    def poll(self) -> bool:
        did = super().poll()
        status = LINK_UP if self.host.session else 0
        if status == self.status:
            return did
        self.status = status
        self.config_changed()
        return True
