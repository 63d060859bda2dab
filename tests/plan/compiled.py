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
from distmlp.parallel.layout import make_layout, states
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
    """The program of a whole dispatch (feed), or of evaluation or digest, as text; and its sizes in memory. A sharded
    state's layers are gathered at once, or one by one."""
    config = Config(dataset="synthetic", **settings)
    config.validate()
    card, devices = targets.find(target)
    layout = states(config, make_layout(config, devices, card.memory))[by_layer]
    parts = training.Program(config, _data(), layout, layout.device_memory)
    with backend.settings({"jax_enable_compilation_cache": False}), backend.pinned(config):
        if part == "feed":
            lowered = parts.feed.lower(parts.state)
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
