"""Which row has which template: the families' tables together, and how the translator applies one."""

from mem.native import Native, call, emitted, table
from smp import templates, templates_atomic, templates_bits, templates_fp, templates_system
from smp.code import Slot
from smp.decode import LIST, emit_switch
from smp.row import Kind, Row

# Row name: template, and the two numbers that it gets.
TEMPLATES: dict[str, tuple[Native, int, int]] = {
    **templates.TEMPLATES,
    **templates_atomic.TEMPLATES,
    **templates_bits.TEMPLATES,
    **templates_fp.TEMPLATES,
    **templates_system.TEMPLATES,
}
FUNCTIONS: list[Native] = sorted({t for t, _, _ in TEMPLATES.values()}, key=lambda t: t.name)
STEP_TEMPLATE = len(FUNCTIONS)


def _template(row: Row) -> tuple[int, int, int]:
    made = TEMPLATES.get(row.base or row.name)
    return (FUNCTIONS.index(made[0]), made[1], made[2]) if made else (STEP_TEMPLATE, 0, 0)


_CHOSEN = [_template(row) for row in LIST]
TEMPLATE = table("u8", [t for t, _, _ in _CHOSEN])
OP = table("u32", [op for _, op, _ in _CHOSEN])
EXTRA = table("u16", [extra for _, _, extra in _CHOSEN])
PURE = table("u8", [row.kind is Kind.ALU for row in LIST])


@emitted
def apply_template(index: int, s: Slot, op: int, extra: int) -> None:
    """Run the row's template."""
    emit_switch(index, len(FUNCTIONS), lambda n: call(FUNCTIONS[n], s, op, extra))  # type: ignore[arg-type]
