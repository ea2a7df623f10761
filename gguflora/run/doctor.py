"""What `gguflora doctor` does: look for what may be in the way on this machine, and say what to do about it.

Each check is a function that gives one or more findings; none raises, and none needs what another one looks for.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gguflora.errors import GgufloraError, GivenError, MachineError
from gguflora.gguf import cache_folder
from gguflora.llamacpp import library
from gguflora.report.text import harmless
from gguflora.run.machine import Memory, memory, usable_cores
from gguflora.storage import write_bytes

State = Literal["pass", "warn", "fail"]

# The smallest models train in about 1.1 GB: a judgement, not a limit.
LEAST_MEMORY, GOOD_MEMORY = 2**30, 2 * 2**30
# An adapter of rank 16 for a model of 135M parameters and the state to resume from take about 80 MB, twice while one
# replaces the other.
LEAST_DISK, GOOD_DISK = 200 * 10**6, 2 * 10**9
# torch maps 0.6 GB by itself, and 1.7 GB once SmolLM2 is loaded in float32; training maps more.
LEAST_ADDRESS_SPACE, GOOD_ADDRESS_SPACE = 2**30, 4 * 2**30
# Private memory, reserved or touched: torch and compiled operations take 0.22 GB, compiling them takes 0.34, and
# training the smallest models less than 2.
LEAST_DATA, GOOD_DATA = 350 * 10**6, 2 * 2**30

CLEARLY = 0.8  # of the fastest: below, the choice is wrong, and above it may be another program's doing

_OPTIONAL = "extra =="
_CLAUSE = re.compile(r"(>=|<|==)\s*([\d.]+)")


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        fix: what to do; empty where nothing is to be done.
        exit_code: the command's, if this has failed.
    """

    name: str
    state: State
    found: str
    fix: str = ""
    exit_code: int = MachineError.exit_code


def examine() -> Iterator[Finding]:
    """Every finding, in the order in which to read them."""
    yield _python()
    yield from _packages()
    yield _instruction_set()
    yield _products()
    yield _operations()
    yield _threads()
    yield from memory_findings(memory())
    yield disk_finding("disk here", Path.cwd())
    yield from _cache()
    yield _llamacpp()


def exit_code(findings: list[Finding]) -> int:
    """0 if nothing has failed; else what the gravest failure has: the machine's comes before an installation's."""
    return max((finding.exit_code for finding in findings if finding.state == "fail"), default=0)


def as_json(findings: list[Finding]) -> dict[str, Any]:
    """The findings as JSON values."""
    shown = ("name", "state", "found", "fix")
    return {
        "exit_code": exit_code(findings),
        "findings": [{key: getattr(finding, key) for key in shown} for finding in findings],
    }


def lines_of(findings: list[Finding]) -> Iterator[str]:
    """The findings for people: one line each, with what to do on a line of its own, and the sum of it."""
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        yield f"{finding.state}  {finding.name:{width}}  {harmless(finding.found)}"
        if finding.fix:
            yield f"{'':{width + 8}}to do: {harmless(finding.fix)}"
    failed = sum(finding.state == "fail" for finding in findings)
    yield f"{failed} failed: see what to do above." if failed else "Nothing is in the way."


def _python() -> Finding:
    return Finding("python", "pass", f"{platform.python_version()} ({sys.executable})")


def _packages() -> Iterator[Finding]:
    try:
        found = importlib.metadata.version("gguflora")
        requirements = importlib.metadata.requires("gguflora") or []
    except importlib.metadata.PackageNotFoundError:
        yield Finding(
            "gguflora", "warn", "run from a folder, not installed", "pip install . in that folder", GivenError.exit_code
        )
        return
    yield Finding("gguflora", "pass", found)
    for requirement in requirements:
        if _OPTIONAL not in requirement and not requirement.startswith("numba"):  # see _operations
            yield package_finding(requirement)


def package_finding(requirement: str) -> Finding:
    """Whether a package is there, can be imported, and has a version that is wanted.

    Args:
        requirement: as pip writes it, such as torch<2.15,>=2.11; the module is named as the package.
    """
    name, wanted = _split(requirement)
    fix = f"pip install '{requirement}'"
    try:
        importlib.import_module(name)
        found = importlib.metadata.version(name)
    except (ImportError, OSError) as error:  # OSError: a shared library of it can't be loaded
        return Finding(name, "fail", f"can't be imported: {error}", fix, GivenError.exit_code)
    if not satisfies(found, wanted):
        return Finding(name, "warn", f"{found}, but wanted is {wanted}", fix)
    return Finding(name, "pass", f"{found} (wanted {wanted or 'any'})")


def satisfies(version: str, wanted: str) -> bool:
    """Whether `version` meets each of the clauses in `wanted`: >=, < and == with numbers, which is all that we use."""
    number = _parts(version)
    for sign, text in _CLAUSE.findall(wanted):
        limit = _parts(text)
        if not {">=": number >= limit, "<": number < limit, "==": number == limit}[sign]:
            return False
    return True


def _split(requirement: str) -> tuple[str, str]:
    name = re.split(r"[<>=!~;\[ ]", requirement, maxsplit=1)[0]
    return name, requirement.removeprefix(name).split(";")[0].strip()


def _parts(version: str) -> tuple[int, ...]:
    """The leading numbers: 2.11.0+cpu is (2, 11), so that 2.11 and 2.11.0 are equal."""
    leading = re.match(r"\d+(\.\d+)*", version)
    numbers = [int(part) for part in leading[0].split(".")] if leading else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def _instruction_set() -> Finding:
    try:
        from gguflora.kernels import choose_dtype, processor_flags
    except (ImportError, OSError):
        return Finding("processor", "warn", "not known without torch", "install torch first")
    flags = processor_flags()
    dtype, why = choose_dtype()
    known = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    found = f"{' '.join(known) or platform.machine()}; computes in {str(dtype).removeprefix('torch.')}: {why}"
    return Finding("processor", "pass", found)


def _products() -> Finding:
    """Whether what the instruction set stands for is the fastest way to multiply here."""
    name = "products"
    try:
        from gguflora.kernels import choose_dtype
        from gguflora.kernels.operations import choose_operations
        from gguflora.run.first_use import wait_for_operations
        from gguflora.run.products import TILES, product_rates
    except (ImportError, OSError):
        return Finding(name, "warn", "not known without torch", "install torch first")
    wait_for_operations()
    dtype = choose_dtype()[0]
    rates = product_rates(choose_operations(dtype, "auto")[0])
    chosen = str(dtype).removeprefix("torch.")
    return products_finding(TILES if chosen == "bfloat16" and TILES in rates else chosen, rates)


def products_finding(chosen: str, rates: dict[str, float]) -> Finding:
    """Whether the chosen way to multiply is the fastest.

    Args:
        chosen: the dtype, or "tiles", as `rates` names it.
        rates: operations a second, by way.
    """
    timed = ", ".join(f"{way} {rate / 1e12:.2f}" for way, rate in rates.items())
    found = f"{timed} TFLOP/s, both directions"
    fastest = max(rates, key=lambda way: rates[way])
    if rates[chosen] >= CLEARLY * rates[fastest]:
        return Finding("products", "pass", found)
    other = "--kernels torch" if chosen == "tiles" and fastest == "bfloat16" else f"--dtype {fastest}"
    return Finding("products", "warn", f"{found}, and {chosen} is chosen", f"train with {other}")


def _operations() -> Finding:
    name = "operations"
    try:
        from gguflora.kernels import choose_dtype
        from gguflora.kernels.operations import TORCH, choose_operations
        from gguflora.run.first_use import wait_for_operations
    except (ImportError, OSError):
        return Finding(name, "warn", "not known without torch", "install torch first")
    wait_for_operations()
    operations, why = choose_operations(choose_dtype()[0], "auto")
    if operations is not TORCH:
        return Finding(name, "pass", f"compiled ({why})")
    return Finding(name, "warn", f"torch's own: {why}", _operations_fix(why))


def _operations_fix(why: str) -> str:
    if "memory" in why:
        return "gguflora doctor with more memory, once; until then training is right, and slower"
    if "numba" in why:
        return "pip install --upgrade numba"
    return "nothing: training is right, and slower"


def _threads() -> Finding:
    return Finding("threads", "pass", f"{usable_cores()}; the machine has {os.cpu_count()} cores")


def memory_findings(found: Memory) -> Iterator[Finding]:
    """Whether there is memory to train, and whether a limit on addresses or on private memory is in the way."""
    limits = [f"{_gb(found.total)} in all"]
    if found.available is not None:
        limits.append(f"{_gb(found.available)} available")
    limits.append("no cgroup limit" if found.cgroup is None else f"cgroup limit {_gb(found.cgroup)}")
    text = ", ".join(limits)
    fix = "close other programs, or raise the container's limit"
    if found.usable < LEAST_MEMORY:
        yield Finding("memory", "fail", f"{text}; the smallest models need {_gb(LEAST_MEMORY)}", fix)
    elif found.usable < GOOD_MEMORY:
        yield Finding("memory", "warn", f"{text}; enough for the smallest models only", fix)
    else:
        yield Finding("memory", "pass", text)
    for limit in (
        Limit("address space", found.address_space, "RLIMIT_AS", "-v", LEAST_ADDRESS_SPACE, GOOD_ADDRESS_SPACE),
        Limit("private memory", found.data, "RLIMIT_DATA", "-d", LEAST_DATA, GOOD_DATA),
    ):
        yield _limit_finding(limit)


@dataclass(frozen=True)
class Limit:
    """A limit of this process (setrlimit(2)), in bytes.

    Attributes:
        size: None where there is none.
        option: of the shell's ulimit.
        least: with less nothing can be trained; with less than `good` the smallest models alone.
    """

    name: str
    size: int | None
    constant: str
    option: str
    least: int
    good: int


def _limit_finding(limit: Limit) -> Finding:
    if limit.size is None:
        return Finding(limit.name, "pass", "no limit")
    text = f"limited to {_gb(limit.size)} ({limit.constant})"
    if limit.size >= limit.good:
        return Finding(limit.name, "pass", text)
    return Finding(limit.name, "fail" if limit.size < limit.least else "warn", text, f"ulimit {limit.option} unlimited")


def disk_finding(name: str, folder: Path) -> Finding:
    """Whether there is room for adapters and states in `folder`."""
    free = shutil.disk_usage(_existing(folder)).free
    text = f"{_gb(free)} free in {folder}"
    if free < LEAST_DISK:
        return Finding(name, "fail", text, "make room, or work on another disk")
    if free < GOOD_DISK:
        return Finding(name, "warn", text, "make room if you train more than a small model")
    return Finding(name, "pass", text)


def _cache() -> Iterator[Finding]:
    fix = "set XDG_CACHE_HOME to a folder that you may write to; until then each run reads its model once more"
    try:
        folder = cache_folder()
    except RuntimeError:
        yield Finding("cache", "warn", "no home folder to keep it in", fix)
        return
    trial = folder / f".doctor-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes(trial, b"")
        trial.unlink()
    except (OSError, MachineError):
        yield Finding("cache", "warn", f"{folder} can't be written", fix)
        return
    free = shutil.disk_usage(folder).free
    yield Finding("cache", "pass", f"{folder} can be written, {_gb(free)} free")


def _llamacpp() -> Finding:
    name, wanted = "llama.cpp", f"xllamacpp {library.PACKAGE_VERSION} wanted"
    try:
        library.require_package()
    except GgufloraError:
        found = library.installed_version()
        text = f"xllamacpp {found} found, {library.PACKAGE_VERSION} wanted" if found else f"not installed, {wanted}"
        return Finding(name, "warn", f"{text}: no generate, no check after training", library.INSTALL_COMMAND)
    try:
        library.load()
    except (GgufloraError, OSError) as error:
        return Finding(name, "fail", f"can't be loaded: {error}", library.INSTALL_COMMAND, GivenError.exit_code)
    return Finding(name, "pass", f"xllamacpp {library.PACKAGE_VERSION} loads")


def _existing(folder: Path) -> Path:
    """The folder, or the nearest above it that exists."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
