"""-device loader: files that are put into RAM before the first instruction, as QEMU's generic loader does."""

import re
from typing import Any

from mem import image
from smp.config import LoaderConfig
from smp.cpu import ConfigError
from smp.option_text import pairs, path, split_commas, switch

LOADER = "loader"


def is_loader(text: str) -> bool:
    return split_commas(text)[0].removeprefix("driver=") == LOADER


def read_loader(text: str) -> dict[str, Any]:
    given = pairs("-device", text, "driver", ("driver", "file", "addr", "force-raw"))
    if "file" not in given:
        raise ConfigError(f"-device {text}: needs file=FILE")
    raw = switch("-device loader", "force-raw", given.get("force-raw", "off"))
    file = path("-device loader,file", given["file"])
    return {"loaders": (LoaderConfig(file, _address(text, given["addr"]) if "addr" in given else None, raw),)}


def _address(text: str, value: str) -> int:
    if not re.fullmatch("0[xX][0-9a-fA-F]{1,16}|[0-9]{1,19}", value):
        raise ConfigError(f"-device {text}: {value!r} is not an address; write it like addr=0x80200000")
    return int(value, 0) if value[:2] in ("0x", "0X") else int(value)


def load(loader: LoaderConfig, ram: int) -> tuple[image.Segment, ...]:
    """What goes where; `image.ImageError` for a file that can't be loaded."""
    option = "-device loader,file"
    data = image.read(loader.file, option, ram)
    if data.startswith(b"\x7fELF") and not loader.raw:
        return image.load(loader.file, 0, ram, option).segments
    if loader.address is None:
        raise image.ImageError(f"{option} {loader.file}: goes to an address of yours; add addr=ADDRESS")
    return (image.Segment(f"{option} {loader.file}", loader.address, data, len(data)),)
