"""Hostile drivers, back-ends and peers for a short while; scripts/fuzz-devices goes on for as long as it is told."""

import ctypes
import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import device_fuzz
import pytest
from device_fuzz import Requests, Target, arena
from fuzz_core import Finding, Fuzzer, play_batch, play_for, read_finding, shortened, write_finding
from fuzz_memory import PAGES
from fuzz_races import PackedRingRace, RingRace
from fuzz_rings import PackedRingFuzzer, RingFuzzer
from fuzz_targets import TARGETS

from virtio.rng import Rng

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "fuzz-devices"
SECONDS = 0.4
WITHOUT = importlib.util.find_spec("atheris") is None


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_is_found(name: str) -> None:
    """A moment of each target, the same inputs each time."""
    for result in play_for(TARGETS[name], 1, SECONDS, 1_000_000):
        assert not isinstance(result, Finding), result.what


# That what is looked for would be found


class Wild(Rng):
    """Does what the fuzzer is there to find."""

    def __init__(self, harm: Callable[[], object]) -> None:
        self.harm = harm

    def handle(self, index: int) -> None:
        self.harm()


def harms(folder: Path) -> dict[str, Callable[[], object]]:
    return {
        "before RAM": lambda: ctypes.memset(PAGES[0] + 4095, 0, 1),
        "behind RAM": lambda: ctypes.memset(PAGES[1], 0, 1),
        "another file": lambda: (folder / "beside").write_text("x"),
        "a new file": lambda: (folder / "new").touch(),
        "a fault": lambda: [][0],
        "a bad descriptor": lambda: os.close(12345),
        "a descriptor kept": lambda: os.dup(1),
        "a crash": lambda: ctypes.string_at(8),
    }


@pytest.mark.parametrize("harm", harms(Path()))
@pytest.mark.parametrize("kind", [device_fuzz.Arena, Requests])
def test_the_fuzzer_finds(harm: str, kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        device_fuzz.TARGETS, "wild", Target(lambda folder: Wild(harms(folder)[harm]), lambda source: b"x")
    )
    *_, found = play_for(arena("wild", kind), 1, 1, 200)
    assert isinstance(found, Finding) and found.again and len(found.inputs) == 1


class Sleepy(Fuzzer):
    """Does not end at the second input of a kind."""

    seen: ClassVar[list[bytes]] = []

    def play(self, data: bytes) -> None:
        self.seen.append(data)
        while self.seen.count(b"x") > 1:
            time.sleep(1)


def test_a_hang_is_a_finding_with_the_inputs_that_it_takes(tmp_path: Path) -> None:
    few, what = shortened(Sleepy, [b"a", b"x", b"b", b"x", b"c"], 6)
    assert few == [b"a", b"x", b"b", b"x"] and "has not ended" in what
    write_finding(tmp_path / "found", few)
    assert read_finding(tmp_path / "found") == few


@pytest.mark.parametrize("kind", [RingFuzzer, PackedRingFuzzer, RingRace, PackedRingRace])
def test_a_ring_that_checks_too_little_is_found(kind: Any) -> None:
    class Lax(kind):  # type: ignore[misc]
        def __init__(self, folder: Path) -> None:
            super().__init__(folder)
            self.ring.ram_bytes += 2048

    Lax.prepare()
    assert "AssertionError" in play_batch(Lax, 1, 3_000_000).what


def script(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, timeout=300)


def test_the_script_plays_targets_and_findings(tmp_path: Path) -> None:
    done = script("--target", "parse-filter", "--target", "ring-split", "--minutes", "0", "--jobs", "2", "--seed", "7")
    assert done.returncode == 0 and done.stdout.startswith("seed 7\n"), done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()[1:]] == ["parse-filter", "ring-split", "all"]
    write_finding(tmp_path / "found", [b"one", b"two"])
    again = script("--target", "parse-9p", "--replay", str(tmp_path / "found"))
    assert again.returncode == 0 and "2 inputs played" in again.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--target", "floppy"), "--target floppy: no such target; one of ring-split, "),
        (("--target", "ring-split", "--atheris"), "--atheris" if WITHOUT else "ring-split: compiled code says nothing"),
        (("--replay", "nowhere", "--target", "blk"), "--replay nowhere: no such file"),
        (("--jobs", "0"), "--jobs and --inputs are at least 1"),
        (("--atheris",), "--atheris: it is not installed" if WITHOUT else "--atheris and --replay take one --target"),
    ],
)
def test_the_script_refuses(arguments: tuple[str, ...], words: str) -> None:
    done = script(*arguments)
    assert done.returncode == 2 and words in done.stderr
