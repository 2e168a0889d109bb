"""What the documentation names exists: files, the things in them, modules, links and sections.

In code font `folder/file.py` is a file and `folder/file.py:Class.method` something that its source binds; a word with
an underscore or dots is a name that some source binds.  Blocks of commands are read for files and modules.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ("README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))))
PACKAGES = ("mem", "smp", "virtio")
FOLDERS = (*PACKAGES, "tests", "scripts", "configs", "docs")

FILE = re.compile(rf"(?:{'|'.join(FOLDERS)})/[\w./-]*\w|[\w-]+\.(?:py|md|toml)")
IN_FILE = re.compile(r"([\w./-]+\.py):([A-Za-z_][\w.]*)")
MODULE = re.compile(rf"(?:{'|'.join(PACKAGES)})(?:\.\w+)+")
NAME = re.compile(r"[A-Za-z_]\w*")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
OF_THE_HOST = ("MAP_FIXED_NOREPLACE",)  # names with an underscore that are not ours


def test_documents_name_what_exists() -> None:
    problems = [f"{name}: {what}" for name in DOCUMENTS for what in missing((ROOT / name).read_text(), ROOT / name)]
    assert not problems, "\n".join(problems)


def test_the_architecture_names_every_device_of_the_bus() -> None:
    text = (ROOT / "docs/ARCHITECTURE.md").read_text()
    devices = re.findall(r"^from (mem\.\w+) import .*_write\b", (ROOT / "mem/bus.py").read_text(), re.MULTILINE)
    assert len(devices) > 5
    assert [name for name in devices if name.replace(".", "/") + ".py" not in text] == []


@pytest.mark.parametrize(
    "text",
    [
        "`mem/mmu.py` `mem/mmu.py:translate` `mem/tlb.py:Mmu.satp` `mem/tlb.py:EMPTY`",
        "`mem/uart.py:Register.LCR` `mem/atomics.py:aload32` `smp/machine.py:Run.open` `mem/mmu.py:PTE_N`",
        "`smp/decode.py:handler_keys` `tests/guest` `scripts/boot -smp 8` `python -m smp.guest --refresh`",
        "`smp.initramfs.overlay` `HARTBEAT_CACHE` `pc` `-smp 4` `~/.cache/hartbeat` `take_trap` `note_large()`",
        "[a](LICENSE) [b](docs/ARCHITECTURE.md#known-limits) [c](https://example.org/none) [d](#license)",
        "```sh\nscripts/boot -drive file=disk.img\n```",
    ],
)
def test_what_exists_is_no_problem(text: str) -> None:
    assert missing(text, ROOT / "README.md") == []


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("`mem/mmuu.py`", "mem/mmuu.py"),
        ("`tests/gone/`", "tests/gone"),
        ("`gone.py`", "gone.py"),
        ("`scripts/bot -smp 8`", "scripts/bot"),
        ("`mem/mmuu.py:translate`", "mem/mmuu.py"),
        ("`mem/mmu.py:transmogrify`", "transmogrify"),
        ("`mem/tlb.py:Mmu.satpp`", "Mmu.satpp"),
        ("`mem/mmu.py:cas64`", "cas64"),  # imported there, not its own
        ("`mem/mmu.py:pte_address`", "pte_address"),  # a local variable
        ("`python -m smp.gest`", "smp.gest"),
        ("`smp.initramfs.underlay`", "smp.initramfs.underlay"),
        ("`no_such_name`", "no_such_name"),
        ("`no_such_name()`", "no_such_name"),
        ("[a](docs/NONE.md)", "docs/NONE.md"),
        ("[a](docs/ARCHITECTURE.md#no-such-section)", "no-such-section"),
        ("[a](#two)", "#two"),
        ("```sh\nscripts/bot\n```", "scripts/bot"),
    ],
)
def test_what_does_not_exist_is_reported(text: str, named: str) -> None:
    found = missing(text, ROOT / "README.md")
    assert len(found) == 1
    assert named in found[0]


def missing(text: str, document: Path) -> list[str]:
    """What the text names and is not there, in words."""
    prose = FENCE.sub("", text)
    found = [what for word in words(text) for what in missing_word(word)]
    found += [f"`{name}` is bound by no source" for name in loose_names(prose) if name not in all_names()]
    return found + [what for target in LINK.findall(prose) for what in missing_link(target, document)]


def words(text: str) -> Iterator[str]:
    """Words of code font and of blocks."""
    for block in FENCE.findall(text):
        yield from block.split()
    for span in spans(FENCE.sub("", text)):
        yield from span.split()


def spans(prose: str) -> list[str]:
    """What stands in code font."""
    return re.findall(r"`([^`]+)`", prose)


def missing_word(word: str) -> list[str]:
    """A file, something in a file, or a module; any other word is none of ours."""
    word = word.rstrip(".,;:/")
    if match := IN_FILE.fullmatch(word):
        return missing_in_file(match[1], match[2])
    if FILE.fullmatch(word) and not (ROOT / word).exists():
        return [f"`{word}` is no file or folder"]
    if MODULE.fullmatch(word) and not is_module_or_in_one(word):
        return [f"`{word}` is no module or name in one"]
    return []


def missing_in_file(file: str, name: str) -> list[str]:
    path = ROOT / file
    if not path.exists():
        return [f"`{file}` is no file or folder"]
    return [] if name in names_of(path) else [f"`{file}` binds no `{name}`"]


def is_module_or_in_one(dotted: str) -> bool:
    parts = dotted.split(".")
    for count in range(len(parts), 1, -1):
        path = ROOT.joinpath(*parts[:count])
        if path.is_dir() or (count == len(parts) and path.with_suffix(".py").exists()):
            return True
        if path.with_suffix(".py").exists():
            return ".".join(parts[count:]) in names_of(path.with_suffix(".py"))
    return False


def loose_names(prose: str) -> list[str]:
    """Names in code font without their file, as far as they can only be ours: those with an underscore."""
    candidates = [span.removesuffix("()") for span in spans(prose)]
    ours = [name for name in candidates if NAME.fullmatch(name) and "_" in name.strip("_")]
    return [name for name in ours if not name.startswith(("HARTBEAT_", "XDG_")) and name not in OF_THE_HOST]


def missing_link(target: str, document: Path) -> list[str]:
    if re.match(r"[a-z]+:", target):
        return []
    file, _, section = target.partition("#")
    path = document.parent / file if file else document
    if not path.exists():
        return [f"link to {target}: no such file"]
    if section and section not in sections(path.read_text()):
        return [f"link to {target}: no such section"]
    return []


def sections(text: str) -> set[str]:
    """Anchors of the headings, as hosts of repositories make them."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@cache
def all_names() -> set[str]:
    """Every name that a source of the packages binds, parts of dotted ones too."""
    paths = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    return {part for path in paths for name in names_of(path) for part in name.split(".")}


@cache
def names_of(path: Path) -> set[str]:
    """What a source binds at its top and in its classes, those as Class.name."""
    return set(bound(ast.parse(path.read_text()).body))


def bound(body: list[ast.stmt], prefix: str = "") -> Iterator[str]:
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield prefix + node.name
            if isinstance(node, ast.ClassDef):
                yield from bound(node.body, f"{prefix}{node.name}.")
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                yield from (prefix + n.id for n in ast.walk(target) if isinstance(n, ast.Name))
        elif isinstance(node, (ast.If, ast.For, ast.With, ast.Try)):
            yield from bound(node.body, prefix)
