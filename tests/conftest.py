"""Fixtures that several test modules share."""

from collections.abc import Iterator

import pytest
from bare import Bare, bare_machine

from smp.boot import check_engine
from smp.config import MachineConfig
from smp.cpu import ConfigError


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
