"""The friendly front for Python: `LoraTrainer(model).train(examples)`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from pathlib import Path

from gguflora.config import ComputeConfig, DataConfig, LoraConfig, TemplateConfig, TrainingConfig
from gguflora.data import Example
from gguflora.errors import UsageError
from gguflora.events import Event, Finished
from gguflora.gguf import write_adapter
from gguflora.model import to_adapter
from gguflora.run.training import Outcome, Request, run


class LoraTrainer:
    """Trains a LoRA adapter on a GGUF model.

    Args:
        model: path of the GGUF file.
        lora_config: what the adapter is.
        training_config: how it is trained.
        data_config: which examples are trained, and which only measured.
        compute_config: how the machine is used.
        template_config: how conversations become text.
        output_dir: where checkpoints, metrics and the verified adapter go; None keeps the adapter in memory until
            `save_adapter`.

    Example:
        >>> trainer = LoraTrainer("model.gguf", LoraConfig(rank=8))        # doctest: +SKIP
        >>> finished = trainer.train(load_jsonl("data.jsonl"))             # doctest: +SKIP
        >>> trainer.save_adapter("adapter.gguf")                           # doctest: +SKIP
    """

    def __init__(
        self,
        model: str | Path,
        lora_config: LoraConfig = LoraConfig(),  # noqa: B008 (frozen)
        training_config: TrainingConfig = TrainingConfig(),  # noqa: B008 (frozen)
        *,
        data_config: DataConfig = DataConfig(),  # noqa: B008 (frozen)
        compute_config: ComputeConfig = ComputeConfig(),  # noqa: B008 (frozen)
        template_config: TemplateConfig = TemplateConfig(),  # noqa: B008 (frozen)
        output_dir: str | Path | None = None,
    ) -> None:
        self.model = Path(model)
        self.lora_config = lora_config
        self.training_config = training_config
        self.data_config = data_config
        self.compute_config = compute_config
        self.template_config = template_config
        self.output_dir = Path(output_dir) if output_dir else None
        self._outcome = Outcome()

    def train(
        self,
        examples: Iterable[Example],
        *,
        validation: Iterable[Example] | None = None,
        on_event: Callable[[Event], None] | None = None,
        resume: bool = False,
    ) -> Finished:
        """Train on `examples` and give the summary.

        Args:
            examples: what to learn; a list, or what can be gone through several times and reads files anew each time.
            validation: examples to measure on; without them some are split off as data_config says.
            on_event: called with everything that happens (gguflora.events).
            resume: go on from the newest state in output_dir.

        Raises:
            GgufloraError: the model, the data, the machine or the numbers made it impossible.
        """
        self._outcome = Outcome()
        request = Request(
            model=self.model,
            examples=examples,
            validation=validation,
            lora=self.lora_config,
            data=self.data_config,
            training=self.training_config,
            compute=self.compute_config,
            template=self.template_config,
            output_dir=self.output_dir,
            resume=resume,
        )
        finished: Finished | None = None
        with contextlib.closing(run(request, self._outcome)) as events:  # whatever on_event raises, the folder is free
            for event in events:
                if on_event:
                    on_event(event)
                if isinstance(event, Finished):
                    finished = event
        assert finished is not None
        return finished

    def save_adapter(self, path: str | Path) -> None:
        """Write the adapter as training left it, for llama.cpp.

        Raises:
            UsageError: nothing was trained yet.
            MachineError: the system refused to write.
        """
        state, base, alpha = self._outcome.state, self._outcome.base, self._outcome.alpha
        if state is None or base is None or alpha is None:
            raise UsageError("There is no adapter to save: call train first.")
        write_adapter(
            Path(path), to_adapter(state.pairs, base.gguf.architecture, alpha, base.identity, self._outcome.chat)
        )
