"""Who knows what in virtio: back-ends know no transport, the transport knows no device, rings know neither."""

import ast
import re
from pathlib import Path

import pytest

from smp.engine import sources

VIRTIO = Path(__file__).resolve().parent.parent / "virtio"
TRANSPORT = ("mmio", "process")
RINGS = ("queue", "request", "ring", "split", "packed", "ram", "features")
NO_DEVICES = (*TRANSPORT, *RINGS, "device", "host", "chardev", "serial", "image", "__init__")


def imports(path: Path) -> set[str]:
    """The modules that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module}
    return found


def is_backend(path: Path) -> bool:
    return any(
        isinstance(node, ast.ClassDef)
        and any(isinstance(base, ast.Name) and base.id == "Device" for base in node.bases)
        for node in ast.walk(ast.parse(path.read_text()))
    )


BACKENDS = sorted(path for path in VIRTIO.glob("*.py") if is_backend(path))


def test_the_backends_are_found() -> None:
    assert {"blk", "console", "rng"} <= {path.stem for path in BACKENDS}
    assert not {path.stem for path in BACKENDS} & set(NO_DEVICES)


def test_the_smallest_backend_stays_small() -> None:
    assert len((VIRTIO / "rng.py").read_text().splitlines()) <= 25


@pytest.mark.parametrize("path", BACKENDS, ids=lambda path: path.stem)
def test_a_backend_mentions_no_transport(path: Path) -> None:
    assert not re.search(r"mmio|mem\.window|QueueNotify|Interrupt_?Status", path.read_text(), re.IGNORECASE)
    forbidden = {*TRANSPORT, "split", "packed", "ring"}
    assert not imports(path) & {"mem.window", "mem.plic", *(f"virtio.{name}" for name in forbidden)}


@pytest.mark.parametrize("name", ["mmio", *RINGS])
def test_transport_and_rings_mention_no_device(name: str) -> None:
    text = (VIRTIO / f"{name}.py").read_text()
    devices = "|".join(path.stem for path in BACKENDS)
    assert not re.search(rf"\b({devices}|disk|network|9p|entropy)\b", text, re.IGNORECASE)
    assert not imports(VIRTIO / f"{name}.py") & {f"virtio.{path.stem}" for path in BACKENDS}


@pytest.mark.parametrize("name", RINGS)
def test_rings_know_no_registers(name: str) -> None:
    assert not imports(VIRTIO / f"{name}.py") & {"virtio.mmio", "virtio.device", "virtio.process", "mem.window"}


def test_the_engine_is_compiled_anew_when_a_native_changes() -> None:
    """It is cached by its sources, so a file of natives that is none of them would be stale, or missing."""
    files = {path for path in VIRTIO.glob("*.py") if "\n@native" in path.read_text()}
    assert VIRTIO / "merge.py" in files
    assert files <= set(sources())
