"""The machine's device tree, as QEMU's `virt` lays it out, and the plan of a boot that is made around it.

Addresses and interrupts come from mem/memmap.py, extensions from smp/cpu.py. Pure but for reading the boot's
files and the host's random numbers for rng-seed.
"""

import os
from itertools import count
from pathlib import Path

from mem import fdt, image, memmap
from mem.fdt import EMPTY, Node, strings, u32, u64
from mem.memmap import Region
from smp import cpu, loader_options
from smp.config import BUILT_IN_SBI, NO_FIRMWARE, MachineConfig

# Interrupts of a hart: mcause/scause codes, which riscv,cpu-intc uses as its numbers.
S_SOFT, M_SOFT, M_TIMER, S_EXTERNAL, M_EXTERNAL = 1, 3, 7, 9, 11

FINISHER_PASS, FINISHER_RESET = 0x5555, 0x7777
UART_CLOCK_HZ = 3_686_400
# Bytes. A boot loader adds to the tree in place what it tells the kernel; U-Boot takes SYS_FDT_PAD = 0x3000 bytes for
# granted, and overwrites its own data behind the tree where there is less than it needs.
ROOM = 0x3000

Span = tuple[int, int]


def build(config: MachineConfig, *, initrd: Span | None = None, sswi: bool = False, seed: bytes | None = None) -> bytes:
    """The blob. `initrd` is (start, end); `seed` replaces 32 random bytes.

    `sswi` lists the ACLINT's supervisor software interrupts: a kernel that sees them sends its IPIs that way
    and not through the SBI.
    """
    root = Node("", {"#address-cells": u32(2), "#size-cells": u32(2)})
    root.properties |= {"compatible": strings("riscv-virtio"), "model": strings("riscv-virtio,hartbeat")}
    root.add("chosen", chosen(config, initrd, seed))
    root.add("memory@80000000", {"device_type": strings("memory"), "reg": u64(memmap.RAM_BASE, config.ram)})
    handles = count(1)
    intcs = _add_cpus(root, config, handles)
    _add_soc(root, intcs, handles, sswi)
    return fdt.encode(root, room=ROOM)


def chosen(config: MachineConfig, initrd: Span | None, seed: bytes | None = None) -> dict[str, bytes]:
    """What the kernel is told at this start; the part that a given -dtb gets too."""
    properties = {"stdout-path": strings(f"/soc/{_name(memmap.UART)}")}
    if config.append:
        properties["bootargs"] = strings(config.append)
    if initrd:
        properties |= {"linux,initrd-start": u64(initrd[0]), "linux,initrd-end": u64(initrd[1])}
    if config.dtb_randomness:
        properties["rng-seed"] = seed or os.urandom(32)
    return properties


def _name(region: Region) -> str:
    return f"{region.name}@{region.base:x}"


def _add_cpus(root: Node, config: MachineConfig, handles: "count[int]") -> list[int]:
    """The harts; returns the phandles of their interrupt controllers."""
    cpus = root.add("cpus", {"#address-cells": u32(1), "#size-cells": u32(0)})
    cpus.properties["timebase-frequency"] = u32(memmap.TIMEBASE_HZ)
    common = _cpu_properties(config.cpu)
    intcs, cores = [], []
    for hart in range(config.harts):
        core, intc = next(handles), next(handles)
        node = cpus.add(f"cpu@{hart:x}", {"phandle": u32(core), "reg": u32(hart), **common})
        node.add(
            "interrupt-controller",
            {
                "#interrupt-cells": u32(1),
                "interrupt-controller": EMPTY,
                "compatible": strings("riscv,cpu-intc"),
                "phandle": u32(intc),
            },
        )
        cores.append(core)
        intcs.append(intc)
    cluster = cpus.add("cpu-map").add("cluster0")
    for number, core in enumerate(cores):
        cluster.add(f"core{number}", {"cpu": u32(core)})
    return intcs


def _cpu_properties(config: cpu.CpuConfig) -> dict[str, bytes]:
    blocks = {"zicbom": "cbom", "zicbop": "cbop", "zicboz": "cboz"}
    return {
        "device_type": strings("cpu"),
        "status": strings("okay"),
        "compatible": strings("riscv"),
        "riscv,isa": strings(config.isa_string()),
        "riscv,isa-base": strings("rv64i"),
        "riscv,isa-extensions": strings(*config.isa_extensions()),
        "mmu-type": strings(f"riscv,sv{config.mmu}"),
        **{f"riscv,{b}-block-size": u32(cpu.CACHE_BLOCK) for name, b in blocks.items() if config.has(name)},
    }


def _add_soc(root: Node, intcs: list[int], handles: "count[int]", sswi: bool) -> None:
    plic, test = next(handles), next(handles)
    for name, value in (("poweroff", FINISHER_PASS), ("reboot", FINISHER_RESET)):
        properties = {"compatible": strings(f"syscon-{name}"), "value": u32(value)}
        root.add(name, properties | {"offset": u32(0), "regmap": u32(test)})
    soc = root.add("soc", {"#address-cells": u32(2), "#size-cells": u32(2)})
    soc.properties |= {"compatible": strings("simple-bus"), "ranges": EMPTY}
    _add_device(soc, memmap.FINISHER, plic).properties["phandle"] = u32(test)
    _add_device(soc, memmap.RTC, plic)
    _add_device(soc, memmap.CLINT, plic).properties["interrupts-extended"] = _wires(intcs, M_SOFT, M_TIMER)
    if sswi:
        _add_device(soc, memmap.SSWI, plic).properties |= {
            "interrupts-extended": _wires(intcs, S_SOFT),
            "#interrupt-cells": u32(0),
            "interrupt-controller": EMPTY,
        }
    _add_device(soc, memmap.PLIC, plic).properties |= {
        "phandle": u32(plic),
        "#address-cells": u32(0),
        "#interrupt-cells": u32(1),
        "interrupt-controller": EMPTY,
        "riscv,ndev": u32(memmap.PLIC_SOURCES - 1),
        # Two contexts a hart, in this order: context 2n is hart n in M-mode, 2n+1 in S-mode.
        "interrupts-extended": _wires(intcs, M_EXTERNAL, S_EXTERNAL),
    }
    _add_device(soc, memmap.UART, plic).properties["clock-frequency"] = u32(UART_CLOCK_HZ)
    for slot in memmap.VIRTIO:
        _add_device(soc, slot, plic)


def _add_device(soc: Node, region: Region, plic: int) -> Node:
    node = soc.add(_name(region), {"compatible": strings(*region.compatible)})
    node.properties["reg"] = u64(region.base, region.size)
    if region.irq is not None:
        node.properties |= {"interrupts": u32(region.irq), "interrupt-parent": u32(plic)}
    return node


def _wires(intcs: list[int], *interrupts: int) -> bytes:
    """interrupts-extended: every hart's `interrupts`, hart after hart."""
    return u32(*(cell for intc in intcs for interrupt in interrupts for cell in (intc, interrupt)))


def adopt(blob: bytes, config: MachineConfig, initrd: Span | None, seed: bytes | None = None) -> bytes:
    """A -dtb that the user gave, with this start's /chosen written into it; `FdtError` if it is no tree."""
    root, reservations = fdt.decode(blob)
    try:
        node = root.child("chosen")
    except KeyError:
        node = root.add("chosen")
    news = chosen(config, initrd, seed)
    news["stdout-path"] = node.properties.get("stdout-path", news["stdout-path"])
    node.properties |= news
    return fdt.encode(root, reservations, ROOM)


def plan_boot(config: MachineConfig, *, sswi: bool = False) -> image.Boot:
    """Read the boot's files, build the tree and place everything; `ImageError` says what does not fit."""
    firmware = None
    if isinstance(config.bios, Path):
        firmware = image.load(config.bios, memmap.RAM_BASE, config.ram, "-bios")
    kernel = None
    if config.kernel:
        base = memmap.RAM_BASE if config.bios == NO_FIRMWARE else image.kernel_base(firmware)
        kernel = image.load(config.kernel, base, config.ram, "-kernel")
    initrd = image.read(config.initrd, "-initrd", config.ram) if config.initrd else b""
    given = image.read(config.dtb, "-dtb", config.ram) if config.dtb else None
    seed = os.urandom(32)

    def tree(span: Span | None) -> bytes:
        if given is None:
            return build(config, initrd=span, sswi=sswi, seed=seed)
        try:
            return adopt(given, config, span, seed)
        except fdt.FdtError as error:
            raise image.ImageError(f"-dtb {config.dtb}: {error}; make one with dtc") from error

    mode = "S" if config.bios == BUILT_IN_SBI else "M"
    loaded = [segment for loader in config.loaders for segment in loader_options.load(loader, config.ram)]
    return image.plan(config.ram, firmware, kernel, mode, initrd, tree, loaded)
