"""Hostile drivers, by hypothesis for a short while; scripts/fuzz-devices goes on for as long as it is told."""

import ctypes
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from device_fuzz import PAGES, TARGETS, Arena, Target, fuzzed_memory, play_forked
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from virtio.rng import Rng


@pytest.mark.parametrize("name", TARGETS)
def test_no_driver_breaks_a_device(name: str, tmp_path: Path) -> None:
    with fuzzed_memory() as ram:
        arena = Arena(name, ram, tmp_path)

        @given(data=st.binary(min_size=8, max_size=400))
        @settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck), database=None)
        def play(data: bytes) -> None:
            arena.play(data)

        try:
            play()
            source = random.Random(1)
            for _ in range(150):
                arena.play(source.randbytes(300))
        finally:
            arena.close()


class Wild(Rng):
    """Does what the fuzzer is there to find."""

    def __init__(self, harm: Callable[[], object]) -> None:
        self.harm = harm

    def handle(self, index: int) -> None:
        self.harm()


@pytest.mark.parametrize("harm", ["before RAM", "behind RAM", "another file", "a new file", "a fault"])
def test_the_fuzzer_finds(harm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    harms: dict[str, Callable[[], object]] = {
        "before RAM": lambda: ctypes.memset(PAGES[0] + 4095, 0, 1),
        "behind RAM": lambda: ctypes.memset(PAGES[1], 0, 1),
        "another file": lambda: (tmp_path / "beside").write_text("x"),
        "a new file": lambda: (tmp_path / "new").touch(),
        "a fault": lambda: [][0],
    }
    monkeypatch.setitem(TARGETS, "wild", Target(lambda folder: Wild(harms[harm]), lambda source: b"x"))
    source = random.Random(3)
    with fuzzed_memory() as ram, pytest.raises(IndexError if harm == "a fault" else AssertionError):
        arena = Arena("wild", ram, tmp_path)
        for _ in range(20):
            arena.play(source.randbytes(300))


def test_hostile_drivers_leave_the_io_process_and_the_other_devices_alone(tmp_path: Path) -> None:
    source = random.Random(2)
    play_forked({name: [source.randbytes(250) for _ in range(15)] for name in TARGETS}, tmp_path)
