"""Dequantising is bit-equal to gguf-py on random bytes of every supported type, and to ggml on what ggml quantised."""

from __future__ import annotations

import ctypes as c
import platform
import struct

import gguf
import numpy as np
import numpy.typing as npt
import pytest
import torch

from gguflora.errors import ModelError
from gguflora.gguf.format import BLOCKS, GgmlType
from gguflora.kernels.dequantise import finite
from gguflora.kernels.dequantise.finite import all_finite
from gguflora.kernels.dequantise.reference import FUNCTIONS, dequantise
from gguflora.llamacpp import library

ROWS, BLOCKS_PER_ROW = 61, 6


def bits(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint32]:
    """The bits of each value, every NaN made the same: which NaN it is means nothing."""
    canonical = np.where(np.isnan(values), np.float32(np.nan), values)
    return canonical.astype(np.float32).view(np.uint32)


@pytest.mark.parametrize("type", FUNCTIONS, ids=lambda type: type.name)
@pytest.mark.parametrize("seed", range(3))
def test_random_bytes_give_gguf_pys_bits(type: GgmlType, seed: int) -> None:
    nbytes = BLOCKS_PER_ROW * BLOCKS[type].nbytes
    packed = np.random.default_rng(seed).integers(0, 256, (ROWS, nbytes), np.uint8)
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType(int(type)))
    ours = dequantise(torch.from_numpy(packed), type)
    assert tuple(ours.shape) == expected.shape == (ROWS, BLOCKS_PER_ROW * BLOCKS[type].elements)
    assert ours.dtype is torch.float32
    assert np.isfinite(expected).mean() >= 0.9, f"too few finite values to compare, seed {seed}"
    different = np.argwhere(bits(ours.numpy()) != bits(expected))
    assert len(different) == 0, f"{len(different)} values differ, the first at {different[0]}, seed {seed}"


class TypeTraits(c.Structure):
    """ggml.h, struct ggml_type_traits, up to the member used here."""

    _fields_ = (
        ("type_name", c.c_char_p),
        ("blck_size", c.c_int64),
        ("blck_size_interleave", c.c_int64),
        ("type_size", c.c_size_t),
        ("is_quantized", c.c_bool),
        ("to_float", c.CFUNCTYPE(None, c.c_void_p, c.c_void_p, c.c_int64)),
    )


@pytest.fixture(scope="module")
def ggml() -> c.CDLL:
    """ggml inside the real llama.cpp, with the two functions declared that these tests call."""
    loaded = library.load()
    loaded.ggml_get_type_traits.restype = c.POINTER(TypeTraits)
    loaded.ggml_get_type_traits.argtypes = (c.c_int,)
    loaded.ggml_quantize_chunk.restype = c.c_size_t
    loaded.ggml_quantize_chunk.argtypes = (c.c_int, c.c_void_p, c.c_void_p, *[c.c_int64] * 3, c.c_void_p)
    return loaded


@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"),
    reason="elsewhere a compiler may fuse ggml's multiplication and addition, which then round once and not twice",
)
# ggml has no function from F32 to F32.
@pytest.mark.parametrize("type", [type for type in FUNCTIONS if type != GgmlType.F32], ids=lambda type: type.name)
def test_rows_that_ggml_quantised_are_dequantised_as_ggml_does(ggml: c.CDLL, type: GgmlType) -> None:
    traits = ggml.ggml_get_type_traits(type).contents
    assert (traits.type_name.decode().upper(), traits.blck_size, traits.type_size) == (
        type.name,
        BLOCKS[type].elements,
        BLOCKS[type].nbytes,
    )
    generator = np.random.default_rng(6)
    rows, columns = 40, 512
    weights = (10 ** generator.uniform(-4, 1, (rows, 1)) * generator.normal(size=(rows, columns))).astype(np.float32)
    packed = np.zeros((rows, columns // BLOCKS[type].elements * BLOCKS[type].nbytes), np.uint8)
    written = ggml.ggml_quantize_chunk(type, weights.ctypes.data, packed.ctypes.data, 0, rows, columns, None)
    assert written == packed.nbytes
    expected = np.full_like(weights, np.nan)
    traits.to_float(packed.ctypes.data, expected.ctypes.data, weights.size)
    # Two bits leave an error of about a third of the deviation: more would mean that the two calls don't fit together.
    assert (np.square(expected - weights).mean(1) < 0.2 * np.square(weights).mean(1)).all()
    assert np.array_equal(bits(dequantise(torch.from_numpy(packed), type).numpy()), bits(expected))


def test_a_q4_1_block_written_by_hand() -> None:
    """Scale 0.5 and minimum -3 in float16; byte j holds value j in its low half and value j + 16 in its high half."""
    block = struct.pack("<ee", 0.5, -3.0) + bytes(j | (15 - j) << 4 for j in range(16))
    [values] = dequantise(torch.tensor([list(block)], dtype=torch.uint8), GgmlType.Q4_1).tolist()
    assert values == [j * 0.5 - 3 for j in range(16)] + [(15 - j) * 0.5 - 3 for j in range(16)]


def test_a_q8_0_block_written_by_hand() -> None:
    """Scale 0.25 in float16, then signed bytes."""
    numbers = [*range(-128, -112), *range(112, 128)]
    block = struct.pack("<e32b", 0.25, *numbers)
    [values] = dequantise(torch.tensor([list(block)], dtype=torch.uint8), GgmlType.Q8_0).tolist()
    assert values == [number * 0.25 for number in numbers]


@pytest.mark.parametrize("type", FUNCTIONS, ids=lambda type: type.name)
def test_rows_picked_from_the_middle_are_the_same_rows(type: GgmlType) -> None:
    """The embedding gathers packed rows and dequantises those alone, in any leading shape."""
    nbytes = BLOCKS_PER_ROW * BLOCKS[type].nbytes
    packed = torch.from_numpy(np.random.default_rng(5).integers(0, 256, (ROWS, nbytes), np.uint8))
    picked = torch.tensor([[7, 7, 0], [60, 3, 8]])
    assert (bits(dequantise(packed[picked], type).numpy()) == bits(dequantise(packed, type)[picked].numpy())).all()


@pytest.mark.parametrize("type", FUNCTIONS, ids=lambda type: type.name)
@pytest.mark.parametrize("rows", [0, 1, 2, 5])
def test_any_number_of_rows_in_any_view_gives_the_same_values(type: GgmlType, rows: int) -> None:
    """Also views that start at an odd byte, or whose rows, or bytes, don't lie side by side."""
    nbytes = BLOCKS_PER_ROW * BLOCKS[type].nbytes
    packed = torch.from_numpy(np.random.default_rng(rows).integers(0, 256, (rows, nbytes), np.uint8))
    expected = bits(dequantise(packed, type).numpy())
    assert expected.shape == (rows, BLOCKS_PER_ROW * BLOCKS[type].elements)
    odd_start = torch.zeros(rows * nbytes + 1, dtype=torch.uint8)[1:].view(rows, nbytes)
    far_apart = torch.zeros(2 * rows, nbytes + 3, dtype=torch.uint8)[::2, 1:-2]
    transposed = torch.zeros(nbytes, rows, dtype=torch.uint8).T
    for view in (odd_start, far_apart, transposed):
        values = bits(dequantise(view.copy_(packed), type).numpy())
        assert values.shape == expected.shape
        assert (values == expected).all()
    for row, values in zip(packed, expected, strict=True):
        assert (bits(dequantise(row, type).numpy()) == values).all()


def test_the_packed_bytes_stay_as_they_are() -> None:
    for type in FUNCTIONS:
        packed = torch.from_numpy(np.random.default_rng(9).integers(0, 256, (3, BLOCKS[type].nbytes), np.uint8))
        before = packed.clone()
        dequantise(packed, type)
        assert torch.equal(packed, before), type.name


def test_a_type_without_a_function_is_refused_by_name() -> None:
    unsupported = [type for type in GgmlType if type not in FUNCTIONS]
    assert unsupported
    for type in unsupported:
        with pytest.raises(ModelError, match=rf"\b{type.name}\b"):
            dequantise(torch.zeros(1, BLOCKS[type].nbytes, dtype=torch.uint8), type)


# --- values that are not finite ---


@pytest.mark.parametrize("type", FUNCTIONS, ids=lambda type: type.name)
def test_the_scales_tell_whether_a_blocks_values_are_finite(type: GgmlType) -> None:
    """Of random blocks, one by one; so many that each type has both kinds."""
    rng = np.random.default_rng(3)
    blocks = torch.from_numpy(rng.integers(0, 256, (4000, BLOCKS[type].nbytes), np.uint8))
    truth = dequantise(blocks, type).isfinite().all(1)
    assert 10 < int(truth.sum()) < len(blocks) - 10
    assert [all_finite(block[None], type) for block in blocks] == truth.tolist()


@pytest.mark.parametrize("exponent", [252, 253, 254, 255])
@pytest.mark.parametrize("nibble", range(16))
def test_of_mxfp4s_largest_scales_some_values_are_too_large(exponent: int, nibble: int) -> None:
    block = torch.tensor([[exponent, *[nibble * 17] * 16]], dtype=torch.uint8)
    assert all_finite(block, GgmlType.MXFP4) == bool(dequantise(block, GgmlType.MXFP4).isfinite().all())


def test_every_block_of_every_row_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finite, "CHUNK", 4)
    packed = torch.zeros(3, 3 * BLOCKS[GgmlType.Q4_1].nbytes, dtype=torch.uint8)
    assert all_finite(packed, GgmlType.Q4_1)
    for block in range(9):
        spoilt = packed.clone()
        spoilt.view(9, -1)[block, 2:4] = torch.tensor([0x00, 0x7C], dtype=torch.uint8)  # the minimum is infinite
        assert not all_finite(spoilt, GgmlType.Q4_1)
