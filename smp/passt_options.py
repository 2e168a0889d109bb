"""QEMU's -netdev user in the words of passt(1), with QEMU's addresses: the guest is 10.0.2.15, the host 10.0.2.2."""

import re
import shutil
import subprocess
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from typing import NamedTuple

from smp.config import NetdevConfig
from smp.cpu import ConfigError
from smp.option_text import number

FORWARD = re.compile(r"(?:(tcp|udp|):)?([0-9.]*):([0-9]{1,5})-([0-9.]*):([0-9]{1,5})")
SYNTAX = "[tcp|udp]:[ADDRESS]:PORT-[GUEST]:PORT"
MTU_MAX = 65520  # passt's


class Places(NamedTuple):
    """The guest's network and who is where in it."""

    net: IPv4Network
    host: IPv4Address
    dns: IPv4Address
    guest: IPv4Address


def command(given: NetdevConfig) -> tuple[list[str], str]:
    """The command line of passt but for its connection, and the address that it answers to ('' without IPv4)."""
    program = shutil.which("passt")
    if program is None:
        raise ConfigError("-netdev user: passt is not installed; apt install passt")
    v4, v6 = given.is_on("ipv4", "on"), given.is_on("ipv6", "on")
    if not v4 and not v6:
        raise ConfigError("-netdev user,ipv4=off,ipv6=off: nothing is left; leave one of them on")
    if given.is_on("restrict"):
        raise ConfigError("-netdev user,restrict=on: passt leads outside; use -netdev hubport or stream instead")
    places = find_places(given)
    words = [program, *([] if v6 else ["--ipv4-only"]), *([] if v4 else ["--ipv6-only"])]
    if v4:
        length = str(places.net.prefixlen)
        words += ["--address", str(places.guest), "--netmask", length, "--gateway", str(places.host)]
    words += _names(given, places, v4, program)
    for rule in given.get_all("hostfwd"):
        words += forward(rule, places.guest)
    return words, str(places.host) if v4 else ""


def find_places(given: NetdevConfig) -> Places:
    """QEMU's defaults: the host is the 2nd address of the network, the name server the 3rd, the guest the 15th."""
    try:
        net = IPv4Network(given.get("net", "10.0.2.0/24"), strict=False)
        places = Places(
            net,
            *(
                IPv4Address(given.get(name)) if given.get(name) else net.network_address + default
                for name, default in (("host", 2), ("dns", 3), ("dhcpstart", 15))
            ),
        )
    except ValueError as error:
        raise ConfigError(f"-netdev user,id={given.id}: {error}; write addresses like 10.0.2.2") from error
    for place in places[1:]:
        if place not in net or places.count(place) > 1:
            raise ConfigError(
                f"-netdev user,id={given.id}: {place} is not in net={net}, or there twice; "
                "give host, dns and dhcpstart three addresses of it"
            )
    return places


def _names(given: NetdevConfig, places: Places, v4: bool, program: str) -> list[str]:
    """Name servers, domains, the guest's name, the MTU."""
    words = _name_servers(given, places, v4, program)
    if given.get_all("dnssearch"):
        words += ["--search", " ".join(given.get_all("dnssearch"))]
    if given.get("mtu"):
        mtu = number("-netdev user,mtu", given.get("mtu"))
        if not 68 <= mtu <= MTU_MAX:
            raise ConfigError(f"-netdev user,mtu={mtu}: an MTU is 68 to {MTU_MAX}")
        words += ["--mtu", str(mtu)]
    if given.get("hostname"):
        if "--hostname" not in _help(program):
            raise ConfigError(f"-netdev user,hostname={given.get('hostname')}: this passt can't; set it in the guest")
        words += ["--hostname", given.get("hostname")]
    return words


def _name_servers(given: NetdevConfig, places: Places, v4: bool, program: str) -> list[str]:
    """passt tells the guest of the host's own name servers, and they are asked too what is asked of `--dns-forward`.

    Without `--dns`, by which passt would ask that one itself. Where passt is older than its `--dns-host` (August 2024),
    all that the host's server answers would come from the forwarder's address, and the guest would take none of it.
    """
    forwards = "--dns-host" in _help(program)
    for key in ("dns", "ipv6-dns"):
        if given.get(key) and not forwards:
            raise ConfigError(
                f"-netdev user,{key}={given.get(key)}: this passt can't; leave it out, or use a newer one"
            )
    words = ["--dns-forward", str(places.dns)] if v4 and forwards else []
    if text := given.get("ipv6-dns"):
        try:
            words += ["--dns-forward", str(IPv6Address(text))]
        except ValueError as error:
            raise ConfigError(f"-netdev user,ipv6-dns={text}: {error}; write it like fec0::3") from error
    return words


def _help(program: str) -> str:
    """What this version of passt knows."""
    done = subprocess.run([program, "--help"], capture_output=True, text=True, errors="replace", timeout=10)
    return done.stdout + done.stderr  # older ones say it as a message


def forward(rule: str, guest: IPv4Address) -> list[str]:
    """A hostfwd in passt's words."""
    match = FORWARD.fullmatch(rule)
    if not match:
        raise ConfigError(f"-netdev user,hostfwd={rule}: is no rule; write {SYNTAX}")
    protocol, address, port, target, target_port = match.groups()
    for text in (port, target_port):
        if not 1 <= int(text) <= 65535:
            raise ConfigError(f"-netdev user,hostfwd={rule}: {text} is no port; a port is 1 to 65535")
    try:
        where = f"{IPv4Address(address)}/" if address else ""
        if target and IPv4Address(target) != guest:
            raise ConfigError(f"-netdev user,hostfwd={rule}: the guest is {guest}; leave its address out")
    except ValueError as error:
        raise ConfigError(f"-netdev user,hostfwd={rule}: {error}; write {SYNTAX}") from error
    return ["--udp-ports" if protocol == "udp" else "--tcp-ports", f"{where}{port}:{target_port}"]
