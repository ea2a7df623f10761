"""Which tensor types a base may have: those that the kernels dequantise, listed here so that asking costs no torch."""

from __future__ import annotations

from gguflora.errors import ModelError
from gguflora.gguf import GgmlType, GgufFile

# As in kernels/dequantise/reference.py, which has the functions; a test holds the two together.
DEQUANTISED = (
    GgmlType.F32,
    GgmlType.F16,
    GgmlType.BF16,
    GgmlType.Q4_0,
    GgmlType.Q4_1,
    GgmlType.Q5_0,
    GgmlType.Q5_1,
    GgmlType.Q8_0,
    GgmlType.Q2_K,
    GgmlType.Q3_K,
    GgmlType.Q4_K,
    GgmlType.Q5_K,
    GgmlType.Q6_K,
    GgmlType.IQ4_NL,
    GgmlType.IQ4_XS,
    GgmlType.MXFP4,
)


def check_types(gguf: GgufFile) -> None:
    """Make sure that every tensor's type can be dequantised.

    Raises:
        ModelError: a tensor's type is not supported; it is named.
    """
    for info in gguf.tensors.values():
        if info.type not in DEQUANTISED:
            known = ", ".join(type.name for type in DEQUANTISED)
            raise ModelError(
                f"{gguf.path}: tensor {info.name} has type {info.type.name}, which is not supported yet ({known} are)."
            )
