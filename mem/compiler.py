"""Compiles a native of mem/native.py: from the syntax tree of its Python function to an LLVM function.

A method for each kind of statement (`do_`) and of expression (`of_`); what has none is not of the language.
"""

import ast
import inspect
import textwrap
from collections.abc import Callable
from enum import IntEnum
from typing import Any, get_type_hints

from llvmlite import ir

from mem import layout as lay
from mem.native import (
    Native,
    NativeError,
    Place,
    Record,
    Table,
    Unit,
    as_word,
    building,
    call,
    element,
    field,
    load,
    read,
    ref,
    write,
)
from mem.word import I1, I64, MASK64, Bool, V, builder, const, emitting, raw, truth

_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.BitAnd: lambda a, b: a & b,
    ast.BitOr: lambda a, b: a | b,
    ast.BitXor: lambda a, b: a ^ b,
    ast.LShift: lambda a, b: a << b,
    ast.RShift: lambda a, b: a >> b,
}
_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: lambda a, b: a == b,
    ast.NotEq: lambda a, b: a != b,
    ast.Lt: lambda a, b: a < b,
    ast.LtE: lambda a, b: a <= b,
    ast.Gt: lambda a, b: a > b,
    ast.GtE: lambda a, b: a >= b,
}


class Compiler:
    """Compiles one native's syntax tree into its LLVM function."""

    def __init__(self, target: Unit, item: Native) -> None:
        self.unit, self.item = target, item
        self.ir = target.functions[item]
        self.locals: dict[str, tuple[ir.Value, Any]] = {}
        self.loops: list[tuple[ir.Block, ir.Block]] = []
        source = textwrap.dedent(inspect.getsource(item.function))
        self.tree: Any = ast.parse(source).body[0]
        closure = inspect.getclosurevars(item.function).nonlocals
        self.globals = {**item.function.__globals__, **closure}

    def run(self) -> None:
        """Compile the body."""
        entry = self.ir.append_basic_block("entry")
        body = self.ir.append_basic_block("body")
        self.entry = ir.IRBuilder(entry)
        b = ir.IRBuilder(body)
        with building(self.unit), emitting(b):
            for (name, hint), argument in zip(self.item.parameters().items(), self.ir.args, strict=True):
                self._declare(name, V(argument), hint)
            self.block(self.tree.body)
            if not b.block.is_terminated:
                b.ret(const(0))
        self.entry.position_at_end(entry)
        self.entry.branch(body)

    def _declare(self, name: str, value: V, hint: Any) -> None:
        cls = hint if isinstance(hint, type) and issubclass(hint, lay.Layout) else None
        self.entry.position_at_end(self.entry.block)
        slot = self.entry.alloca(I64, name=name)
        self.locals[name] = (slot, cls)
        builder().store(raw(value), slot)

    def fail(self, node: ast.AST, why: str) -> NativeError:
        code = self.item.function.__code__
        line = code.co_firstlineno + getattr(node, "lineno", 1) - 1
        return NativeError(f"{code.co_filename}:{line}: {self.item.__name__}: {why}")

    # Statements

    def block(self, statements: list[ast.stmt]) -> None:
        for statement in statements:
            if builder().block.is_terminated:
                return
            handler = getattr(self, "do_" + type(statement).__name__, None)
            if handler is None:
                raise self.fail(statement, f"{type(statement).__name__} is not part of the language")
            try:
                handler(statement)
            except (NativeError, TypeError, AttributeError, KeyError) as error:
                if isinstance(error, NativeError) and ": " in str(error) and ".py:" in str(error):
                    raise
                raise self.fail(statement, f"{type(error).__name__}: {error}") from error

    def do_Pass(self, node: ast.Pass) -> None:
        pass

    def do_Expr(self, node: ast.Expr) -> None:
        if not isinstance(node.value, ast.Constant):
            self.value(node.value)

    def do_Assign(self, node: ast.Assign) -> None:
        value = self.value(node.value)
        for target in node.targets:
            self.assign(target, value)

    def do_AnnAssign(self, node: ast.AnnAssign) -> None:
        assert node.value is not None
        self.assign(node.target, self.value(node.value))

    def do_AugAssign(self, node: ast.AugAssign) -> None:
        current = self.value(_as_load(node.target))
        self.assign(node.target, _BINARY[type(node.op)](current, self.word(node.value)))

    def assign(self, target: ast.expr, value: Any) -> None:
        if isinstance(target, ast.Name):
            if target.id not in self.locals:
                cls = value.cls if isinstance(value, Record) else None
                self.entry.position_at_end(self.entry.block)
                self.locals[target.id] = (self.entry.alloca(I64, name=target.id), cls)
            slot, cls = self.locals[target.id]
            if cls is not None and not isinstance(value, Record):
                raise self.fail(target, f"{target.id} is a record, not a word")
            builder().store(raw(as_word(value)), slot)
        else:
            write(self.place(target), value)

    def do_Return(self, node: ast.Return) -> None:
        builder().ret(raw(self.word(node.value)) if node.value is not None else const(0))

    def do_If(self, node: ast.If) -> None:
        condition = self.condition(node.test)
        if isinstance(condition, bool):
            self.block(node.body if condition else node.orelse)
            return
        b = builder()
        then, after = self.ir.append_basic_block("then"), self.ir.append_basic_block("after")
        other = self.ir.append_basic_block("else") if node.orelse else after
        b.cbranch(condition, then, other)
        self._arm(then, node.body, after)
        if node.orelse:
            self._arm(other, node.orelse, after)
        b.position_at_end(after)
        if not after.is_terminated and not self._reached(after):
            b.unreachable()

    def _reached(self, block: ir.Block) -> bool:
        return any(block in (t.operands if t else ()) for b in self.ir.blocks for t in [b.terminator])

    def _arm(self, start: ir.Block, body: list[ast.stmt], after: ir.Block) -> None:
        builder().position_at_end(start)
        self.block(body)
        if not builder().block.is_terminated:
            builder().branch(after)

    def do_While(self, node: ast.While) -> None:
        b = builder()
        test, body, after = (self.ir.append_basic_block(n) for n in ("test", "loop", "done"))
        b.branch(test)
        b.position_at_end(test)
        condition = self.condition(node.test)
        if isinstance(condition, bool):
            condition = ir.Constant(I1, int(condition))
        b.cbranch(condition, body, after)
        self.loops.append((test, after))
        self._arm(body, node.body, test)
        self.loops.pop()
        b.position_at_end(after)

    def do_For(self, node: ast.For) -> None:
        """`for i in range(...)`: the step is a positive constant."""
        if not (isinstance(node.iter, ast.Call) and getattr(node.iter.func, "id", "") == "range"):
            raise self.fail(node, "for loops run over range()")
        bounds = [self.word(a) for a in node.iter.args]
        start, stop = (0, bounds[0]) if len(bounds) == 1 else bounds[:2]
        step = bounds[2] if len(bounds) == 3 else 1
        self.assign(node.target, start)
        b = builder()
        test, body, advance, after = (self.ir.append_basic_block(n) for n in ("test", "loop", "next", "done"))
        b.branch(test)
        b.position_at_end(test)
        b.cbranch(truth(self.value(_as_load(node.target)) < stop), body, after)
        self.loops.append((advance, after))
        self._arm(body, node.body, advance)
        self.loops.pop()
        b.position_at_end(advance)
        self.assign(node.target, self.value(_as_load(node.target)) + step)
        b.branch(test)
        b.position_at_end(after)

    def do_Break(self, node: ast.Break) -> None:
        builder().branch(self.loops[-1][1])

    def do_Continue(self, node: ast.Continue) -> None:
        builder().branch(self.loops[-1][0])

    def do_Match(self, node: ast.Match) -> None:
        b = builder()
        subject = raw(self.word(node.subject))
        after = self.ir.append_basic_block("matched")
        default = self.ir.append_basic_block("case_else")
        switch = b.switch(subject, default)
        fallback: list[ast.stmt] = []
        for case in node.cases:
            patterns = case.pattern.patterns if isinstance(case.pattern, ast.MatchOr) else [case.pattern]
            if isinstance(patterns[0], ast.MatchAs):
                fallback = case.body
                continue
            start = self.ir.append_basic_block("case")
            for pattern in patterns:
                assert isinstance(pattern, ast.MatchValue)
                switch.add_case(const(self.value(pattern.value)), start)
            self._arm(start, case.body, after)
        self._arm(default, fallback, after)
        b.position_at_end(after)
        if not self._reached(after):
            b.unreachable()

    # Expressions

    def condition(self, node: ast.expr) -> Any:
        """An i1, or a Python bool when it is known now."""
        value = as_word(self.value(node))
        return bool(value) if isinstance(value, int) else truth(value)

    def word(self, node: ast.expr) -> Any:
        """A V or a Python integer."""
        return as_word(self.value(node))

    def value(self, node: ast.expr) -> Any:
        handler = getattr(self, "of_" + type(node).__name__, None)
        if handler is None:
            raise self.fail(node, f"{type(node).__name__} is not part of the language")
        return handler(node)

    def of_Constant(self, node: ast.Constant) -> Any:
        if not isinstance(node.value, (int, bool)):
            raise self.fail(node, f"{node.value!r} is no word")
        return int(node.value)

    def of_Name(self, node: ast.Name) -> Any:
        if node.id in self.locals:
            slot, cls = self.locals[node.id]
            value = V(builder().load(slot, typ=I64))
            return Record(value, cls) if cls else value
        return self._known(node, self._global(node, node.id))

    def _global(self, node: ast.AST, name: str) -> Any:
        if name in self.globals:
            return self.globals[name]
        builtins = self.globals["__builtins__"]
        found = builtins.get(name) if isinstance(builtins, dict) else getattr(builtins, name, None)
        if found is None:
            raise self.fail(node, f"{name} is not defined here")
        return found

    def _known(self, node: ast.AST, value: Any) -> Any:
        return int(value) if isinstance(value, (int, IntEnum)) else value

    def of_Attribute(self, node: ast.Attribute) -> Any:
        owner = self.value(node.value)
        if isinstance(owner, Place):
            owner = read(owner)
        if isinstance(owner, Record):
            return read(field(owner, node.attr))
        return self._known(node, getattr(owner, node.attr))

    def of_Subscript(self, node: ast.Subscript) -> Any:
        owner = self.value(node.value)
        index = self.word(node.slice)
        if isinstance(owner, Table):
            if isinstance(index, int):
                return owner.values[index]
            array = self.unit.table(owner)
            base = V(builder().ptrtoint(array, I64))
            return load(base + index * owner.bytes, owner.bytes)
        if isinstance(owner, (list, tuple)) and isinstance(index, int):
            return self._known(node, owner[index])
        return read(element(owner, index))

    def place(self, node: ast.expr) -> Place:
        """Where a field or an element lies."""
        if isinstance(node, ast.Attribute):
            owner = self.value(node.value)
            if not isinstance(owner, Record):
                raise self.fail(node, "only a record's field has a place")
            return field(owner, node.attr)
        if isinstance(node, ast.Subscript):
            return element(self.value(node.value), self.word(node.slice))
        raise self.fail(node, "this has no place in memory")

    def of_BinOp(self, node: ast.BinOp) -> Any:
        a, b = self.word(node.left), self.word(node.right)
        if isinstance(node.op, (ast.FloorDiv, ast.Mod)):
            return self._divide(node, a, b)
        if type(node.op) not in _BINARY:
            raise self.fail(node, f"{type(node.op).__name__} is not part of the language")
        return _BINARY[type(node.op)](a, b)

    def _divide(self, node: ast.BinOp, a: Any, b: Any) -> Any:
        quotient = isinstance(node.op, ast.FloorDiv)
        if isinstance(a, int) and isinstance(b, int):
            return a // b if quotient else a % b
        if not isinstance(b, int) or b == 0:
            raise self.fail(node, "the divisor must be a constant: use divu() or remu()")
        return V(builder().udiv(raw(a), const(b)) if quotient else builder().urem(raw(a), const(b)))

    def of_UnaryOp(self, node: ast.UnaryOp) -> Any:
        value = self.word(node.operand)
        if isinstance(node.op, ast.Not):
            return (not value) if isinstance(value, int) else Bool(builder().not_(truth(value)))
        return -value if isinstance(node.op, ast.USub) else ~value

    def of_Compare(self, node: ast.Compare) -> Any:
        if isinstance(node.ops[0], (ast.In, ast.NotIn)):
            return self._member(node)
        words = [self.word(n) for n in [node.left, *node.comparators]]
        result: Any = None
        for op, a, b in zip(node.ops, words, words[1:], strict=False):
            if isinstance(a, int) and isinstance(b, int):
                part: Any = bool(_COMPARE[type(op)](a & MASK64, b & MASK64))
            else:
                part = _COMPARE[type(op)](a if isinstance(a, V) else V(const(a)), b)
            result = part if result is None else result & part
        return result

    def _member(self, node: ast.Compare) -> Any:
        """`a in (x, y)`: equal to one of the words of a tuple."""
        if not isinstance(node.comparators[0], ast.Tuple):
            raise self.fail(node, "in takes a tuple of words")
        subject = V(raw(self.word(node.left)))
        found: Any = None
        for item in node.comparators[0].elts:
            same = subject == self.word(item)
            found = same if found is None else found | same
        return found if isinstance(node.ops[0], ast.In) else Bool(builder().not_(truth(found)))

    def of_BoolOp(self, node: ast.BoolOp) -> Any:
        """Short circuit; the result is a truth value."""
        is_and = isinstance(node.op, ast.And)
        first = self.condition(node.values[0])
        rest = node.values[1:]
        if not rest:
            return first if isinstance(first, bool) else Bool(first)
        tail = ast.copy_location(ast.BoolOp(node.op, rest), node)
        if isinstance(first, bool):
            return self.of_BoolOp(tail) if first == is_and else first
        b = builder()
        more, after = self.ir.append_basic_block("more"), self.ir.append_basic_block("known")
        origin = b.block
        b.cbranch(first, *((more, after) if is_and else (after, more)))
        b.position_at_end(more)
        second = self.of_BoolOp(tail)
        second_value = truth(second)
        came_from = b.block
        b.branch(after)
        b.position_at_end(after)
        phi = b.phi(I1)
        phi.add_incoming(ir.Constant(I1, int(not is_and)), origin)
        phi.add_incoming(second_value, came_from)
        return Bool(phi)

    def of_IfExp(self, node: ast.IfExp) -> Any:
        condition = self.condition(node.test)
        if isinstance(condition, bool):
            return self.value(node.body if condition else node.orelse)
        b = builder()
        then, other, after = (self.ir.append_basic_block(n) for n in ("then", "else", "chosen"))
        b.cbranch(condition, then, other)
        incoming = []
        cls: Any = None
        for start, expression in ((then, node.body), (other, node.orelse)):
            b.position_at_end(start)
            chosen = self.value(expression)
            cls = chosen.cls if isinstance(chosen, Record) else cls
            incoming.append((raw(as_word(chosen)), b.block))
            b.branch(after)
        b.position_at_end(after)
        phi = b.phi(I64)
        for value, origin in incoming:
            phi.add_incoming(value, origin)
        return Record(V(phi), cls) if cls else V(phi)

    def of_Call(self, node: ast.Call) -> Any:
        if node.keywords:
            raise self.fail(node, "calls take no keywords")
        function: Any = self._callee(node)
        if function is ref:
            return self.place(node.args[0]).address
        if isinstance(function, Native):
            args = [self.word(a) for a in node.args]
            if len(args) != len(function.parameters()):
                raise self.fail(node, f"{function.__name__} takes {len(function.parameters())} arguments")
            result = call(function, *args)
            returns = get_type_hints(function.function).get("return")
            if isinstance(returns, type) and issubclass(returns, lay.Layout):
                return Record(result, returns)
            return result
        if getattr(function, "__func__", None) is lay.Layout.at.__func__:  # type: ignore[attr-defined]
            return Record(V(raw(self.word(node.args[0]))), function.__self__)
        if getattr(function, "__func__", None) is lay.Layout.sizeof.__func__:  # type: ignore[attr-defined]
            return function()
        if getattr(function, "is_macro", False):
            return function(*[self.word(a) for a in node.args])
        if function in (min, max, len, int) or isinstance(function, type):
            return int(function(*[self.value(a) for a in node.args]))
        raise self.fail(node, f"{ast.unparse(node.func)} can't be called here")

    def _callee(self, node: ast.Call) -> Any:
        if isinstance(node.func, ast.Name):
            return self._global(node, node.func.id)
        assert isinstance(node.func, ast.Attribute), "calls go to named functions"
        return getattr(self._plain(node.func.value), node.func.attr)

    def _plain(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Name):
            return self._global(node, node.id)
        if isinstance(node, ast.Attribute):
            return getattr(self._plain(node.value), node.attr)
        raise self.fail(node, "calls go to named functions")


def _as_load(node: ast.expr) -> ast.expr:
    """The same expression, read instead of written."""
    made = ast.parse(ast.unparse(node), mode="eval").body
    return ast.copy_location(made, node)
