"""Faults that other trainers shipped, planted one at a time in a copy of the package: the test that must turn red does.

    make mutants, or: python -m tests.mutants [trap ...]

Each is an exact replacement in one file. A mutant that survives means that a test promises what it does not hold.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Mutant:
    """A fault: `old` becomes `new` in `file`, and `tests` must fail."""

    name: str
    file: str
    old: str
    new: str
    tests: str


MUTANTS = (
    Mutant(
        "keys get no gradient",
        "model/explicit_attention.py",
        "    _turn_back(dk, raw_k, r_k, mixer.attn_k_norm, row, spec, work.operations, d_raw_k)",
        "    d_raw_k.zero_()",
        "tests/model/test_gradients.py",
    ),
    Mutant(
        "values get no gradient",
        "model/explicit_attention.py",
        "    d_v.copy_(dv)",
        "    d_v.zero_()",
        "tests/model/test_gradients.py",
    ),
    Mutant(
        "a backward writes where it still reads",
        "model/explicit_attention.py",
        '    d_mixed = work.take("d_mixed", tuple(mixed.shape), x.dtype)',
        '    d_mixed = work.take("q", tuple(mixed.shape), x.dtype)',
        "tests/model/test_explicit.py",
    ),
    Mutant(
        "clipping below the norm",
        "train/optimiser.py",
        "    if norm > max_norm:",
        "    if norm > 0:",
        "tests/train/test_optimiser.py",
    ),
    Mutant(
        "the scale of a pair is dropped",
        "model/groups.py",
        "    return StackedPairs(a, tuple(_blocks(group, dtype)), group.linears[0].scale)",
        "    return StackedPairs(a, tuple(_blocks(group, dtype)), 1.0)",
        "tests/model/test_explicit.py",
    ),
    Mutant(
        "gradients are never cleared",
        "train/optimiser.py",
        "        parameter.grad = None",
        "        continue",
        "tests/train/test_step.py tests/train/test_optimiser.py tests/train/test_loop.py",
    ),
    Mutant(
        "lora_a begins too large",
        "model/lora.py",
        "        bound = 1 / math.sqrt(columns)",
        "        bound = 1 / math.sqrt(rank)",
        "tests/model/test_lora.py",
    ),
    Mutant(
        "measuring leaves gradients behind",
        "train/step.py",
        "            return row_nll(decoder, row, method.work)",
        "            return row_gradients(decoder, row, 1.0, method.work, False)[1]",
        "tests/train/test_evaluate.py tests/train/test_loop.py",
    ),
    Mutant(
        "a mean of means over micro-batches",
        "train/step.py",
        "packed_row(micro_batch, dropout), 1 / total, method)",
        "packed_row(micro_batch, dropout), 1 / trained_weight(micro_batch), method)",
        "tests/train/test_step.py",
    ),
    Mutant(
        "a sum in place of the mean of a step",
        "train/step.py",
        "packed_row(micro_batch, dropout), 1 / total, method)",
        "packed_row(micro_batch, dropout), 1.0, method)",
        "tests/train/test_step.py",
    ),
    Mutant(
        "the last, shorter step counts less",
        "train/loop.py",
        "    update(state, gradients, rate, job.config.weight_decay)",
        "    update(state, gradients, rate * len(batch.examples) / job.config.batch_size, job.config.weight_decay)",
        "tests/train/test_loop.py",
    ),
    Mutant(
        "norms are trained too",
        "kernels/norm/explicit.py",
        "    g = dy.to(x.dtype) * weight",
        "    g = dy.to(x.dtype) * weight.mul_(1.0001)",
        "tests/model/test_decoder.py",
    ),
    Mutant(
        "packed rows of a group in another order",
        "model/weight.py",
        "for weight in packed for part in weight.parts)",
        "for weight in reversed(packed) for part in weight.parts)",
        "tests/model/test_explicit.py",
    ),
    Mutant(
        "one half of a block's scales is not looked at",
        "kernels/dequantise/finite.py",
        "    GgmlType.Q5_1: slice(0, 4),",
        "    GgmlType.Q5_1: slice(0, 2),",
        "tests/kernels/test_dequantise.py",
    ),
    Mutant(
        "a position that sees nothing",
        "kernels/attention/softmax.py",
        "dtype=torch.bool).triu(m - n + 1)",
        "dtype=torch.bool).triu(m - n)",
        "tests/kernels/test_attention.py",
    ),
    Mutant(
        "sums of a block of keys before are not scaled to the new largest score",
        "kernels/attention/flash_forward.py",
        "            scale_rows(total, 1, at[SHARE])",
        "            scale_rows(total, 0, at[SHARE])",
        "tests/kernels/test_flash.py",
    ),
    Mutant(
        "a window that hides one key too few",
        "kernels/attention/flash_rows.py",
        "hide(scores, left - start, position - start, window)",
        "hide(scores, left - start, position - start, window + 1)",
        "tests/kernels/test_flash.py",
    ),
    Mutant(
        "of a long document's parts the last one's gradient stands alone",
        "kernels/attention/flash.py",
        "total[:, item.first : item.end] += sums",
        "total[:, item.first : item.end] = sums",
        "tests/kernels/test_flash.py",
    ),
    Mutant(
        "keys' gradients without the scores' scale",
        "kernels/attention/flash_backward.py",
        "_put_sums(sums_k, scales[1], count",
        "_put_sums(sums_k, np.float32(1), count",
        "tests/kernels/test_flash.py",
    ),
    Mutant(
        "tiles forget the pair's scale in the backward",
        "kernels/lora_linear/tiled.py",
        "_narrow(rows, block.b, True, pairs.scale, dc",
        "_narrow(rows, block.b, True, 1.0, dc",
        "tests/kernels/test_tiled.py",
    ),
    Mutant(
        "the last of an odd number of tokens teaches the pairs nothing",
        "kernels/lora_linear/tiled_kernels.py",
        "    pairs = (tokens + 1) // 2",
        "    pairs = tokens // 2",
        "tests/kernels/test_tiled.py",
    ),
    Mutant(
        "a deep product keeps its last piece alone",
        "kernels/lora_linear/tiled_kernels.py",
        "kept, PANEL_ROW, depth > 0, y",
        "kept, PANEL_ROW, False, y",
        "tests/kernels/test_tiled.py",
    ),
    Mutant(
        "a gradient that lies transposed in memory is taken as it lies",
        "train/optimiser.py",
        "            [gradient.contiguous() for gradient in gradients],",
        "            gradients,",
        "tests/train/test_optimiser.py",
    ),
    Mutant(
        "prompts are trained",
        "data/labels.py",
        '    if train_on == "everything":',
        '    if train_on != "last":',
        "tests/data/test_labels.py",
    ),
    Mutant(
        "an example without a label is trained",
        "data/labels.py",
        "    if (labels == NOT_TRAINED).all():",
        "    if not len(labels):",
        "tests/data/test_labels.py",
    ),
    Mutant(
        "training with no example that teaches anything",
        "data/encoding.py",
        "    if empty:",
        "    if empty and not account.skipped:",
        "tests/data/test_preparation.py",
    ),
    Mutant(
        "training where every answer's end was cut off",
        "run/dataset.py",
        "    if conversations and trained.endless.count == len(trained.encoded):",
        "    if conversations and not trained.encoded:",
        "tests/cli/test_data.py",
    ),
    Mutant(
        "a control token that a message spells is one",
        "data/literal_text.py",
        "        yield hidden.restore(part), False",
        "        yield hidden.restore(part), True",
        "tests/data/test_labels.py",
    ),
    Mutant(
        "history is trained where it differs from what is generated",
        "data/answers.py",
        "        elif text.startswith(turn.prompt):",
        "        elif text.startswith(turn.prompt[:20]):",
        "tests/data/test_labels.py",
    ),
    Mutant(
        "an answer is trained with another end than history has",
        "data/answers.py",
        "        if ids[: len(turn.tokens)] == turn.tokens or ",
        "        if ids[:1] == turn.tokens[:1] or ",
        "tests/data/test_labels.py",
    ),
    Mutant(
        "the adapter forgets the template's options",
        "gguf/adapter.py",
        "        if value := getattr(adapter.chat, field):",
        '        if field != "options" and (value := getattr(adapter.chat, field)):',
        "tests/gguf/test_adapter.py",
    ),
    Mutant(
        "the printed command serves with other options",
        "run/template.py",
        "    if config.switches:\n        options +=",
        "    if config.chat_template:\n        options +=",
        "tests/run/test_template.py",
    ),
    Mutant(
        "a rendering does without the options",
        "tokenizer/template.py",
        "(dict(self.switches) | dict(switches)).items()",
        "dict(switches).items()",
        "tests/tokenizer/test_template_choice.py",
    ),
    Mutant(
        "BOS twice",
        "tokenizer/template.py",
        "        if self.add_bos:\n",
        "        if self.add_eos:\n",
        "tests/tokenizer/test_template.py",
    ),
    Mutant(
        "BOS before every piece of a conversation",
        "data/scene.py",
        "        ids += tokenizer.encode(text, add_special=False, parse_special=parse, continues=continues)",
        "        ids += tokenizer.encode(text, add_special=True, parse_special=parse, continues=continues)",
        "tests/data/test_labels_spm.py",
    ),
    Mutant(
        "Gemma 4's BOS left out where its file says so",
        "tokenizer/vocabulary.py",
        "defaults.add_bos) or defaults.always_bos",
        "defaults.add_bos)",
        "tests/tokenizer/test_character_bpe.py",
    ),
    Mutant(
        "a space in front of a completion",
        "data/labels.py",
        "parse_special=False, continues=bool(prompt))",
        "parse_special=False, continues=False)",
        "tests/data/test_labels_spm.py",
    ),
    Mutant(
        "merges by place alone",
        "tokenizer/merging.py",
        "        _, left, right, size = heappop(queue)",
        "        _, left, right, size = queue.pop(0)",
        "tests/tokenizer/test_character_bpe.py",
    ),
    Mutant(
        "the end of an answer is not trained",
        "data/answers.py",
        "    return ids[: next(ends, -1) + 1]",
        "    return ids[: next(ends, 0)]",
        "tests/data/test_labels.py",
    ),
    Mutant(
        "what follows the end of an answer is trained",
        "data/answers.py",
        "    return ids[: next(ends, -1) + 1]",
        "    return ids[: next(ends, -2) + 2]",
        "tests/data/test_labels.py",
    ),
    Mutant(
        "an answer stands in the block of reasoning that the prompt opens",
        "data/continuation.py",
        "        return block.ended(asked.reasoning) + text",
        "        return text",
        "tests/data/test_continuation.py",
    ),
    Mutant(
        "reasoning is lost where the template writes none",
        "data/reasoning.py",
        '        return f"{reasoning}{self.gap}{self.closing}{self.distance}"',
        '        return f"{self.gap}{self.closing}{self.distance}"',
        "tests/data/test_continuation.py",
    ),
    Mutant(
        "an answer that the template leaves out is trained as nothing",
        "data/continuation.py",
        "        if text is not None and last_word in text:",
        "        if text is not None:",
        "tests/data/test_labels.py",
    ),
    Mutant(
        "a call behind the end of an answer counts as written",
        "data/answers.py",
        "    said = _said(found.text, tokens, scene)",
        "    said = found.text",
        "tests/data/test_tools.py",
    ),
    Mutant(
        "an answer's own document begins with what stands before it later",
        "data/answers.py",
        "            yield _own_document(scene, turn)\n    standing",
        "            yield _own_document(scene, replace(turn, prompt=text[: turn.start]))\n    standing",
        "tests/data/test_labels.py",
    ),
    Mutant(
        "nobody is told that answers think nothing",
        "data/preparation.py",
        '        NO_REASONING + (WITHOUT_PLACE if switched else ""): document.no_reasoning,',
        '        NO_REASONING + (WITHOUT_PLACE if switched else ""): 0,',
        "tests/data/test_preparation.py",
    ),
    Mutant(
        "thinking is on where llama-server turns it off",
        "tokenizer/template.py",
        '            given["enable_thinking"] = self._thinks',
        '            given["enable_thinking"] = True',
        "tests/tokenizer/test_families.py",
    ),
    Mutant(
        "a template's difference from llama-server's is passed over",
        "run/template_check.py",
        "    if ours == theirs:",
        "    if ours == theirs[: len(ours)]:",
        "tests/cli/test_data.py",
    ),
    Mutant(
        "windows train positions twice",
        "data/overlong.py",
        "        labels[opening : opening + context] = NOT_TRAINED",
        "        labels[opening] = NOT_TRAINED",
        "tests/data/test_overlong.py",
    ),
    Mutant(
        "a damaged file of tokens is trusted",
        "data/store.py",
        "    if _digest(data) != data[_SIZES.size : _HEADER]:",
        "    if not data:",
        "tests/data/test_store.py",
    ),
    Mutant(
        "data that change between two readings are trained",
        "run/tokens.py",
        "            if number >= len(ids) or (self.wanted[number] and ids[number].tobytes() != id_of(example)):",
        "            if number >= len(ids):",
        "tests/run/test_tokens.py",
    ),
    Mutant(
        "several processes change the order",
        "data/encoding_process.py",
        "            if len(waiting) > _AHEAD * count:\n                yield from _turn(*waiting.popleft())",
        "            if len(waiting) > _AHEAD * count:\n                yield from _turn(*waiting.pop())",
        "tests/data/test_encoding_process.py",
    ),
    Mutant(
        "an error of the data comes before what stands before it",
        "data/encoding_process.py",
        "                failed = chunk\n",
        "                raise chunk\n",
        "tests/data/test_encoding_process.py",
    ),
    Mutant(
        "a signal while data are encoded is only remembered",
        "signals.py",
        "        if not self.patient:",
        "        if self.patient is None:",
        "tests/signals/test_signals.py",
    ),
    Mutant(
        "packed documents are one",
        "data/packing.py",
        "        document_starts=np.cumsum([0, *lengths], dtype=np.int64),",
        "        document_starts=np.array([0, sum(lengths)], np.int64),",
        "tests/data/test_packing.py",
    ),
    Mutant(
        "positions run on from document to document",
        "data/packing.py",
        "        positions=np.concatenate([np.arange(length, dtype=np.int64) for length in lengths]),",
        "        positions=np.arange(sum(lengths), dtype=np.int64),",
        "tests/data/test_packing.py",
    ),
    Mutant(
        "a cut eats the answer",
        "data/overlong.py",
        "            end = max(int(np.flatnonzero(encoded.labels != NOT_TRAINED)[-1]) + 1, max_length)",
        "            end = max_length",
        "tests/data/test_overlong.py",
    ),
    Mutant(
        "a cut answer ends",
        "data/overlong.py",
        "            pieces = [_piece(encoded, opening, opening, max_length)]",
        "            pieces = [_piece(encoded, opening, len(encoded.tokens) - room, len(encoded.tokens))]",
        "tests/data/test_overlong.py",
    ),
    Mutant(
        "what is asked to be trained is not what is trained",
        "data/preparation.py",
        "encode_example(example, how.tokenizer, how.template, how.train_on)",
        "encode_example(example, how.tokenizer, how.template)",
        "tests/data/test_preparation.py",
    ),
    Mutant(
        "weight 0 is trained",
        "data/preparation.py",
        "    if example.weight == 0:",
        "    if example.weight < 0:",
        "tests/data/test_preparation.py",
    ),
    Mutant(
        "what is left out is not counted",
        "data/encoding.py",
        "        if one.skipped:",
        "        if one.skipped and one.pieces:",
        "tests/data/test_preparation.py",
    ),
    Mutant(
        "of many sources only the named ones count",
        "data/named.py",
        "        self.count += 1",
        "        self.count += len(self.first) < MOST_NAMED",
        "tests/data/test_named.py",
    ),
    Mutant(
        "an example as long as allowed is left out",
        "data/overlong.py",
        "    if len(encoded.tokens) <= max_length:",
        "    if len(encoded.tokens) < max_length:",
        "tests/data/test_overlong.py",
    ),
    Mutant(
        "a window without a label is trained",
        "data/overlong.py",
        "    return tuple(piece for piece in pieces if (piece.labels != NOT_TRAINED).any())",
        "    return tuple(pieces)",
        "tests/data/test_overlong.py",
    ),
    Mutant(
        "windows leave positions out",
        "data/overlong.py",
        "        start, number = end - overlap, number + 1",
        "        start, number = end - overlap + 1, number + 1",
        "tests/data/test_overlong.py",
    ),
    Mutant(
        "windows lose BOS",
        "data/overlong.py",
        "    opening = opening if max_length > opening + overlap else 0",
        "    opening = 0",
        "tests/data/test_overlong.py",
    ),
    Mutant(
        "another overlap's tokens are used",
        "run/tokens.py",
        "config.overlong, config.overlap, config.train_on]",
        "config.overlong, config.train_on]",
        "tests/run/test_tokens.py",
    ),
    Mutant(
        "what is measured is trained",
        "run/dataset.py",
        "    return replace(whole, wanted=~chosen), replace(whole, wanted=chosen), source",
        "    return whole, replace(whole, wanted=chosen), source",
        "tests/run/test_dataset.py",
    ),
    Mutant(
        "equal texts are trained and measured",
        "data/split.py",
        "    return np.isin(groups, _choose(np.bincount(groups), wanted, seed))",
        "    return np.isin(np.arange(len(groups)), _choose(np.bincount(groups), wanted, seed))",
        "tests/data/test_split.py",
    ),
    Mutant(
        "an example is in two steps",
        "data/order.py",
        "[step_in_epoch * batch_size : (step_in_epoch + 1) * batch_size]",
        "[step_in_epoch * batch_size : (step_in_epoch + 1) * batch_size + 1]",
        "tests/data/test_order.py",
    ),
    Mutant(
        "the last, shorter step is left out",
        "data/order.py",
        "    return -(-n // batch_size)",
        "    return max(1, n // batch_size)",
        "tests/data/test_order.py",
    ),
    Mutant(
        "what waits for the next step is lost",
        "data/steps.py",
        "    return step, [index for place, index in enumerate(waiting) if place not in chosen]",
        "    return step, []",
        "tests/data/test_steps.py",
    ),
    Mutant(
        "an example is in two rows",
        "data/packing.py",
        "        taken = set(rows[-1])",
        "        taken = {left[0]}",
        "tests/data/test_packing.py",
    ),
    Mutant(
        "weights of a row are another example's",
        "data/packing.py",
        "        weights=np.repeat(weights, lengths),",
        "        weights=np.repeat(weights[::-1], lengths),",
        "tests/data/test_packing.py",
    ),
    Mutant(
        "the weight of a source does not count",
        "data/reading.py",
        "                yield example if factor == 1 else _weighed(example, factor)",
        "                yield example",
        "tests/data/test_reading.py",
    ),
    Mutant(
        "a record that can't be used is passed over",
        "data/reading.py",
        '            elif reading.on_bad_record == "skip":',
        '            elif reading.on_bad_record != "":',
        "tests/data/test_reading.py",
    ),
    Mutant(
        "a bad record is told at each reading",
        "data/streamed.py",
        "            if next(numbers) == self._told.count:",
        "            if next(numbers) <= self._told.count:",
        "tests/data/test_streamed.py",
    ),
    Mutant(
        "a cut archive is a shorter one",
        "data/compression.py",
        '            raise DataError(f"{self._name} is damaged or cut ({error}); get it again.") from error',
        "            return 0 * len(str(error))",
        "tests/data/test_compression.py",
    ),
    Mutant(
        "a weight multiplies log p",
        "kernels/head_loss/cross_entropy.py",
        "        dy = wide.sub_(lse[:, None]).exp_()",
        "        dy = wide.sub_(lse[:, None]).mul_(weights[:, None]).exp_()",
        "tests/train/test_step.py",
    ),
    Mutant(
        "a tied output layer takes no memory",
        "run/memory_plan.py",
        "return [*spec.linears(), *([spec.output] if spec.tied else [])]",
        "return [*spec.linears()]",
        "tests/run/test_memory_plan.py",
    ),
    Mutant(
        "the process that trains compiles",
        "kernels/operations.py",
        "            compile_elsewhere()",
        "            pass",
        "tests/kernels/test_first_use.py",
    ),
    Mutant(
        "what a kernel calls may change unseen",
        "kernels/numeric.py",
        'sorted(folder.rglob("*.py"))',
        'sorted(folder.glob("*.py"))',
        "tests/kernels/test_first_use.py",
    ),
    Mutant(
        "the check in llama.cpp forgets the libraries",
        "run/check_memory.py",
        "held = own.resident - own.files + LIBRARY_BYTES",
        "held = own.resident - own.files",
        "tests/run/test_check_memory.py",
    ),
    Mutant(
        "a cgroup above has no limit",
        "run/machine.py",
        "for part in (inside, *inside.parents):",
        "for part in (inside,):",
        "tests/run/test_machine.py",
    ),
)


def main(wanted: list[str]) -> int:
    """Plant all mutants (or those whose name holds one of `wanted`) and print what became of each."""
    survived = 0
    for mutant in MUTANTS:
        if not wanted or any(word in mutant.name for word in wanted):
            red = turns_red(mutant)
            survived += not red
            print(f"{'caught' if red else 'SURVIVED':9} {mutant.name:42} {mutant.tests}", flush=True)
    print(f"{survived} survived")
    return 1 if survived else 0


def turns_red(mutant: Mutant) -> bool:
    """Whether a test fails on a copy of the project with the mutant in it. The copy's tests pass without it."""
    with tempfile.TemporaryDirectory(prefix="gguflora-mutant-") as folder:
        copy = Path(folder)
        for name in ("gguflora", "tests", "pyproject.toml"):
            source = ROOT / name
            (shutil.copytree if source.is_dir() else shutil.copyfile)(source, copy / name)
        path = copy / "gguflora" / mutant.file
        path.write_text(replaced(path.read_text(), mutant))
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *mutant.tests.split()]
        environment = os.environ | {"PYTHONPATH": str(copy), "OMP_WAIT_POLICY": "passive"}
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):  # pytest's own codes: 0 all passed, 1 a test failed, else it could not run
        raise RuntimeError(f"{mutant.name}: the tests could not run\n{done.stdout}\n{done.stderr}")
    return done.returncode == 1


def replaced(text: str, mutant: Mutant) -> str:
    """The text of a file with the mutant planted; its `old` must stand there exactly once."""
    if text.count(mutant.old) != 1:
        raise ValueError(f"{mutant.name}: found {text.count(mutant.old)} times in {mutant.file}: {mutant.old!r}")
    return text.replace(mutant.old, mutant.new)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
