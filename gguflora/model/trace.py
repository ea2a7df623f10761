"""Who watches a forward pass is told each intermediate by llama.cpp's name, so that the two can be laid side by side.

The names are those that its graphs give through `cb` (src/models/*.cpp, src/llama-graph.cpp), `-N` for layer N. As
there, `Qcur-N` and `Kcur-N` come twice: as projected, bias included, and as turned by rope.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Trace = Callable[[str, Tensor], None]


def untraced(_name: str, _value: Tensor) -> None:
    """Nobody watches."""


def of_layer(trace: Trace, index: int) -> Trace:
    """The same watcher, told the names of one layer."""
    if trace is untraced:
        return untraced
    return lambda name, value: trace(f"{name}-{index}", value)
