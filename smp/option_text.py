"""Pieces of an option: lists of properties, numbers, sizes, switches, words of a few.  Each error is one line."""

import re
from collections.abc import Iterable
from pathlib import Path

from smp.cpu import ConfigError, near


class Help(Exception):
    """Text to print on stdout, after which the command ends with status 0."""


def pairs(option: str, text: str, implied: str, known: Iterable[str]) -> dict[str, str]:
    """`a,key=value,flag` to a dict: QEMU's lists, where `,,` is a comma and the first word may lack its key."""
    return dict(pair_list(option, text, implied, known))


def pair_list(
    option: str, text: str, implied: str, known: Iterable[str], many: Iterable[str] = ()
) -> list[tuple[str, str]]:
    """The same as a list, in which those of `many` may be several."""
    known, many = tuple(known), tuple(many)
    found: list[tuple[str, str]] = []
    for number, item in enumerate(split_commas(text)):
        key, equals, value = item.partition("=")
        if not equals:
            key, value = (implied, item) if number == 0 else (item, "on")
        if key not in known:
            hint = near(key, known) or f"; known are {', '.join(known)}"
            raise ConfigError(f"{option} {text}: unknown property {key!r}{hint}")
        if key not in many and any(key == other for other, _ in found):
            raise ConfigError(f"{option} {text}: {key} is given twice; give it once")
        found.append((key, value))
    return found


def split_commas(text: str) -> list[str]:
    """Split at single commas; of a run of commas every pair is a comma that belongs to the text."""
    return [item.replace("\0", ",") for item in text.replace(",,", "\0").split(",")]


def escape(text: str) -> str:
    """The reverse of what `pairs` does to a value."""
    return text.replace(",", ",,")


def number(option: str, text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise ConfigError(f"{option} {text}: {text!r} is not a number; write it with digits")
    return int(text)


def size(option: str, text: str) -> int:
    """`64M`, `1.5G`, or a number of MiB."""
    match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,6})?)([bkmgt]?)", text, re.IGNORECASE | re.ASCII)
    if not match:
        raise ConfigError(f"{option} {text}: {text!r} is not a size; write it like 512M or 2G")
    unit = 1 << {"b": 0, "k": 10, "": 20, "m": 20, "g": 30, "t": 40}[match[2].lower()]
    whole, _, fraction = match[1].partition(".")
    return int(whole) * unit + int(fraction or 0) * unit // 10 ** len(fraction)


def switch(option: str, key: str, value: str) -> bool:
    if value not in ("on", "off"):
        raise ConfigError(f"{option} {key}={value}: use {key}=on or {key}=off")
    return value == "on"


def one_of(option: str, text: str, known: Iterable[str], remedy: str = "") -> str:
    known = tuple(known)
    if text not in known:
        hint = remedy or near(text, known) or f"; use {' or '.join(known)}"
        raise ConfigError(f"{option}{'' if option.endswith('=') else ' '}{text}: not available{hint}")
    return text


def path(option: str, text: str) -> Path:
    if not text:
        raise ConfigError(f"{option} '': needs the name of a file")
    return Path(text)
