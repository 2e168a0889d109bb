"""What targets in compiled code share: natives of the tests, compiled beside the engine, and dice for them."""

from typing import Any

from mem import engine as compiler
from mem.layout import Layout, layout, u64
from mem.native import Native, Unit, building, native


@layout
class Dice(Layout):
    """Random numbers from a seed (splitmix64)."""

    state: u64


def of_tests(item: Any) -> Any:
    """Decorator, above @native: it belongs to the tests and not to the engine."""
    Native.registry.remove(item)
    return item


@of_tests
@native(inline=True)
def roll(dice: Dice) -> int:
    """The next 64 random bits."""
    dice.state += 0x9E3779B97F4A7C15
    x = dice.state
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@of_tests
@native(inline=True)
def below(dice: Dice, limit: int) -> int:
    """A number from 0 up to and without a limit of at most 32 bits."""
    return ((roll(dice) & 0xFFFFFFFF) * limit) >> 32


_linked: list[Any] = []


def compile_natives(*natives: Any) -> None:
    """Give them code, which lives as long as the process; once is enough."""
    if natives[0].address:
        return
    unit, target = Unit("tests"), compiler._target()
    with building(unit):
        for item in natives:
            unit.function(item)
        unit.finish()
    linked = compiler._link(compiler.compile_unit(unit, target), target)
    for item in natives:
        item.bind(linked.get_function_address(item.name))
    _linked.append(linked)
