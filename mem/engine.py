"""Builds, caches and loads the compiled engine: all natives (and what else is added) as one host object file.

The object is kept in the cache directory under a digest of every source file of the packages, the versions of
Python and llvmlite and the host processor; a warm start only links it.  Nothing in the cache is executed without
its digest matching, and the directory is readable by its owner alone.
"""

import hashlib
import io
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import llvmlite
from llvmlite import binding as llvm

from mem.cachedir import cache_directory
from mem.native import Native, Unit, building

_state: dict[str, Any] = {}


def _digest(sources: list[Path], machine: Any, label: str) -> str:
    made = hashlib.sha256()
    parts = [label, sys.version, llvmlite.__version__, machine.triple, llvm.get_host_cpu_name(), _features()]
    made.update("\0".join(parts).encode())
    for path in sources:
        made.update(path.name.encode() + b"\0" + path.read_bytes())
    return made.hexdigest()[:32]


def _features() -> str:
    return llvm.get_host_cpu_features().flatten()


def _target() -> Any:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    llvm.initialize_native_asmparser()
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=_features(), opt=2, codemodel="jitdefault", jit=True
    )


def compile_unit(unit: Unit, machine: Any, level: int = 2) -> bytes:
    """Optimise a unit and give the host object file's bytes."""
    unit.module.triple = machine.triple
    unit.module.data_layout = str(machine.target_data)
    parsed = llvm.parse_assembly(str(unit.module))
    parsed.verify()
    options = llvm.create_pipeline_tuning_options(speed_level=level)
    passes = llvm.create_pass_builder(machine, options)
    manager = passes.getModulePassManager()
    manager.run(parsed, passes)
    return machine.emit_object(parsed)


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as out:
        out.write(data)
    os.chmod(out.name, 0o600)
    os.replace(out.name, path)


def _link(data: bytes, machine: Any) -> Any:
    empty = llvm.parse_assembly(f'target triple = "{machine.triple}"\n')
    linked = llvm.create_mcjit_compiler(empty, machine)
    linked.add_object_file(llvm.ObjectFileRef.from_data(data))
    linked.finalize_object()
    return linked


def load(
    label: str,
    sources: list[Path],
    build: Callable[[Unit], None],
    progress: Callable[[str], None] = lambda text: None,
) -> Any:
    """Link the engine of these sources, compiling it first when it is not cached; binds every native.

    `build` adds to the unit what is not a plain native.  Gives LLVM's execution engine (symbol look-up).
    """
    if label in _state:
        return _state[label][0]
    machine = _target()
    path = cache_directory() / "engine" / f"{label}-{_digest(sources, machine, label)}.o"
    try:
        data = path.read_bytes()
    except OSError:
        started = time.monotonic()
        progress("compiling the engine (once)")
        data = _compile(build, machine)
        _write(path, data)
        progress(f"engine compiled in {time.monotonic() - started:.1f} s")
    linked = _link(data, machine)
    for item in Native.registry:
        address = linked.get_function_address(item.name)
        if address:
            item.bind(address)
    _state[label] = linked, data
    return linked


def functions(label: str) -> Iterator[tuple[int, int, str]]:
    """Host address, bytes and name of each function in a loaded engine."""
    from elftools.elf.elffile import ELFFile

    linked, data = _state[label]
    bases: dict[int, int] = {}  # where a section lies, by its number in the file
    local = []
    for section in ELFFile(io.BytesIO(data)).iter_sections("SHT_SYMTAB"):
        for symbol in section.iter_symbols():  # type: ignore[attr-defined]
            if symbol["st_info"]["type"] != "STT_FUNC":
                continue
            address = linked.get_function_address(symbol.name)
            if address:
                bases[symbol["st_shndx"]] = address - symbol["st_value"]
            local.append((symbol["st_shndx"], symbol["st_value"], symbol["st_size"], symbol.name))
    for number, value, size, name in local:
        if number in bases:
            yield bases[number] + value, size, name


def _compile(build: Callable[[Unit], None], machine: Any) -> bytes:
    unit = Unit()
    with building(unit):
        build(unit)
        for item in Native.registry:
            if not item.inline:
                unit.function(item)
        unit.finish()
    return compile_unit(unit, machine)
