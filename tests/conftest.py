"""Fixtures that several test modules share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from bare import Bare, bare_machine
from fake_driver import machine_memory
from hypothesis import HealthCheck, settings
from vsock_driver import Guest, Peers, set_up

from smp.boot import check_engine
from smp.config import MachineConfig
from smp.cpu import ConfigError
from virtio.queue import Ram

# How long an example takes, or its making, is up to the host; and no test minds a fixture that its examples share.
UNTIMED = (HealthCheck.too_slow, HealthCheck.function_scoped_fixture)
settings.register_profile("untimed", settings.default, deadline=None, suppress_health_check=UNTIMED)
settings.load_profile("untimed")


@pytest.fixture(scope="module")
def bare() -> Iterator[Bare]:
    """A machine of one hart in this process, for all tests of a module; `bare.reset()` between them is theirs."""
    with bare_machine() as made:
        yield made


@pytest.fixture(scope="module")
def translator() -> None:
    """Skips where the host can't run it."""
    try:
        check_engine(MachineConfig(engine="jit"))
    except ConfigError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def translating(translator: None) -> Iterator[Bare]:
    """`bare` with the translator."""
    with bare_machine(runs="jit") as made:
        yield made


@pytest.fixture(scope="module")
def ram() -> Iterator[Ram]:
    """The memory of a small machine, without harts or an I/O process."""
    with machine_memory() as found:
        yield found


@pytest.fixture
def ends(ram: Ram, tmp_path: Path) -> Iterator[tuple[Guest, Peers]]:
    """A driver in front of a virtio-vsock device, and programs of the host's behind it."""
    yield from set_up(ram, tmp_path)
