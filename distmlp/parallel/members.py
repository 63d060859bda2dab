"""Many models in one program: each device trains its part of them, and they exchange nothing.

On an accelerator the models of a device are trained together, by vmap: a small one leaves it idle. On a CPU, where that
wins nothing, and wherever the reduction is invariant, they are trained one after the other, each by the operations of
a run alone: it then has that run's bits. What may differ between the models of a program enters as arrays. These have
an axis in front that counts members; it is dealt to the devices.
"""

import dataclasses
import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from distmlp import model, optim
from distmlp.config import Config
from distmlp.data.batches import Batch
from distmlp.data.examples import Examples
from distmlp.kept import kept
from distmlp.optim import Rates
from distmlp.parallel import backend, reduce
from distmlp.parallel.evaluate import judged
from distmlp.parallel.feed import bytes_needed
from distmlp.parallel.layout import INVARIANT_SHARDS, Layout, make_layout
from distmlp.parallel.specs import DEALT, REPLICATED, State
from distmlp.parallel.step import Recipe, abstract_state, make_train_step

FREE = 0.9  # of an accelerator's memory, which these programs may take
_DISPATCH, _ACCELERATOR_DISPATCH = 512, 64  # steps at most, as of a run alone
_ORDER_BYTES = 4 << 20  # a member's positions and weights of a dispatch, in the host's memory
_ANY_SHARDS = 1 << 20  # more than devices: all shards of a member are one device's


class Pool(NamedTuple):
    """The examples that all members take theirs from; each device holds them."""

    images: Any  # uint8 or float32 [N, features]
    labels: Any  # int32 [N]


class Orders(NamedTuple):
    """Which examples each member is trained on in a dispatch; what lies behind its last step is not read."""

    counts: Any  # int32 [members]: how many steps it makes; where they are trained together all make as many, or none
    indices: Any  # int32 [members, steps, shards, rows]: positions in the pool
    weights: Any  # float32 [members, steps, shards, rows]: as Batch's
    weight_sums: Any  # float32 [members, steps]


@dataclasses.dataclass(frozen=True)
class Shape:
    """Of what is compiled once: all that members must have in common."""

    sizes: tuple[int, ...]  # of the layers, input and output included
    scaled: bool  # whether inputs are
    members: int  # on each device
    steps: int  # of a dispatch, at most
    shards: int  # of a batch; all of them are the member's device's
    rows: int  # of a shard
    blocks: int  # of an evaluation
    block_rows: int  # examples of a block
    weightless: bool = False  # whether there may be batches whose weights are all 0
    pauses: bool = False  # whether a member may make no step while others do
    log_probs: bool = False  # whether evaluations tell them


class Members:
    """The programs that train and evaluate members of one shape.

    Attributes:
      count: members on all devices together.
      one_by_one: whether a device trains one after the other.
    """

    def __init__(self, config: Config, layout: Layout, shape: Shape, pool: Pool, total_steps: int) -> None:
        """`config` is any member's, which has `total_steps` steps; the pool's arrays may be abstract."""
        self._config, self.layout, self.shape = config, layout, shape
        self.count, self.one_by_one = shape.members * len(layout.devices), one_by_one(layout)
        self.optimizer = optim.make_for_many(config, total_steps)
        alone = dataclasses.replace(layout, devices=layout.devices[:1], parallelism="single", num_shards=shape.shards)
        recipe = Recipe(shape.sizes[-1], config.compute_dtype, config.clip_norm > 0, shape.weightless)
        step = make_train_step(recipe, alone, self.optimizer)
        programs = _programs(layout, alone, not self.one_by_one, step, config.compute_dtype, shape)
        self._any, self._whole, self._evaluate, self._choose = programs
        self._pool = jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype), pool)

    @functools.cached_property
    def state(self) -> State:
        """Abstract: of one member, as it lies nowhere."""
        return abstract_state(self.shape.sizes, self.optimizer, self.shape.scaled)

    @property
    def bytes(self) -> int:
        """Of a member's state."""
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(self.state))

    def _abstract(self, **arrays: Any) -> dict[str, Any]:
        """What the programs are given, by name, as it lies on the devices."""
        shape = self.shape
        steps, rows = (shape.steps,), (shape.steps, shape.shards, shape.rows)

        def each(kind: Any, sizes: tuple[int, ...] = ()) -> Any:
            return jax.ShapeDtypeStruct((self.count, *sizes), kind)

        dealt = {
            "states": jax.tree.map(lambda leaf: each(leaf.dtype, leaf.shape), self.state),
            "rates": Rates(each(np.float32), each(np.float32), each(np.float32)),
            "orders": Orders(each(np.int32), each(np.int32, rows), each(np.float32, rows), each(np.float32, steps)),
            "chosen": each(np.bool_),
            "rows": each(np.int32, (shape.blocks, shape.block_rows)),
        }
        return self.layout.abstract(dealt, DEALT) | {"pool": self.layout.abstract(self._pool, REPLICATED)}

    def lower(self) -> dict[str, jax.stages.Lowered]:
        """The programs, ready to be compiled: of a dispatch, of a whole one if that is another, of an evaluation, and
        of a choice."""
        given = self._abstract()
        states, pool = given["states"], given["pool"]
        training = (states, given["rates"], pool, given["orders"])
        return {
            "any": self._any.lower(*training),
            **({"whole": self._whole.lower(*training)} if self._whole else {}),
            "evaluate": self._evaluate.lower(states, pool, given["rows"]),
            "choose": self._choose.lower(states, states, given["chosen"]),
        }

    def compile(self) -> dict[str, jax.stages.Compiled]:
        """Compiles ahead of the first step, all at once; returns the programs by their names in `lower`."""

        def compiled(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
            with backend.pinned(self._config):  # a thread's own
                return lowered.compile(self.layout.compiler_options)

        lowered = self.lower()
        with ThreadPoolExecutor(len(lowered)) as compilers:
            done = dict(zip(lowered, compilers.map(compiled, lowered.values()), strict=True))
        self._any, self._whole = done["any"], done.get("whole")
        self._evaluate, self._choose = done["evaluate"], done["choose"]
        return done

    @property
    def bytes_needed(self) -> int:
        """What the compiled programs need of a device's memory, the best states so far included."""
        training = max(bytes_needed(each) for each in (self._any, self._whole) if each)
        return max(training, bytes_needed(self._evaluate)) + self.shape.members * self.bytes

    def placed(self, tree: Any) -> Any:
        """NumPy arrays [count, ...] on the devices."""
        return self.layout.put(tree, DEALT)

    def advance(self, states: State, rates: Rates, pool: Pool, orders: Orders) -> tuple[State, jax.Array]:
        """Makes the steps of the orders, which are NumPy's: the program places them, sooner than `placed` would. The
        states' memory is used again.

        Returns:
          the states, and the losses of the steps, float32 [count, steps].
        """
        whole = self._whole is not None and bool(orders.counts.max() == self.shape.steps)
        return (self._whole if whole else self._any)(states, rates, pool, orders)

    def evaluate(self, states: State, pool: Pool, rows: Any) -> jax.Array:
        """What each member predicts of its examples, those at `rows`, int32 [count, blocks, rows]: its losses, whether
        it is right, and its predictions, and then, if they are asked for, its log-probabilities; float32
        [count, blocks, 3 (+ classes), rows]."""
        return self._evaluate(states, pool, rows)

    def choose(self, best: State, states: State, better: np.ndarray) -> State:
        """`best`, whose memory is used again, with the states of those members that are better, bool [count]."""
        return self._choose(best, states, self.placed(better))


def layout_of(config: Config, devices: Sequence[jax.Device] = (), memory: int = 0) -> Layout:
    """The devices among which members are divided, and the shards that each member has; as make_layout."""
    settings = dataclasses.replace(config, parallelism="auto", num_shards=_ANY_SHARDS, state="replicated")
    layout = make_layout(settings, devices, memory)
    return dataclasses.replace(layout, num_shards=config.num_shards or (INVARIANT_SHARDS if layout.invariant else 1))


def pool_room(config: Config, layout: Layout) -> int:
    """Bytes that all pools together may have; members whose examples need more are trained one at a time."""
    return 0 if config.data_placement == "host" else layout.device_memory // 4


def pool_bytes(parts: Sequence[Examples]) -> int | None:
    """Of a pool of these sets; None where there is none, for examples that are read one by one."""
    if any(part.one_by_one for part in parts):
        return None
    return sum(len(part) * part.num_features * part.dtype.itemsize for part in parts)


def largest_dispatch(config: Config, layout: Layout) -> int:
    """How many steps a dispatch has at most."""
    steps = config.steps_per_dispatch or (_ACCELERATOR_DISPATCH if layout.accelerated else _DISPATCH)
    return max(1, min(steps, _ORDER_BYTES // (8 * config.batch_size)))


def one_by_one(layout: Layout) -> bool:
    """Whether a device trains its members one after the other."""
    return layout.invariant or not layout.accelerated


@kept
def _programs(
    layout: Layout, alone: Layout, together: bool, train_step: Any, compute_dtype: str, shape: Shape
) -> tuple[Any, ...]:
    """See Members.lower; `alone` is the layout of a member, on one device."""

    def taken(array: jax.Array, indices: jax.Array) -> jax.Array:
        return array.at[indices].get(mode="promise_in_bounds", wrap_negative_indices=False)

    def steps_of(state: State, rates: Rates, pool: Pool, order: Orders, count: Any) -> tuple[State, jax.Array]:
        """Of one member."""

        def body(i: jax.Array, carry: tuple[State, jax.Array]) -> tuple[State, jax.Array]:
            state, losses = carry
            indices = order.indices[i]
            batch = Batch(taken(pool.images, indices), taken(pool.labels, indices), order.weights[i],
                          order.weight_sums[i])  # fmt: skip
            new, loss = train_step(state, batch, rates=rates)
            new = new._replace(step=state.step)  # to count it in the loop would cost a kernel
            return new, jax.lax.dynamic_update_index_in_dim(losses, loss, i, 0)

        new, losses = jax.lax.fori_loop(0, count, body, (state, jnp.zeros(shape.steps, jnp.float32)))
        return new._replace(step=state.step + count), losses

    def advance(states: State, rates: Rates, pool: Pool, orders: Orders) -> tuple[State, jax.Array]:
        if not together:

            def of_member(member: tuple[State, Rates, Orders]) -> tuple[State, jax.Array]:
                state, own, order = member
                return steps_of(state, own, pool, order, order.counts)

            return jax.lax.map(of_member, (states, rates, orders))
        return of_all(states, rates, pool, orders, jnp.max(orders.counts))

    def advance_whole(states: State, rates: Rates, pool: Pool, orders: Orders) -> tuple[State, jax.Array]:
        return of_all(states, rates, pool, orders, shape.steps)

    def of_all(states: State, rates: Rates, pool: Pool, orders: Orders, count: Any) -> tuple[State, jax.Array]:
        new, losses = jax.vmap(steps_of, (0, 0, None, 0, None))(states, rates, pool, orders, count)
        return (chosen(states, new, orders.counts > 0) if shape.pauses else new), losses

    def outcomes(params: Any, scaling: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        log_probs = model.batched_predict(params, model.scale_inputs(images, scaling), compute_dtype)
        return judged(log_probs, labels)

    def log_probs(params: Any, scaling: Any, images: jax.Array) -> jax.Array:
        return model.batched_predict(params, model.scale_inputs(images, scaling), compute_dtype).T

    def evaluate(states: State, pool: Pool, rows: jax.Array) -> jax.Array:
        judge: Any = reduce.isolated(outcomes, alone) if layout.invariant else outcomes
        tell: Any = reduce.isolated(log_probs, alone) if layout.invariant else log_probs

        def of_block(state: State, indices: jax.Array) -> jax.Array:
            images = taken(pool.images, indices)
            found = judge(state.params, state.scaling, images, taken(pool.labels, indices))
            if not shape.log_probs:
                return found
            return jnp.concatenate([found, tell(state.params, state.scaling, images)])

        def of_member(member: tuple[State, jax.Array]) -> jax.Array:
            state, blocks = member
            return jax.lax.map(lambda indices: of_block(state, indices), blocks)

        return jax.vmap(of_member)((states, rows)) if together else jax.lax.map(of_member, (states, rows))

    def chosen(old: State, new: State, which: jax.Array) -> State:
        return jax.tree.map(lambda a, b: jnp.where(jnp.expand_dims(which, range(1, a.ndim)), b, a), old, new)

    def choose(best: State, states: State, better: jax.Array) -> State:
        return chosen(best, states, better)

    training = (DEALT, DEALT, REPLICATED, DEALT)
    return (
        layout.wrap_each(advance, training, donate=True),
        layout.wrap_each(advance_whole, training, donate=True) if together else None,
        layout.wrap_each(evaluate, (DEALT, REPLICATED, DEALT)),
        layout.wrap_each(choose, (DEALT, DEALT, DEALT), donate=True),
    )
