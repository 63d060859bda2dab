"""Whether runs end with the same bits, however they are carried out."""

from distmlp.parallel.layout import Layout
from distmlp.verify.here import Here, NotHere


def twice(here: Here) -> str:
    """Two runs on the same devices; the fast reduction does not promise it on GPUs."""
    found = {name: here.sha256() for name in ("the first run", "the second")}
    here.agree(found)
    fast = {here.sha256(reduction="fast", num_shards=0) for _ in range(2)}
    return f"{found['the first run'][:8]}; with --reduction=fast also the same" if len(fast) == 1 else (
        f"{found['the first run'][:8]}; with --reduction=fast they differ, as they may")


def counts(here: Here) -> str:
    """Runs on 1, 2, 4, ... of each process's devices, and on all."""
    local = here.local
    sizes = [1 << power for power in range(len(local).bit_length()) if 1 << power < here.count]
    if not sizes:
        raise NotHere("there is one device")
    found = {"all": here.sha256()}
    for size in sizes:
        ways = "single" if size == 1 else "shard_map"
        found[str(size)] = here.sha256(Layout(tuple(local[:size]), ways, here.layout.num_shards, invariant=True))
    here.agree(found)
    own = " of each process" if here.group.several else ""
    return f"{', '.join(map(str, sizes))}{own} and all {here.count}: {found['all'][:8]}"


def wrappings(here: Here) -> str:
    """By pmap and by shard_map."""
    if here.group.several:
        raise NotHere("pmap is for one process")
    ways = ("shard_map", "pmap") if here.count > 1 else ("single", "shard_map", "pmap")
    found = {way: here.sha256(parallelism=way) for way in ways}
    here.agree(found)
    return f"{', '.join(ways)}: {found['pmap'][:8]}"


def dispatches(here: Here) -> str:
    """Steps in dispatches of one length and another: on a GPU these are programs of their own."""
    found = {f"{steps} steps": here.sha256(steps_per_dispatch=steps, max_steps=70) for steps in (1, 5, 64)}
    here.agree(found)
    return f"1, 5 and 64 steps a dispatch: {found['1 steps'][:8]}"


def placements(here: Here) -> str:
    """The data on the devices, and sent from the host batch by batch."""
    found = {place: here.sha256(data_placement=place) for place in ("device", "host")}
    here.agree(found)
    return f"on the device, from the host: {found['host'][:8]}"


def states(here: Here) -> str:
    """The state replicated and sharded, with a clipped gradient, whose norm is added up of parts."""
    if here.count == 1:
        raise NotHere("one device holds all of the state")
    found = {state: here.sha256(state=state, clip_norm=0.05) for state in ("replicated", "sharded")}
    here.agree(found)
    return f"replicated, sharded: {found['sharded'][:8]}"


def audit(here: Here) -> str:
    """Each step computed on two devices, which must agree; and the same bits as without."""
    if here.count == 1:
        raise NotHere("one device has no other to be compared with")
    found = {"audited": here.sha256(audit_every=1), "not audited": here.sha256()}
    here.agree(found)
    return f"each of 14 steps on two devices: {found['audited'][:8]}"
