"""Translated blocks as text: -d in_asm, -d out_asm, and perf's map of code (-perfmap).  All of it in the supervisor."""

import bisect
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from mem.regions import CODE, CODE_TABLE
from smp import engine
from smp.blocklog import BlockFile, Translated
from smp.codecache import CodeTable
from smp.config import MachineConfig
from smp.disassembler import disassemble

PERIOD = 0.2  # seconds between two looks for new blocks
PERF_MAP = "/tmp/perf-{}.map"  # where perf looks for it: tools/perf/Documentation/jit-interface.txt
GAP = 16  # bytes between two blocks at most, for their alignment
SYMBOL_LIMIT = 4096  # how far a symbol without a size reaches at most
MODES = "US?M"


class Symbols:
    """Names of guest addresses, from the symbol tables of ELF files."""

    def __init__(self, files: list[Path]) -> None:
        found = sorted({symbol for path in files for symbol in symbols_of(path)})
        self.starts = [start for start, _, _ in found]
        self.found = found

    def name(self, pc: int) -> str:
        """`symbol` or `symbol+0x12`; '' where there is none."""
        index = bisect.bisect_right(self.starts, pc) - 1
        if index < 0:
            return ""
        start, size, name = self.found[index]
        if pc - start >= (size or SYMBOL_LIMIT):
            return ""
        return name if pc == start else f"{name}+{pc - start:#x}"


def symbols_of(path: Path) -> Iterator[tuple[int, int, str]]:
    """Address, size and name of the labels and functions in an ELF file; nothing from other files."""
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile

    with path.open("rb") as file:
        if file.read(4) != b"\x7fELF":
            return
        try:
            for section in ELFFile(file).iter_sections("SHT_SYMTAB"):
                for symbol in section.iter_symbols():  # type: ignore[attr-defined]
                    if symbol["st_info"]["type"] in ("STT_NOTYPE", "STT_FUNC") and re.match(r"[\w.]", symbol.name):
                        yield symbol["st_value"], symbol["st_size"], symbol.name
        except ELFError:
            return  # the machine's own loader has said what is wrong with it, if it matters


class BlockText:
    """Writes what the options ask for, a batch of blocks at a time."""

    def __init__(self, config: MachineConfig, log_fd: int) -> None:
        self.file = BlockFile()
        self.log_fd = log_fd
        self.guest, self.host = "in_asm" in config.log, "out_asm" in config.log
        self.objdump = shutil.which("objdump")
        if self.host and not self.objdump:
            say("-d out_asm: there is no objdump, so host code is shown as bytes; install binutils")
        self.symbols = Symbols([p for p in (config.kernel, config.bios) if isinstance(p, Path)])
        self.maps: list[int] = []
        self.pieces = CodeTable.at(CODE_TABLE).asm.out - CODE  # bytes of code before any block is translated

    def open_maps(self, processes: list[int]) -> None:
        """A map for each of these processes.

        perf looks for the one of the process that mapped the code, which is the supervisor if perf was there from the
        start; attached to a hart later, it takes that hart's.
        """
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        for process in processes:
            path = PERF_MAP.format(process)
            try:
                self.maps.append(os.open(path, flags, 0o644))
            except OSError as error:
                say(f"-perfmap: {path}: {error.strerror}; remove it")
        names = [(CODE, self.pieces, "pieces"), *engine.functions()]
        self.write_maps("".join(f"{address:x} {size:x} hartbeat_{name}\n" for address, size, name in names))

    def write_maps(self, text: str) -> None:
        for fd in self.maps:
            write_all(fd, text.encode())

    def some(self) -> bool:
        """Write the next batch; whether there was one."""
        blocks = self.file.batch()
        if not blocks:
            return False
        if self.maps:
            self.write_maps("".join(f"{b.code:x} {len(b.host):x} {self.name(b)}\n" for b in blocks))
        if self.guest or self.host:
            host = host_text(blocks, self.objdump) if self.host else {}
            write_all(self.log_fd, "".join(self.text(block, host) for block in blocks).encode())
        return True

    def name(self, block: Translated) -> str:
        name = self.symbols.name(block.vpc) or f"guest_{block.vpc:#x}"
        return name if block.guest else f"loop_at_{name}"

    def text(self, block: Translated, host: dict[int, str]) -> str:
        """A block as QEMU has it."""
        guest = self.guest and block.guest
        lines = ["-" * 16] if guest else []
        if guest:
            lines.append(f"IN: {self.symbols.name(block.vpc)}".rstrip())
            lines.append(f"Priv: {MODES[block.privilege]}; hart {block.hart}; physical {block.ppc:#x}")
            lines += guest_text(block)
            lines.append("")
        if self.host:
            lines.append(f"OUT: [size={len(block.host)}] {self.name(block)}")
            lines.append(host[block.code])
            lines.append("")
        return "\n".join(lines) + "\n" if lines else ""

    def close(self, hurry: Callable[[], bool] = lambda: False) -> None:
        """Write all that is left, until `hurry` says that nobody wants to wait for it."""
        while not hurry() and self.some():
            pass
        if hurry():
            say("the log of translated blocks is not complete: interrupted")
        elif self.file.lost():
            say(f"-d in_asm, out_asm, -perfmap: blocks are missing: {tempfile.gettempdir()} is full; set TMPDIR")
        self.file.close()
        for fd in self.maps:
            os.close(fd)
        self.maps = []


def say(text: str) -> None:
    print(f"\rhartbeat: {text}", file=sys.stderr)


def write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def guest_text(block: Translated) -> Iterator[str]:
    """Address, word and assembler text of each instruction."""
    at = 0
    while at < len(block.guest):
        length = 4 if block.guest[at] & 3 == 3 else 2
        word = int.from_bytes(block.guest[at : at + length], "little")
        mnemonic, _, operands = disassemble(word, block.vpc + at).partition(" ")
        digits = f"{word:0{length * 2}x}"
        yield f"0x{block.vpc + at:016x}:  {digits:17} {mnemonic:15} {operands}".rstrip()
        at += length


def host_text(blocks: list[Translated], objdump: str | None) -> dict[int, str]:
    """Host code by the address where its block begins; blocks that lie side by side go to objdump together."""
    if objdump is None:
        return {block.code: hex_text(block) for block in blocks}
    texts: dict[int, str] = {}
    for run in neighbours(blocks):
        start = run[0].code
        code = bytearray()
        for block in run:
            code += b"\x90" * (block.code - start - len(code)) + block.host
        lines = dict(disassembled(objdump, bytes(code), start))
        for block in run:
            inside = (lines[at] for at in range(block.code, block.code + len(block.host)) if at in lines)
            texts[block.code] = "\n".join(inside) or hex_text(block)
    return texts


def neighbours(blocks: list[Translated]) -> Iterator[list[Translated]]:
    """Blocks in groups that lie one behind the other."""
    run: list[Translated] = []
    for block in blocks:
        if run and not 0 <= block.code - (run[-1].code + len(run[-1].host)) < GAP:
            yield run
            run = []
        run.append(block)
    if run:
        yield run


def hex_text(block: Translated) -> str:
    parts = [block.host[at : at + 16] for at in range(0, len(block.host), 16)]
    return "\n".join(f"0x{block.code + 16 * n:x}:  {part.hex(' ')}" for n, part in enumerate(parts))


def disassembled(objdump: str, code: bytes, start: int) -> Iterator[tuple[int, str]]:
    """Address and line of each host instruction; none when objdump fails."""
    options = ["-D", "-b", "binary", "-m", "i386:x86-64", "-M", "intel", "--insn-width=15", f"--adjust-vma={start:#x}"]
    with tempfile.NamedTemporaryFile() as file:
        file.write(code)
        file.flush()
        # A session of its own: Ctrl-C ends the machine, not the last lines of its log.
        done = subprocess.run(
            [objdump, *options, file.name], capture_output=True, text=True, start_new_session=True, check=False
        )
    for line in done.stdout.splitlines():
        if found := re.match(r" *([0-9a-f]+):\t([0-9a-f ]+?) *\t(.*)", line):
            address = int(found[1], 16)
            yield address, f"0x{address:x}:  {found[2]:32} {found[3]}"
