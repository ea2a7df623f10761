"""The C structures that llama.cpp passes by value, as they lie in memory in the pinned xllamacpp build.

Fields are named as in include/llama.h, up to the last one that is set here; what follows differs from header to
header (this build has one pointer more than the header of its neighbours before `embeddings`), so it is left as
llama.cpp's own default functions filled it. SPARE is more than any of the structures needs: as the last argument of
a call, or as its result, a structure may be longer than the callee knows.

tests/llamacpp/test_library.py holds every offset against what the library does.
"""

from __future__ import annotations

import ctypes as c

SPARE = 512
"""Bytes kept after the named fields (the largest structure is 168 bytes long)."""

GGML_TYPE_F32 = 0
GGML_TYPE_F16 = 1
FLASH_ATTENTION_AUTO = -1
FLASH_ATTENTION_OFF = 0


class ModelParams(c.Structure):
    """llama_model_params."""

    _fields_ = (
        ("devices", c.POINTER(c.c_void_p)),  # ends with NULL; NULL itself = every device
        ("tensor_buft_overrides", c.c_void_p),
        ("n_gpu_layers", c.c_int32),
        ("split_mode", c.c_int32),
        ("load_mode", c.c_int32),
        ("lazy_mode", c.c_int32),
        ("main_gpu", c.c_int32),
        ("tensor_split", c.c_void_p),
        ("progress_callback", c.c_void_p),
        ("progress_callback_user_data", c.c_void_p),
        ("kv_overrides", c.c_void_p),
        ("vocab_only", c.c_bool),
        ("check_tensors", c.c_bool),
        ("use_extra_bufts", c.c_bool),
        ("rest", c.c_uint8 * SPARE),
    )


class ContextParams(c.Structure):
    """llama_context_params."""

    _fields_ = (
        ("n_ctx", c.c_uint32),
        ("n_batch", c.c_uint32),
        ("n_ubatch", c.c_uint32),
        ("n_seq_max", c.c_uint32),
        ("n_rs_seq", c.c_uint32),
        ("n_outputs_max", c.c_uint32),
        ("n_outputs_max_per_seq", c.c_uint32),
        ("n_threads", c.c_int32),
        ("n_threads_batch", c.c_int32),
        ("ctx_type", c.c_int32),
        ("rope_scaling_type", c.c_int32),
        ("pooling_type", c.c_int32),
        ("attention_type", c.c_int32),
        ("flash_attn_type", c.c_int32),
        ("rope_freq_base", c.c_float),
        ("rope_freq_scale", c.c_float),
        ("yarn_ext_factor", c.c_float),
        ("yarn_attn_factor", c.c_float),
        ("yarn_beta_fast", c.c_float),
        ("yarn_beta_slow", c.c_float),
        ("yarn_orig_ctx", c.c_uint32),
        ("defrag_thold", c.c_float),
        ("cb_eval", c.c_void_p),
        ("cb_eval_user_data", c.c_void_p),
        ("type_k", c.c_int32),
        ("type_v", c.c_int32),
        ("rest", c.c_uint8 * SPARE),
    )


class Batch(c.Structure):
    """llama_batch. NULL for positions and sequences means: continue sequence 0 where it stands."""

    _fields_ = (
        ("n_tokens", c.c_int32),
        ("token", c.POINTER(c.c_int32)),
        ("embd", c.c_void_p),
        ("pos", c.c_void_p),
        ("n_seq_id", c.c_void_p),
        ("seq_id", c.c_void_p),
        ("logits", c.POINTER(c.c_int8)),  # 1 where the token's logits are wanted
    )
