"""Kernels and firmware: what a file holds, and where in RAM each piece of a boot goes.

Reads files and returns pieces with their addresses, and entry points; the caller writes RAM. Sources: Linux
Documentation/arch/riscv/boot-image-header.rst, the System V ABI, OpenSBI docs/firmware/fw_dynamic.md.
"""

import io
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mem.memmap import PAGE, RAM, RAM_BASE

MIB = 1 << 20
KERNEL_ALIGN = 2 * MIB  # a kernel wants a large page; firmware is given what lies below
DTB_ALIGN = 2 * MIB
DTB_LIMIT = 3 << 30  # QEMU keeps the device tree below, where any 32-bit pointer of a firmware reaches it
READ_ANYWAY = 256 * MIB  # files up to here are read even if RAM is smaller: then it's known how much would do
DTB_HEADROOM = 0x4000  # firmware adds its own nodes in place

# code0, code1, text_offset, image_size, flags, version, res1, res2, magic, magic2, res3
IMAGE_HEADER = struct.Struct("<IIQQQIIQ8sII")
IMAGE_MAGIC2 = int.from_bytes(b"RSC\x05", "little")

EM_RISCV = 243
ELF_MACHINES = {3: "x86", 8: "MIPS", 20: "PowerPC", 21: "PowerPC64", 40: "ARM", 62: "x86-64", 183: "AArch64"}


class ImageError(Exception):
    """A file that can't be started or does not fit; one line with the remedy."""


class Segment(NamedTuple):
    """Bytes that go to a physical address; `size` may be larger than the data, the rest is left zero."""

    what: str
    address: int
    data: bytes
    size: int

    @property
    def end(self) -> int:
        return self.address + self.size


@dataclass(frozen=True)
class Program:
    """A file that harts can run: segments by physical address, the entry, HTIF's symbols if it has them."""

    segments: tuple[Segment, ...]
    entry: int
    tohost: int | None = None

    @property
    def end(self) -> int:
        return max(segment.end for segment in self.segments)


@dataclass(frozen=True)
class Boot:
    """Everything that goes into RAM, and how the first hart starts: `pc`, a0 = hart id, a1 = dtb, a2 = info.

    `mode` is 'M' or 'S'. In M-mode every hart starts so; under the built-in SBI the others wait for HSM.
    `kernel_entry` is 0 when firmware starts without a kernel.
    """

    segments: tuple[Segment, ...]
    pc: int
    mode: str
    dtb: int
    info: int = 0
    kernel_entry: int = 0
    initrd: tuple[int, int] | None = None  # start, end
    tohost: int | None = None


# Files that are something else than they should be: where, magic, what it is, what to do.
FOREIGN = (
    (0x38, b"ARM\x64", "an AArch64 kernel", "use one built for riscv64"),
    (0x202, b"HdrS", "an x86 kernel", "use one built for riscv64"),
    (0, b"\x27\x05\x19\x56", "a U-Boot image", "use the Image that it was made from"),
    (0, b"\xd0\x0d\xfe\xed", "a device tree or FIT image", "use a plain Image"),
    (4, b"zimg", "an EFI zboot kernel", "use arch/riscv/boot/Image or Image.gz"),
    (0, b"\xfd7zXZ\0", "compressed with xz", "unpack it with xz -d"),
    (0, b"\x28\xb5\x2f\xfd", "compressed with zstd", "unpack it with zstd -d"),
    (0, b"BZh", "compressed with bzip2", "unpack it with bzip2 -d"),
    (0, b"\x02\x21\x4c\x18", "compressed with lz4", "unpack it with lz4 -d"),
    (0, b"\x04\x22\x4d\x18", "compressed with lz4", "unpack it with lz4 -d"),
)


def read(path: Path, option: str, ram: int) -> bytes:
    """The file's bytes; one that is empty, unreadable or far larger than `ram` is an `ImageError`."""
    try:
        size = path.stat().st_size
        if size > max(ram, READ_ANYWAY):
            raise ImageError(f"{option} {path}: does not fit: {_too_small(ram, size)}")
        data = path.read_bytes()
    except OSError as error:
        raise ImageError(f"{option} {path}: {error.strerror}; give a file that can be read") from error
    if not data:
        raise ImageError(f"{option} {path}: is empty; give a file with something in it")
    return data


def _too_small(ram: int, needed: int) -> str:
    return f"-m {ram // MIB}M is too small; use -m {-(-needed // MIB)}M or more"


def load(path: Path, base: int, ram: int, option: str = "-kernel") -> Program:
    """A kernel or firmware: Image, gzip of one, ELF64, or raw bytes that go to `base` and start there.

    Nothing far larger than `ram` bytes is read or unpacked. Messages start with `option` and the path.
    """
    data = read(path, option, ram)
    name = f"{option} {path}"
    if data.startswith(b"\x1f\x8b"):
        data = _gunzip(name, data, ram)
    for at, magic, kind, remedy in FOREIGN:
        if data[at : at + len(magic)] == magic:
            raise ImageError(f"{name}: is {kind}; {remedy}")
    if data.startswith(b"\x7fELF"):
        return _load_elf(name, data)
    return Program((Segment(name, base, data, _image_size(name, data)),), base)


def _gunzip(name: str, data: bytes, ram: int) -> bytes:
    limit = max(ram, READ_ANYWAY)
    stream = zlib.decompressobj(wbits=31)
    try:
        out = stream.decompress(data, limit + 1)
    except zlib.error as error:
        raise ImageError(f"{name}: damaged gzip file; copy it again") from error
    if len(out) > limit:
        raise ImageError(f"{name}: does not fit once it is unpacked: {_too_small(ram, len(out))}")
    if not stream.eof:
        raise ImageError(f"{name}: truncated gzip file; copy it again")
    if not out:
        raise ImageError(f"{name}: unpacks to nothing; give a kernel")
    return out


def _image_size(name: str, data: bytes) -> int:
    """Bytes that a kernel occupies once it runs: an Image's header says so, raw bytes are what they are."""
    if len(data) < IMAGE_HEADER.size:
        return len(data)
    _, _, _, size, flags, _, _, _, _, magic2, _ = IMAGE_HEADER.unpack_from(data)
    if magic2 != IMAGE_MAGIC2:
        return len(data)
    if flags & 1:
        raise ImageError(f"{name}: is a big-endian kernel; use a little-endian one")
    return max(size, len(data))


def _load_elf(name: str, data: bytes) -> Program:
    _check_elf_header(name, data)
    from elftools.elf.elffile import ELFFile

    # Damage shows in many ways in a reader that trusts its input; all of them are the file's fault.
    try:
        elf = ELFFile(io.BytesIO(data))
        segments = tuple(_load_segments(name, data, elf))
        tohost = _find_symbol(elf, "tohost")
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(f"{name}: damaged ELF file ({type(error).__name__}); copy it again") from error
    if not segments:
        raise ImageError(f"{name}: has nothing to load; link it to an executable")
    return Program(segments, elf["e_entry"], tohost)


def _check_elf_header(name: str, data: bytes) -> None:
    if len(data) < 64:
        raise ImageError(f"{name}: truncated ELF file ({len(data)} bytes); copy it again")
    wide, order = data[4], data[5]
    if order == 2:
        raise ImageError(f"{name}: is a big-endian ELF; build it for riscv64, little-endian")
    machine = struct.unpack_from("<H", data, 18)[0]
    if machine != EM_RISCV:
        kind = ELF_MACHINES.get(machine, f"machine {machine}")
        raise ImageError(f"{name}: is an ELF for {kind}; build it for riscv64")
    if wide != 2:
        raise ImageError(f"{name}: is a 32-bit RISC-V ELF; build it for riscv64")


def _load_segments(name: str, data: bytes, elf: Any) -> Iterator[Segment]:
    for header in elf.iter_segments("PT_LOAD"):
        start, size = header["p_offset"], header["p_filesz"]
        if start + size > len(data):
            raise ImageError(f"{name}: truncated ELF file: {len(data)} of {start + size} bytes; copy it again")
        if header["p_memsz"] < size:
            raise ImageError(f"{name}: damaged ELF file: p_memsz is below p_filesz; build it again")
        if header["p_memsz"]:
            yield Segment(name, header["p_paddr"], data[start : start + size], header["p_memsz"])


def _find_symbol(elf: Any, wanted: str) -> int | None:
    """A kernel's symbol table is large and seldom has HTIF's name: look into its strings first.

    The name may be there as the end of a longer one, as `write_tohost`: linkers merge them.
    """
    for section in elf.iter_sections("SHT_SYMTAB"):
        if wanted.encode() + b"\0" in elf.get_section(section["sh_link"]).data():
            found = [int(symbol["st_value"]) for symbol in section.iter_symbols() if symbol.name == wanted]
            if found:
                return found[-1]
    return None


def fw_dynamic_info(next_addr: int, boot_hart: int = 0) -> bytes:
    """OpenSBI's `struct fw_dynamic_info`, version 2: where to go next, in S-mode, and which hart is first."""
    magic, version, next_mode, options = 0x4942534F, 2, 1, 0
    return struct.pack("<6Q", magic, version, next_addr, next_mode, options, boot_hart)


def up(value: int, step: int) -> int:
    return -(-value // step) * step


def down(value: int, step: int) -> int:
    return value // step * step


class Places(NamedTuple):
    """Where the device tree, the firmware's info block and the initrd (0 without one) go."""

    dtb: int
    info: int
    initrd: int


def place(ram: int, used: Sequence[Segment], kernel_start: int, initrd_size: int, dtb_size: int) -> Places:
    """Choose places as QEMU does, around what firmware and kernel occupy; sizes in bytes, `ram` all of RAM.

    The device tree goes to the top of the first 3 GiB or of RAM. The initrd goes half of RAM above the
    kernel, at most 128 MiB (512 MiB where RAM is 1 GiB or more), else to the first place where it fits.
    `ImageError` says how much RAM would be enough.
    """
    end = RAM_BASE + ram
    slot = up(dtb_size + DTB_HEADROOM, PAGE) + PAGE
    low = up(max((segment.end for segment in used), default=RAM_BASE), PAGE)
    ahead = min(ram // 2, 512 * MIB if ram >= 1 << 30 else 128 * MIB)
    for dtb in (down(min(end, DTB_LIMIT) - slot, DTB_ALIGN), down(end - slot, DTB_ALIGN)):
        tree = Segment("device tree", dtb, b"", slot)
        if low > end or dtb < RAM_BASE or overlapping(tree, used):
            continue
        for address in (down(kernel_start + ahead, PAGE), low, tree.end):
            initrd = Segment("initrd", address, b"", initrd_size)
            if initrd.end <= end and not overlapping(initrd, [*used, tree]):
                return Places(dtb, tree.end - PAGE, address if initrd_size else 0)
    needed = up(low + initrd_size, DTB_ALIGN) + up(slot, DTB_ALIGN) - RAM_BASE
    raise ImageError(f"kernel, initrd and device tree do not fit: {_too_small(ram, needed)}")


def overlapping(segment: Segment, others: Iterable[Segment]) -> Segment | None:
    """The first of `others` that shares a byte with `segment`."""
    for other in others:
        if segment.address < other.end and other.address < segment.end:
            return other
    return None


def check_segments(segments: Sequence[Segment]) -> None:
    """Every segment has an address that RAM can have; `ImageError` otherwise."""
    for segment in segments:
        if segment.address < RAM.base or segment.end > RAM.end:
            raise ImageError(
                f"{segment.what}: wants address {segment.address:#x}, but RAM is at {RAM.base:#x}; "
                "link it there, or use a Linux Image instead of vmlinux"
            )


def plan(
    ram: int,
    firmware: Program | None,
    kernel: Program | None,
    mode: str,
    initrd: bytes,
    tree: Callable[[tuple[int, int] | None], bytes],
    loaded: Sequence[Segment] = (),
) -> Boot:
    """Put the pieces of a boot together.

    `mode` is what the first program runs in; `tree` makes the device tree blob, given the initrd's start and
    end, and its size must not depend on them. `loaded` is what else goes into RAM, at fixed addresses.
    """
    programs = [program for program in (firmware, kernel) if program]
    used = [segment for program in programs for segment in program.segments]
    check_segments([*used, *loaded])
    if firmware and kernel:
        _check_apart(firmware, kernel)
    for segment in loaded:
        if other := overlapping(segment, used):
            raise ImageError(f"{segment.what}: at {segment.address:#x} overlaps {other.what}; choose another address")
        used.append(segment)
    kernel_start = kernel.segments[0].address if kernel else RAM_BASE
    places = place(ram, used, kernel_start, len(initrd), len(tree((0, 0) if initrd else None)))
    span = (places.initrd, places.initrd + len(initrd)) if initrd else None
    entry = kernel.entry if kernel else 0
    segments = [*used, _segment("device tree", places.dtb, tree(span))]
    if initrd:
        segments.append(_segment("initrd", places.initrd, initrd))
    if firmware:
        segments.append(_segment("fw_dynamic info", places.info, fw_dynamic_info(entry)))
    return Boot(
        segments=tuple(segments),
        pc=programs[0].entry if programs else RAM_BASE,
        mode=mode,
        dtb=places.dtb,
        info=places.info if firmware else 0,
        kernel_entry=entry,
        initrd=span,
        tohost=next((program.tohost for program in programs if program.tohost), None),
    )


def _segment(what: str, address: int, data: bytes) -> Segment:
    return Segment(what, address, data, len(data))


def _check_apart(firmware: Program, kernel: Program) -> None:
    for segment in kernel.segments:
        if other := overlapping(segment, firmware.segments):
            raise ImageError(
                f"{segment.what}: at {segment.address:#x} overlaps {other.what}; "
                f"link it above {up(other.end, KERNEL_ALIGN):#x}, or start it with -bios none"
            )


def kernel_base(firmware: Program | None) -> int:
    """Where a kernel without an address of its own goes above the firmware: the next 2 MiB."""
    return up(firmware.end if firmware else RAM_BASE + 1, KERNEL_ALIGN)
