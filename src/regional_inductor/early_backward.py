"""Regions of a backward graph that are compiled with those of its forward graph.

Autograd asks for the backward graph when it first runs it. By then the compilers have been idle since
the forward graph was done, and start anew for what they could have compiled with it. Both graphs exist
once AOTAutograd has cut the joint graph, so the backward graph's regions are asked for with the forward
graph's, and kept until the backward graph asks for them itself. It goes through the pass as it would have;
a region that isn't found here, for whatever reason, it compiles then.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch.fx

from . import pipeline
from ._torch import dynamo
from .region_requests import RegionRequest, requests_of
from .regions import CompiledRegion, Outlined, Settings
from .stages.collect import collect
from .stages.outline import outline
from .stages.partition import partition

Partition = Callable[..., tuple[torch.fx.GraphModule, torch.fx.GraphModule]]


class EarlyBackward:
    """The regions of the one backward graph of a capture, and what they became so far.

    Args:
        settings: Those that the backward graph will be compiled with.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._graph: torch.fx.GraphModule | None = None
        self._made: dict[str, CompiledRegion] = {}

    @property
    def number(self) -> int:
        """How many regions were made and not asked for yet."""
        return len(self._made)

    def noting(self, partition: Partition) -> Partition:
        """A partition function of AOTAutograd's that also notes the backward graph here."""

        def noted(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
            forward, backward = partition(*args, **kwargs)
            self._graph = backward
            return forward, backward

        return noted

    def requests(self) -> list[RegionRequest]:
        """What the backward graph will ask for, one request a key.

        A graph that the pass can't go over asks for nothing here: it says so when it is compiled itself.
        """
        if self._graph is None:
            return []
        try:
            with dynamo.as_in_backward(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # whatever it is, it is said again then
                outlined: Outlined = pipeline.run(
                    self._graph, (), self._settings, stages=(collect, partition, outline)
                )
                asked = list(requests_of(outlined, self._settings))
        except Exception:  # noqa: BLE001 - of an error that comes again
            return []
        first: dict[str, RegionRequest] = {}
        for request in asked:
            if request.key and not request.unshared:
                first.setdefault(request.key, replace(request, early=True))
        return list(first.values())

    def close(self) -> None:
        """Ask for nothing more: the forward graph has been compiled."""
        self._graph = None

    def keep(self, regions: Iterable[CompiledRegion]) -> None:
        """Keep what was made. What failed isn't: the backward graph tries again and says why it fails."""
        self._made.update((region.key, region) for region in regions if region.call is not None)

    def taken(self, key: str) -> CompiledRegion | None:
        """What was made under a key, for who asks first."""
        return self._made.pop(key, None)
