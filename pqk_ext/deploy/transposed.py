"""A transposed convolution as operators of the graph: its input spread out, then an ordinary convolution.

Its kernel is the transposed one, turned round (Dumoulin and Visin, "A guide to convolution arithmetic for deep
learning", 2016, section 4).
"""

from __future__ import annotations

from typing import Any

__all__ = ["spread_input"]

Shape = tuple[int, ...]
Step = tuple[str, dict[str, Any], Shape]


def spread_input(attributes: dict[str, Any], shape: Shape) -> tuple[list[Step], dict[str, Any]]:
    """What is done to the input of a convolution before it.

    Args:
        attributes: of the convolution's block; without ``input_dilation`` there is nothing to do.
        shape: of its input.

    Returns:
        Operators in their order, each with its attributes and the shape of its value, and the attributes that are
        left to the convolution.
    """
    left = dict(attributes)
    dilation = left.pop("input_dilation", None)
    steps: list[Step] = []
    if dilation is None:
        return steps, left
    if dilation != [1, 1]:
        shape = (shape[0], *((size - 1) * step + 1 for size, step in zip(shape[1:], dilation, strict=True)))
        steps.append(("dilate", {"dilation": dilation}, shape))
    before, after = [0, *left["padding"][:2]], [0, *left["padding"][2:]]
    if min(before + after) >= 0:
        return steps, left
    # A convolution only adds positions. What is cut off may be all of the input, so the others are added first.
    left["padding"] = [0, 0, 0, 0]
    more_before, more_after = ([max(0, count) for count in side] for side in (before, after))
    if any(more_before + more_after):
        shape = tuple(sum(sizes) for sizes in zip(shape, more_before, more_after, strict=True))
        steps.append(("pad", {"before": more_before, "after": more_after}, shape))
    start = [max(0, -count) for count in before]
    stop = [size - max(0, -count) for size, count in zip(shape, after, strict=True)]
    shape = tuple(end - begin for begin, end in zip(start, stop, strict=True))
    steps.append(("slice", {"start": start, "stop": stop, "step": [1, 1, 1]}, shape))
    return steps, left
