"""Reads a user's function and says whether all it does is apply layers and Tensor operations.

A replay of a recorded step skips the Python of model and loss. That changes nothing only if this
Python has no effect of its own and takes the same way each time. Here that is proved from the
source of a function, for a small part of the language: expressions, assignments to local names,
`return`, `if` and `for` that depend on shapes and settings alone. Everything else is Opaque: its
author can still declare it recordable.

Three kinds of values are told apart. STATIC ones follow from shapes and settings; a TENSOR is one
for certain; a VALUE may be anything that a batch decides, such as labels. Objects that the source
names by attributes and globals are looked at themselves, as Known.
"""

from __future__ import annotations
import __future__

import ast
import functools
import linecache
import types
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

STATIC, TENSOR, VALUE = "static", "tensor", "value"
_SHAPES = {"dtype", "ndim", "shape", "size"}
# Of tensors, and of arrays: they change nothing, and what they compute by NumPy is seen later.
_METHODS = {"detach", "exp", "log", "max", "mean", "reshape", "sum", "transpose"}
# In a notebook, an earlier cell may have imported a feature: a flag that the source does not show.
_FUTURE = sum({getattr(__future__, name).compiler_flag for name in __future__.all_feature_names})


class Known(NamedTuple):
    """An object that the source names."""

    value: Any


class Opaque(Exception):  # noqa: N818 - not an error: the step runs eagerly
    """A function does something that this module does not understand."""


def read(audit: Any, function: types.FunctionType, owner: Any, arguments: Mapping[str, Any]) -> Any:
    """Return the kind of value that a function, perhaps of a class, returns for such arguments.

    `audit` says what objects, attributes and calls are.
    """
    reader = _Reader(audit, function, owner, arguments)
    reader.block(reader.body)
    return _common(reader.returned)


def _common(kinds: Iterable[str]) -> str:
    first, *others = {*kinds} or {VALUE}
    return VALUE if others else first


class _Reader:
    def __init__(self, audit: Any, function: Any, owner: Any, arguments: Mapping[str, Any]) -> None:
        self.audit, self.function, self.owner = audit, function, owner
        self.local = dict(arguments)
        self.returned: list[Any] = []
        node = _source(function.__code__)
        if node is None:
            raise Opaque("its source is not there")
        self.body = [ast.Return(node.body)] if isinstance(node, ast.Lambda) else node.body
        parts = [n for part in self.body for n in ast.walk(part)]
        # What is bound in a loop is bound several times.
        parts += [
            n for loop in parts if isinstance(loop, ast.For) for s in loop.body for n in ast.walk(s)
        ]
        names = (n for n in parts if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store))
        self.stores = Counter([*arguments, *(n.id for n in names)])

    def fail(self, node: ast.AST) -> Opaque:
        return Opaque(f"it does more than apply layers ({ast.unparse(node).splitlines()[0][:60]})")

    def block(self, statements: list[ast.stmt]) -> None:
        for node in statements:
            match node:
                case ast.Return(value) if value is not None:
                    self.returned.append(self.data(value))
                case ast.Assign([target], value) | ast.AnnAssign(target, _, value) if value:
                    self.assign(target, self.value(value))
                case ast.AugAssign(ast.Name(name) as target, operator, value):
                    # Of a Tensor this binds the name again; of an array it would write into it.
                    left = ast.Name(name, ast.Load())
                    if self.data(left) != TENSOR:
                        raise self.fail(node)
                    self.assign(target, self.value(ast.BinOp(left, operator, value)))
                case ast.Expr(ast.Constant()) | ast.Pass() | ast.Raise():
                    pass
                case ast.Assert(test):
                    self.static(test)
                case ast.If(test, body, other):
                    for taken in self.branches(test, body, other):
                        self.block(taken)
                case ast.For(target, source, body, []):
                    for item in self.items(source):
                        self.assign(target, item)
                        self.block(body)
                case _:
                    raise self.fail(node)

    def items(self, source: ast.expr) -> Iterator[Any]:
        found = self.value(source)
        if isinstance(found, Known) and isinstance(found.value, tuple):
            return map(Known, found.value)
        return iter([STATIC if self.data(source) == STATIC else VALUE])

    def assign(self, target: ast.expr, value: Any) -> None:
        name = target.id if isinstance(target, ast.Name) else ""
        if isinstance(value, Known) and self.stores[name] != 1:
            value = self.audit.kind(value.value)
        if isinstance(target, ast.Tuple) and value:
            for part in target.elts:
                self.assign(part, STATIC if value == STATIC else VALUE)
        # A name that is bound twice must be the same kind of thing wherever it is used.
        elif name and value and (self.stores[name] == 1 or self.local.get(name, value) == value):
            self.local[name] = value
        else:
            raise self.fail(target)

    def branches(self, test: ast.expr, first: Any, second: Any) -> list[Any]:
        """Return the branches that a step may take: one, where settings alone decide."""
        self.static(test)
        found = self.value(test)
        if isinstance(found, Known):
            return [first if found.value else second]
        return [first, second]

    def static(self, node: ast.expr) -> None:
        if self.data(node) != STATIC:
            raise self.fail(node)

    def data(self, node: ast.expr) -> str:
        """Return the kind of what is used as a value, not called or looked into."""
        found = self.value(node)
        kind: str | None = self.audit.kind(found.value) if isinstance(found, Known) else found
        if kind is None:
            raise self.fail(node)
        return kind

    def all(self, *nodes: ast.expr) -> str:
        return STATIC if {*map(self.data, nodes)} <= {STATIC} else VALUE

    def value(self, node: ast.expr) -> Any:
        match node:
            case ast.Constant(value):
                return Known(value)
            case ast.Name(name):
                if name in self.stores:
                    if name not in self.local:
                        raise self.fail(node)
                    return self.local[name]
                return Known(self.audit.named(self.function, name))
            case ast.Attribute(owner, name):
                base = self.value(owner)
                if isinstance(base, Known) and self.audit.kind(base.value) is None:
                    return Known(self.audit.attribute(base.value, name))
                if name in _SHAPES:
                    return STATIC
                if name == "T":
                    return self.data(owner)
            case ast.Subscript(owner, index):
                base, at = self.value(owner), self.all(index)
                if isinstance(base, Known) and isinstance(base.value, tuple) and at == STATIC:
                    where = self.value(index)
                    if isinstance(where, Known):
                        return Known(base.value[where.value])
                kind = self.data(owner)
                # A plain sequence could give a number that the batch has chosen.
                if kind == TENSOR or at == STATIC:
                    return kind
            case ast.Slice() | ast.Tuple() | ast.List():
                return self.all(*_operands(node))
            case ast.UnaryOp(ast.USub() | ast.UAdd(), operand):
                return self.data(operand)
            case ast.BinOp(left, _, right):
                kinds = {self.data(left), self.data(right)}
                if TENSOR in kinds or kinds == {STATIC}:
                    return TENSOR if TENSOR in kinds else STATIC
            case ast.Compare(left, [ast.Is() | ast.IsNot()], [ast.Constant(None)]):
                base, negated = self.value(left), isinstance(node.ops[0], ast.IsNot)
                if isinstance(base, Known):
                    return Known((base.value is None) != negated)
                return STATIC
            case ast.Compare() | ast.BoolOp() | ast.UnaryOp(ast.Not()):
                if self.all(*_operands(node)) == STATIC:
                    return STATIC
            case ast.IfExp(test, first, second):
                return _common(map(self.data, self.branches(test, first, second)))
            case ast.Call():
                return self.call(node)
        raise self.fail(node)

    def call(self, node: ast.Call) -> Any:
        named = {k.arg: k.value for k in node.keywords}
        if None in named:
            raise self.fail(node)
        match node.func:
            case ast.Attribute(ast.Call(ast.Name("super"), []), name) if self.owner:
                me = self.local.get(self.function.__code__.co_varnames[0])
                callee = self.audit.inherited(me, self.owner, name)
            case ast.Attribute(owner, name) if name in _METHODS and self.is_data(owner):
                if self.all(*node.args, *named.values()) != STATIC:
                    raise self.fail(node)
                return self.data(owner)
            case _:
                found = self.value(node.func)
                if not isinstance(found, Known):
                    raise self.fail(node)
                callee = found.value
        kinds = [self.argument(value) for value in node.args]
        return self.audit.call(callee, kinds, {k: self.argument(v) for k, v in named.items()})

    def argument(self, node: ast.expr) -> Any:
        """Return an argument of a call: an operation is Known, everything else is a value."""
        found = self.value(node)
        is_op = isinstance(found, Known) and self.audit.is_op(found.value)
        return found if is_op else self.data(node)

    def is_data(self, node: ast.expr) -> bool:
        found = self.value(node)
        return not isinstance(found, Known) or self.audit.kind(found.value) is not None


def _operands(node: ast.expr) -> list[ast.expr]:
    return [part for part in ast.iter_child_nodes(node) if isinstance(part, ast.expr)]


@functools.lru_cache(maxsize=256)
def _source(code: types.CodeType) -> Any:
    """Find the syntax tree of a function, if its source is there and has not changed."""
    source = "".join(linecache.getlines(code.co_filename))
    try:
        tree = ast.parse(source)
        flags = code.co_flags & _FUTURE
        whole = compile(source, code.co_filename, "exec", flags, dont_inherit=True)
    except (SyntaxError, ValueError):
        return None
    if code not in _nested(whole):
        return None
    positions = set(code.co_positions())
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            if (node.name, first) == (code.co_name, code.co_firstlineno):
                return node
        elif isinstance(node, ast.Lambda) and code.co_name == "<lambda>":
            body = node.body
            place = body.lineno, body.end_lineno, body.col_offset, body.end_col_offset
            if place in positions:
                return node
    return None


def _nested(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _nested(constant)
