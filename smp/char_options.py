"""-chardev and -serial: the host's ends of consoles, ports and the UART, in QEMU's words."""

from typing import Any

from smp.config import SerialConfig
from smp.cpu import ConfigError
from smp.option_text import number, one_of, pairs, path, split_commas, switch

OF_SOCKET = (
    *("path", "host", "port", "server", "wait", "nodelay", "reconnect", "reconnect-ms"),
    *("ipv4", "ipv6", "telnet", "websocket"),
)
KINDS: dict[str, tuple[str, ...]] = {
    "stdio": ("signal",),
    "pty": (),
    "null": (),
    "file": ("path", "append", "input-path"),
    "pipe": ("path",),
    "socket": OF_SOCKET,
    "fd": ("fd",),
}
SWITCHES = ("signal", "mux", "append", "server", "wait", "nodelay", "ipv4", "ipv6", "telnet", "websocket")
# Kinds of QEMU's that are not there, and what to use instead.
INSTEAD = {
    "ringbuf": "nobody could read it, for monitors have no such command; use file",
    "memory": "nobody could read it, for monitors have no such command; use file",
    "udp": "use socket, which is TCP",
    "vc": "there is no display; use pty",
    "serial": "give file,path=DEVICE,input-path=DEVICE",
}
SERIALS = (
    *("stdio", "mon:stdio", "file:PATH", "pipe:PATH", "unix:PATH", "tcp:HOST:PORT"),
    *("chardev:ID", "fd:N", "pty", "null", "none"),
)


def read_chardev(text: str) -> dict[str, Any]:
    kind = split_commas(text)[0].removeprefix("backend=")
    if kind in INSTEAD:
        raise ConfigError(f"-chardev {kind}: not available; {INSTEAD[kind]}")
    one_of("-chardev", kind, KINDS)
    given = pairs("-chardev", text, "backend", ("backend", "id", "mux", *KINDS[kind]))
    del given["backend"]
    name = given.pop("id", "")
    if not name:
        raise ConfigError(f"-chardev {text}: needs id=NAME")
    return {"chardevs": (host_end("-chardev", text, kind, given, name),)}


def host_end(option: str, text: str, kind: str, given: dict[str, str], name: str = "") -> SerialConfig:
    """One with its properties, which are checked."""
    for key in SWITCHES:
        switch(option, key, given.get(key, "off"))
    if given.pop("mux", "off") == "on":
        if kind != "stdio":
            raise ConfigError(f"{option} {text}: mux=on is for the terminal's keys; leave it out")
        kind = "mon:stdio"
    where = given.pop("path", "")
    if "path" in KINDS.get(kind, ()) and not where and not (kind == "socket" and given.get("port")):
        raise ConfigError(f"{option} {text}: needs path=FILE{' or host=NAME,port=N' if kind == 'socket' else ''}")
    if kind == "fd":
        where = str(number(f"{option} fd,fd", given.pop("fd", "")))
    if kind == "socket":
        kind, where = _socket(option, text, where, given)
    return SerialConfig(kind, where, name, tuple(given.items()))


def _socket(option: str, text: str, file: str, given: dict[str, str]) -> tuple[str, str]:
    """The kind of a socket and where it leads to."""
    listens = given.get("server", "off") == "on"
    for key in ("telnet", "websocket"):
        if given.pop(key, "off") == "on":
            raise ConfigError(f"{option} {text}: {key} is not available; use {key}=off")
    for key in ("reconnect", "reconnect-ms"):
        if number(f"{option} {key}", given.get(key, "0")) and listens:
            raise ConfigError(f"{option} {text}: {key} is for server=off; leave it out")
    if "wait" in given and not listens:
        raise ConfigError(f"{option} {text}: wait is for server=on; leave it out, or add server=on")
    if not file:
        return "tcp", f"{given.pop('host', '')}:{given.pop('port')}"
    for key in ("host", "port", "nodelay", "ipv4", "ipv6"):
        if key in given:
            raise ConfigError(f"{option} {text}: path is a unix socket's and {key} is TCP's; leave one out")
    return "unix", file


def read_serial(text: str) -> dict[str, Any]:
    end = _read_end("-serial", text)
    return {"serials": () if end.kind == "none" else (end,)}


def read_qmp(text: str) -> dict[str, Any]:
    end = _read_end("-qmp", text)
    return {"qmps": () if end.kind == "none" else (end,)}


def _read_end(option: str, text: str) -> SerialConfig:
    """The host's end of a character device in the words of -serial."""
    kind, colon, rest = text.partition(":")
    if text in ("stdio", "mon:stdio", "pty", "null", "none"):
        return SerialConfig(text)
    if colon and kind in ("file", "pipe"):
        return SerialConfig(kind, str(path(f"{option} {kind}:", rest)))
    if colon and kind == "fd":
        return SerialConfig("fd", str(number(f"{option} fd", rest)))
    if colon and kind == "chardev" and rest:
        return SerialConfig("chardev", rest)
    if colon and kind in ("unix", "tcp"):
        return _read_socket(option, text, kind, rest)
    raise ConfigError(f"{option} {text}: not available; use {', '.join(SERIALS)}")


def _read_socket(option: str, text: str, kind: str, rest: str) -> SerialConfig:
    place, *more = rest.split(",")
    given = pairs(option, ",".join(["socket", *more]), "backend", ("backend", *OF_SOCKET))
    del given["backend"]
    if kind == "unix":
        given["path"] = str(path(f"{option} unix:", place))
    else:
        given["host"], colon, given["port"] = place.rpartition(":")
        if not colon or not given["port"]:
            raise ConfigError(f"{option} {text}: write tcp:HOST:PORT, or tcp::PORT")
    return host_end(option, text, "socket", given)


def free_terminal(fields: dict[str, Any]) -> None:
    """As in QEMU the UART has the terminal by itself only where nobody else has been given it."""
    taken = any(end.kind.endswith("stdio") for end in (*fields.get("chardevs", ()), *fields.get("qmps", ())))
    if taken and not fields.get("nographic"):
        fields.setdefault("serials", ())
