"""Builds an initramfs: a deterministic newc cpio writer and the module index `modprobe` reads.

Touches no network and needs no root: device nodes exist only as records in the archive.
Format: Linux Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

import io
import lzma
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

ARCHIVE_ALIGN = 512  # `cpio` pads archives to whole blocks; the kernel accepts any amount of zeros


@dataclass(frozen=True)
class Entry:
    """A file of the archive: `path` without a leading slash, `mode` with type bits, `rdev` (major, minor)."""

    path: str
    mode: int
    data: bytes = b""
    rdev: tuple[int, int] = (0, 0)


def directory(path: str, permissions: int = 0o755) -> Entry:
    return Entry(path, stat.S_IFDIR | permissions)


def file(path: str, data: bytes, permissions: int = 0o644) -> Entry:
    return Entry(path, stat.S_IFREG | permissions, data)


def symlink(path: str, target: str) -> Entry:
    return Entry(path, stat.S_IFLNK | 0o777, target.encode())


def character_device(path: str, major: int, minor: int, permissions: int = 0o600) -> Entry:
    return Entry(path, stat.S_IFCHR | permissions, rdev=(major, minor))


def cpio(entries: Iterable[Entry]) -> bytes:
    """A newc archive of `entries` and their parent directories; the same entries give the same bytes.

    Sorted by path, so that a directory precedes what is in it: the kernel creates no parents by itself.
    """
    tree = {entry.path: entry for entry in entries}
    for path in list(tree):
        for parent in list(PurePosixPath(path).parents)[:-1]:
            tree.setdefault(str(parent), directory(str(parent)))
    records = [_record(tree[path], number) for number, path in enumerate(sorted(tree), start=1)]
    archive = b"".join(records) + _record(Entry("TRAILER!!!", 0), 0)
    return _padded(archive, ARCHIVE_ALIGN)


def _record(entry: Entry, inode: int) -> bytes:
    name = entry.path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    # ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
    fields = (inode, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, *entry.rdev, len(name), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields)
    return _padded(header + name, 4) + _padded(entry.data, 4)


def _padded(data: bytes, alignment: int) -> bytes:
    return data + bytes(-len(data) % alignment)


def overlay(initrd: bytes, files: Mapping[str, bytes]) -> bytes:
    """`initrd` and then `files` (path: contents; mode 0755): the kernel unpacks archives in order."""
    extra = cpio(file(path.lstrip("/"), data, 0o755) for path, data in files.items())
    return _padded(initrd, 4) + extra


@dataclass(frozen=True)
class Module:
    """A kernel module: `path` under lib/modules/RELEASE, `data` its ELF file, compressed if `path` says."""

    path: str
    data: bytes
    depends: tuple[str, ...]
    aliases: tuple[str, ...]

    @property
    def name(self) -> str:
        return module_name(self.path)

    def quick_to_load(self) -> Module:
        """Decompressed, and without the signature, whose check takes the guest 110 million instructions."""
        data = unsigned(plain_module(self.path, self.data))
        return replace(self, path=self.path.removesuffix(".xz"), data=data)


def module_name(path: str) -> str:
    """`kernel/drivers/char/hw_random/virtio-rng.ko.xz` -> `virtio_rng`, the kernel's spelling."""
    return PurePosixPath(path).name.split(".")[0].replace("-", "_")


def module_files(tree: Path, wanted: Iterable[str]) -> list[Path]:
    """The files in `tree` (lib/modules/RELEASE) of the modules `wanted` and of all they depend on.

    A wanted module that has no file is taken to be built in; a dependency without a file is an error.
    """
    available = {module_name(path.name): path for path in tree.rglob("*.ko*")}
    found: dict[str, Path] = {}
    pending = [name for name in wanted if name in available]
    while pending:
        name = pending.pop()
        if name in found:
            continue
        found[name] = available[name]
        pending += read_module(tree, found[name]).depends
    return sorted(found.values())


def read_module(tree: Path, path: Path) -> Module:
    data = path.read_bytes()
    modinfo = _modinfo(plain_module(path.name, data))
    depends = [name for value in modinfo.get("depends", []) for name in value.split(",") if name]
    return Module(
        path=path.relative_to(tree).as_posix(),
        data=data,
        depends=tuple(name.replace("-", "_") for name in depends),
        aliases=tuple(modinfo.get("alias", [])),
    )


def plain_module(name: str, data: bytes) -> bytes:
    """The ELF file in `data`, whose suffix in `name` tells how it is compressed."""
    if name.endswith(".ko"):
        return data
    if name.endswith(".ko.xz"):
        return lzma.decompress(data)
    raise ValueError(f"{name}: only .ko and .ko.xz modules are understood")


def unsigned(elf: bytes) -> bytes:
    """`elf` without an appended signature: Linux scripts/sign-file.c, struct module_signature."""
    magic = b"~Module signature appended~\n"
    if not elf.endswith(magic):
        return elf
    descriptor = len(elf) - len(magic) - 12
    return elf[: descriptor - int.from_bytes(elf[descriptor + 8 : descriptor + 12], "big")]


def _modinfo(elf: bytes) -> dict[str, list[str]]:
    """The `.modinfo` section: NUL-terminated key=value strings, keys may repeat."""
    from elftools.elf.elffile import (
        ELFFile,
    )  # only a build needs it, and it takes as long as the rest to import

    section = ELFFile(io.BytesIO(elf)).get_section_by_name(".modinfo")
    values: dict[str, list[str]] = {}
    for item in section.data().decode("utf-8", "replace").split("\0") if section else []:
        key, separator, value = item.partition("=")
        if separator:
            values.setdefault(key, []).append(value)
    return values


def module_index(modules: Iterable[Module]) -> dict[str, str]:
    """`modules.dep` and `modules.alias`, as depmod writes them: every dependency, the deepest last."""
    by_name = {module.name: module for module in modules}
    dep = "".join(
        f"{module.path}:{''.join(' ' + by_name[name].path for name in closure(by_name, module.name))}\n"
        for module in by_name.values()
    )
    alias = "".join(f"alias {a} {module.name}\n" for module in by_name.values() for a in module.aliases)
    return {"modules.dep": dep, "modules.alias": alias}


def closure(modules: Mapping[str, Module], name: str) -> list[str]:
    """What `name` depends on, directly or not; each after all that depend on it (loading goes backwards)."""
    order: list[str] = []

    def visit(current: str) -> None:
        for dependency in modules[current].depends:
            if dependency in order:
                continue
            visit(dependency)
            order.append(dependency)

    visit(name)
    return order[::-1]
