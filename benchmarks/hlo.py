"""A compiled program, read off its text; and what one of a GPU launches and moves."""

import math
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

# %name = type opcode(operands), ..., metadata={op_name="..."}
_INSTRUCTION = re.compile(
    r"\s*(?P<root>ROOT )?%?(?P<name>[\w.\-]+) = (?P<type>\(.*?\)|\S+) "
    r"(?P<opcode>[\w\-]+)\((?P<rest>.*)"
)
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+)\[([\d,]*)\]")
# Operations of a program that are none of the device's.
_NAMES_ONLY = frozenset(
    "parameter constant get-tuple-element tuple bitcast after-all fusion-done "
    "copy-done async-done".split()
)
_PARTIAL_READS = frozenset(("gather", "dynamic-slice", "slice"))
_IN_PLACE = {"dynamic-update-slice": 1, "scatter": 2}  # and which operand is the update
MIB = 2**20


class Instruction(NamedTuple):
    """An operation of a compiled program.

    type: of its result, as text; op_name: the path of scopes and primitives that it was
    made of, or "". operands: names of what it reads. rest: what follows the opcode.
    """

    opcode: str
    type: str
    operands: tuple[str, ...]
    op_name: str
    rest: str
    is_root: bool

    @property
    def called(self) -> str:
        """The computation that it fuses, or ""."""
        found = re.search(r"calls=%?([\w.\-]+)", self.rest)
        return found[1] if found else ""

    @property
    def num_bytes(self) -> int:
        return num_bytes(self.type)


Computation = dict[str, Instruction]


class Text(NamedTuple):
    """The computations of a program, by name, and that which it begins with."""

    computations: dict[str, Computation]
    entry: str


def parse(text: str) -> Text:
    """The instructions of a program, given as `jax.stages.Compiled.as_text` does.

    >>> found = parse('''ENTRY %main (a: f32[2]) -> f32[2] {
    ...   %a = f32[2]{0} parameter(0)
    ...   ROOT %b = f32[2]{0} copy(%a), metadata={op_name="jit(f)/copy"}
    ... }''')
    >>> found.entry, found.computations["main"]["b"].operands
    ('main', ('a',))
    """
    computations: dict[str, Computation] = {}
    entry, members = "", {}
    for line in text.splitlines():
        if begun := _COMPUTATION.match(line):
            members = computations.setdefault(begun[2], {})
            entry = begun[2] if begun[1] else entry
        elif found := _INSTRUCTION.match(line):
            rest = found["rest"]
            op_name = re.search(r'op_name="([^"]*)"', rest)
            members[found["name"]] = Instruction(
                found["opcode"],
                found["type"],
                tuple(re.findall(r"%([\w.\-]+)", rest.partition(")")[0])),
                op_name[1] if op_name else "",
                rest,
                found["root"] is not None,
            )
    return Text(computations, entry)


def num_bytes(type_: str) -> int:
    """Of an array, or of all arrays of a tuple.

    >>> num_bytes("f32[2,3]{1,0}"), num_bytes("(pred[8], bf16[])"), num_bytes("token[]")
    (24, 10, 0)
    """
    return sum(
        _item_bytes(dtype) * math.prod(int(size) for size in sizes.split(",") if size)
        for dtype, sizes in _ARRAY.findall(type_)
    )


def _item_bytes(dtype: str) -> int:
    """Of what is less than a byte, a byte."""
    return max(1, int(re.sub(r"\D", "", dtype) or 8) // 8)


class Counts(NamedTuple):
    """What a program has a GPU do.

    kernels: that are launched, library calls and copies among them.
    waits: of the host for a number that the device holds, before it can go on.
    moved: bytes that the kernels read and write, each array once a kernel.
    """

    kernels: int = 0
    waits: int = 0
    moved: int = 0

    def times(self, number: int) -> "Counts":
        return Counts(*(number * x for x in self))

    def plus(self, *others: "Counts") -> "Counts":
        return Counts(*(sum(x) for x in zip(self, *others, strict=True)))


def count(program: Text, name: str | None = None) -> Counts:
    """Of one call of the program, or of one of its computations.

    A loop whose turns the program knows is so many times its body; any other one turn
    of it and two waits, before it and after it, for what it is asked. A condition is a
    wait and the branch that moves less: what ours have in the other does not occur.
    """
    members = program.computations[name or program.entry]
    return Counts().plus(
        *(_count_one(program, members, one) for one in members.values())
    )


def _count_one(program: Text, members: Computation, one: Instruction) -> Counts:
    if one.opcode in _NAMES_ONLY:
        return Counts()
    if one.opcode == "while":
        (body,) = re.findall(r"body=%?([\w.\-]+)", one.rest)
        (asks,) = re.findall(r"condition=%?([\w.\-]+)", one.rest)
        turns = re.search(r'known_trip_count":\{"n":"(\d+)"', one.rest)
        inside = count(program, body)
        if turns:
            return inside.times(int(turns[1]))
        return inside.plus(count(program, asks).times(2), Counts(waits=2))
    if one.opcode == "conditional":
        branches = [count(program, branch) for branch in _branches(one)]
        return min(branches, key=lambda of: of.moved).plus(Counts(waits=1))
    if one.opcode == "call":
        (called,) = re.findall(r"to_apply=%?([\w.\-]+)", one.rest)
        return count(program, called)
    return Counts(kernels=1, moved=_moved(program, members, one))


def _branches(one: Instruction) -> Iterator[str]:
    listed = re.search(r"branch_computations=\{([^}]*)\}", one.rest)
    if listed:
        yield from re.findall(r"[\w.\-]+", listed[1])
    else:
        yield from re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", one.rest)


def _moved(program: Text, members: Computation, one: Instruction) -> int:
    """Bytes that a kernel reads and writes."""
    fused = program.computations.get(one.called)
    if fused is None:
        read = sum(members[name].num_bytes for name in one.operands)
        return read + _result_bytes(one)
    parameters = [name for name, of in fused.items() if of.opcode == "parameter"]
    return sum(_read(fused, name) for name in parameters) + _written(fused)


def _read(fused: Computation, name: str) -> int:
    """Bytes that a fusion reads of its parameter, by what is done with it."""
    some = 0
    for user, place in _users(fused, name):
        if user.opcode in _PARTIAL_READS and place == 0:
            some += user.num_bytes
        elif not (user.opcode in _IN_PLACE and place == 0):
            return fused[name].num_bytes
    return min(some, fused[name].num_bytes)


def _users(fused: Computation, name: str) -> Iterator[tuple[Instruction, int]]:
    """Who takes it, as which operand; through what merely renames it."""
    for user_name, user in fused.items():
        for place, operand in enumerate(user.operands):
            if operand == name and user.opcode == "bitcast":
                yield from _users(fused, user_name)
            elif operand == name and user.opcode != "tuple":
                yield user, place


def _written(fused: Computation) -> int:
    """Bytes that a fusion writes: of an array that is changed in place, the change."""
    return sum(_written_by(fused, one) for one in _results(fused))


def _results(fused: Computation) -> Iterable[Instruction]:
    (root,) = (one for one in fused.values() if one.is_root)
    found = [root]
    if root.opcode == "tuple":
        found = [fused[name] for name in root.operands]
    for one in found:
        while one.opcode == "bitcast":
            one = fused[one.operands[0]]
        yield one


def _written_by(fused: Computation, one: Instruction) -> int:
    if one.opcode in _IN_PLACE:
        return fused[one.operands[_IN_PLACE[one.opcode]]].num_bytes
    return _result_bytes(one)


def _result_bytes(one: Instruction) -> int:
    """Of the result; a library call's second one is room for it to work in."""
    if one.opcode in ("custom-call", "get-tuple-element"):
        return num_bytes(re.sub(r"\bs8\[\d+\]", "", one.type))
    return one.num_bytes
