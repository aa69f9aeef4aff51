"""A stitched graph as AOTAutograd's serialisable results want it: an `OutputCode`.

Plain pickles hold a token for it. Its body, compiled regions included, is packed apart (`packing`), and
whoever unpickles puts what the token stands for into `known` before.

Imports parts of Inductor: wherever AOTAutograd's results are used, they are imported anyway.
Checked on torch 2.11 and 2.13: `torch._inductor.output_code.OutputCode`.
"""

from __future__ import annotations

import uuid
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch.fx
from torch._inductor.output_code import OutputCode

known: weakref.WeakValueDictionary[str, StitchedCode] = weakref.WeakValueDictionary()
"""What tokens stand for in this process."""


class StitchedCode(OutputCode):
    """Takes one list, which it empties.

    Args:
        call: What to run.
        module: The stitched graph, where there is one to pack.
        token: What stands for it in pickles.
    """

    def __init__(
        self,
        call: Callable[[list[Any]], Any],
        module: torch.fx.GraphModule | None = None,
        token: str | None = None,
    ) -> None:
        super().__init__()
        self._boxed_call = True  # on the instance: `torch._dynamo.disable` copies what is there
        self.call = call
        self.module = module
        self.token = token or uuid.uuid4().hex
        known[self.token] = self

    def __call__(self, inputs: Sequence[Any]) -> Any:
        return self.call(inputs)  # type: ignore[arg-type]  # AOTAutograd hands a list over

    def __reduce__(self) -> tuple[Any, ...]:
        return _of_token, (self.token,)

    def prepare_for_serialization(self) -> None:
        pass

    def post_compile(self, example_inputs: Any, constants: Any, graph_kwargs: Any) -> None:
        pass

    def set_triton_bundle(self, triton_bundle: Any) -> None:
        pass


def _of_token(token: str) -> StitchedCode:
    return known[token]
