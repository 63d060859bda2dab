"""Programs compiled for hardware that is not here, once for all tests; and what makes two of them the same."""

import collections
import functools
import hashlib
import importlib.util
import re
from typing import Any

import pytest

from distmlp import Config, training
from distmlp.data import datasets
from distmlp.parallel import backend
from distmlp.parallel.layout import make_layouts
from distmlp.plan import targets
from distmlp.plan.hlo import Instruction, Module, is_kernel

targets.prepare()
NEEDS_TARGETS = pytest.mark.skipif(
    not (importlib.util.find_spec("libtpu") and importlib.util.find_spec("jax_plugins.xla_cuda13")
         if importlib.util.find_spec("jax_plugins") else False),
    reason="needs XLA's compilers for GPUs and TPUs: pip install 'distmlp[targets]'",
)  # fmt: skip


@functools.cache
def _data() -> datasets.Data:
    """As MNIST's: the programs depend on shapes only."""
    return datasets.load(Config(dataset="synthetic"))


@functools.cache
def compiled(
    target: str, part: str = "feed", by_layer: bool = False, **settings: Any
) -> tuple[Module, Any, training.Program]:
    """The program of a whole dispatch (feed), of any other (rest), of evaluation or digest, as text; and its memory. A
    sharded state's layers are gathered at once, or one by one."""
    config = Config(dataset="synthetic", **settings)
    config.validate()
    card, devices = targets.find(target)
    layout = make_layouts(config, devices, card.memory)[by_layer]
    parts = training.Program(config, _data(), layout, layout.device_memory)
    with backend.settings({"jax_enable_compilation_cache": False}), backend.pinned(config):
        if part in ("feed", "rest"):
            lowered = parts.feed.lower(parts.state, whole=part == "feed")
        elif part == "evaluator":
            lowered = parts.evaluator.lower(parts.state, _data().test)
        else:
            lowered = parts.digest.lower(parts.state)
        done = lowered.compile(layout.compiler_options)
    return Module(done.as_text() or ""), done.memory_analysis(), parts


def state_bytes(parts: training.Program) -> int:
    """Of a device."""
    return parts.held.bytes


def kernels(module: Module, scope: str) -> collections.Counter[str]:
    """The kernels of a step that belong to `scope`, by what they compute from what, and how often each is executed.

    A kernel's digest covers its text without names, and the digests of the kernels of the scope that it gets its
    operands from: equal digests are equal programs. What comes from outside of the scope counts by its shape.
    """
    known = {i.name: i for body in module.computations.values() for i in body}
    found = collections.Counter[str]()
    for instruction, times in module.step:
        if is_kernel(instruction) and _in_scope(instruction, scope):
            found[_digest(module, known, instruction, scope)] += times
    return found


def _in_scope(instruction: Instruction, scope: str) -> bool:
    name = re.search(r'op_name="([^"]*)"', instruction.text)
    return bool(name and re.search(rf"\b{scope}\b", name[1]))


def _digest(module: Module, known: dict[str, Instruction], instruction: Instruction, scope: str) -> str:
    operands = []
    for name in instruction.operands:
        source, path = known[name], ""
        while source.opcode in ("get-tuple-element", "bitcast") and source.operands:
            index = re.search(r"index=(\d+)", source.text)
            path += f"{source.opcode} {index[1] if index else source.shape};"
            source = known[source.operands[0]]
        inside = is_kernel(source) and _in_scope(source, scope)
        operands.append(path + _digest(module, known, source, scope) if inside else known[name].shape)
    body = "\n".join(i.text for called in instruction.called for i in _inner(module, called))
    text = "\n".join([_nameless(instruction.text, {}), *operands, _nameless(body, {"": ""})])
    return hashlib.sha256(text.encode()).hexdigest()


def _inner(module: Module, computation: str) -> list[Instruction]:
    body = module.computations[computation]
    return [*body, *(inner for i in body for called in i.called for inner in _inner(module, called))]


def _nameless(text: str, numbers: dict[str, str]) -> str:
    """HLO without what differs though the program is the same: places in the source, the schedule, and names.

    Names become numbers in the order in which they appear; with no `numbers`, nothing, where operands count instead.
    """
    text = re.sub(r"metadata=\{[^{}]*\}|control-predecessors=\{[^}]*\}|ROOT |/\*.*?\*/", "", text)
    schedule = "operation_queue_id|force_earliest_schedule|reification_cost"
    text = re.sub(rf'"({schedule})":("[^"]*"|\[[^\]]*\]|\w+),?', "", text)
    text = re.sub(r",(?=\n|$)", "", re.sub(r"[ ,]*,[ ,]*", ",", text))

    def number(name: re.Match[str]) -> str:
        return numbers.setdefault(name[0], f"%{len(numbers)}") if numbers else "%"

    return re.sub(r"%[\w.\-]+", number, text).strip()


_MOVES = {"parameter", "copy", "bitcast", "slice", "dynamic-slice"}  # of these, no kernel is arithmetic


def arithmetic(module: Module) -> list[str]:
    """What a step makes of the state before it: for each float array that the step loop hands on, a digest of the
    operations that it comes from, and of the kernels that they share.

    Left out is what cannot change a number: names, the schedule, copies, and whole numbers, which say where the step's
    data lie. So two programs with the same list compute the same.
    """
    assert module.step_loop is not None
    body = next(name for name in module.step_loop.called if any("ROOT" in i.text for i in module.computations[name]))
    digests: dict[tuple[str, str], str] = {}
    by_name = {at: {i.name: i for i in found} for at, found in module.computations.items()}
    callers = {called: (at, i) for at, found in module.computations.items() for i in found if i.opcode == "fusion"
               for called in i.called}  # fmt: skip

    def root(computation: str) -> Instruction:
        return next(i for i in module.computations[computation] if i.text.lstrip().startswith("ROOT"))

    def digest(at: str, name: str) -> str:
        if (at, name) not in digests:
            text = expression(at, by_name[at][name])
            known = text in digests.values()  # an array that is only handed on
            digests[at, name] = text if known else hashlib.sha256(text.encode()).hexdigest()
        return digests[at, name]

    def expression(at: str, i: Instruction) -> str:
        if re.match(r"[su]\d+\[|pred\[\]", i.shape):
            return re.sub(r"\{.*", "", i.shape)
        if i.opcode == "parameter":
            number = re.search(r"parameter\((\d+)\)", i.text)
            if at in callers and number:  # what the kernel is given
                return digest(callers[at][0], callers[at][1].operands[int(number[1])])
            return f"{i.shape} {number[1] if number and at != body else ''}"
        if i.opcode == "get-tuple-element":
            source, index = by_name[at][i.operands[0]], re.search(r"index=(\d+)", i.text)
            assert index
            while source.opcode == "opt-barrier":
                source = by_name[at][source.operands[0]]
            if source.opcode == "parameter":
                return i.shape
            if source.opcode == "tuple":
                return digest(at, source.operands[int(index[1])])
            if source.opcode == "fusion" and root(source.called[0]).opcode == "tuple":
                return kernel(source, root(source.called[0]).operands[int(index[1])])
            return f"{digest(at, source.name)} {index[1]}"
        if i.opcode == "copy":
            return digest(at, i.operands[0])
        if i.opcode == "fusion":
            return kernel(i, root(i.called[0]).name)
        inside = [digest(called, root(called).name) for called in i.called]
        attributes = i.text.split(f" {i.opcode}(", 1)[1]
        attributes = attributes if i.opcode == "constant" else attributes.partition(")")[2]
        attributes = re.sub(r"(, )?backend_config=.*", "", attributes) if i.opcode != "custom-call" else attributes
        operands = [digest(at, operand) for operand in i.operands]
        return " ".join([i.shape, i.opcode, *operands, *inside, _nameless(attributes, {})])

    def kernel(fusion: Instruction, result: str) -> str:
        inside = [i.opcode for i in module.computations[fusion.called[0]] if i.shape.startswith("f")]
        kind = "" if _MOVES.issuperset(inside) else f"{re.findall('kind=k[A-Za-z]+', fusion.text)} "
        return kind + digest(fusion.called[0], result)

    return [digest(body, name) for name in root(body).operands if by_name[body][name].shape.startswith("f")]
