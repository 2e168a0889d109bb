"""-object: network dumps, I/O processes, and those of QEMU's objects that are as they are."""

from typing import Any

from smp.config import IothreadConfig
from smp.cpu import ConfigError
from smp.net_options import read_filter
from smp.option_text import Help, number, one_of, pairs, split_commas
from smp.ram_options import BACKENDS, is_backend, read_backend

OBJECTS = ("filter-dump", "iothread", "rng-random", "rng-builtin", *BACKENDS)


def read_object(text: str) -> dict[str, Any]:
    if text == "help":
        raise Help("\n".join(("Objects:", *OBJECTS)))
    if is_backend(text):
        return read_backend(text)
    if split_commas(text)[0].removeprefix("qom-type=") == "iothread":
        return {"iothreads": (read_iothread(text),)}
    if split_commas(text)[0].removeprefix("qom-type=") in ("rng-random", "rng-builtin"):
        return {"rngs": (read_rng(text),)}
    return {"objects": read_filter(text)}


def read_iothread(text: str) -> IothreadConfig:
    names = ("poll-max-ns", "poll-grow", "poll-shrink")
    given = pairs("-object", text, "qom-type", ("qom-type", "id", *names))
    if not given.get("id"):
        raise ConfigError(f"-object {text}: needs id=NAME")
    counts = {key.replace("-", "_"): number(f"-object iothread,{key}", given[key]) for key in names if key in given}
    return IothreadConfig(given["id"], **counts)


def read_rng(text: str) -> str:
    """Where random bytes come from; it is the host's kernel in any case."""
    given = pairs("-object", text, "qom-type", ("qom-type", "id", "filename"))
    if not given.get("id"):
        raise ConfigError(f"-object {text}: needs id=NAME")
    if "filename" in given:
        one_of(f"-object {given['qom-type']},filename=", given["filename"], ("/dev/urandom", "/dev/random"))
    return given["id"]
