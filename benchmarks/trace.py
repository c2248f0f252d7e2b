"""Whose time a profile shows: from the events of a trace to the parts of a program."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax

from benchmarks import hlo

IDLE = "nothing on record"

# Their own events last as long as what they call, which has events too.
_CONTAINERS = {"while", "conditional", "call"}


class Program:
    """A compiled program's operations, and the part that each is of.

    Args:
      text: of the compiled program, in HLO.
      parts: (pattern, part): an operation is of the first part whose pattern is found
        in its op_name.
      other: the part of the rest.
    """

    def __init__(self, text: str, parts: Sequence[tuple[str, str]], other: str):
        self.parts, self.other = parts, other
        computations = hlo.parse(text).computations
        self.members = {name: list(found) for name, found in computations.items()}
        self.instructions = {
            name: one for found in computations.values() for name, one in found.items()
        }

    def is_container(self, name: str) -> bool:
        found = self.instructions.get(name)
        return found is not None and found.opcode in _CONTAINERS

    def part(self, name: str) -> str:
        """Of an operation; one without a name of use is of the part that feeds it."""
        seen: set[str] = set()
        while name in self.instructions and name not in seen:
            seen.add(name)
            one = self.instructions[name]
            if part := self._by_name(one) or self._by_members(one):
                return part
            if one.op_name or not one.operands:
                break
            name = one.operands[0]
        return self.other

    def _by_name(self, one: hlo.Instruction) -> str | None:
        for pattern, part in self.parts:
            if re.search(pattern, one.op_name):
                return part
        return None

    def _by_members(self, one: hlo.Instruction) -> str | None:
        """The part of most operations of a fusion."""
        members = (self.instructions[name] for name in self.members.get(one.called, ()))
        found = Counter(filter(None, map(self._by_name, members)))
        return found.most_common(1)[0][0] if found else None

    def label(self, name: str) -> str:
        """The end of an operation's op_name, for a reader."""
        one = self.instructions.get(name)
        if one is None or not one.op_name:
            return re.sub(r"[.\d]+$", "", name)
        path = one.op_name.split("/")
        return "/".join(path[-2:])


class Event(NamedTuple):
    """An operation at work, in nanoseconds of the trace."""

    name: str
    start: float
    end: float


class Found(NamedTuple):
    """Shares of the time, which sum to 1.

    shares: by part, `IDLE` among them.
    labels: by part, the share of each kind of operation.
    """

    shares: dict[str, float]
    labels: dict[str, dict[str, float]]

    def slowest(self, part: str) -> str:
        """The kind of operation that takes most of a part."""
        of_part = self.labels.get(part)
        return max(of_part, key=lambda label: of_part[label]) if of_part else ""


def read(folder: Path, program: Program) -> Found:
    """The shares of the program's parts in a trace of `jax.profiler.trace`."""
    (path,) = folder.rglob("*.xplane.pb")
    return shares(list(events(path, program)), program)


def events(path: Path, program: Program) -> Iterator[Event]:
    """The program's own operations: of the accelerator, or of the host without one."""
    planes = list(jax.profiler.ProfileData.from_file(str(path)).planes)
    accelerators = [one for one in planes if one.name.startswith("/device:")]
    for plane in accelerators or planes:
        for line in plane.lines:
            for event in line.events:
                name = dict(event.stats).get("hlo_op")
                if name in program.instructions and not program.is_container(str(name)):
                    end = event.start_ns + event.duration_ns
                    yield Event(str(name), event.start_ns, end)


def shares(found: Iterable[Event], program: Program) -> Found:
    """Gives every moment between the first event and the last to what is at work then.

    Several operations at once have equal shares of the moment; one that is on record
    twice, by different clocks of a device, counts once.
    """
    ends = [(one.start, 1, one.name) for one in found]
    ends += [(one.end, -1, one.name) for one in found]
    if not ends:
        return Found({IDLE: 1.0}, {})
    ends.sort()
    working: Counter[str] = Counter()
    by_part: defaultdict[str, float] = defaultdict(float)
    labels: dict[str, dict[str, float]] = {}
    before = first = ends[0][0]
    for now, change, name in ends:
        lasted = now - before
        names = [one for one, number in working.items() if number > 0]
        if lasted > 0 and not names:
            by_part[IDLE] += lasted
        for one in names if lasted > 0 else ():
            part = program.part(one)
            by_part[part] += lasted / len(names)
            of_part = labels.setdefault(part, defaultdict(float))
            of_part[program.label(one)] += lasted / len(names)
        working[name] += change
        before = now
    total = before - first
    return Found({part: ns / total for part, ns in by_part.items()}, labels)
