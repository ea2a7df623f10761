"""The operations of the network, a folder each.

`reference` is plain PyTorch that autograd differentiates and that works in float64: it is the definition. `explicit` is
a pair of forward and backward over given buffers, which training runs; tests hold the two together.
"""

from gguflora.kernels.choose import choose_dtype, processor_flags, tiles_pay

__all__ = ["choose_dtype", "processor_flags", "tiles_pay"]
