"""What the parity tests measure, handed to whoever writes it down (tests/parity/report.py)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

from gguflora.run.verify import Agreement
from tests.numerics import EXACT, Bounds, Gap

PROPERTY = "figure"


@dataclass(frozen=True)
class Figure:
    """One measured number beside its bound.

    Attributes:
        model: what it was measured on.
        compared: what was compared.
        measure: of what kind the number is.
        value: the number.
        bound: what it may be at most.
        at_least: the bound is what it must be at least.
    """

    model: str
    compared: str
    measure: str
    value: float
    bound: float
    at_least: bool = False


@dataclass(frozen=True)
class Figures:
    """A test's way to hand its figures on: pytest's `record_property`, which --junit-xml shows too."""

    record_property: Callable[[str, object], None]

    def add(
        self, model: str, compared: str, measure: str, value: float, bound: float, *, at_least: bool = False
    ) -> None:
        """Hand on one figure; several of the same name become their worst."""
        figure = Figure(model, compared, measure, float(value), bound, at_least)
        self.record_property(PROPERTY, asdict(figure))

    def gap(self, model: str, compared: str, gap: Gap, bounds: Bounds = EXACT) -> None:
        """Hand on how far logits lie apart, in each measure that is bounded."""
        for measure, value, bound in (
            ("KL", gap.kl, bounds.kl),
            ("largest difference / deviation", gap.largest, bounds.largest),
            ("rms difference / deviation", gap.rms, bounds.rms),
        ):
            if bound:
                self.add(model, compared, measure, value, bound)

    def agreement(self, model: str, compared: str, agreement: Agreement) -> None:
        """Hand on how far two mean losses lie apart where llama.cpp rounds activations, and what rounding allows."""
        difference = abs(agreement.ours - agreement.llamacpp)
        self.add(model, compared, "difference, nats", difference, agreement.allowed)

    def effect(self, model: str, cosine: float, ratio: float) -> None:
        """Hand on how alike a pair's effect on the logits is in both programs."""
        self.add(model, "effect of each pair alone", "1 - cosine", 1 - cosine, 1e-3)
        self.add(model, "effect of each pair alone", "difference of the norms", abs(ratio - 1), 1e-2)
