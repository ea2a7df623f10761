"""llama-server inside this process: the judge of chat templates, because only it has llama.cpp's Jinja engine."""

from __future__ import annotations

import http.client
import json
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from gguflora.errors import DataError, FileError, UsageError
from gguflora.llamacpp.library import load, silence
from gguflora.llamacpp.model import LlamaModel, usable_cores

_TIMEOUT = 600.0  # seconds for one answer: a long generation on a slow processor


class LlamaServer:
    """A GGUF behind llama-server's own interface, on a free port of this machine alone, until `close`.

    Args:
        path: the GGUF.
        lora: an adapter GGUF, applied at scale 1.
        chat_template: Jinja text to use in place of the file's own.
        context_length: tokens that a chat may hold.
        threads: processor cores to use; without it, those that this process may use.

    Raises:
        UsageError: the llama.cpp package is absent or another version.
        FileError: llama-server can't load the model or the adapter.
    """

    def __init__(
        self,
        path: str | Path,
        lora: str | Path | None = None,
        *,
        chat_template: str | None = None,
        context_length: int = 4096,
        threads: int | None = None,
    ) -> None:
        library = load()
        import xllamacpp  # after load(), which checks that it is there and is the version known

        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx = context_length
        params.chat_template = chat_template or ""
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(lora), 1.0)] if lora else []
        params.no_extra_bufts = True  # repacked weights crash on processors with AMX
        params.warmup = params.ui = params.fit_params = False
        params.verbosity = -1  # llama-server's own log, which is not llama.cpp's
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads or usable_cores()
        try:
            server = xllamacpp.Server(params)
        except RuntimeError as error:
            server, failure = None, error
        silence(library)  # the server puts its own log in place of ours
        if server is None:
            _raise_reason(path, lora)
            raise FileError(
                f"llama-server can't serve {path} though llama.cpp loads it: check its chat template."
            ) from failure
        self._address = urlsplit(server.listening_address).netloc
        owners = [server]  # the last reference: dropping it stops the server
        self._release = weakref.finalize(self, owners.clear)
        # An answer from its queue shows that the queue runs: a server that is stopped before that never returns.
        self._ask("GET", "/lora-adapters")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the server and give its memory back; a second call does nothing."""
        self._release()

    def apply_template(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True, **options: Any
    ) -> str:
        """Render a chat with the model's template, as llama-server does before it turns it into tokens.

        Args:
            messages: records with role and content.
            add_generation_prompt: end with the opening of an assistant turn.
            **options: other fields of the request (tools, chat_template_kwargs, ...).

        Raises:
            DataError: the template refuses the chat; the message has llama-server's reason.
            UsageError: the server is closed.
        """
        body = {"messages": list(messages), "add_generation_prompt": add_generation_prompt, **options}
        prompt: str = self._ask("POST", "/apply-template", body)["prompt"]
        return prompt

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """Turn text into tokens.

        Raises:
            UsageError: the server is closed.
        """
        body = {"content": text, "add_special": add_special, "parse_special": parse_special}
        tokens: list[int] = self._ask("POST", "/tokenize", body)["tokens"]
        return tokens

    def chat(self, messages: Sequence[Mapping[str, Any]], *, max_tokens: int, **options: Any) -> str:
        """Answer a chat, with the most likely token each time unless the options say otherwise.

        Args:
            messages: records with role and content.
            max_tokens: most tokens of the answer.
            **options: other fields of the request (temperature, chat_template_kwargs, ...).

        Raises:
            DataError: llama-server refuses the chat; the message has its reason.
            UsageError: the server is closed.
        """
        body = {"messages": list(messages), "max_tokens": max_tokens, "temperature": 0.0, **options}
        answer: str = self._ask("POST", "/v1/chat/completions", body)["choices"][0]["message"]["content"]
        return answer

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        if not self._release.alive:
            raise UsageError("The llama-server is closed: start it again.")
        # Not urllib: that would ask a proxy from the environment for this machine's own port.
        connection = http.client.HTTPConnection(self._address, timeout=_TIMEOUT)
        try:
            connection.request(method, path, json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            answer = json.loads(response.read())
        finally:
            connection.close()
        if response.status != http.HTTPStatus.OK:
            raise DataError(f"llama-server refused {path}: {answer['error']['message']}")
        return answer


def _raise_reason(path: str | Path, lora: str | Path | None) -> None:
    """Raise the FileError that llama.cpp has for these files, if it has one; llama-server tells no reason."""
    with LlamaModel(path) as model:
        if lora:
            model.load_lora_adapter(lora)
