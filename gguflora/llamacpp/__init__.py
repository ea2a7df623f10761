"""The real llama.cpp: load a GGUF, put adapters on and off, measure logits and losses, generate, serve.

Independent of our own model on purpose: it is the judge of it. Everything native comes from one prebuilt package,
`pip install 'gguflora[llamacpp]'`; importing this room does not need it, making a LlamaModel or LlamaServer does.

    library     finds the package, refuses another version, declares the C functions used
    structures  the three C structures that are passed by value, at pinned offsets
    messages    what llama.cpp logs: silent, its first error kept for ours
    vocabulary  text to tokens and back
    context     reads one text and gives logits
    model       LlamaModel: the two above, adapters, losses, generation
    server      LlamaServer: llama-server in this process, for its Jinja templates
"""

from gguflora.llamacpp.library import available
from gguflora.llamacpp.model import AdapterHandle, LlamaModel
from gguflora.llamacpp.server import LlamaServer

__all__ = ["AdapterHandle", "LlamaModel", "LlamaServer", "available"]
