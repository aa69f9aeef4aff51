"""What ranks do in tests/test_ranks.py: compile small regions, and say what became of each."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import Any

import torch

import regional_inductor as ri

_CHANGES = {"sin": torch.sin, "cos": torch.cos, "tanh": torch.tanh, "exp": torch.exp}
_CHANGES |= {"sigmoid": torch.sigmoid, "sqrt": torch.sqrt, "relu": torch.relu, "abs": torch.abs}


def compile_for(names: Sequence[Sequence[str]], sizes: Sequence[int] = ()) -> dict[str, Any]:
    """Compile a function with a region for each of this rank's names, each a graph that no other is.

    Args:
        names: Of regions, for each rank.
        sizes: Of the argument, for each rank; 8 by default.
    """
    rank = torch.distributed.get_rank()
    own = names[rank]

    def chain(x):
        for name in own:
            with ri.region(name):
                x = _CHANGES[name](x) * 2 + 1
            x = x.sort().values  # not marked, so that each name is a region of its own
        return x

    x = torch.linspace(0.1, 1, sizes[rank] if sizes else 8)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always", ri.RegionWarning)
        result = ri.compile(chain, on_error="raise", dynamic=False)(x)
    report = ri.last_report()
    assert report is not None
    return {
        "right": torch.allclose(result, chain(x)),
        "regions": {region.name: region.status for region in report.regions},
        "keys": {region.name: region.key for region in report.regions},
        "warnings": [str(one.message) for one in heard if one.category is ri.RegionWarning],
    }


def die_while_compiling(rank: int) -> None:
    """From now on this process ends where one of its regions would be compiled."""
    from regional_inductor import region_backends

    if torch.distributed.get_rank() == rank:
        region_backends.BACKENDS["inductor"] = lambda *_: os._exit(1)


def compile_second(names: Sequence[Sequence[str]], claimed: str, first: int, limit: float) -> Any:
    """As `compile_for`, but ranks other than the first begin once it has claimed something.

    Args:
        names: Of regions, for each rank.
        claimed: Where the first says so: a key of the job's store.
        first: Its number.
        limit: Seconds for which the others wait for it.
    """
    from regional_inductor import ranks

    os.environ[ranks.TIMEOUT] = str(limit)
    store = torch.distributed.distributed_c10d._get_default_store()
    if torch.distributed.get_rank() == first:
        produce = ranks.Job._produce

        def told(self: Any, keys: Any, make: Any) -> None:
            store.set(claimed, "yes")
            produce(self, keys, make)

        ranks.Job._produce = told
    else:
        store.get(claimed)
    return compile_for(names)
