"""-fsdev, -virtfs and -share: folders of the host that the guest mounts, in QEMU's words."""

import re
from pathlib import Path
from typing import Any

from smp.config import VIRTIOFSD, DeviceConfig, FsdevConfig
from smp.cpu import ConfigError
from smp.option_text import one_of, pairs, path, split_commas, switch

MODELS = ("none", "passthrough", "mapped-xattr", "mapped")  # as in virtio/host_owners.py
MULTIDEVS = ("remap", "forbid", "warn")
OF_FOLDER = ("fsdriver", "id", "path", "security_model", "readonly", "multidevs", "fmode", "dmode")
SHARE_TAG = "share"


def read_fsdev(text: str) -> dict[str, Any]:
    if split_commas(text)[0].removeprefix("fsdriver=") == VIRTIOFSD:
        return read_virtiofsd(text)
    given = _given("-fsdev", text, OF_FOLDER)
    if not given.get("id"):
        raise ConfigError(f"-fsdev {text}: needs an id, so that a -device can name it; add id=NAME")
    return {"fsdevs": (_folder("-fsdev", text, given),)}


def read_virtiofsd(text: str) -> dict[str, Any]:
    """A folder that a virtiofsd of ours serves, for a vhost-user-fs device."""
    given = pairs("-fsdev", text, "fsdriver", ("fsdriver", "id", "path"))
    for name in ("id", "path"):
        if not given.get(name):
            raise ConfigError(f"-fsdev {text}: needs {name}=; write -fsdev {VIRTIOFSD},id=ID,path=FOLDER")
    return {"fsdevs": (FsdevConfig(Path(given["path"]), given["id"], VIRTIOFSD),)}


def read_virtfs(text: str) -> dict[str, Any]:
    """A folder together with its device; without an id it has the mount tag's name."""
    given = _given("-virtfs", text, (*OF_FOLDER, "mount_tag"))
    tag = given.get("mount_tag", "")
    if not tag:
        raise ConfigError(f"-virtfs {text}: needs a name for the guest to mount it by; add mount_tag=NAME")
    given.setdefault("id", tag)
    return _with_device(_folder("-virtfs", text, given), tag)


def read_share(text: str) -> dict[str, Any]:
    folder = FsdevConfig(path("-share", text), SHARE_TAG, "none", multidevs="remap", option="-share")
    return _with_device(folder, SHARE_TAG)


def _with_device(folder: FsdevConfig, tag: str) -> dict[str, Any]:
    device = DeviceConfig("virtio-9p-device", (("fsdev", folder.id), ("mount_tag", tag)))
    return {"fsdevs": (folder,), "devices": (device,)}


def _given(option: str, text: str, known: tuple[str, ...]) -> dict[str, str]:
    driver = split_commas(text)[0].removeprefix("fsdriver=")
    one_of(option, driver, ("local",), "; only local is, a folder of the host, and virtiofsd with -fsdev")
    return pairs(option, text, "fsdriver", known)


def _folder(option: str, text: str, given: dict[str, str]) -> FsdevConfig:
    if not given.get("path"):
        raise ConfigError(f"{option} {text}: needs path=FOLDER")
    if "security_model" not in given:
        raise ConfigError(f"{option} {text}: whose are the files? add security_model=none or mapped-xattr")
    model = given["security_model"]
    if model == "mapped-file":
        raise ConfigError(f"{option} security_model=mapped-file: not available; use security_model=mapped-xattr")
    if not model.startswith("mapped") and (modes := [name for name in ("fmode", "dmode") if name in given]):
        raise ConfigError(f"{option} {modes[0]}={given[modes[0]]}: is for security_model=mapped-xattr; leave it out")
    return FsdevConfig(
        Path(given["path"]),
        given["id"],
        one_of(f"{option} security_model=", model, MODELS),
        switch(option, "readonly", given.get("readonly", "off")),
        one_of(f"{option} multidevs=", given.get("multidevs", "warn"), MULTIDEVS),
        option,
        (_mode(option, "fmode", given.get("fmode", "0600")), _mode(option, "dmode", given.get("dmode", "0700"))),
    )


def _mode(option: str, name: str, text: str) -> int:
    """Permissions; octal as a leading 0 says, so that nobody's 644 is taken for decimal."""
    if not re.fullmatch("0o?[0-7]{1,3}", text):
        raise ConfigError(f"{option} {name}={text}: write permissions in octal, like {name}=0640")
    return int(text.removeprefix("0o"), 8)
