"""What Inductor has no code of its own for. Importing its table takes a second or two, no compiler.

Checked on torch 2.11 and 2.13: `torch._inductor.lowering.lowerings` and `fallbacks`,
`torch._inductor.decomposition.decompositions`.
"""

from __future__ import annotations

from typing import Any

from torch._ops import OpOverload


def runs_as_a_kernel_of_its_own(target: Any) -> bool:
    """Whether Inductor calls an operator as it is, so that nothing fuses across it.

    Matrix multiplications and the like, which have templates or libraries, don't count.
    """
    if not isinstance(target, OpOverload):
        return False
    from torch._inductor import decomposition, lowering

    if target in lowering.fallbacks:
        return True
    known = target in lowering.lowerings or target.overloadpacket in lowering.lowerings
    decomposed = target in decomposition.decompositions
    return not known and not decomposed and target.namespace not in ("prim", "prims")
