"""Reading a compiled program: what its optimized HLO text says it executes. Nothing here compiles anything."""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "reduce-scatter", "collective-permute", "collective-broadcast")
# These start nothing on a device: names for parts of a buffer, or the end of what an instruction before has begun.
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "opt-barrier", "partition-id",
    "replica-id", "add-dependency", "domain", "iota-done", "copy-done", "async-done", "async-update",
}  # fmt: skip
_CONTROL = {"while", "call", "conditional", "async-start"}
_HOST = {"send", "recv", "send-done", "recv-done", "infeed", "outfeed"}
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8,
          "s64": 8, "u64": 8}  # fmt: skip

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_CALLED = re.compile(r"(?:to_apply|calls|body|true_computation|false_computation)=%?([\w.\-]+)")
_SHAPE = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction; `text` is its whole line."""

    name: str
    shape: str
    opcode: str
    text: str

    @functools.cached_property
    def called(self) -> list[str]:
        branches = re.search(r"branch_computations=\{([^}]*)\}", self.text)
        return _CALLED.findall(self.text) + (re.findall(r"%([\w.\-]+)", branches[1]) if branches else [])

    @functools.cached_property
    def operands(self) -> list[str]:
        """Names of the instructions whose results it takes."""
        inside = re.search(rf" {re.escape(self.opcode)}\(([^)]*)\)", self.text)
        return re.findall(r"%([\w.\-]+)", inside[1]) if inside else []

    @property
    def collective(self) -> str | None:
        kind = self.opcode.removesuffix("-start")
        return kind if kind in COLLECTIVES else None


class Module:
    """The computations of an optimized HLO module.

    Args:
      text: what `jax.stages.Compiled.as_text()` returns.
    """

    def __init__(self, text: str) -> None:
        self.text, self.entry = text, ""
        self.computations: dict[str, list[Instruction]] = {}
        current: list[Instruction] = []
        for line in text.splitlines():
            if head := _COMPUTATION.match(line):
                current = self.computations[head[2]] = []
                self.entry = head[2] if head[1] else self.entry
            elif found := _INSTRUCTION.match(line):
                current.append(Instruction(found[2], found[3], found[4], line))

    def executed(self, computation: str) -> Iterator[tuple[Instruction, int]]:
        """Everything that one execution of it executes, and how often; fusions and reducers are not entered.

        A loop whose trip count is not known counts as one turn.
        """
        for instruction in self.computations[computation]:
            yield instruction, 1
            if instruction.opcode in _CONTROL:
                turns = (self.trip_count(instruction) or 1) if instruction.opcode == "while" else 1
                for called in instruction.called:
                    for inner, times in self.executed(called):
                        yield inner, times * turns

    def trip_count(self, loop: Instruction) -> int | None:
        """The turns of a `while`; None if they are not known when it is compiled.

        The GPU compiler notes them at the loop; the TPU compiler leaves them where they are, in its condition.
        """
        if found := re.search(r'"known_trip_count":\{"n":"?(\d+)"?\}', loop.text):
            return int(found[1])
        condition = re.search(r"condition=%?([\w.\-]+)", loop.text)
        compared = self.computations[condition[1]] if condition else []
        limits = [c[1] for i in compared if (c := re.search(r" s32\[\]\S* constant\((\d+)\)", i.text))]
        less = [i for i in compared if i.opcode == "compare" and "direction=LT" in i.text]
        return int(limits[0]) if len(limits) == len(less) == 1 else None

    @functools.cached_property
    def step_loop(self) -> Instruction | None:
        """The loop over a dispatch's steps: the entry's largest; None in a program of one step."""
        loops = [i for i in self.computations[self.entry] if i.opcode == "while"]
        return max(loops, key=lambda i: sum(times for _, times in self.executed(i.called[0])), default=None)

    @functools.cached_property
    def step(self) -> list[tuple[Instruction, int]]:
        """What a step executes, and how often."""
        return list(self.executed(self.step_loop.called[0] if self.step_loop else self.entry))

    def kernels_per_step(self) -> int:
        """Kernels that a step starts: fusions, library calls, copies and whatever else is computed on its own."""
        return sum(times for instruction, times in self.step if is_kernel(instruction))

    def messages(self) -> dict[str, tuple[int, int]]:
        """Of a step: how many collectives of each kind, and the bytes of their results on one device."""
        found: dict[str, tuple[int, int]] = {}
        for instruction, times in self.step:
            if kind := instruction.collective:
                count, total = found.get(kind, (0, 0))
                found[kind] = (count + times, total + times * size(_result(instruction)))
        return found

    def host_transfers(self) -> list[str]:
        """Names of a step's instructions that wait for the host."""
        return [i.name for i, _ in self.step
                if i.opcode in _HOST or "S(5)" in i.shape or (i.opcode == "custom-call" and "callback" in i.text)]


def size(shape: str) -> int:
    """Bytes of an array, or a tuple of arrays, such as f32[512,784]{1,0}."""
    found = _SHAPE.findall(shape)
    return sum(_BYTES[kind] * math.prod(int(n) for n in dims.split(",") if n) for kind, dims in found if kind in _BYTES)


def is_kernel(instruction: Instruction) -> bool:
    if instruction.opcode in ("fusion", "custom-call", "copy", "copy-start"):
        return True
    # Outside of fusions the TPU's compiler leaves numbers, which its scalar core computes beside the rest.
    skipped = instruction.opcode in _FREE | _HOST | _CONTROL or instruction.opcode.startswith(COLLECTIVES)
    return not skipped and "[]" not in instruction.shape


def _result(instruction: Instruction) -> str:
    """The shape that a collective gives; one that is started asynchronously also names its operands."""
    if not instruction.opcode.endswith("-start"):
        return instruction.shape
    parts = _SHAPE.findall(instruction.shape)
    return " ".join(f"{kind}[{dims}]" for kind, dims in parts[len(parts) // 2 :])
