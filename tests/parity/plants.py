"""Wrong specs: each is a mistake that a decoder could be made with, or a fact of a file that could be read wrongly.

A plant takes a right spec and gives a wrong one. `facts` lists what a spec says, so that a test can make sure that each
fact was planted wrongly once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from gguflora.arch import LayerSpec, LinearSpec, ModelSpec
from gguflora.arch.architectures import Activation

Plant = Callable[[ModelSpec], ModelSpec]

SIZES = {"width", "vocabulary", "shape", "heads", "kv_heads", "head_dim", "dim"}
"""What must fit the tensors' shapes: a wrong one does not compute at all."""

NO_MATHS = {"architecture", "context_length", "pairs"}
"""What the forward never reads."""


def facts(spec: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every fact of a spec that the forward depends on, by where it is: layers.mixer.rope.base, ..."""
    if isinstance(spec, tuple) and spec and dataclasses.is_dataclass(spec[0]):
        for part in spec:
            yield from facts(part, path)
    elif dataclasses.is_dataclass(spec):
        for field in dataclasses.fields(spec):
            if field.name not in SIZES | NO_MATHS:
                yield from facts(getattr(spec, field.name), f"{path}.{field.name}".removeprefix("."))
    else:
        yield path, spec


def layers(change: Callable[[LayerSpec], LayerSpec]) -> Plant:
    """The same change in every layer."""
    return lambda spec: replace(spec, layers=tuple(change(layer) for layer in spec.layers))


def mixer(**numbers: Any) -> Plant:
    """Other numbers in every layer's attention; a function is applied to the right one."""
    return layers(lambda layer: replace(layer, mixer=_replace(layer.mixer, numbers)))


def rope(**numbers: Any) -> Plant:
    """Other numbers in every layer's rope; a function is applied to the right one."""
    return layers(lambda layer: replace(layer, mixer=replace(layer.mixer, rope=_replace(layer.mixer.rope, numbers))))


def model(**numbers: Any) -> Plant:
    """Other numbers of the model; a function is applied to the right one."""
    return lambda spec: _replace(spec, numbers)


def norms(**names: str | None) -> Plant:
    """In every layer, in place of one norm another one of the same layer, or None."""
    return layers(lambda layer: _renamed(layer, names))


def head_norms(**names: str | None) -> Plant:
    """The same for the norms of queries and keys."""
    return layers(lambda layer: replace(layer, mixer=_renamed(layer.mixer, names)))


def swapped(part: str, first: str, second: str) -> Plant:
    """In every layer, two linear layers of the same shape in each other's place."""

    def swap(layer: LayerSpec) -> LayerSpec:
        owner = getattr(layer, part)
        return replace(
            layer, **{part: replace(owner, **{first: getattr(owner, second), second: getattr(owner, first)})}
        )

    return layers(swap)


def without_bias(part: str, stem: str) -> Plant:
    """In every layer, one linear layer without the bias that the file has."""

    def strip(layer: LayerSpec) -> LayerSpec:
        owner = getattr(layer, part)
        return replace(layer, **{part: replace(owner, **{stem: replace(getattr(owner, stem), bias=None)})})

    return layers(strip)


def activation(change: Callable[[Activation], Activation]) -> Plant:
    """Another activation in every layer, from the right one."""
    return layers(lambda layer: replace(layer, ffn=replace(layer.ffn, activation=change(layer.ffn.activation))))


def reversed_layers(spec: ModelSpec) -> ModelSpec:
    """The last layer's tensors first; each place keeps its window and rope."""
    names = [layer.mixer for layer in reversed(spec.layers)]
    kept = [layer.mixer for layer in spec.layers]
    mixers = [replace(name, rope=own.rope, window=own.window) for name, own in zip(names, kept, strict=True)]
    return replace(
        spec,
        layers=tuple(replace(layer, mixer=own) for layer, own in zip(reversed(spec.layers), mixers, strict=True)),
    )


def tied(spec: ModelSpec) -> ModelSpec:
    """The embedding in place of the file's own output layer."""
    return replace(spec, output=LinearSpec(spec.token_embd, spec.output.shape, None), tied=True)


def windows(change: Callable[[int, int | None], int | None]) -> Plant:
    """Other windows: from a layer's number and its right window, or None, to a wrong one."""

    def plant(spec: ModelSpec) -> ModelSpec:
        wrong = (
            replace(layer, mixer=replace(layer.mixer, window=change(index, layer.mixer.window)))
            for index, layer in enumerate(spec.layers)
        )
        return replace(spec, layers=tuple(wrong))

    return plant


def _replace(thing: Any, numbers: dict[str, Any]) -> Any:
    return replace(
        thing, **{name: value(getattr(thing, name)) if callable(value) else value for name, value in numbers.items()}
    )


def _renamed(thing: Any, names: dict[str, str | None]) -> Any:
    return replace(thing, **{name: other and getattr(thing, other) for name, other in names.items()})
