"""What a name stands for: the name alone decides, and what names nothing is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from gguflora.data.sources import Source, find_sources, source_of, text_files
from gguflora.errors import DataError


def made(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


@pytest.mark.parametrize(
    ("name", "format", "compression"),
    [
        ("d.json", "json", ""),
        ("d.jsonl", "json", ""),
        ("d.ndjson", "json", ""),
        ("d.JSONL", "json", ""),
        ("d", "json", ""),
        ("d.data", "json", ""),
        (".jsonl", "json", ""),
        ("d.csv", "csv", ""),
        ("d.tsv", "tsv", ""),
        ("d.txt", "text", ""),
        ("d.md", "text", ""),
        ("d.parquet", "parquet", ""),
        ("d.jsonl.gz", "json", ".gz"),
        ("d.CSV.GZ", "csv", ".gz"),
        ("d.v1.txt.zst", "text", ".zst"),
        ("d.gz", "json", ".gz"),
        ("a.csv/d.jsonl", "json", ""),
        ("s3://bucket/d.csv.gz", "csv", ".gz"),
        ("https://host/d.parquet?download=true", "parquet", ""),
        ("/dev/fd/63", "json", ""),
    ],
)
def test_the_name_says_how_a_file_is_read(name: str, format: str, compression: str):
    assert source_of(name, "given") == Source("given", name, format, compression)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("d.zip", "d.zip is no dataset file (.zip); unpack it."),
        ("d.tar.gz", "d.tar.gz is no dataset file (.tar); unpack it."),
        ("d.jsonl.bz2", "d.jsonl.bz2 is no dataset file (.bz2); unpack it."),
        ("d.xlsx", "d.xlsx is no dataset file (.xlsx); save it as CSV."),
        ("d.pkl", "d.pkl is no dataset file (.pkl); save it as JSONL."),
        ("model.gguf", "model.gguf is no dataset file (.gguf); it is a model."),
        ("d.parquet.gz", "d.parquet.gz is compressed twice; unpack it to .parquet."),
    ],
)
def test_files_of_other_kinds_are_refused_by_name(name: str, message: str):
    with pytest.raises(DataError) as refused:
        find_sources(name)
    assert str(refused.value) == message


def addresses(given: str | Path) -> list[str]:
    return [source.address for source in find_sources(given)]


def test_a_folder_gives_its_dataset_files_sorted(tmp_path: Path):
    made(
        tmp_path, "b.jsonl", "a.csv", "c.txt", "d.parquet", "e.json.gz", "f.png", "g.gguf", "h", ".i.jsonl", "j/k.jsonl"
    )
    names = [Path(address).name for address in addresses(tmp_path)]
    assert names == ["a.csv", "b.jsonl", "c.txt", "d.parquet", "e.json.gz"]
    assert {source.given for source in find_sources(tmp_path)} == {str(tmp_path)}


def test_a_readme_is_about_the_data_unless_texts_are_asked_for(tmp_path: Path):
    records = made(tmp_path / "records", "README.md", "LICENSE.txt", "a.jsonl", "licenses.txt", "note.md")
    assert [Path(address).name for address in addresses(records)] == ["a.jsonl", "licenses.txt", "note.md"]
    elsewhere = made(tmp_path / "elsewhere", "README.md", "data/train.jsonl")
    with pytest.raises(DataError, match="elsewhere is a folder without a dataset file"):
        find_sources(elsewhere)
    assert [Path(source.address).name for source in text_files(records)] == [
        *("LICENSE.txt", "README.md", "licenses.txt", "note.md")
    ]


def test_a_pattern_gives_the_files_that_fit_sorted(tmp_path: Path):
    made(tmp_path, "b.jsonl", "a.jsonl", "c.csv", "x.jsonl/y.jsonl", "deep/er/d.jsonl")
    assert addresses(tmp_path / "*.jsonl") == [str(tmp_path / name) for name in ("a.jsonl", "b.jsonl")]
    assert addresses(f"{tmp_path}/[bc].*") == [str(tmp_path / name) for name in ("b.jsonl", "c.csv")]
    found = [str(Path(address).relative_to(tmp_path)) for address in addresses(tmp_path / "**" / "*.jsonl")]
    assert found == ["a.jsonl", "b.jsonl", "deep/er/d.jsonl", "x.jsonl/y.jsonl"]


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path: Path):
    made(tmp_path, "data[1].jsonl", "data1.jsonl", "what?.jsonl")
    assert addresses(tmp_path / "data[1].jsonl") == [str(tmp_path / "data[1].jsonl")]
    assert addresses(tmp_path / "what?.jsonl") == [str(tmp_path / "what?.jsonl")]


def test_a_hyphen_is_standard_input():
    assert find_sources("-") == [Source("-", "-", "json", "")]
    assert find_sources("-")[0].name == "standard input"
    assert find_sources("./-") == [Source("./-", "./-", "json", "")]


def test_a_saved_dataset_is_one_source_and_one_of_several_splits_must_be_named(tmp_path: Path):
    saved = made(tmp_path / "saved", "state.json", "dataset_info.json", "data-00000-of-00001.arrow")
    assert find_sources(saved) == [Source(str(saved), str(saved), "datasets", "")]
    splits = made(tmp_path / "splits", "dataset_dict.json", "train/state.json", "test/state.json")
    with pytest.raises(DataError) as refused:
        find_sources(splits)
    assert str(refused.value) == f"{splits} holds the splits test, train; name the folder of one of them."


def test_what_names_no_file_is_said(tmp_path: Path):
    with pytest.raises(DataError) as refused:
        find_sources(tmp_path)
    assert str(refused.value) == (
        f"{tmp_path} is a folder without a dataset file; put files into it that end in "
        ".json, .jsonl, .ndjson, .csv, .tsv, .txt, .md, .parquet."
    )
    with pytest.raises(DataError) as refused:
        find_sources(tmp_path / "*.jsonl")
    assert str(refused.value) == f"No file fits {tmp_path}/*.jsonl; check the pattern."
    with pytest.raises(DataError) as refused:
        text_files(tmp_path)
    assert (
        str(refused.value) == f"{tmp_path} is a folder without a text file; put files into it that end in .txt or .md."
    )
