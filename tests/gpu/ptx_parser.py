"""Reads a PTX text: variables, and for each kernel its instructions with resolved operands."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from tests.gpu.ptx_ops import TYPES


class Register(NamedTuple):
    """A register: its number in the function, and 1 (a predicate), 16, 32 or 64 bits."""

    slot: int
    bits: int


class Not(NamedTuple):
    """The opposite of a predicate."""

    register: Register


class Immediate(NamedTuple):
    """A constant: an integer, or the bits of a float of `size` bytes."""

    number: int
    size: int

    @functools.cache  # noqa: B019 - as many as there are constants in the texts
    def value(self, dtype: Any) -> Any:
        """The constant in a type."""
        if self.size and dtype.itemsize != self.size:
            # A float32 constant of an instruction for float64.
            own = np.dtype(f"u{self.size}").type(self.number)
            return dtype.type(own.view(f"f{self.size}"))
        if dtype.kind == "b":
            return np.bool_(self.number != 0)
        kind = np.dtype(f"u{dtype.itemsize}")
        return kind.type(self.number % 2 ** (8 * dtype.itemsize)).view(dtype)


class Special(NamedTuple):
    """A register that the hardware fills, such as tid.x."""

    name: str


class Symbol(NamedTuple):
    """The address of a variable."""

    name: str


class Label(NamedTuple):
    """A place in the code."""

    name: str


class Vector(NamedTuple):
    """Several registers in braces, or the two results of setp and shfl; None is thrown away."""

    parts: tuple[Any, ...]


class Address(NamedTuple):
    """[base + offset]."""

    base: Any
    offset: int


class Instruction(NamedTuple):
    """An instruction: its name and the parts of the opcode after it."""

    line: int
    text: str
    guard: Any
    opcode: str
    name: str
    parts: list[str]
    operands: tuple[Any, ...]


class Variable(NamedTuple):
    """A variable in memory; `size` is None where the launch says how large it is."""

    space: str
    name: str
    align: int
    size: int | None
    data: bytes


class DeviceFunction(NamedTuple):
    """A function that kernels call: its parameters, the returned ones first, and its statements."""

    parameters: list[str]
    body: list[tuple[int, str]]


class Function:
    """A kernel. Calls are replaced by what they call.

    Parameters
    ----------
    name : str
    parameters : list of Variable
    devices : dict of str to DeviceFunction
    """

    def __init__(
        self, name: str, parameters: list[Variable], devices: dict[str, DeviceFunction]
    ) -> None:
        self._devices, self._calls, self._suffix = devices, 0, ""
        self.name, self.parameters = name, parameters
        self.variables = list(parameters)
        self.code: list[Instruction] = []
        self.labels: dict[str, int] = {}
        self.visited = bytearray()
        self._scopes: list[dict[str, Any]] = [{}]
        self._slots = 0

    def layouts(self, dynamic: int) -> dict[str, dict[str, tuple[int, int]]]:
        """(start, size) of the variables in shared, local and parameter memory, by space."""
        found: dict[str, dict[str, tuple[int, int]]] = {}
        for space in ("shared", "local", "param"):
            end, places = 0, found.setdefault(space, {})
            for variable in self.variables:
                if variable.space == space:
                    size = dynamic if variable.size is None else variable.size
                    start = -(-end // 16) * 16
                    places[variable.name] = start, size
                    # A gap: an access just beyond a variable must not hit the next.
                    end = start + size + 16
        return found

    def _register(self, name: str) -> Any:
        """The register of a name, or the variable by which a call gets or returns something."""
        prefix = name.rstrip("0123456789")
        for scope in reversed(self._scopes):
            if name in scope:
                return scope[name]
            if prefix + "<>" in scope:
                scope[name] = self._new(scope[prefix + "<>"])
                return scope[name]
        return None

    def _new(self, bits: int) -> Register:
        self._slots += 1
        return Register(self._slots, bits)

    def _declare(self, statement: str) -> None:
        """Registers of `.reg .b32 %r<4>, %x`."""
        _, kind, names = statement.split(None, 2)
        bits = 1 if kind == ".pred" else 8 * TYPES[kind[1:]].itemsize
        for name in names.split(","):
            name = name.strip()
            if "<" in name:
                self._scopes[-1][name.split("<")[0] + "<>"] = bits
            else:
                self._scopes[-1][name] = self._new(bits)

    def add(self, line: int, statement: str) -> None:
        """Take in a statement of the body."""
        if statement == "{":
            self._scopes.append({})
        elif statement == "}":
            self._scopes.pop()
        elif statement.endswith(":"):
            self.labels[statement[:-1] + self._suffix] = len(self.code)
        elif statement.startswith(".reg"):
            self._declare(statement)
        elif found := _variable(statement):
            if found.space == "param":
                # What goes to and from a function is a variable of the thread.
                found = found._replace(space="local", name=f"{found.name}@{len(self.variables)}")
                self._scopes[-1][statement.split()[-1].split("[")[0]] = Symbol(found.name)
            self.variables.append(found)
        elif (call := _CALL.fullmatch(statement)) and call[2] in self._devices:
            self._inline(call)
        elif self._suffix and (returned := _RETURN.fullmatch(statement)):
            text = f"{returned[1] or ''}bra $return"
            self.code.append(self._instruction(line, text))
            self.visited.append(0)
        elif not statement.startswith((".pragma", ".loc", ".branchtargets")):
            self.code.append(self._instruction(line, statement))
            self.visited.append(0)

    def _inline(self, call: re.Match[str]) -> None:
        """Take in the body of a function, with labels of its own."""
        device, before = self._devices[call[2]], self._suffix
        self._calls += 1
        arguments = [self._register(name) for part in (1, 3) for name in _split(call[part] or "")]
        self._scopes.append(dict(zip(device.parameters, arguments, strict=True)))
        self._suffix = f"@{self._calls}"
        for line, statement in device.body:
            self.add(line, statement)
        self.labels["$return" + self._suffix] = len(self.code)
        self._suffix = before
        self._scopes.pop()

    def _instruction(self, line: int, text: str) -> Instruction:
        found = _INSTRUCTION.fullmatch(text)
        if found is None:
            raise SyntaxError(f"line {line}: {text!r}")
        negated, predicate, opcode, rest = found.groups()
        guard: Any = None
        if predicate:
            guard = self._register(predicate)
            guard = Not(guard) if negated else guard
        name, *parts = opcode.replace("::", "@").split(".")
        parts = [part for part in parts if part not in ("uni", "aligned")]
        operands = tuple(self._operand(operand, name) for operand in _split(rest))
        if any(isinstance(o, Address) and "@" in getattr(o.base, "name", "") for o in operands):
            parts = ["local" if part == "param" else part for part in parts]
        return Instruction(line, text, guard, opcode, name, parts, operands)

    def _operand(self, text: str, name: str) -> Any:
        if text == "_":
            return None
        if text.startswith("{"):
            return Vector(tuple(self._operand(part, name) for part in _split(text[1:-1])))
        if text.startswith("["):
            base, sign, offset = _ADDRESS.fullmatch(text[1:-1]).groups()  # type: ignore[union-attr]
            distance = int(offset or "0", 0)
            return Address(self._operand(base, name), -distance if sign == "-" else distance)
        if text.startswith("!"):
            return Not(self._register(text[1:]))  # type: ignore[arg-type]
        if "|" in text:
            return Vector(tuple(self._operand(part, name) for part in text.split("|")))
        if register := self._register(text):
            return register
        if text.startswith("%"):
            return Special(text[1:])
        if constant := _immediate(text):
            return constant
        return Label(text + self._suffix) if name == "bra" else Symbol(text)


class Module(NamedTuple):
    """Kernels by name, and the variables outside of them."""

    functions: dict[str, Function]
    variables: list[Variable]

    def entry(self, name: str | None) -> Function:
        """The kernel of a name; the only one for None."""
        if name is None:
            (name,) = self.functions
        return self.functions[name]


# ------------------------------------------------------------------------------- grammar

_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
# Directives that no semicolon ends.
_LINE = re.compile(
    r"^[ \t]*\.(version|target|address_size|file|loc|section)\b[^\n]*$", re.MULTILINE
)
_STATEMENT = re.compile(
    r"\s*(?P<label>[\w$%.]+:)(?!:)"
    r"|\s*(?P<brace>[{}])"
    r"|\s*(?P<statement>[^;{}]*(?:\{[^{};]*\}[^;{}]*)*);"
    r"|\s*(?P<header>[^;{}]*)(?=\{)"
)
_INSTRUCTION = re.compile(r"(?:@(!?)([%\w$]+)\s+)?([a-z][\w.:]*)\s*(.*)", re.DOTALL)
_ADDRESS = re.compile(r"\s*([%\w$.]+)\s*(?:([+-])?\s*(-?\w+))?\s*")
_VARIABLE = re.compile(
    r"(?:\.(?:visible|extern|weak|common)\s+)*\.(shared|local|global|const|param)\s+"
    r"(?:\.align\s+(\d+)\s+)?\.(\w+)\s+"
    r"(?:\.ptr\s+(?:\.\w+\s+)?(?:\.align\s+\d+\s+)?)?([\w$.%]+)(?:\[(\d*)\])?(?:\s*=\s*(.*))?",
    re.DOTALL,
)
_CALL = re.compile(r"call(?:\.uni)?\s*(?:\(([^)]*)\)\s*,)?\s*([\w$]+)\s*(?:,\s*\(([^)]*)\)\s*)?")
_RETURN = re.compile(r"(@!?[%\w]+\s+)?ret(?:\.uni)?")
_DEVICE = re.compile(r".*\.func\s*(?:\(([^)]*)\))?\s*([\w$.]+)\s*(?:\(([^)]*)\))?.*", re.DOTALL)
_HEADER = re.compile(r".*\.entry\s+([\w$.]+)\s*(?:\((.*)\))?.*", re.DOTALL)


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """(line, statement) of a text; braces, labels with their colon, and headers of functions."""
    text = _COMMENT.sub(lambda found: "\n" * found[0].count("\n"), text)
    text = _LINE.sub("", text)
    position, line, counted = 0, 1, 0
    while found := _STATEMENT.match(text, position):
        start = found.end() - len(found[0].lstrip())
        line, counted = line + text.count("\n", counted, start), start
        position = found.end()
        yield line, found[found.lastgroup].strip()  # type: ignore[index]
    if text[position:].strip():
        raise SyntaxError(f"line {line}: {text[position : position + 60].strip()!r}")


def _split(text: str) -> list[str]:
    """Operands at the commas that are not in braces."""
    return [part.strip() for part in re.findall(r"(?:\{[^}]*\}|\[[^\]]*\]|[^,])+", text)
            if part.strip()]  # fmt: skip


def _immediate(text: str) -> Immediate | None:
    """A number: an integer, 0f and 0d with the bits of a float, or a decimal fraction."""
    if re.fullmatch(r"0[fF][0-9a-fA-F]{8}", text):
        return Immediate(int(text[2:], 16), 4)
    if re.fullmatch(r"0[dD][0-9a-fA-F]{16}", text):
        return Immediate(int(text[2:], 16), 8)
    if re.fullmatch(r"-?(0[xX][0-9a-fA-F]+|0[bB][01]+|\d+)U?", text):
        return Immediate(int(text.rstrip("U"), 0), 0)
    if re.fullmatch(r"-?\d+\.\d*(e[+-]?\d+)?", text):
        return Immediate(int(np.float64(text).view(np.uint64)), 8)
    return None


def _variable(statement: str) -> Variable | None:
    found = _VARIABLE.fullmatch(statement)
    if found is None:
        return None
    space, align, kind, name, count, data = found.groups()
    element = TYPES[kind]
    size = None if count == "" else element.itemsize * int(count or 1)
    bits = b""
    if data:
        numbers = [_immediate(part) for part in _split(data.strip("{} \n"))]
        unsigned = np.dtype(f"u{element.itemsize}")
        bits = b"".join(n.value(unsigned).tobytes() for n in numbers)  # type: ignore[union-attr]
    return Variable(space, name, int(align or element.itemsize), size, bits)


def parse(text: str) -> Module:
    """Read a text."""
    variables: list[Variable] = []
    kernels: list[tuple[str, str, list[tuple[int, str]]]] = []
    devices: dict[str, DeviceFunction] = {}
    body: list[tuple[int, str]] = []
    depth = 0
    for line, statement in _statements(text):
        depth += {"{": 1, "}": -1}.get(statement, 0)
        if depth or statement == "}":
            if (statement, depth) not in (("{", 1), ("}", 0)):
                body.append((line, statement))
        elif found := _HEADER.fullmatch(statement):
            body = []
            kernels.append((found[1], found[2] or "", body))
        elif found := _DEVICE.fullmatch(statement):
            # A declaration comes before its definition, which replaces it.
            body = []
            names = [part.split()[-1] for k in (1, 3) for part in _split(found[k] or "")]
            devices[found[2]] = DeviceFunction([name.split("[")[0] for name in names], body)
        elif found_variable := _variable(statement):
            variables.append(found_variable)
        else:
            raise SyntaxError(f"line {line}: {statement[:80]!r}")
    module = Module({}, variables)
    for name, parameters, statements in kernels:
        kernel = Function(name, [_variable(p) for p in _split(parameters)], devices)  # type: ignore[misc]
        for line, statement in statements:
            kernel.add(line, statement)
        # What lies outside of kernels is shared by all of them.
        kernel.variables += [v for v in variables if v.space in ("shared", "local")]
        module.functions[name] = kernel
    return module
