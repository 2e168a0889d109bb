"""Opens the host's ends of consoles, ports and the UART, in the supervisor, where a mistake is still one line."""

import os
import socket
import stat
import sys
from collections.abc import Callable

from smp.config import SerialConfig
from smp.cpu import ConfigError
from virtio.chardev import Chardev, Output, Pty, Stdio, open_file, open_pipe
from virtio.charsocket import Socket
from virtio.sockets import Target, connect, listen


def open_chardev(end: SerialConfig, label: str) -> Chardev:
    """The host's end of a character device."""
    kinds: dict[str, Callable[[], Chardev]] = {
        "mon:stdio": lambda: Stdio(mux=True, signals=end.get("signal", "off") == "on"),
        "stdio": lambda: Stdio(mux=False, signals=end.get("signal", "on") == "on"),
        "file": lambda: open_file(end.arg, end.get("append") == "on", end.get("input-path")),
        "pipe": lambda: open_pipe(end.arg),
        "unix": lambda: open_socket(end),
        "tcp": lambda: open_socket(end),
        "pty": lambda: Pty(label),
        "fd": lambda: Output(int(end.arg)),
        "null": Chardev,
        "none": Chardev,
    }
    try:
        made = kinds[end.kind]()
    except OSError as error:
        reason = error.strerror or os.strerror(error.errno or 0)
        listens = end.kind not in ("unix", "tcp") or end.get("server") == "on"
        remedy = "choose another place" if listens else "start the other side first, or add reconnect=1, or server=on"
        raise ConfigError(f"-{'chardev' if end.id else 'serial'} {end.kind}:{end.arg}: {reason}; {remedy}") from error
    made.label, made.filename = label, filename(end, made)
    return made


def filename(end: SerialConfig, made: Chardev) -> str:
    """Where it leads to, for a monitor."""
    if isinstance(made, Pty):
        return f"pty:{made.name}"
    listens = ",server=on" if end.get("server") == "on" else ""
    return f"{end.kind}:{end.arg}{listens}" if end.arg else end.kind


def open_socket(end: SerialConfig) -> Chardev:
    """Listen, and wait for somebody unless that is not wanted; or connect."""
    target, nodelay = target_of(end), end.get("nodelay") == "on"
    retry = end.retry
    if end.get("server") != "on":
        connection = None if retry else connect(target)
        return Socket(connection, target=target, retry=retry, nodelay=nodelay)
    if target[0] == socket.AF_UNIX and os.path.exists(end.arg) and not stat.S_ISSOCK(os.stat(end.arg).st_mode):
        raise ConfigError(f"-serial {end.arg}: is there and is not a socket; choose another path")
    listener = listen(target)
    client = None
    if end.get("wait", "on") == "on":
        print(f"hartbeat: waiting for a connection to {end.kind}:{end.arg} (wait=off: start without)", file=sys.stderr)
        try:
            client = listener.accept()[0]
        except BaseException:
            listener.close()
            raise
    return Socket(client, listener=listener, nodelay=nodelay)


def target_of(end: SerialConfig) -> Target:
    """Family and address; names are looked up once."""
    if end.kind == "unix":
        return socket.AF_UNIX, end.arg
    host, _, port = end.arg.rpartition(":")
    only = {("on", "off"): socket.AF_INET, ("off", "on"): socket.AF_INET6}
    family = only.get((end.get("ipv4", "on"), end.get("ipv6", "on")), socket.AF_UNSPEC)
    flags = socket.AI_PASSIVE if end.get("server") == "on" else 0
    try:
        found = socket.getaddrinfo(host.strip("[]") or None, port, family, socket.SOCK_STREAM, flags=flags)
    except (socket.gaierror, UnicodeError) as error:
        raise ConfigError(f"-serial tcp:{end.arg}: {error}; give a host's name or address, and a port") from error
    return found[0][0], found[0][4]
