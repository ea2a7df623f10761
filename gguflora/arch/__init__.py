"""What the file's metadata and tensors say about the network, resolved to plain numbers and names. No torch here."""

from gguflora.arch.specs import AttentionSpec, FfnSpec, LayerSpec, LinearSpec, ModelSpec, RopeSpec, model_spec
from gguflora.arch.targets import canonical_targets, resolve_targets
from gguflora.arch.types import check_types

__all__ = [
    "AttentionSpec",
    "FfnSpec",
    "LayerSpec",
    "LinearSpec",
    "ModelSpec",
    "RopeSpec",
    "canonical_targets",
    "check_types",
    "model_spec",
    "resolve_targets",
]
