"""Rotation from where the heads stand to where they are wanted; its backward is the rotation by the opposite angles."""

from __future__ import annotations

from torch import Tensor

from gguflora.kernels.rope import reference


def rotate(x: Tensor, cos: Tensor, sin: Tensor, half_split: bool, out: Tensor, back: bool = False) -> None:
    """Write x (T, H, h) turned by its angles, or with `back` by the opposite ones, to out (T, H, h)."""
    out.copy_(reference.rotate(x, cos, -sin if back else sin, half_split))
