"""The commands, thin: each turns its arguments into one call and shows what comes back.

Options are the fields of the records in config.py, listed there once. What a command needs of torch is imported
inside it, so that `tokenize` and `--help` start at once.
"""

from __future__ import annotations

import difflib
import io
import json
import logging
import os
import re
import signal
import sys
import tempfile
import traceback
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

from cyclopts import (
    App,
    CoercionError,
    CycloptsError,
    MissingArgumentError,
    Parameter,
    Token,
    UnusedCliTokensError,
    convert,
)

from gguflora.config import ReadConfig, TemplateConfig
from gguflora.data_commands import data_app
from gguflora.errors import DataError, GgufloraError, UsageError
from gguflora.plan_command import plan
from gguflora.run_options import Data, Flat, RunOptions, requested
from gguflora.signals import signal_watch


def _exact(type_: Any, tokens: Sequence[Token]) -> Any:
    """Convert as cyclopts does, but refuse what it would round: --rank 2.5 is no whole number."""
    if type_ is int or type_ == int | None:
        try:
            return int(tokens[0].value)
        except ValueError:
            raise CoercionError(token=tokens[0], target_type=int, msg="give a whole number.") from None
    return convert(type_, tokens)


SPIN = "2000"
"""How often a thread looks for work before it sleeps: it bridges two products, 10 % of a step (docs/log.md)."""

app = App(
    name="gguflora",
    help="LoRA fine-tuning straight on the GGUF you serve.",
    version=lambda: version("gguflora"),
    help_format="plaintext",
    default_parameter=Parameter(negative=(), converter=_exact),
    suppress_keyboard_interrupt=False,  # main says what becomes of it
)


@app.command
def train(
    model: Path,
    data: Annotated[list[str], Data],
    /,
    *,
    output_dir: Path,
    options: Annotated[RunOptions, Flat] = RunOptions(),  # noqa: B008 (frozen)
    resume: bool = False,
    dry_run: bool = False,
    json: bool = False,
) -> int:
    """Train a LoRA adapter on MODEL with the examples in DATA.

    The adapter is a GGUF file that llama.cpp loads beside the same MODEL:
    llama-server -m MODEL --lora OUTPUT_DIR/final_adapter.gguf

    Args:
        model: GGUF file to train on; it is only read.
        data: Dataset files (JSON, JSONL, CSV, TSV, text, Parquet; .gz and .zst too), folders, patterns or addresses;
            - is standard input. docs/data.md shows what each may hold.
        output_dir: Folder for the adapter, checkpoints and metrics; must be new or empty.
        options: What decides the run.
        resume: Go on from the newest state saved in the output folder.
        dry_run: Show the plan, the data and the first batch, then end; nothing is trained or written.
        json: Print one event a line on stdout as JSON; text goes to stderr.
    """
    from rich.console import Console

    from gguflora.events import DataReady, Finished, as_dict
    from gguflora.report import ConsoleReport, EncodingProgress
    from gguflora.run.template import own_options, serve_options
    from gguflora.run.training import Outcome, run

    console = Console(stderr=json, highlight=False)
    stopped_by = None
    with (
        signal_watch() as watch,
        ConsoleReport(console, options.training.logging_steps) as report,
        EncodingProgress(Console(stderr=True)) as progress,
    ):
        asked = {"output_dir": output_dir, "resume": resume, "dry_run": dry_run}
        request = requested(model, data, options, **asked, stop=watch.stopped_by, progress=progress)
        for event in run(request, Outcome()):
            if isinstance(event, DataReady):
                watch.patient = True
            report.show(event)
            if json:
                _print_json(as_dict(event))
            if isinstance(event, Finished):
                stopped_by = event.stopped_by
                named, template = [*data, *options.reading.arguments], options.template
                report.next_steps(model, named, event, serve=serve_options(template), own=own_options(template))
    return 128 + signal.Signals[stopped_by] if stopped_by else 0


app.command(plan)


@app.command(name="eval")
def evaluate(
    model: Path,
    data: Annotated[list[str], Data],
    /,
    *,
    reading: Annotated[ReadConfig, Flat] = ReadConfig(),  # noqa: B008 (frozen)
    lora: Path | None = None,
    scale: float = 1.0,
    template: Annotated[TemplateConfig, Flat] = TemplateConfig(),  # noqa: B008 (frozen)
    json: bool = False,
) -> int:
    """Measure the loss of MODEL on the examples in DATA, in float32, with an adapter or without.

    Args:
        model: GGUF file.
        data: Datasets, as for train.
        reading: How records become examples.
        lora: Adapter to put on the model.
        scale: Factor of the adapter's strength.
        template: How conversations become text; without it as the adapter was trained.
        json: Print one JSON object on one line.
    """
    from rich.console import Console

    from gguflora.data import Named, open_examples
    from gguflora.report import EncodingProgress
    from gguflora.run.dataset import BAD_RECORD
    from gguflora.run.measure import measure

    bad_records = Named()
    with EncodingProgress(Console(stderr=True)) as progress:
        result = measure(model, open_examples(data, reading, bad_records.append), lora, scale, template, progress)
    if bad_records.count:
        result["skipped"][BAD_RECORD] = bad_records.count
    if json:
        _print_json(result)
    else:
        print(f"nll {result['nll']:.6f}  perplexity {result['perplexity']:.4f}")
        print(f"{result['tokens']} trained tokens in {result['examples']} examples")
        for reason, count in result["skipped"].items():
            print(f"skipped {count}: {reason}")
    return 0


@app.command
def generate(
    model: Path,
    prompt: Annotated[str, Parameter(allow_leading_hyphen=True)],
    /,
    *,
    lora: Path | None = None,
    scale: float = 1.0,
    max_tokens: int = 256,
    raw: bool = False,
    template: Annotated[TemplateConfig, Flat] = TemplateConfig(),  # noqa: B008 (frozen)
) -> int:
    """Let MODEL answer PROMPT in the real llama.cpp, with an adapter or without; the likeliest token each time.

    Args:
        model: GGUF file.
        prompt: What the user says (with --raw: the text to continue).
        lora: Adapter to put on the model.
        scale: Factor of the adapter's strength.
        max_tokens: Longest answer, in tokens.
        raw: Continue PROMPT as it is, without the chat template.
        template: How PROMPT becomes text; without it as the adapter was trained.
    """
    from gguflora.run.answer import answer

    given = _typed(prompt)
    for piece in answer(model, given, lora=lora, scale=scale, max_tokens=max_tokens, raw=raw, config=template):
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
    return 0


@app.command
def tokenize(
    model: Path,
    text: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
    /,
    *,
    file: Path | None = None,
    no_bos: bool = False,
    no_parse_special: bool = False,
    json: bool = False,
) -> int:
    """Show the token ids of TEXT, exactly those that llama.cpp gives.

    Args:
        model: GGUF file; one that holds a vocabulary alone will do.
        text: Text; without it, and without --file, standard input is read.
        file: File with the text, taken byte for byte.
        no_bos: Do not add the tokens that the model wants around a text (BOS, EOS).
        no_parse_special: Take the spelling of a control token as plain text.
        json: Print nothing but one line with a list of ids.
    """
    from gguflora.gguf import open_gguf
    from gguflora.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(open_gguf(model))
    content = _text_to_tokenize(text, file)
    tokens = tokenizer.encode(content, add_special=not no_bos, parse_special=not no_parse_special)
    if json:
        _print_json(tokens)
    else:
        for token in tokens:
            print(f"{token:7d}  {tokenizer.token_text(token)!r}")
        print(f"{len(tokens)} tokens")
    return 0


@app.command
def inspect(file: Path, /, *, pairs: bool = False, json: bool = False) -> int:
    """Show what FILE holds: a model and whether it can be trained, an adapter and how large its pairs are.

    Args:
        file: GGUF file: a model, its first part, an adapter, or a vocabulary alone.
        pairs: List each pair of an adapter, not only their means.
        json: Print one JSON object on one line.
    """
    from gguflora.report.inspected import ModelFacts, as_json, lines_of
    from gguflora.run.inspection import inspect

    facts = inspect(file)
    if pairs and isinstance(facts, ModelFacts):
        raise UsageError(f"--pairs lists an adapter's pairs, but {file} is none: leave it out.")
    if json:
        _print_json(as_json(facts))
    else:
        for line in lines_of(facts, pairs=pairs):
            print(line)
    return 0


@app.command
def render(
    model: Path,
    messages: Annotated[Path, Parameter(allow_leading_hyphen=True)],
    /,
    *,
    no_generation_prompt: bool = False,
    template: Annotated[TemplateConfig, Flat] = TemplateConfig(),  # noqa: B008 (frozen)
    json: bool = False,
) -> int:
    """Print the text that MODEL's chat template makes of MESSAGES, exactly as llama-server's /apply-template.

    Args:
        model: GGUF file; one that holds a vocabulary alone will do.
        messages: JSON file: a list of messages, or an object with messages and tools; - is standard input.
        no_generation_prompt: Do not end with what opens the assistant's answer.
        template: Which template, and what it is told.
        json: Print one JSON object on one line, with the text under prompt.
    """
    from gguflora.run.rendering import render

    text = render(model, messages, generation_prompt=not no_generation_prompt, config=template)
    if json:
        _print_json({"prompt": text})
    else:  # byte for byte, whatever the terminal's encoding
        sys.stdout.buffer.write(text.encode())
        sys.stdout.buffer.flush()
    return 0


app.command(data_app)


@app.command
def doctor(*, json: bool = False) -> int:
    """Look for what may be in the way on this machine, and say what to do about it.

    Args:
        json: Print one JSON object on one line.
    """
    from gguflora.run import doctor

    findings = list(doctor.examine())
    if json:
        _print_json(doctor.as_json(findings))
    else:
        for line in doctor.lines_of(findings):
            print(line)
    return doctor.exit_code(findings)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 2 what you gave, 4 the machine, 5 the numbers, 6 folder in use."""
    _set_process()
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        _refuse_unknown_options(arguments)
        code = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        code = _fail(_usage(error), UsageError.exit_code)
    except GgufloraError as error:
        code = _fail(str(error), error.exit_code)
    except BrokenPipeError:  # `gguflora ... | head`: the reader has gone, there is no one left to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 128 + signal.SIGPIPE
    except KeyboardInterrupt as interrupt:
        code = _fail("interrupted.", 128 + (interrupt.args[0] if interrupt.args else signal.SIGINT))
    except Exception as error:
        code = _bug(error)
    sys.exit(code if isinstance(code, int) else 0)


def _set_process() -> None:
    # Before torch is imported: threads that wait actively stall each other when the machine is busy (docs/log.md).
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN)
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    logging.basicConfig(format="gguflora: %(levelname)s: %(message)s", level=logging.WARNING, stream=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that can't show a character shows its number
            stream.reconfigure(errors="backslashreplace")


def _usage(error: CycloptsError) -> str:
    """A mistake in the command line, as a sentence."""
    command = " ".join(["gguflora", *(error.command_chain or ())])
    match error:
        case MissingArgumentError(argument=argument) if argument is not None:
            given = any(token.keyword for token in argument.tokens) or error.keyword
            missing = f"a value after {argument.name}" if given else argument.name
            return f"{command} needs {missing}; see {command} --help."
        case UnusedCliTokensError():
            extra = " ".join(error.unused_tokens or ())
            return f"{command} has no use for {extra!r}; see {command} --help, and quote a text with spaces."
        case _:
            return str(error)


def _refuse_unknown_options(arguments: Sequence[str]) -> None:
    """Refuse a --word that is no option, also where cyclopts would take it for TEXT, PROMPT or DATA.

    After a lone -- everything is text. So is what only begins with a hyphen, such as "-5" or "--- title".
    """
    command, *rest = [*arguments, "", "--"]
    if command not in ("train", "plan", "eval", "generate", "tokenize", "render"):
        return
    known = app[command].assemble_argument_collection(default_parameter=app.default_parameter)
    names = [name for argument in known for name in argument.names]
    for word in rest[: rest.index("--")]:
        option = word.split("=")[0].replace("_", "-")
        if re.fullmatch("--[a-z][a-z-]*", option) and option not in (*names, "--help", "--version"):
            near = difflib.get_close_matches(option, names, n=1)
            hint = f"Did you mean {near[0]}?" if near else "Put -- before a text or name that begins so."
            raise UsageError(f"Unknown option: {option}. {hint}")


def _typed(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:  # Python's stand-ins for bytes that are no UTF-8 (PEP 383)
        raise UsageError(f"The text is not UTF-8: character {error.start} is wrong.") from error
    return text


def _fail(message: str, code: int) -> int:
    from gguflora.report.text import harmless

    printable = harmless(message.replace("\n", " "))
    print(f"gguflora: {printable}", file=sys.stderr)
    return code


def _bug(error: Exception) -> int:
    with tempfile.NamedTemporaryFile("w", prefix="gguflora-", suffix=".log", delete=False) as file:
        traceback.print_exception(error, file=file)
    return _fail(f"a bug in gguflora ({type(error).__name__}: {error}); please report it with {file.name}.", 1)


def _print_json(value: Any) -> None:
    print(json.dumps(value), flush=True)


def _text_to_tokenize(text: str | None, file: Path | None) -> str:
    if text is not None:
        if file is not None:
            raise UsageError("Give TEXT or --file, not both.")
        return _typed(text)
    try:
        return (file.read_bytes() if file else sys.stdin.buffer.read()).decode("utf-8")
    except OSError as error:
        raise DataError(f"{file} can't be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file or 'standard input'} is not UTF-8 text: byte {error.start} is wrong.") from error
