"""A conversation's tokens: what the model is given before each answer is context, what it is to write is trained.

A template may write an answer differently once later messages follow it: without its reasoning, or with another end.
What it writes then is context, as it is when the model is served; to train it would teach what is never generated.
So one document holds the conversation up to the last answer, which is trained there, and with it each earlier one
that stands there as it is generated; every other answer is trained in a document of its own, behind its own prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from gguflora.config import TrainOn
from gguflora.data.continuation import Continuation, Row, continuation_of
from gguflora.data.encoded import NOT_TRAINED
from gguflora.data.endings import text_behind
from gguflora.data.example import Conversation
from gguflora.data.scene import Scene, closing, opening, rendered, require_faithful, set_scene
from gguflora.errors import DataError
from gguflora.tokenizer import ChatTemplate, Tokenizer, Vocabulary

_NO_END = (
    "the chat template writes no end-of-generation token after an answer, so the model would never learn to stop; "
    "use another --chat-template, or prompt and completion."
)


@dataclass(frozen=True)
class Labelled:
    """The tokens of a document with their labels.

    Attributes:
        answer: the number of the only answer that is trained, where it has a document of its own; else 0.
        lost_answers: how many have no document, because it can't be found out how they are generated.
        lost_reasoning: how many trained answers have reasoning that the template does not write.
        no_reasoning: how many trained answers have none where the template has a place for it.
    """

    tokens: list[int]
    labels: list[int]
    answer: int = 0
    lost_answers: int = 0
    lost_reasoning: int = 0
    no_reasoning: int = 0


@dataclass(frozen=True)
class _Turn:
    """An answer that can be trained.

    Attributes:
        number: among the conversation's answers, from 1.
        row: the message as the user gave it.
        prompt: what the model is given; `start` is its length.
        tokens: that the model is to write, up to the one that ends the answer.
        text: what it is to write and the template puts behind it.
        said: the tokens as text.
        no_reasoning: there is a place for reasoning before the answer, which stays empty.
    """

    number: int
    row: Row
    prompt: str
    start: int
    tokens: list[int]
    text: str
    said: str
    no_reasoning: bool


def label_conversation(
    conversation: Conversation, tokenizer: Tokenizer, template: ChatTemplate, train_on: TrainOn
) -> Iterator[Labelled]:
    """The documents of a conversation: those of answers that have one of their own, and last the conversation.

    Args:
        conversation: what its messages say is text, whatever they spell.
        tokenizer: the base's.
        template: the base's.
        train_on: all answers or the last one; for "everything" there is the conversation alone, its labels are those
            of the answers that are trained in it, and no answer is needed.

    Raises:
        DataError: there is no answer, the template refuses the messages, or the last answer can't be trained.
    """
    places = [index for index, message in enumerate(conversation.messages) if message.role == "assistant"]
    if not places and train_on != "everything":
        raise DataError("no message is the assistant's, so there is nothing to train; add the answer.")
    scene = set_scene(conversation, places[-1] + 1 if train_on == "last" else None, tokenizer, template)
    last = _turn(scene, places[-1], len(places)) if places else _NO_END
    if isinstance(last, str):
        if train_on != "everything":
            raise DataError(last)
        yield _document(scene, rendered(scene), [])
        return
    text = _text_with(scene, places[-1], last)
    found, lost = [], 0
    for number, index in enumerate(places[:-1] if train_on != "last" else [], 1):
        turn = _turn(scene, index, number)
        if isinstance(turn, str):
            lost += 1
        elif text.startswith(turn.prompt):
            found.append(replace(turn, prompt=""))  # many would be long together
        elif train_on == "all":
            yield _own_document(scene, turn)
    standing = _standing(scene, text, [*found, last])
    for turn in found if train_on == "all" else []:
        if turn not in standing:
            yield _own_document(scene, replace(turn, prompt=text[: turn.start]))
    yield replace(_document(scene, text, standing), lost_answers=lost)


def _turn(scene: Scene, index: int, number: int) -> _Turn | str:
    """An answer that can be trained, or why it can't."""
    hidden, template = scene.hidden, scene.template
    found = continuation_of(hidden.rows[:index], hidden.rows[index], hidden.switches, template)
    if isinstance(found, str):
        return (
            f"answer {number} can't be trained as it is generated, because the chat template {found}; give the "
            "template other options (--template-option enable_thinking=false, where it has that one), another "
            "--chat-template, or prompt and completion."
        )
    if hidden.spellings:
        given = continuation_of(scene.rows[:index], scene.rows[index], scene.switches, template)
        prompt, text = hidden.restore(found.prompt), hidden.restore(found.text)
        require_faithful(hidden, isinstance(given, Continuation) and (given.prompt, given.text) == (prompt, text))
    tokens = _generated(found.text, lambda: text_behind(hidden.rows, index, hidden.switches, template), scene)
    if not tokens:
        return _NO_END
    said = _said(found.text, tokens, scene)
    _require_calls_written(scene.rows[index], said)
    if (scene.rows[index]["content"].split() or [""])[-1] not in said:
        return f"the chat template ends answer {number} before it says all; use another --chat-template."
    return _Turn(
        number, scene.rows[index], found.prompt, len(found.prompt), tokens, found.text, said, found.no_reasoning
    )


def _generated(text: str, behind: Callable[[], str], scene: Scene) -> list[int]:
    """The tokens of an answer up to the first one that ends generation; none where nothing ends it.

    Some templates end an answer only by what stands before the next turn (GLM: `<|user|>`, Apriel: a line break and
    `<|end|>`); that is generated too, and llama.cpp stops at it.
    """
    ids = scene.piece(text) + closing(scene.vocabulary)
    ends = _until_end(ids, scene.vocabulary)
    if ends:
        return ends
    following = behind()
    space = following[: len(following) - len(following.lstrip())]
    ends = _until_end(scene.encode(following, True), scene.vocabulary)
    return [*ids, *ends] if len(ends) == len(scene.encode(space, True)) + 1 else []


def _said(text: str, tokens: list[int], scene: Scene) -> str:
    """The text of an answer's tokens: what was rendered without what follows the end, which is less to decode."""
    rest = scene.decode(scene.piece(text)[len(tokens) :])
    whole = scene.hidden.restore(text)
    return whole.removesuffix(rest) if whole.endswith(rest) else scene.decode(tokens)


def _until_end(ids: list[int], vocabulary: Vocabulary) -> list[int]:
    """The tokens up to the first that ends generation; none where there is none."""
    ends = (index for index, id in enumerate(ids) if id in vocabulary.eog)
    return ids[: next(ends, -1) + 1]


def _text_with(scene: Scene, index: int, last: _Turn) -> str:
    """The conversation's text: all of it, or up to the last answer, if that is written otherwise once others follow."""
    through_last = last.prompt + last.text
    if index + 1 == len(scene.rows):
        return through_last
    text = rendered(scene)
    stands = text.startswith(last.prompt) and _standing(scene, text, [last])
    return text if stands else through_last


def _standing(scene: Scene, text: str, turns: Sequence[_Turn]) -> list[_Turn]:
    """Those of the turns whose prompts `text` begins with that go on there as they are generated."""
    bounds = [*(turn.start for turn in turns), len(text)]
    standing = []
    for turn, (start, end) in zip(turns, pairwise(bounds), strict=True):
        ids = scene.piece(text[start:end]) + (closing(scene.vocabulary) if end == len(text) else [])
        if ids[: len(turn.tokens)] == turn.tokens or text[start:] == turn.text:  # its end may stand behind the text
            standing.append(turn)
    return standing


def _document(scene: Scene, text: str, turns: Sequence[_Turn]) -> Labelled:
    """A text with the answers that are trained in it; what stands before the first, and behind each, is context."""
    bounds = [*(turn.start for turn in turns), len(text)]
    end_token = closing(scene.vocabulary)
    tokens = opening(scene.vocabulary) + scene.encode(text[: bounds[0]], False) + end_token
    labels = [NOT_TRAINED] * len(tokens)
    for turn, (start, end) in zip(turns, pairwise(bounds), strict=True):
        ids = scene.piece(text[start:end]) + (end_token if end == len(text) else [])
        assert ids[: len(turn.tokens)] == turn.tokens[: len(ids)]  # the last one may have its end put behind it
        rest = ids[len(turn.tokens) :]
        tokens += turn.tokens + rest
        labels += turn.tokens + [NOT_TRAINED] * len(rest)
    return Labelled(
        tokens,
        labels,
        lost_reasoning=sum(turn.row.get("reasoning_content", "").strip() not in turn.said for turn in turns),
        no_reasoning=sum(turn.no_reasoning for turn in turns),
    )


def _own_document(scene: Scene, turn: _Turn) -> Labelled:
    """The document of one answer: what the model is given, and what it is to write."""
    document = _document(scene, turn.prompt + turn.text, [turn])
    end = len(document.tokens) - document.labels[::-1].index(turn.tokens[-1])
    return replace(document, tokens=document.tokens[:end], labels=document.labels[:end], answer=turn.number)


def _require_calls_written(row: Row, said: str) -> None:
    """Refuse a template that passes over tool calls: an answer of nothing would be trained in their place."""
    for call in row.get("tool_calls", ()):
        name = call["function"]["name"]
        if name not in said:
            raise DataError(
                f"the chat template does not write the tool call {name!r} before it ends the answer; give "
                "--chat-template with one that does, or take the call out."
            )
