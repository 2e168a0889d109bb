"""Which frames a network card lets in, as the driver has it by commands (virtio 1.3, 5.1.6.5.1 and 5.1.6.5.2)."""

from struct import unpack_from

BROADCAST = b"\xff" * 6
PROMISC, ALLMULTI, ALLUNI, NOMULTI, NOUNI, NOBCAST = range(6)  # the commands of class VIRTIO_NET_CTRL_RX


class ReceiveFilter:
    """Modes by command number, a table of addresses, and the card's own."""

    def __init__(self, mac: bytes) -> None:
        self.mac = mac
        self.modes = [False] * 6
        self.modes[PROMISC] = True  # until a driver that knows better says otherwise
        self.table: frozenset[bytes] = frozenset()

    def set_mode(self, command: int, data: bytes) -> bool:
        """A command of class RX; False if there is no such."""
        if command >= len(self.modes) or len(data) != 1 or data[0] > 1:
            return False
        self.modes[command] = bool(data[0])
        return True

    def set_table(self, data: bytes) -> bool:
        """MAC_TABLE_SET: a table of unicast and one of multicast addresses, each after its number of entries."""
        found: list[bytes] = []
        for _ in range(2):
            if len(data) < 4:
                return False
            end = 4 + 6 * int(unpack_from("<I", data)[0])
            if end > len(data):
                return False
            found += [data[at : at + 6] for at in range(4, end, 6)]
            data = data[end:]
        if data:
            return False
        self.table = frozenset(found)
        return True

    def accepts(self, target: bytes) -> bool:
        """Whether a frame to this address is for the driver."""
        modes = self.modes
        if modes[PROMISC]:
            return True
        if target == BROADCAST:
            return not modes[NOBCAST]
        if target[0] & 1:
            return not modes[NOMULTI] and (modes[ALLMULTI] or target in self.table)
        return not modes[NOUNI] and (modes[ALLUNI] or target == self.mac or target in self.table)
