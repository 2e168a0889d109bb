"""From the configuration to network cards and what they are on; sockets are opened here, in the supervisor."""

import fcntl
import os
import socket
import stat
from collections.abc import Callable
from typing import Any

from smp import passt_options, vhost_setup
from smp.config import VHOST_USER, DeviceConfig, MachineConfig, NetdevConfig
from smp.cpu import ConfigError
from smp.net_options import missing_features, parse_mac
from smp.option_text import number
from virtio import vhost_net
from virtio.device import Device
from virtio.host import Host
from virtio.net import MAX_PAIRS, Net
from virtio.netdev import Netdev
from virtio.netdgram import Datagram
from virtio.netdump import Dump
from virtio.nethub import HubPort
from virtio.netpasst import Passt, PasstError
from virtio.netstream import Stream
from virtio.nettap import IFREQ, TUNGETIFF, Tap, open_tap
from virtio.sockets import UnixListener

IFNAMSIZ = 16
FIRST_MAC = 0x5254_0012_3456  # QEMU's
FAMILIES = {"inet": socket.AF_INET, "unix": socket.AF_UNIX}
RETRY_CONNECT = "start the other side first, or add reconnect-ms=500"


def open_networks(config: MachineConfig) -> tuple[list[tuple[DeviceConfig, Device]], list[Host]]:
    """All cards, and the host ends that belong to none of them."""
    netdevs, cards = config.networks()
    opened: dict[str, Netdev] = {}
    try:
        _open_netdevs(config, netdevs, opened)
        passed = {given.id: given for given in netdevs if given.kind == VHOST_USER}
        made: list[tuple[DeviceConfig, Device]] = []
        for card, mac in _with_macs(cards):
            if given := passed.get(card.get("netdev")):
                made.append((card, _passed_card(config, given, card, mac)))
            else:
                made.append((card, _card(card, opened[card.get("netdev")], mac)))
    except BaseException:
        for host in opened.values():
            host.close()
        raise
    owned = {card.get("netdev") for card in cards} | {netdev.get("netdev") for netdev in netdevs}
    return made, [host for name, host in opened.items() if name not in owned]


def _open_netdevs(config: MachineConfig, netdevs: list[NetdevConfig], opened: dict[str, Netdev]) -> None:
    """Ports of hubs come last, for they may lead to others; a hub is the list of its ports."""
    hubs: dict[str, list[HubPort]] = {}
    for given in sorted(netdevs, key=lambda given: given.kind == "hubport"):
        if given.kind == VHOST_USER:
            continue
        if given.kind != "hubport":
            opened[given.id] = _dumped(config, given.id, open_netdev(given))
            continue
        ports = hubs.setdefault(given.get("hubid"), [])
        if uplink := opened.get(given.get("netdev")):
            opened[given.id] = HubPort(given.id, ports, _dumped(config, given.id, uplink))
        else:
            opened[given.id] = _dumped(config, given.id, HubPort(given.id, ports))


def _dumped(config: MachineConfig, name: str, netdev: Netdev) -> Netdev:
    """The netdev behind its filters."""
    for given in config.objects:
        if given.get("netdev") != name:
            continue
        is_on, queue = given.get("status", "on") == "on", given.get("queue", "all")
        sent, received = is_on and queue != "tx", is_on and queue != "rx"
        try:
            netdev = Dump(netdev, given.get("file"), int(given.get("maxlen", "65536")), sent, received)
        except OSError as error:
            netdev.close()
            where = f"-object filter-dump,file={given.get('file')}"
            raise ConfigError(f"{where}: {error.strerror}; choose another place") from error
    return netdev


def _with_macs(cards: list[DeviceConfig]) -> list[tuple[DeviceConfig, bytes]]:
    """Every card with its address: its own, or the next of QEMU's that no other has."""
    given = {parse_mac("-device", card.get("mac")) for card in cards if card.get("mac")}
    free = (mac for n in range(256) if (mac := (FIRST_MAC + n).to_bytes(6, "big")) not in given)
    return [(card, parse_mac("-device", card.get("mac")) if card.get("mac") else next(free)) for card in cards]


def _passed_card(config: MachineConfig, netdev: NetdevConfig, card: DeviceConfig, mac: bytes) -> Device:
    """A card that another process serves."""
    where = f"-netdev {VHOST_USER},id={netdev.id}"
    if card.get("mq") == "on" or netdev.get("queues", "1") != "1":
        raise ConfigError(f"{where}: its card has one queue pair; use queues=1 and mq=off")
    backend = vhost_setup.connect(card, config, vhost_net.QUEUES, netdev)
    sizes = (int(card.get("rx_queue_size", "256")), int(card.get("tx_queue_size", "256")))
    return vhost_net.VhostNet(backend, mac, int(card.get("host_mtu", "0")), missing_features(card), sizes)


def _card(given: DeviceConfig, netdev: Netdev, mac: bytes) -> Net:
    pairs = MAX_PAIRS if given.get("mq") == "on" else 1
    sizes = (int(given.get("rx_queue_size", "256")), int(given.get("tx_queue_size", "256")))
    return Net(netdev, mac, int(given.get("host_mtu", "0")), pairs, missing_features(given), sizes)


def open_netdev(given: NetdevConfig) -> Netdev:
    """A netdev that is no port of a hub."""
    kinds: dict[str, Callable[[], Netdev]] = {
        "user": lambda: open_user(given),
        "tap": lambda: open_interface(given),
        "stream": lambda: open_stream(given),
        "dgram": lambda: open_dgram(given),
        "socket": lambda: open_socket(given),
    }
    try:
        return kinds[given.kind]()
    except OSError as error:
        reason = error.strerror or os.strerror(error.errno or 0)
        remedy = "choose another address" if given.is_on("server") or given.kind == "dgram" else RETRY_CONNECT
        raise ConfigError(f"-netdev {given.kind},id={given.id}: {reason}; {remedy}") from error


def open_user(given: NetdevConfig) -> Netdev:
    """A passt."""
    words, gateway = passt_options.command(given)
    try:
        return Passt(given.id, words, gateway)
    except PasstError as error:
        raise ConfigError(f"-netdev user,id={given.id}: passt says: {error}; see passt(1)") from error


def open_interface(given: NetdevConfig) -> Netdev:
    """A tap: given open, or opened here."""
    where = f"-netdev tap,id={given.id}"
    for name, value in (("script", "no"), ("downscript", "no"), ("vhost", "off")):
        if given.get(name, value) != value:
            remedy = "set the interface up before" if value == "no" else "there is none"
            raise ConfigError(f"{where},{name}={given.get(name)}: not available; {remedy} and use {name}={value}")
    queues = number(f"{where},queues", given.get("queues", "1"))
    if not 1 <= queues <= MAX_PAIRS:
        raise ConfigError(f"{where},queues={queues}: a card has 1 to {MAX_PAIRS} queue pairs")
    if fds := given.get("fds") or given.get("fd"):
        return Tap(given.id, _open_taps(where, fds))
    ifname = given.get("ifname")
    if len(os.fsencode(ifname)) >= IFNAMSIZ:
        raise ConfigError(f"{where},ifname={ifname}: has over {IFNAMSIZ - 1} bytes; choose a shorter name")
    try:
        return Tap(given.id, open_tap(ifname, queues, given.is_on("vnet_hdr", "on")))
    except OSError as error:
        multi = " multi_queue" if queues > 1 else ""
        remedy = f"ip tuntap add dev {ifname or 'tap0'} mode tap user $USER{multi}, as root, and give its ifname"
        raise ConfigError(f"{where},ifname={ifname}: {error.strerror}; {remedy}") from error


def _open_taps(where: str, text: str) -> list[int]:
    try:
        fds = [int(part) for part in text.split(":")]
        for fd in fds:
            fcntl.ioctl(fd, TUNGETIFF, bytes(IFREQ.size))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{where},fds={text}: is not open as a tap; give numbers of open descriptors") from error
    return fds


# Addresses


def address(given: NetdevConfig, prefix: str) -> tuple[str, Any]:
    """Type and address under `addr.`, `local.` or `remote.`; an address of type fd is the socket."""

    def value(name: str) -> str:
        text = given.get(prefix + name)
        if not text:
            raise ConfigError(f"-netdev {given.kind},id={given.id}: needs {prefix}{name}=VALUE")
        return text

    kind = value("type")
    if kind == "unix":
        return kind, value("path")
    if kind == "fd":
        return kind, inherited(given, value("str"))
    if kind != "inet":
        raise ConfigError(f"-netdev {given.kind},{prefix}type={kind}: not available; use inet, unix or fd")
    return kind, resolved(given, given.get(prefix + "host"), value("port"))


def resolved(given: NetdevConfig, host: str, port: str) -> tuple[str, int]:
    """An IPv4 address; an empty host is all of this one's."""
    try:
        found = socket.getaddrinfo(host or "0.0.0.0", port, socket.AF_INET, socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        text = error.strerror if isinstance(error, socket.gaierror) else "is no name"
        raise ConfigError(f"-netdev {given.kind},id={given.id}: {host}:{port}: {text}; give another address") from error
    return str(found[0][4][0]), int(found[0][4][1])


def split_port(given: NetdevConfig, name: str) -> tuple[str, int]:
    """The HOST:PORT that a property has."""
    host, colon, port = given.get(name).rpartition(":")
    if not colon:
        raise ConfigError(f"-netdev {given.kind},{name}={given.get(name)}: has no port; write it as HOST:PORT")
    return resolved(given, host, port)


def inherited(given: NetdevConfig, text: str) -> socket.socket:
    """A socket that was open when we were started."""
    try:
        if not stat.S_ISSOCK(os.fstat(int(text)).st_mode):
            raise ValueError
        return socket.socket(fileno=int(text))
    except (OSError, ValueError) as error:
        remedy = "give the number of an open socket"
        raise ConfigError(f"-netdev {given.kind},id={given.id}: {text}: is no socket; {remedy}") from error


# Kinds


def open_stream(given: NetdevConfig) -> Netdev:
    """Listen or connect."""
    kind, where = address(given, "addr.")
    retry = _retry(given)
    if kind == "fd":
        listens = where.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        return Stream(given.id, listener=where) if listens else Stream(given.id, where)
    if given.is_on("server"):
        if retry:
            raise ConfigError(f"-netdev stream,id={given.id}: a server does not reconnect; leave reconnect out")
        return Stream(given.id, listener=_listen(kind, where))
    return _connect(given.id, kind, where, retry)


def _retry(given: NetdevConfig) -> float:
    texts = (given.get("reconnect", "0"), given.get("reconnect-ms", "0"))
    for text in texts:
        if not (text.isascii() and text.isdigit() and len(text) < 9):
            raise ConfigError(f"-netdev stream,reconnect={text}: is not a number; write it with digits")
    return int(texts[0]) + int(texts[1]) / 1000


def _listen(kind: str, where: Any) -> socket.socket:
    if kind == "inet":
        return socket.create_server(where, reuse_port=False, backlog=1)
    if os.path.exists(where) and stat.S_ISSOCK(os.stat(where).st_mode):
        os.unlink(where)
    return UnixListener(where)


def _connect(name: str, kind: str, where: Any, retry: float) -> Stream:
    """Connected now; with `retry` it may take until the other side is there."""

    def dial() -> socket.socket:
        link = socket.socket(FAMILIES[kind], socket.SOCK_STREAM)
        try:
            link.connect(where)
        except OSError:
            link.close()
            raise
        return link

    first = None
    try:
        first = dial()
    except OSError:
        if not retry:
            raise
    return Stream(name, first, dial=dial, retry=retry, peer=(FAMILIES[kind], where))


def open_dgram(given: NetdevConfig) -> Netdev:
    """A datagram socket between `local` and `remote`."""
    if given.get("local.type") == "fd":
        return Datagram(given.id, address(given, "local.")[1], None)
    kind, remote = address(given, "remote.")
    local = address(given, "local.")[1] if given.get("local.type") else None
    if kind == "fd" or given.get("local.type", kind) != kind:
        raise ConfigError(f"-netdev dgram,id={given.id}: local and remote are of different types; make them the same")
    if kind == "unix":
        if local is None:
            raise ConfigError(f"-netdev dgram,id={given.id}: needs local.type=unix,local.path=FILE")
        return _unix_dgram(given.id, local, remote)
    if is_group(remote[0]):
        return open_multicast(given.id, remote, local[0] if local else "")
    if local is None:
        raise ConfigError(f"-netdev dgram,id={given.id}: needs local.type=inet,local.host=ADDRESS,local.port=PORT")
    return _udp(given.id, local, remote)


def _unix_dgram(name: str, local: str, remote: str) -> Netdev:
    if os.path.exists(local) and stat.S_ISSOCK(os.stat(local).st_mode):
        os.unlink(local)
    link = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    link.bind(local)
    return Datagram(name, link, remote, local)


def _udp(name: str, local: tuple[str, int], remote: tuple[str, int]) -> Netdev:
    link = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    link.bind(local)
    return Datagram(name, link, remote)


def is_group(host: str) -> bool:
    """Whether an IPv4 address is a multicast group's."""
    return 224 <= int(host.split(".")[0]) < 240


def open_multicast(name: str, group: tuple[str, int], interface: str) -> Netdev:
    """All members of the group are on one network; as with QEMU, what a card sends comes back to it too."""
    link = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    link.bind(group)
    member = socket.inet_aton(group[0]) + socket.inet_aton(interface or "0.0.0.0")
    link.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
    link.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 1)
    if interface:
        link.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(interface))
    return Datagram(name, link, group)


def open_socket(given: NetdevConfig) -> Netdev:
    """QEMU's older words for the same links."""
    kinds = [name for name in ("fd", "listen", "connect", "mcast", "udp") if given.get(name)]
    if len(kinds) != 1:
        raise ConfigError(f"-netdev socket,id={given.id}: needs one of fd=, listen=, connect=, mcast= and udp=")
    name = given.id
    match kinds[0]:
        case "fd":
            link = inherited(given, given.get("fd"))
            return Stream(name, link) if link.type == socket.SOCK_STREAM else Datagram(name, link, None)
        case "listen":
            return Stream(name, listener=_listen("inet", split_port(given, "listen")))
        case "connect":
            return _connect(name, "inet", split_port(given, "connect"), 0)
        case "mcast":
            return open_multicast(name, split_port(given, "mcast"), given.get("localaddr"))
    if not given.get("localaddr"):
        raise ConfigError(f"-netdev socket,id={name}: udp= needs localaddr=HOST:PORT")
    return _udp(name, split_port(given, "localaddr"), split_port(given, "udp"))
