"""The operations of the network: each has a plain reference, which is its definition, and maybe faster versions."""

from gguflora.kernels.choose import CPU, REFERENCE, Kernels, choose_dtype, choose_kernels

__all__ = ["CPU", "REFERENCE", "Kernels", "choose_dtype", "choose_kernels"]
