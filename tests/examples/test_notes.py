"""The demo's dataset proves what it says: held-out values, held-out phrasings, answers that follow from the note.

All but the first test read the committed files as a stranger would, without the generator.
"""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.notes import generate, task

FOLDER = Path(generate.__file__).parent
NAMES = ("train", "test_seen", "test_unseen")
MONTH = "(?:January|February|March|April|May|June|July|August|September|October|November|December)"
EXPECTED = '{"item":"noodles","price":12.45,"shop":"Blue Anchor","who":"Noor","date":"14 May"}'


def messages(name):
    return [json.loads(line)["messages"] for line in (FOLDER / f"{name}.jsonl").read_text().splitlines()]


def notes(name):
    """Pairs (note, record) of one file."""
    return [(example[1]["content"], json.loads(example[2]["content"])) for example in messages(name)]


def held_out():
    return notes("test_seen") + notes("test_unseen")


def spellings(key, value):
    """How a note may write a value: as the record does, or a date with the month first."""
    if key != "date":
        return [str(value)]
    day, month = value.split()
    return [value, f"{month} {day}"]


def pattern(key, value):
    """Matches the value where it stands alone: not the 3 of 13, the 3.7 of 3.75, nor "corn" in "popcorn"."""
    options = "|".join(re.escape(spelling) for spelling in spellings(key, value))
    return re.compile(rf"(?<![\w.])(?:{options})(?!\w|\.\d)")


def phrasing(note, record):
    """The note with its values taken out, found from the text alone."""
    for key, value in record.items():
        if value is not None:
            note = pattern(key, value).sub(f"<{key}>", note)
    return note


def phrasings(name):
    return {phrasing(note, record) for note, record in notes(name)}


def words(text):
    return set(re.findall(r"[a-z']+", text.lower()))


def test_the_generator_reproduces_the_committed_files():
    committed = {path.name: path.read_bytes() for path in FOLDER.glob("*.jsonl")}
    assert generate.files() == committed


def test_the_readme_counts_the_notes_and_the_training_values_as_they_are():
    readme = (FOLDER / "README.md").read_text()
    for name, count in (("train", 384), ("test_seen", 64), ("test_unseen", 16)):
        assert len(notes(name)) == count
        assert f"| `{name}.jsonl` | {count} |" in readme
    distinct = {key: len({record[key] for _, record in notes("train")} - {None}) for key in task.KEYS}
    assert "{item} items, {shop} shops, {who} names, {price} prices, {date} dates".format_map(distinct) in readme


@pytest.mark.parametrize("name", NAMES)
def test_every_example_is_a_system_a_user_and_an_assistant_message(name):
    for example in messages(name):
        assert [message["role"] for message in example] == ["system", "user", "assistant"]
        assert all(message.keys() == {"role", "content"} for message in example)
        assert example[0]["content"] == "JSON"
        assert "\n" not in example[1]["content"]


@pytest.mark.parametrize("name", NAMES)
def test_every_answer_is_compact_json_with_exactly_the_keys_in_one_order(name):
    for example in messages(name):
        answer = example[2]["content"]
        record = json.loads(answer)
        assert list(record) == ["item", "price", "shop", "who", "date"]
        assert json.dumps(record, separators=(",", ":")) == answer
        assert type(record["price"]) in (int, float)
        assert all(isinstance(record[key], str) and record[key] for key in ("item", "shop", "who"))
        assert record["date"] is None or re.fullmatch(rf"\d\d? {MONTH}", record["date"])


@pytest.mark.parametrize("name", NAMES)
def test_every_value_stands_once_in_its_note_and_a_null_date_means_that_none_stands_there(name):
    for note, record in notes(name):
        for key, value in record.items():
            if value is not None:
                assert len(pattern(key, value).findall(note)) == 1, (key, note)
        if record["date"] is None:
            assert not re.search(MONTH, note), note


@pytest.mark.parametrize("key", ["item", "price", "shop", "who", "date"])
def test_no_held_out_value_occurs_in_training(key):
    """Neither in a record nor, as a word or number of its own, anywhere in a training note."""
    trained = {record[key] for _, record in notes("train")} - {None}
    tested = {record[key] for _, record in held_out()} - {None}
    assert trained and tested and not trained & tested
    text = "\n".join(note for note, _ in notes("train"))
    assert [value for value in tested if pattern(key, value).search(text)] == []


def test_no_word_of_a_held_out_item_shop_or_name_occurs_in_training():
    trained = set().union(*(words(note) for note, _ in notes("train")))
    tested = set().union(*(words(record[key]) for _, record in held_out() for key in ("item", "shop", "who")))
    assert tested and not tested & trained


def test_a_fifth_of_the_tested_phrasings_is_absent_from_training():
    assert phrasings("test_seen") == phrasings("train")
    assert not phrasings("test_unseen") & phrasings("train")
    assert (len(phrasings("test_seen")), len(phrasings("test_unseen"))) == (32, 8)


def test_the_first_lines_of_a_test_file_have_every_phrasing_once_so_that_fewer_can_be_asked():
    for name in ("test_seen", "test_unseen"):
        half = notes(name)[: len(phrasings(name))]
        assert {phrasing(note, record) for note, record in half} == phrasings(name)


def test_every_phrasing_is_trained_equally_often():
    trained = [phrasing(note, record) for note, record in notes("train")]
    assert {trained.count(one) for one in set(trained)} == {12}


def test_the_order_of_the_fields_varies_and_a_date_is_often_missing():
    orders = {tuple(re.findall("<([a-z]+)>", one)) for one in phrasings("train")}
    assert len(orders) >= 20
    for name in NAMES:
        missing = [record["date"] is None for _, record in notes(name)]
        assert 0.25 <= sum(missing) / len(missing) <= 0.45


def test_no_note_stands_twice_in_all_files():
    every = [note for name in NAMES for note, _ in notes(name)]
    assert len(set(every)) == len(every)


def test_the_prompt_is_a_training_example_up_to_its_answer():
    for example in messages("train"):
        assert task.prompt(example[1]["content"]) == example[:2]


def test_the_few_shot_prompt_has_the_schema_and_two_training_examples_one_without_a_date():
    schema, *shown, last = task.few_shot_prompt("the note")
    assert last == {"role": "user", "content": "the note"}
    assert schema["role"] == "system"
    assert all(key in schema["content"] for key in ("item", "price", "shop", "who", "date", "null"))
    pairs = [shown[:2], shown[2:]]
    trained = [example[1:] for example in messages("train")]
    assert all(pair in trained for pair in pairs)
    assert [json.loads(pair[1]["content"])["date"] is None for pair in pairs] == [False, True]


@pytest.mark.parametrize(
    ("answer", "valid", "exact"),
    [
        (EXPECTED, True, True),
        (f" {EXPECTED}\n", True, True),
        (
            '{ "date": "14 May", "who": "Noor", "shop": "Blue Anchor", "price": 12.450, "item": "noodles" }',
            True,
            True,
        ),
        (EXPECTED.replace("12.45", "12.46"), True, False),
        (EXPECTED.replace("12.45", '"12.45"'), True, False),
        (EXPECTED.replace('"14 May"', "null"), True, False),
        (EXPECTED.replace("noodles", "Noodles"), True, False),
        (EXPECTED.replace(',"date":"14 May"', ""), True, False),
        (EXPECTED.replace("}", ',"place":"town"}'), True, False),
        ("{}", True, False),
        (EXPECTED.replace('"item"', '"item":"rice","item"'), False, False),
        (f"Here it is: {EXPECTED}", False, False),
        (f"```json\n{EXPECTED}\n```", False, False),
        (EXPECTED + EXPECTED, False, False),
        (EXPECTED[:-1], False, False),
        (f"[{EXPECTED}]", False, False),
        ('{"price":NaN}', False, False),
        ("[" * 100_000, False, False),
        ("", False, False),
    ],
)
def test_an_answer_is_valid_as_one_json_object_and_exact_with_the_expected_values(answer, valid, exact):
    assert task.score(answer, EXPECTED) == task.Outcome(valid=valid, exact=exact)


@given(st.text() | st.text(alphabet='{}[]":,truefalsn0123456789.eE- '))
def test_any_answer_can_be_judged_and_an_exact_one_is_valid(answer):
    outcome = task.score(answer, EXPECTED)
    assert outcome.valid or not outcome.exact
