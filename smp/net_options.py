"""Network options in QEMU's words: kinds of -netdev, -nic and -net, the card's properties, -object filter-dump."""

import re
from collections.abc import Iterable, Iterator, Mapping

from smp.config import NET_DEVICE, VHOST_USER, DeviceConfig, NetdevConfig
from smp.cpu import ConfigError
from smp.option_text import Help, number, one_of, pair_list, split_commas, switch
from virtio import netfeatures as net

ADDRESS = {
    "type": "inet, unix or fd",
    "host": "inet: the host's name or address",
    "port": "inet: the port",
    "path": "unix: the socket's path",
    "str": "fd: the number of an open socket",
}
USER = {
    "ipv4": "on|off (default on)",
    "ipv6": "on|off (default on if the host has it)",
    "net": "the guest's IPv4 network (default 10.0.2.0/24)",
    "host": "the host's address in it, the gateway (default the 2nd)",
    "dhcpstart": "the guest's address in it (default the 15th)",
    "dns": "address in it whose questions go to the host's name server (default the 3rd; passt of August 2024)",
    "ipv6-dns": "the same for IPv6 (no default)",
    "dnssearch": "a domain to search; may be given several times",
    "hostname": "the guest's name",
    "mtu": "what the guest is told by DHCP",
    "hostfwd": "[tcp|udp]:[ADDRESS]:PORT-[GUEST]:PORT: a port of the host's leads to the guest; may be several",
    "restrict": "off: a closed network is one without a user netdev",
}
# What a -netdev takes besides its id; one that is listed is honoured.
NETDEVS: dict[str, dict[str, str]] = {
    "user": USER,
    "tap": {
        "ifname": "the interface (default one that is made)",
        "fd": "the number of an open tap in its place",
        "fds": "the same for several queues, with colons between",
        "queues": "queue pairs; the card takes them with mq=on (default 1)",
        "vnet_hdr": "on|off: leave checksums and segmentation to the kernel (default on)",
        "script": "no: the interface is set up before",
        "downscript": "no",
        "vhost": "off: frames go through the machine's I/O process",
    },
    "stream": {
        "server": "on: listen; off: connect (default off)",
        **{f"addr.{name}": about for name, about in ADDRESS.items()},
        "reconnect": "seconds after which to connect again",
        "reconnect-ms": "the same in milliseconds",
    },
    "dgram": {f"{side}.{name}": f"{side}: {about}" for side in ("local", "remote") for name, about in ADDRESS.items()},
    "socket": {
        "fd": "the number of an open socket",
        "listen": "[HOST]:PORT to accept a connection at",
        "connect": "HOST:PORT to connect to",
        "mcast": "ADDRESS:PORT of a multicast group",
        "udp": "HOST:PORT to send to",
        "localaddr": "mcast: the interface's address; udp: HOST:PORT to receive at",
    },
    VHOST_USER: {
        "chardev": "id of the -chardev socket at which the back-end listens (needed)",
        "queues": "1: queue pairs",
        "vhostforce": "of QEMU, and of no consequence",
    },
    "hubport": {"hubid": "number of the hub", "netdev": "id of the netdev that the port leads to"},
}
SEVERAL = ("hostfwd", "dnssearch")
SWITCHES = ("ipv4", "ipv6", "server", "restrict", "vnet_hdr", "vhost", "vhostforce")
NEEDED = {"hubport": "hubid", VHOST_USER: "chardev"}
# QEMU's properties that have no counterpart here, and what to do instead.
REFUSED = {
    "guestfwd": "start the program on the host and reach it at the host's address (10.0.2.2)",
    "tftp": "start a TFTP server on the host",
    "tftp-server-name": "start a TFTP server on the host",
    "bootfile": "nothing here boots from a network; give -kernel",
    "smb": "start a file server on the host",
    "smbserver": "start a file server on the host",
    "domainname": "set it in the guest",
    "ipv6-net": "the guest gets the host's prefix; leave it out",
    "ipv6-prefix": "the guest gets the host's prefix; leave it out",
    "ipv6-prefixlen": "the guest gets the host's prefix; leave it out",
    "ipv6-host": "the guest gets the host's prefix; leave it out",
}

FEATURES = {
    "csum": net.F_CSUM,
    "gso": net.F_HOST_TSO4 | net.F_HOST_TSO6 | net.F_HOST_ECN | net.F_HOST_USO,
    "host_tso4": net.F_HOST_TSO4,
    "host_tso6": net.F_HOST_TSO6,
    "host_ecn": net.F_HOST_ECN,
    "host_uso": net.F_HOST_USO,
    "guest_csum": net.F_GUEST_CSUM,
    "guest_tso4": net.F_GUEST_TSO4,
    "guest_tso6": net.F_GUEST_TSO6,
    "guest_ecn": net.F_GUEST_ECN,
    "guest_uso4": net.F_GUEST_USO4,
    "guest_uso6": net.F_GUEST_USO6,
    "mrg_rxbuf": net.F_MRG_RXBUF,
    "status": net.F_STATUS,
    "ctrl_vq": net.F_CTRL_VQ,
    "ctrl_rx": net.F_CTRL_RX,
    "ctrl_rx_extra": net.F_CTRL_RX_EXTRA,
    "ctrl_mac_addr": net.F_CTRL_MAC_ADDR,
    "ctrl_guest_offloads": net.F_CTRL_GUEST_OFFLOADS,
    "guest_announce": net.F_GUEST_ANNOUNCE,
}
NOT_OFFERED = ("ctrl_vlan", "guest_ufo", "host_ufo", "guest_rsc_ext", "rss", "hash", "failover")
SIZES = ("256", "512", "1024")
CARD = {
    "netdev": "id of its -netdev (needed)",
    "id": "name",
    "mac": "address (default 52:54:00:12:34:56, and the next for the next card)",
    "mq": "on: as many queue pairs as the netdev has (default off)",
    "host_mtu": "the MTU that the driver is told",
    "rx_queue_size": "buffers of a receive queue: 256, 512 or 1024 (default 256)",
    "tx_queue_size": "frames of a transmit queue: 256, 512 or 1024 (default 256)",
    **dict.fromkeys(FEATURES, "off: not offered"),
    **dict.fromkeys(NOT_OFFERED, "off: it is not to be had"),
}
MODELS = ("virtio", "virtio-net-pci", NET_DEVICE)
MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}|[0-9a-f]{2}(-[0-9a-f]{2}){5}", re.IGNORECASE)
MTU_MIN, MTU_MAX = 68, 65535


def parse_mac(option: str, text: str) -> bytes:
    """Six bytes; a group's address is no card's."""
    if not MAC.fullmatch(text):
        raise ConfigError(f"{option} mac={text}: is not an address; write it like 52:54:00:12:34:56")
    address = bytes.fromhex(text.replace(":", "").replace("-", ""))
    if address[0] & 1:
        raise ConfigError(f"{option} mac={text}: is a group's address; make its first byte even")
    return address


def read_netdev(text: str) -> tuple[NetdevConfig, ...]:
    """A -netdev."""
    if text == "help":
        raise Help("\n".join(_help()))
    kind, given = _read("-netdev", text, ())
    name = _value(given, "id")
    if not name:
        raise ConfigError(f"-netdev {text}: needs id=NAME")
    return (NetdevConfig(kind, name, _without(given, "id")),)


def _help() -> Iterator[str]:
    yield "Kinds of -netdev and -nic, and their properties:"
    for kind, properties in NETDEVS.items():
        yield f"  {kind}"
        yield from (f"    {name:14} {about}" for name, about in properties.items())


def read_nic(text: str) -> tuple[tuple[NetdevConfig, DeviceConfig], ...]:
    """A -nic: a netdev and its card; nothing for `none`."""
    if text == "help":
        raise Help("\n".join(_help()))
    if text == "none":
        return ()
    kind, given = _read("-nic", text, ("model", "mac", "macaddr"))
    model = one_of("-nic model=", _value(given, "model") or "virtio", MODELS)
    mac = _value(given, "mac") or _value(given, "macaddr")
    properties = (("mac", mac),) if mac else ()
    check_card(dict(properties))
    card = DeviceConfig(NET_DEVICE, properties, model if model == "virtio-net-pci" else "")
    netdev = NetdevConfig(kind, _value(given, "id"), _without(given, "id", "model", "mac", "macaddr"))
    return ((netdev, card),)


def read_net(text: str) -> dict[str, object]:
    """-net none says what is the case anyway."""
    one_of("-net", text, ("none",), "; use -nic or -netdev, whose words are the same")
    return {}


def read_filter(text: str) -> tuple[DeviceConfig, ...]:
    """An -object filter-dump."""
    known = ("qom-type", "id", "netdev", "file", "maxlen", "queue", "status")
    given = dict(pair_list("-object", text, "qom-type", known))
    kind = one_of("-object", given.pop("qom-type", ""), ("filter-dump",))
    for name in ("id", "netdev", "file"):
        if not given.get(name):
            raise ConfigError(f"-object {text}: needs {name}={'FILE' if name == 'file' else 'ID'}")
    one_of("-object filter-dump,queue=", given.get("queue", "all"), ("all", "rx", "tx"))
    switch("-object filter-dump", "status", given.get("status", "on"))
    if number("-object filter-dump,maxlen", given.get("maxlen", "65536")) == 0:
        raise ConfigError("-object filter-dump,maxlen=0: nothing of a frame would be written; give at least 1")
    return (DeviceConfig(kind, tuple(given.items())),)


Properties = tuple[tuple[str, str], ...]


def _read(option: str, text: str, more: tuple[str, ...]) -> tuple[str, Properties]:
    """The kind and its properties."""
    kind = one_of(option, split_commas(text)[0].removeprefix("type="), NETDEVS)
    for item in split_commas(text)[1:]:
        name = item.partition("=")[0]
        if kind == "user" and name in REFUSED:
            raise ConfigError(f"{option} user,{item}: not available; {REFUSED[name]}")
    known = ("type", "id", *NETDEVS[kind], *more)
    given = _without(pair_list(option, text, "type", known, SEVERAL), "type")
    for name, value in given:
        if name in SWITCHES:
            switch(f"{option} {kind}", name, value)
    if kind in NEEDED and not _value(given, NEEDED[kind]):
        raise ConfigError(f"{option} {text}: needs {NEEDED[kind]}=N")
    return kind, given


def _value(given: Properties, name: str) -> str:
    return dict(given).get(name, "")


def _without(given: Iterable[tuple[str, str]], *names: str) -> Properties:
    return tuple((key, value) for key, value in given if key not in names)


def check_card(given: Mapping[str, str]) -> None:
    """Raise `ConfigError` for properties of a card that can't be honoured."""
    option = f"-device {NET_DEVICE},"
    if "mac" in given:
        parse_mac(option[:-1], given["mac"])
    for name in (*FEATURES, "mq"):
        switch(option[:-1], name, given.get(name, "on"))
    for name in NOT_OFFERED:
        one_of(f"{option}{name}=", given.get(name, "off"), ("off",), f"; leave {name} off")
    for name in ("rx_queue_size", "tx_queue_size"):
        one_of(f"{option}{name}=", given.get(name, "256"), SIZES)
    mtu = number(f"{option}host_mtu", given.get("host_mtu", "1500"))
    if not MTU_MIN <= mtu <= MTU_MAX:
        raise ConfigError(f"{option}host_mtu={mtu}: an MTU is {MTU_MIN} to {MTU_MAX}")


def missing_features(given: DeviceConfig) -> int:
    """The features that a card is not to offer."""
    missing = 0
    for name, bits in FEATURES.items():
        missing |= bits if given.get(name, "on") == "off" else 0
    return missing
