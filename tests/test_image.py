"""Kernels and firmware are recognised, foreign files are refused, and a boot's pieces never overlap."""

import gzip
import struct
import subprocess
from itertools import combinations
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from hypothesis import given, settings
from hypothesis import strategies as st

from mem import fdt, image
from mem.image import MIB, ImageError, Program, Segment
from mem.memmap import RAM_BASE
from smp import devicetree
from smp.config import MachineConfig
from smp.cpu import parse_cpu

RAM = 128 * MIB


def linux_image(size: int = 4096, image_size: int = 0x10000, flags: int = 0, text_offset: int = 0x200000) -> bytes:
    header = struct.pack(
        "<IIQQQIIQ8sII", 0x5A4D, 0, text_offset, image_size, flags, 2, 0, 0, b"RISCV\0\0\0", 0x05435352, 0
    )
    return header.ljust(size, b"\x13")


def elf(
    address: int = RAM_BASE,
    code: bytes = b"\x13\0\0\0" * 8,
    memsz: int = 64,
    machine: int = 243,
    symbols: bool = False,
) -> bytes:
    """The smallest executable, with a symbol table for HTIF if asked."""
    offset = 64 + 56
    body = code
    sections, at, number = b"", 0, 0
    if symbols:
        names = b"\0tohost\0fromhost\0"
        table = bytes(24) + b"".join(
            struct.pack("<IBBHQQ", name, 0x10, 0, 0xFFF1, value, 8)
            for name, value in ((1, 0x80001000), (8, 0x80001040))
        )
        at_names, at_table = offset + len(code), offset + len(code) + len(names)
        body += names + table
        at, number = offset + len(body), 3
        sections = bytes(64)
        sections += struct.pack("<IIQQQQIIQQ", 0, 2, 0, 0, at_table, len(table), 2, 1, 8, 24)
        sections += struct.pack("<IIQQQQIIQQ", 0, 3, 0, 0, at_names, len(names), 0, 0, 1, 0)
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    header = ident + struct.pack("<HHIQQQIHHHHHH", 2, machine, 1, address + 4, 64, at, 0, 64, 56, 1, 64, number, 0)
    load = struct.pack("<IIQQQQQQ", 1, 5, offset, 0xFFFF_FFFF_8000_0000, address, len(code), memsz, 4096)
    return header + load + body + sections


@pytest.fixture
def save(tmp_path):
    def write(data: bytes, name: str = "kernel") -> Path:
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    return write


def test_image_occupies_what_its_header_says(save):
    data = linux_image(4096, 0x30000)
    program = image.load(save(data), 0x80200000, RAM)
    (segment,) = program.segments
    assert (program.entry, segment.address, segment.size, segment.data) == (
        0x80200000,
        0x80200000,
        0x30000,
        data,
    )


def test_gzip_image_is_unpacked(save):
    data = linux_image()
    (segment,) = image.load(save(gzip.compress(data)), 0x80200000, RAM).segments
    assert segment.data == data and segment.size == 0x10000


def test_raw_binary_goes_to_the_base(save):
    program = image.load(save(b"\x6f\0\0\0"), RAM_BASE, RAM)
    assert program == Program((Segment(program.segments[0].what, RAM_BASE, b"\x6f\0\0\0", 4),), RAM_BASE)


def test_elf_is_loaded_by_physical_address(save):
    program = image.load(save(elf(0x80100000)), RAM_BASE, RAM)
    (segment,) = program.segments
    assert (segment.address, segment.size, len(segment.data)) == (0x80100000, 64, 32)
    assert (program.entry, program.tohost) == (0x80100004, None)


def test_elf_gives_htifs_symbol(save):
    program = image.load(save(elf(symbols=True)), RAM_BASE, RAM)
    assert program.tohost == 0x80001000


@pytest.mark.parametrize("start", ["_start", "_start: write_tohost"])
def test_elf_from_a_linker_is_loaded(start, save, tmp_path):
    """Also with tohost merged into a longer name in the table of strings, as in riscv-tests."""
    text = f".globl _start, tohost\n{start}: j _start\n.data\n.balign 8\ntohost: .dword 0\n"
    source = save(text.encode(), "a.S")
    gcc = [
        "riscv64-linux-gnu-gcc",
        "-nostdlib",
        "-static",
        "-Wl,-Ttext=0x80000000,--no-relax,--build-id=none",
    ]
    try:
        subprocess.run([*gcc, "-o", tmp_path / "a.out", source], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("riscv64-linux-gnu-gcc is not installed")
    program = image.load(tmp_path / "a.out", RAM_BASE, RAM)
    assert program.entry == 0x80000000
    with open(tmp_path / "a.out", "rb") as file:
        table = ELFFile(file).get_section_by_name(".symtab")
        assert program.tohost == table.get_symbol_by_name("tohost")[0]["st_value"]


x86_elf = elf(machine=62)
FOREIGN = {
    "empty": (b"", "is empty"),
    "x86 elf": (x86_elf, "ELF for x86-64; build it for riscv64"),
    "arm elf": (elf(machine=183), "ELF for AArch64"),
    "unknown elf": (elf(machine=999), "ELF for machine 999"),
    "32-bit elf": (elf()[:4] + b"\x01" + elf()[5:], "32-bit RISC-V"),
    "big-endian elf": (elf()[:5] + b"\x02" + elf()[6:], "big-endian"),
    "elf magic only": (b"\x7fELF", "truncated ELF"),
    "truncated elf header": (elf()[:63], "truncated ELF"),
    "truncated elf": (elf()[:140], "truncated ELF"),
    "elf with nothing in it": (elf(code=b"", memsz=0), "nothing to load"),
    "elf with memsz below filesz": (elf(memsz=8), "p_memsz"),
    "truncated gzip": (gzip.compress(linux_image())[:-12], "truncated gzip"),
    "damaged gzip": (b"\x1f\x8b\xff" + bytes(20), "damaged gzip"),
    "gzip of nothing": (gzip.compress(b""), "unpacks to nothing"),
    "big-endian image": (linux_image(flags=1), "big-endian"),
    "arm image": (bytes(0x38) + b"ARM\x64" + bytes(64), "AArch64"),
    "zboot": (b"MZ\0\0zimg" + bytes(64), "zboot"),
    "xz": (b"\xfd7zXZ\0" + bytes(64), "xz -d"),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(64), "zstd -d"),
    "uimage": (b"\x27\x05\x19\x56" + bytes(64), "U-Boot image"),
    "dtb": (fdt.encode(fdt.Node("")), "device tree"),
}


@pytest.mark.parametrize(("data", "message"), FOREIGN.values(), ids=FOREIGN.keys())
def test_foreign_files_are_refused_in_one_line(save, data, message):
    path = save(data)
    with pytest.raises(ImageError, match=message) as caught:
        image.load(path, RAM_BASE, RAM)
    assert str(caught.value).startswith(f"-kernel {path}: ")
    assert "\n" not in str(caught.value)


def test_a_file_larger_than_ram_is_not_read(tmp_path):
    path = tmp_path / "huge"
    with open(path, "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ImageError, match="use -m 1048576M"):
        image.read(path, "-initrd", RAM)


def test_no_more_than_ram_is_unpacked(save, monkeypatch):
    monkeypatch.setattr(image, "READ_ANYWAY", 0)
    with pytest.raises(ImageError, match="-m 1M is too small; use -m 2M"):
        image.load(save(gzip.compress(bytes(4 * MIB))), RAM_BASE, MIB)


WHOLE = elf(symbols=True)


@given(st.lists(st.tuples(st.integers(16, len(WHOLE) - 1), st.integers(0, 255)), min_size=1, max_size=5))
def test_a_damaged_elf_loads_or_is_refused(tmp_path_factory, changes):
    data = bytearray(WHOLE)
    for at, value in changes:
        data[at] = value
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(data)
    try:
        program = image.load(path, RAM_BASE, RAM)
    except ImageError as error:
        assert "\n" not in str(error)
    else:
        assert all(len(segment.data) <= segment.size for segment in program.segments)


sizes = st.integers(1, 300 * MIB)
rams = st.integers(4, 400).map(lambda n: n * 4 * MIB)


def spans_of(places: image.Places, used: list[Segment], initrd: int, dtb: int) -> list[tuple[int, int]]:
    spans = [(segment.address, segment.end) for segment in used]
    spans += [(places.dtb, places.dtb + dtb), (places.info, places.info + 48)]
    return spans + ([(places.initrd, places.initrd + initrd)] if initrd else [])


@settings(max_examples=400)
@given(rams, sizes, st.one_of(st.just(0), sizes), st.integers(1, MIB))
def test_places_are_in_ram_aligned_and_apart(ram, kernel, initrd, dtb):
    start = RAM_BASE + 2 * MIB
    used = [Segment("firmware", RAM_BASE, b"", MIB), Segment("kernel", start, b"", kernel)]
    try:
        places = image.place(ram, used, start, initrd, dtb)
    except ImageError as error:
        enough = int(str(error).split("use -m ")[1].split("M")[0]) * MIB
        assert enough > ram
        places = image.place(enough, used, start, initrd, dtb)
        ram = enough
    assert places.dtb % (2 * MIB) == 0 and places.initrd % 4096 == 0
    spans = spans_of(places, used, initrd, dtb)
    assert all(low >= RAM_BASE and high <= RAM_BASE + ram for low, high in spans)
    assert all(a[1] <= b[0] or b[1] <= a[0] for a, b in combinations(spans, 2))


def test_places_are_qemus():
    used = [Segment("kernel", 0x80200000, b"", 20 * MIB)]
    places = image.place(512 * MIB, used, 0x80200000, 1000, 5000)
    assert (places.dtb, places.initrd) == (0x9FE00000, 0x88200000)
    places = image.place(4096 * MIB, used, 0x80200000, 1000, 5000)
    assert (places.dtb, places.initrd) == (0xBFE00000, 0xA0200000)


def test_firmware_starts_in_m_mode_and_learns_of_the_kernel(save):
    firmware = save(b"\x6f\0\0\0" * 1000, "fw")
    boot = devicetree.plan_boot(MachineConfig(bios=firmware, kernel=save(linux_image())))
    assert (boot.pc, boot.mode, boot.kernel_entry) == (RAM_BASE, "M", 0x80200000)
    info = next(segment for segment in boot.segments if segment.address == boot.info)
    assert struct.unpack("<6Q", info.data) == (0x4942534F, 2, 0x80200000, 1, 0, 0)


def test_built_in_sbi_starts_the_kernel_in_s_mode(save):
    boot = devicetree.plan_boot(MachineConfig(kernel=save(linux_image())))
    assert (boot.pc, boot.mode, boot.info) == (0x80200000, "S", 0)


def test_bios_none_starts_the_kernel_in_m_mode(save):
    boot = devicetree.plan_boot(MachineConfig(bios="none", kernel=save(b"\x6f\0\0\0")))
    assert (boot.pc, boot.mode) == (RAM_BASE, "M")
    boot = devicetree.plan_boot(MachineConfig(bios="none", kernel=save(elf(symbols=True))))
    assert (boot.pc, boot.mode, boot.tohost) == (RAM_BASE + 4, "M", 0x80001000)


def test_device_tree_tells_where_the_initrd_is(save):
    config = MachineConfig(kernel=save(linux_image()), initrd=save(b"0707", "initrd"), append="quiet")
    boot = devicetree.plan_boot(config)
    assert boot.initrd is not None
    blob = next(segment.data for segment in boot.segments if segment.address == boot.dtb)
    chosen = fdt.decode(blob)[0].find("/chosen").properties
    start, end = fdt.read_u64(chosen["linux,initrd-start"] + chosen["linux,initrd-end"])
    assert (start, end) == boot.initrd
    assert next(segment for segment in boot.segments if segment.address == start).data == b"0707"
    assert chosen["bootargs"] == b"quiet\0"


def test_a_given_device_tree_gets_this_starts_chosen(save):
    given_tree = fdt.Node("", {"model": fdt.strings("mine")})
    config = MachineConfig(kernel=save(linux_image()), dtb=save(fdt.encode(given_tree), "a.dtb"), append="quiet")
    boot = devicetree.plan_boot(config)
    root, _ = fdt.decode(next(segment.data for segment in boot.segments if segment.address == boot.dtb))
    assert root.properties == given_tree.properties
    assert root.find("/chosen").properties["bootargs"] == b"quiet\0"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ram": 16 * MIB, "kernel": linux_image(image_size=40 * MIB)}, "-m 16M is too small; use -m 44M"),
        ({"ram": 16 * MIB, "kernel": linux_image(), "initrd": bytes(15 * MIB)}, "-m 16M is too small"),
        ({"kernel": elf(0x1000)}, "wants address 0x1000, but RAM is at 0x80000000"),
        ({"kernel": elf(0xFFFF_FFFF_8000_0000)}, "vmlinux"),
        ({"kernel": elf(0x90000000)}, "-m 128M is too small"),
        ({"bios": bytes(3 * MIB), "kernel": elf(RAM_BASE + MIB)}, "overlaps"),
        ({"kernel": linux_image(), "dtb": b"x"}, "-dtb .*/dtb: .*make one with dtc"),
        ({"kernel": linux_image(), "initrd": b""}, "-initrd .*is empty"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_way_out(save, changes, message):
    changes = {key: save(value, key) if isinstance(value, bytes) else value for key, value in changes.items()}
    with pytest.raises(ImageError, match=message):
        devicetree.plan_boot(MachineConfig(**changes))


def tree(**changes) -> fdt.Node:
    return fdt.decode(devicetree.build(MachineConfig(**changes)))[0]


def test_tree_has_a_node_for_every_hart_and_device():
    root = tree(harts=12, ram=3 << 30)
    assert sum(child.name.startswith("cpu@") for child in root.find("/cpus").children) == 12
    assert root.find("/cpus/cpu@b").properties["reg"] == fdt.u32(11)
    assert fdt.read_u64(root.find("/memory@80000000").properties["reg"]) == [RAM_BASE, 3 << 30]
    soc = root.find("/soc")
    assert sum(child.name.startswith("virtio_mmio@") for child in soc.children) == 32
    assert soc.child("virtio_mmio@10008000").properties["interrupts"] == fdt.u32(8)
    assert "sswi@2f00000" not in [child.name for child in soc.children]


def test_plic_contexts_are_m_then_s_of_every_hart():
    root = tree(harts=3)
    intcs = [root.find(f"/cpus/cpu@{n}/interrupt-controller").properties["phandle"] for n in range(3)]
    wires = root.find("/soc/plic@c000000").properties["interrupts-extended"]
    assert wires == b"".join(intc + fdt.u32(11) + intc + fdt.u32(9) for intc in intcs)


def test_phandles_are_unique_and_references_lead_somewhere():
    root = tree(harts=4)
    nodes, stack = [], [root]
    while stack:
        nodes.append(stack.pop())
        stack += nodes[-1].children
    handles = [node.properties["phandle"] for node in nodes if "phandle" in node.properties]
    assert len(set(handles)) == len(handles)
    for node in nodes:
        for name in ("interrupt-parent", "regmap", "cpu"):
            assert node.properties.get(name, handles[0]) in handles


def test_extensions_that_are_off_are_not_listed():
    hart = tree(cpu=parse_cpu("rv64,zacas=off,zicboz=off,sv57=off")).find("/cpus/cpu@0").properties
    names = fdt.read_strings(hart["riscv,isa-extensions"])
    assert "zacas" not in names and "zabha" in names
    assert "riscv,cboz-block-size" not in hart and "riscv,cbom-block-size" in hart
    assert hart["mmu-type"] == b"riscv,sv48\0"


def test_without_randomness_two_trees_are_equal():
    config = MachineConfig(dtb_randomness=False)
    assert devicetree.build(config) == devicetree.build(config)
    assert devicetree.build(MachineConfig()) != devicetree.build(MachineConfig())


def test_a_boot_loader_has_room_to_add_to_the_tree_in_place():
    """U-Boot 2025.01 overwrote its global data, which lie right behind a tree without."""
    given = fdt.encode(fdt.Node(""))
    for blob in (devicetree.build(MachineConfig(harts=3)), devicetree.adopt(given, MachineConfig(), None)):
        _, size, structure, table, _, _, _, _, names, nodes = struct.unpack_from(">10I", blob)
        assert size == len(blob) and size - max(structure + nodes, table + names) >= 0x3000


def test_dtc_accepts_the_tree():
    try:
        run = subprocess.run(
            ["dtc", "-I", "dtb", "-O", "dts", "-"],
            input=devicetree.build(MachineConfig(harts=2)),
            capture_output=True,
        )
    except FileNotFoundError:
        pytest.skip("dtc is not installed")
    assert run.returncode == 0
    # QEMU's own tree has this one: a hart's interrupt controller needs no #address-cells.
    complaints = run.stderr.decode().splitlines()
    assert all("interrupt_provider" in line for line in complaints), complaints
