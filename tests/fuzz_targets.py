"""All targets by name."""

from device_fuzz import TARGETS as DEVICES
from device_fuzz import Arena, Requests, arena
from fuzz_core import Fuzzer
from fuzz_parsers import PARSERS
from fuzz_process import ProcessFuzzer, WindowFuzzer
from fuzz_races import RACES, Race
from fuzz_registers import RegisterFuzzer
from fuzz_rings import PackedRingFuzzer, RingFuzzer

TARGETS: dict[str, type[Fuzzer]] = {
    "ring-split": RingFuzzer,
    "ring-packed": PackedRingFuzzer,
    "registers": RegisterFuzzer,
    "windows": WindowFuzzer,
    "io-process": ProcessFuzzer,
    **RACES,
    **PARSERS,
    **{name: arena(name, Arena) for name in DEVICES},
    **{f"{name}-requests": arena(name, Requests) for name in DEVICES},
    **{f"{name}-race": arena(name, Race) for name in DEVICES},
}
