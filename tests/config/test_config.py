"""Options: the defaults are those that the docs argue for, wrong values are refused at once, each has its help."""

from __future__ import annotations

import ast
import dataclasses
import inspect
from pathlib import Path

import pytest

from gguflora import config
from gguflora.config import ComputeConfig, DataConfig, LoraConfig, ReadConfig, TemplateConfig, TrainingConfig
from gguflora.errors import UsageError

RECORDS = [LoraConfig, ReadConfig, DataConfig, TemplateConfig, TrainingConfig, ComputeConfig]


def test_the_defaults_are_the_documented_ones():
    values = {key: value for record in RECORDS for key, value in dataclasses.asdict(record()).items()}
    assert values == {
        "rank": 16,
        "alpha": 32.0,
        "target": ("all-linear",),
        "rslora": False,
        "dropout": 0.0,
        "column": (),
        "source_weight": (),
        "on_bad_record": "error",
        "max_length": 2048,
        "overlong": "drop",
        "overlap": 1,
        "train_on": "all",
        "validation": None,
        "validation_split": None,
        "token_cache": "on",
        "chat_template": None,
        "template_option": (),
        "learning_rate": 2e-4,
        "schedule": "cosine",
        "warmup_steps": None,
        "weight_decay": 0.01,
        "max_grad_norm": 1.0,
        "epochs": 3,
        "max_steps": None,
        "batch_size": 4,
        "batch_tokens": None,
        "eval_steps": None,
        "save_steps": 500,
        "logging_steps": 10,
        "seed": 0,
        "threads": None,
        "dtype": "auto",
        "weights": "auto",
        "micro_batch_tokens": None,
        "packing": "on",
        "recompute": "auto",
        "memory": None,
        "kernels": "auto",
    }


WRONG = {
    LoraConfig: [
        {"rank": 0},
        {"rank": -1},
        {"alpha": 0.0},
        {"alpha": -1.0},
        {"alpha": float("nan")},
        {"alpha": float("inf")},
        {"target": ()},
        {"rank": 2.5},
        {"alpha": 1e-300},
        {"dropout": -0.1},
        {"dropout": 1.0},
        {"dropout": float("nan")},
    ],
    TemplateConfig: [
        {"template_option": ("enable_thinking",)},
        {"template_option": ("=1",)},
        {"template_option": ("a=1", "a=2")},
        {"template_option": ("tools=[]",)},
    ],
    DataConfig: [
        {"max_length": 1},
        {"overlong": "truncate"},
        {"overlong": "split", "overlap": 0},
        {"overlong": "split", "overlap": 8.5},
        {"overlong": "split", "max_length": 8, "overlap": 8},
        {"overlap": 2},
        {"overlong": "truncate-left", "overlap": 2},
        {"train_on": "first"},
        {"validation_split": -0.1},
        {"token_cache": "maybe"},
        {"validation_split": 1.0},
        {"validation_split": float("nan")},
        {"validation": Path("v.jsonl"), "validation_split": 0.1},
    ],
    ReadConfig: [
        {"column": ("prompt",)},
        {"column": ("prompt=",)},
        {"column": ("=question",)},
        {"column": ("prompt=a", "prompt=b")},
        {"source_weight": ("d.jsonl",)},
        {"source_weight": ("=0.5",)},
        {"source_weight": ("d.jsonl=",)},
        {"source_weight": ("d.jsonl=-1",)},
        {"source_weight": ("d.jsonl=inf",)},
        {"source_weight": ("d.jsonl=nan",)},
        {"source_weight": ("d.jsonl=1", "d.jsonl=2")},
        {"on_bad_record": "ignore"},
    ],
    TrainingConfig: [
        {"learning_rate": 0.0},
        {"learning_rate": -1e-4},
        {"learning_rate": float("nan")},
        {"learning_rate": float("inf")},
        {"schedule": "cosin"},
        {"warmup_steps": -1},
        {"weight_decay": -0.01},
        {"weight_decay": float("nan")},
        {"max_grad_norm": 0.0},
        {"max_grad_norm": float("inf")},
        {"epochs": 0},
        {"max_steps": 0},
        {"batch_size": 0},
        {"batch_tokens": 0},
        {"batch_size": 4, "batch_tokens": 512},
        {"eval_steps": 0},
        {"save_steps": 0},
        {"logging_steps": 0},
        {"threads": 0},
        {"seed": -1},
    ],
    ComputeConfig: [
        {"dtype": "float16"},
        {"weights": "mapped"},
        {"micro_batch_tokens": 0},
        {"packing": "yes"},
        {"recompute": "maybe"},
        {"kernels": "fast"},
        {"kernels": "reference", "recompute": "on"},
        {"memory": "much"},
        {"memory": ""},
        {"memory": "0GB"},
        {"memory": "-1GB"},
        {"memory": "1.5.2GB"},
        {"memory": "1e9"},
        {"memory": "nan"},
        {"memory": "1GiBB"},
        {"kernels": "reference", "memory": "1GB"},
    ],
}


@pytest.mark.parametrize(("record", "values"), [(record, values) for record in RECORDS for values in WRONG[record]])
def test_a_wrong_value_is_refused_naming_its_option(record, values):
    with pytest.raises(UsageError) as caught:
        record(**values)
    message = str(caught.value)
    option = "--" + list(values)[-1].replace("_", "-")
    assert option in message
    assert message.endswith(".")
    assert "\n" not in message


EDGES = [
    (LoraConfig, {"rank": 1, "alpha": 1e-3}),
    (DataConfig, {"max_length": 2, "validation_split": 0.0}),
    (DataConfig, {"validation": Path("v.jsonl")}),
    (ReadConfig, {"column": ("text=a=b",), "source_weight": ("a=b.jsonl=0", "b=1e3"), "on_bad_record": "skip"}),
    (
        TrainingConfig,
        {"warmup_steps": 0, "weight_decay": 0.0, "epochs": 1, "max_steps": 1, "batch_size": 1, "threads": 1},
    ),
    (TrainingConfig, {"batch_tokens": 1}),
    *((TrainingConfig, {"schedule": name}) for name in ("cosine", "linear", "constant")),
]


@pytest.mark.parametrize(("record", "values"), EDGES)
def test_the_smallest_sensible_values_pass(record, values):
    made = record(**values)
    assert {name: getattr(made, name) for name in values} == values


def test_every_number_is_tested_above_with_a_wrong_value():
    types = {field.name: set(field.type.split(" | ")) for record in RECORDS for field in dataclasses.fields(record)}
    numbers = {name for name, kinds in types.items() if kinds & {"int", "float"}}
    assert len(numbers) == 20
    assert numbers <= {name for cases in WRONG.values() for case in cases for name in case}


def test_what_is_said_about_reading_can_be_said_on_the_command_line_again():
    reading = ReadConfig(column=("text=a=b",), source_weight=("a=b.jsonl=0.5",), on_bad_record="skip")
    assert reading.columns == {"text": "a=b"}
    assert reading.source_weights == {"a=b.jsonl": 0.5}
    said = "--column text=a=b --source-weight a=b.jsonl=0.5 --on-bad-record skip"
    assert reading.arguments == said.split()
    assert ReadConfig().arguments == []


def test_rank_stabilised_scaling_is_folded_into_the_alpha_of_the_file():
    """llama.cpp divides the file's alpha by the rank; Kalajdzievski 2023 wants alpha / sqrt(rank)."""
    plain, stabilised = LoraConfig(rank=16, alpha=8.0), LoraConfig(rank=16, alpha=8.0, rslora=True)
    assert (plain.file_alpha, plain.scale) == (8.0, 0.5)
    assert (stabilised.file_alpha, stabilised.scale) == (32.0, 2.0)


@pytest.mark.parametrize("record", RECORDS)
def test_every_option_has_its_help_and_can_not_be_changed(record):
    """A string after each field is its help; the command line prints it."""
    [definition] = ast.parse(inspect.getsource(record)).body
    helped = [
        field.target.id
        for field, after in zip(definition.body, definition.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign) and isinstance(after, ast.Expr) and after.value.value.strip().endswith(".")
    ]
    names = [field.name for field in dataclasses.fields(record)]
    assert helped == names
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(record(), names[0], None)


def test_no_option_is_listed_twice():
    names = [field.name for record in RECORDS for field in dataclasses.fields(record)]
    assert len(names) == len(set(names))
    assert {name for name, value in vars(config).items() if dataclasses.is_dataclass(value)} == {
        r.__name__ for r in RECORDS
    }


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1.5GB", 1_500_000_000),
        ("1.5 GB", 1_500_000_000),
        ("1.5gb", 1_500_000_000),
        ("900MB", 900_000_000),
        ("900MiB", 943_718_400),
        ("2GiB", 2_147_483_648),
        ("2gib", 2_147_483_648),
        (".5GB", 500_000_000),
        ("64KiB", 65_536),
        ("1TB", 10**12),
        ("800000000", 800_000_000),
        ("800000000B", 800_000_000),
        (" 1GB ", 10**9),
    ],
)
def test_memory_is_read_as_people_write_it(text: str, size: int):
    """MB and GB are powers of ten, MiB and GiB powers of two (IEC 80000-13)."""
    assert ComputeConfig(memory=text).memory_bytes == size
