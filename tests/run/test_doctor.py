"""Each thing that can be in the way is told as what it is, with something to do about it, and nothing else is."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from gguflora.errors import UsageError
from gguflora.kernels.operations import TORCH, choose_operations
from gguflora.llamacpp import library
from gguflora.run import doctor
from gguflora.run.doctor import Finding, disk_finding, examine, exit_code, memory_findings, package_finding, satisfies
from gguflora.run.machine import Memory
from gguflora.run.products import product_rates

GB = 10**9
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gguflora" / "identity"


def finding(name: str) -> Finding:
    [found] = [each for each in examine() if each.name == name]
    return found


# --- versions ---


@pytest.mark.parametrize("version", ["2.10", "2.11", "2.11.0", "2.11.0+cpu", "2.14.9", "2.15", "2.15.1", "3", "2.9.1"])
@pytest.mark.parametrize("wanted", ["<2.15,>=2.11", ">=2.11", "==2.11", ">=2.11.0", "<2.15", "", ">=2.9.1"])
def test_a_version_fits_as_packaging_says(version: str, wanted: str):
    assert satisfies(version, wanted) == (Version(version) in SpecifierSet(wanted))


def test_a_package_that_fits_passes_and_another_version_is_a_warning():
    assert package_finding("numpy>=1.26").state == "pass"
    other = package_finding("numpy<2,>=1.26")
    assert other.state == "warn"
    assert other.fix == "pip install 'numpy<2,>=1.26'"


@pytest.mark.parametrize("error", [ImportError("no such"), OSError("libtorch.so: failed to map")])
def test_a_package_that_can_not_be_imported_has_failed(monkeypatch: pytest.MonkeyPatch, error: Exception):
    def broken(_: str) -> None:
        raise error

    monkeypatch.setattr(importlib, "import_module", broken)
    found = package_finding("torch<2.15,>=2.11")
    assert (found.name, found.state, found.exit_code) == ("torch", "fail", 2)
    assert str(error) in found.found
    assert found.fix == "pip install 'torch<2.15,>=2.11'"


def test_the_packages_that_are_looked_for_are_those_of_pyproject():
    names = {each.name for each in examine()}
    assert names >= {"python", "torch", "numpy", "tokenizers", "jinja2", "safetensors", "rich", "cyclopts", "gguflora"}
    assert not names & {"pytest", "gguf", "xllamacpp"}  # extras


# --- memory and disk ---


@pytest.mark.parametrize(
    ("available", "state"), [(0, "fail"), (GB, "fail"), (2**30, "warn"), (2 * GB, "warn"), (2 * 2**30, "pass")]
)
def test_too_little_memory_has_failed_and_little_is_a_warning(available: int, state: str):
    found, *_ = memory_findings(Memory(16 * GB, available, None, None, None))
    assert (found.name, found.state) == ("memory", state)
    assert bool(found.fix) == (state != "pass")
    assert found.exit_code == 4


def test_a_full_container_on_a_large_machine_has_failed():
    found, *_ = memory_findings(Memory(64 * GB, 50 * GB, 4 * GB, 4 * GB, None))
    assert found.state == "fail"
    assert "cgroup limit 4.0 GB" in found.found


@pytest.mark.parametrize(("limit", "state"), [(None, "pass"), (8 * GB, "pass"), (2 * GB, "warn"), (GB, "fail")])
def test_a_limit_on_addresses_is_told(limit: int | None, state: str):
    _, found, other = memory_findings(Memory(16 * GB, 16 * GB, None, None, limit))
    assert (found.name, found.state) == ("address space", state)
    assert found.fix == ("" if state == "pass" else "ulimit -v unlimited")
    assert (other.state, other.found) == ("pass", "no limit")


@pytest.mark.parametrize(("limit", "state"), [(None, "pass"), (4 * GB, "pass"), (GB, "warn"), (GB // 4, "fail")])
def test_a_limit_on_private_memory_is_told(limit: int | None, state: str):
    _, _, found = memory_findings(Memory(16 * GB, 16 * GB, None, None, None, limit))
    assert (found.name, found.state) == ("private memory", state)
    assert found.found == ("no limit" if limit is None else f"limited to {limit / GB:.1f} GB (RLIMIT_DATA)")
    assert found.fix == ("" if state == "pass" else "ulimit -d unlimited")


def test_the_limits_are_those_that_the_shell_has_set():
    """The judge is the system: a process that sets both itself, and what doctor then finds."""
    code = (
        "import resource\nresource.setrlimit(resource.RLIMIT_DATA, (3 * 10**9, 3 * 10**9))\n"
        "resource.setrlimit(resource.RLIMIT_AS, (9 * 10**9, 9 * 10**9))\n"
        "from gguflora.run.doctor import memory_findings\nfrom gguflora.run.machine import memory\n"
        "for finding in memory_findings(memory()): print(finding.name, finding.found, sep=': ')"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "address space: limited to 9.0 GB (RLIMIT_AS)\n" in told
    assert "private memory: limited to 3.0 GB (RLIMIT_DATA)\n" in told


@pytest.mark.parametrize(("free", "state"), [(10 * GB, "pass"), (GB, "warn"), (10**8, "fail"), (0, "fail")])
def test_a_full_disk_has_failed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free: int, state: str):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: Usage(20 * GB, 0, free))
    found = disk_finding("disk here", tmp_path / "to" / "come")
    assert found.state == state
    assert str(tmp_path) in found.found
    assert bool(found.fix) == (state != "pass")


# --- the cache ---


def test_a_cache_that_can_be_written_passes_and_keeps_nothing(own_cache: Path):
    found = finding("cache")
    assert (found.state, found.fix) == ("pass", "")
    assert str(own_cache) in found.found
    assert list(own_cache.iterdir()) == []


def test_a_cache_that_can_not_be_written_is_a_warning(tmp_path: Path, own_cache: Path):
    (tmp_path / "cache").write_text("a file where a folder should be")
    found = finding("cache")
    assert found.state == "warn"
    assert str(own_cache) in found.found
    assert "XDG_CACHE_HOME" in found.fix


def test_no_home_folder_is_a_warning(monkeypatch: pytest.MonkeyPatch):
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    assert finding("cache").state == "warn"


# --- llama.cpp ---


def test_llamacpp_loads_here():
    found = finding("llama.cpp")
    assert found.state == "pass"
    assert library.PACKAGE_VERSION in found.found


@pytest.mark.parametrize(("installed", "words"), [(None, "not installed"), ("2020.1", "2020.1 found")])
def test_a_missing_extra_is_only_a_warning(monkeypatch: pytest.MonkeyPatch, installed: str | None, words: str):
    monkeypatch.setattr(library, "installed_version", lambda: installed)
    found = finding("llama.cpp")
    assert found.state == "warn"
    assert words in found.found
    assert library.PACKAGE_VERSION in found.found
    assert found.fix == "pip install 'gguflora[llamacpp]'"


@pytest.mark.parametrize("error", [OSError("undefined symbol"), UsageError("was built with another layout")])
def test_an_extra_that_is_there_and_does_not_load_has_failed(monkeypatch: pytest.MonkeyPatch, error: Exception):
    def broken() -> None:
        raise error

    monkeypatch.setattr(library, "load", broken)
    found = finding("llama.cpp")
    assert (found.state, found.exit_code) == ("fail", 2)
    assert str(error) in found.found


# --- the processor ---


@pytest.mark.parametrize(
    ("flags", "dtype"), [("avx2 avx512f amx_bf16", "bfloat16"), ("avx2 avx512_bf16", "bfloat16"), ("avx2", "float32")]
)
def test_the_dtype_and_its_reason_are_told(monkeypatch: pytest.MonkeyPatch, flags: str, dtype: str):
    monkeypatch.setattr("gguflora.kernels.choose.processor_flags", lambda: frozenset(flags.split()))
    monkeypatch.setattr("gguflora.kernels.processor_flags", lambda: frozenset(flags.split()))
    found = finding("processor").found
    assert found.startswith(flags)
    assert f"computes in {dtype}: the processor has" in found


def test_compiled_operations_pass_and_without_numba_torchs_own_are_a_warning(monkeypatch: pytest.MonkeyPatch):
    found = finding("operations")
    assert (found.state, found.found.split()[0]) == ("pass", "compiled")
    monkeypatch.setattr("gguflora.kernels.operations.importlib.import_module", broken_numba)
    found = doctor._operations()
    assert (found.state, found.found) == ("warn", "torch's own: numba can't be imported: needs NumPy 2.3 or less")
    assert found.fix == "pip install --upgrade numba"


def broken_numba(_: str) -> None:
    raise ImportError("needs NumPy 2.3 or less")


def test_the_threads_are_those_that_a_run_takes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    assert finding("threads").found.startswith("1;")


# --- the sum ---


def failed(code: int) -> Finding:
    return Finding("x", "fail", "y", "z", exit_code=code)


@pytest.mark.parametrize(
    ("findings", "code"),
    [
        ([], 0),
        ([Finding("x", "pass", "y"), Finding("x", "warn", "y", "z")], 0),
        ([failed(2)], 2),
        ([failed(4)], 4),
        ([failed(4), failed(2), Finding("x", "pass", "y")], 4),
    ],
)
def test_the_exit_code_is_that_of_the_gravest_failure(findings: list[Finding], code: int):
    assert exit_code(findings) == code


def test_whatever_is_not_well_says_what_to_do(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: Usage(GB, GB, 0))
    monkeypatch.setattr(library, "installed_version", lambda: None)
    found = list(examine())
    assert {each.state for each in found} >= {"pass", "warn", "fail"}
    for each in found:
        assert bool(each.fix) == (each.state != "pass"), each


# --- which dtype is fast ---


def test_a_dtype_that_another_one_outruns_is_a_warning_with_what_to_do():
    found = doctor.products_finding("bfloat16", {"float32": 2e11, "bfloat16": 3e9})
    assert (found.state, found.fix) == ("warn", "train with --dtype float32")
    assert found.found == "float32 0.20, bfloat16 0.00 TFLOP/s, both directions, and bfloat16 is chosen"


@pytest.mark.parametrize("other", [1e11, 4e11, 4.9e11])
def test_the_fastest_dtype_and_one_that_is_about_as_fast_pass(other: float):
    assert doctor.products_finding("bfloat16", {"float32": other, "bfloat16": 4e11}).state == "pass"


def test_tiles_that_are_slower_than_the_library_are_warned_of():
    found = doctor.products_finding("tiles", {"float32": 2e11, "bfloat16": 2e12, "tiles": 4e11})
    assert (found.state, found.fix) == ("warn", "train with --kernels torch")
    assert doctor.products_finding("tiles", {"float32": 2e11, "bfloat16": 4e11, "tiles": 4e11}).state == "pass"


@pytest.mark.parametrize("version", ["torch", "auto"])
def test_rates_are_of_every_way_and_no_machine_is_as_slow_or_as_fast_as_that(version: str):
    """A twentieth of what a processor of 2010 did, and more than any processor of today does."""
    operations, _ = choose_operations(torch.bfloat16, version)
    rates = product_rates(operations)
    tiles = [] if operations.lora_linear is TORCH.lora_linear else ["tiles"]
    assert list(rates) == ["float32", "bfloat16", *tiles]
    assert all(1e8 < rate < 1e15 for rate in rates.values())
