"""Which elements ATen's vectorised CPU loops compute with a kernel's scalar code.

TensorIterator orders and merges dimensions by stride, cuts the work into chunks, one a thread, and runs
rows of the innermost dimension. A row whose operands are contiguous (or one number repeated) is done
in steps of two vectors, and what is left over by the scalar code, which also does rows of any other
stride. Where the two give different bits, a compiled kernel has to make the same cut.

Checked on torch 2.13: `TensorIteratorBase::reorder_dimensions`, `coalesce_dimensions`, `for_each`,
`VectorizedLoop2d`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

GRAIN = 32768
"""Elements from which on TensorIterator cuts work into chunks."""

ALL_VECTOR: tuple[int, ...] = ()
ALL_SCALAR: tuple[int, ...] = (0,)


def scalar_positions(
    shape: Sequence[int], strides: Sequence[Sequence[int]], step: int
) -> tuple[int, ...]:
    """Where an element-wise kernel runs its scalar code.

    Args:
        shape: Sizes of the result.
        strides: For each tensor operand its strides in elements, 0 where it is broadcast.
        step: How many elements the vectorised loop does at a time.

    Returns:
        `ALL_VECTOR`, `ALL_SCALAR`, or ``(step, row, count, *weights)``: the element at index ``i`` is
        number ``p = sum(i * weights)`` of `count`; rows have `row` elements, and in each row (or the
        part of it that one thread does) what is left over by whole steps is done by the scalar code.
    """
    count = math.prod(shape)
    if count <= 1:
        return ALL_SCALAR
    order = _order(shape, strides)
    row, inner = _innermost(shape, [*strides, _output_strides(shape, order)], order)
    if sum(stride != 1 for stride in inner) > 1 or any(stride not in (0, 1) for stride in inner):
        return ALL_SCALAR
    if row < step:
        return ALL_SCALAR
    if row % step == 0 and count < GRAIN:
        return ALL_VECTOR
    return (step, row, count, *_output_strides(shape, order))


def one_dense_block(shape: Sequence[int], strides: Sequence[Sequence[int]]) -> bool:
    """Whether TensorIterator makes a single contiguous row of all dimensions."""
    order = _order(shape, strides)
    if not order:
        return True
    row, inner = _innermost(shape, strides, order)
    return row == math.prod(shape) and (row == 1 or all(stride == 1 for stride in inner))


def contiguous_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides of a contiguous tensor."""
    return _output_strides(shape, list(range(len(shape)))[::-1])


def _order(shape: Sequence[int], strides: Sequence[Sequence[int]]) -> list[int]:
    """Dimensions from the innermost loop to the outermost."""
    order = list(range(len(shape)))[::-1]
    for start in range(1, len(order)):
        moving = start
        for place in range(start - 1, -1, -1):
            comparison = _compare(order[place], order[moving], shape, strides)
            if comparison > 0:
                order[place], order[moving] = order[moving], order[place]
                moving = place
            elif comparison < 0:
                break
    return order


def _compare(
    first: int, second: int, shape: Sequence[int], strides: Sequence[Sequence[int]]
) -> int:
    for operand in strides:
        a, b = operand[first], operand[second]
        if a == 0 or b == 0:
            continue
        if a != b:
            return -1 if a < b else 1
        if shape[first] > shape[second]:
            return 1
    return 0


def _output_strides(shape: Sequence[int], order: Sequence[int]) -> tuple[int, ...]:
    """Strides of the result that TensorIterator allocates: dense, in the order of the loops."""
    strides, next_stride = [0] * len(shape), 1
    for dim in order:
        strides[dim] = next_stride
        next_stride *= shape[dim]
    return tuple(strides)


def _innermost(
    shape: Sequence[int], strides: Sequence[Sequence[int]], order: Sequence[int]
) -> tuple[int, list[int]]:
    """Size and strides of the innermost loop after merging what can be merged."""
    row = shape[order[0]]
    inner = [operand[order[0]] for operand in strides]
    for dim in order[1:]:
        size = shape[dim]
        steps = [operand[dim] for operand in strides]
        mergeable = (
            row == 1 or size == 1 or all(row * a == b for a, b in zip(inner, steps, strict=True))
        )
        if not mergeable:
            break
        if row == 1:
            inner = steps
        row *= size
    return row, inner


def is_scalar(position: int, positions: tuple[int, ...], threads: int) -> bool:
    """Whether element number `position` is done by scalar code; what generated code decides."""
    if positions in (ALL_VECTOR, ALL_SCALAR):
        return positions == ALL_SCALAR
    step, row, count = positions[:3]
    chunk = count
    if count > GRAIN and threads > 1:
        chunk = -(-count // min(threads, -(-count // GRAIN)))
    start = max(position // row * row, position // chunk * chunk)
    end = min((position // row + 1) * row, (position // chunk + 1) * chunk, count)
    return position - start >= (end - start) // step * step
