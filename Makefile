# make help prints the targets. One virtual environment, made once per change of what it is made from; and one that
# holds MXNet, for the tests of its file formats.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv mxnet edge alone train test test-portable lint docs clean gpu gpu-packages

VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
MXNET_VENV ?= .venv-mxnet
EDGE_VENV ?= .venv-edge
ALONE_VENV ?= .venv-alone
PINNED_TORCH := $(shell sed -n 's/^torch==//p' requirements.txt)

# Only an interpreter that runs counts: pyenv puts shims on the PATH for versions that are not active, and
# Debian ships a Python without ensurepip.
SUITABLE := import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))
PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3 /usr/bin/python3.11 /usr/bin/python3.12,\
	$(shell $(p) -c '$(SUITABLE)' >/dev/null 2>&1 && echo $(p))))

# The version of torch in the virtual environment, without its build suffix; empty if there is none.
INSTALLED_TORCH = $$($(BIN)/python -c 'from importlib.metadata import version as v; print(v("torch").split("+")[0])' 2>/dev/null)

help:
	@echo 'make train [ARGS="CONFIG section.key=value ..."]  train on the GPUs of this machine, or on 2 CPU ranks (NPROC=n: n ranks)'
	@echo 'make test  [ARGS="-m slow ..."]                   the tests; ARGS go to pytest'
	@echo 'make test-portable                                the numeric tests again, as on a processor with AVX2 alone, one thread'
	@echo 'make gpu [STAGE=1..4] [OUT=folder]                on a machine with a GPU: tests, speed, memory, verdicts; 8 minutes a stage'
	@echo 'make gpu-packages                                 what make gpu needs beside torch ($(GPU_PACKAGES)), for a machine without a network'
	@echo 'make lint                                         ruff check, ruff format --check, mypy, syntax of the shell scripts'
	@echo 'make docs                                         the documentation site, into build/docs (open index.html from disk)'
	@echo 'make venv                                         only the virtual environment ($(VENV)), which the above make themselves'
	@echo 'make mxnet                                        the environment of the MXNet tests ($(MXNET_VENV)), which are skipped without it'
	@echo 'make edge  [ARGS=...]                             the tests of export beside every runtime, in an environment of its own ($(EDGE_VENV))'
	@echo 'make alone ARGS=FOLDER                            open a published folder where nothing but the package is installed ($(ALONE_VENV))'
	@echo 'make clean                                        remove the virtual environments and caches; data and runs stay'

venv: $(STAMP)

$(STAMP): requirements.txt requirements-dev.txt pyproject.toml
	@test -x $(BIN)/pip || test -n "$(PYTHON)" || { echo 'error: no Python 3.11 or 3.12 with venv and ensurepip runs here' >&2; exit 1; }
	@test -x $(BIN)/pip || { echo "$(PYTHON) -m venv $(VENV)"; "$(PYTHON)" -m venv $(VENV); }
	@found="$(INSTALLED_TORCH)"; test -z "$$found" || $(MAKE) --no-print-directory .torch
	$(BIN)/pip install --quiet -r requirements-dev.txt
	$(BIN)/pip install --quiet --no-deps -e .
	@$(MAKE) --no-print-directory .torch
	@touch $@

# pip would replace another torch without a word, and everything here was tested with one: say so instead.
.PHONY: .torch
.torch:
	@found="$(INSTALLED_TORCH)"; test "$$found" = '$(PINNED_TORCH)' || { \
	  echo "error: $(VENV) holds torch $${found:-(none)} but requirements.txt pins $(PINNED_TORCH): make clean, or VENV=another folder" >&2; exit 1; }

mxnet: $(MXNET_VENV)/.installed

$(MXNET_VENV)/.installed: requirements-mxnet.txt
	@test -x $(MXNET_VENV)/bin/pip || test -n "$(PYTHON)" || { echo 'error: no Python 3.11 or 3.12 with venv and ensurepip runs here' >&2; exit 1; }
	@test -x $(MXNET_VENV)/bin/pip || { echo "$(PYTHON) -m venv $(MXNET_VENV)"; "$(PYTHON)" -m venv $(MXNET_VENV); }
	$(MXNET_VENV)/bin/pip install --quiet -r requirements-mxnet.txt
	@touch $@

edge: $(EDGE_VENV)/.installed
	PYTHONPATH=. $(EDGE_VENV)/bin/python -m pytest tests/export/test_targets.py tests/export/test_vit_export.py $(ARGS)

$(EDGE_VENV)/.installed: requirements-edge.txt
	@test -x $(EDGE_VENV)/bin/pip || test -n "$(PYTHON)" || { echo 'error: no Python 3.11 or 3.12 with venv and ensurepip runs here' >&2; exit 1; }
	@test -x $(EDGE_VENV)/bin/pip || { echo "$(PYTHON) -m venv $(EDGE_VENV)"; "$(PYTHON)" -m venv $(EDGE_VENV); }
	$(EDGE_VENV)/bin/pip install --quiet -r requirements-edge.txt
	@touch $@

alone: $(ALONE_VENV)/.installed
	$(ALONE_VENV)/bin/pip install --quiet --no-deps --force-reinstall .
	$(ALONE_VENV)/bin/python tests/helpers/alone.py $(ARGS)

$(ALONE_VENV)/.installed: pyproject.toml requirements.txt
	@test -x $(ALONE_VENV)/bin/pip || test -n "$(PYTHON)" || { echo 'error: no Python 3.11 or 3.12 with venv and ensurepip runs here' >&2; exit 1; }
	@test -x $(ALONE_VENV)/bin/pip || { echo "$(PYTHON) -m venv $(ALONE_VENV)"; "$(PYTHON)" -m venv $(ALONE_VENV); }
	$(ALONE_VENV)/bin/pip install --quiet torch==$(PINNED_TORCH) .
	@touch $@

train: $(STAMP) .torch
	PATH="$(abspath $(BIN)):$$PATH" launch/local.sh $(ARGS)

# Two processes share the tests, many of which wait, for other processes or for the disk: that takes half the time.
# WORKERS=0: one after the other, in one process.
WORKERS ?= 2
SIDE_BY_SIDE := -n $(WORKERS) --dist worksteal
test: $(STAMP) .torch
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest $(SIDE_BY_SIDE) $(ARGS)

# What a processor without AVX-512 and AMX does, on any machine: one kind of machine stands for the others. Without the
# slow ones, which take ten minutes more: ARGS="-m 'not slurm and not container'" is all of them.
NUMERIC := tests/centres tests/methods tests/models tests/teacher tests/training tests/export
test-portable: $(STAMP) .torch
	ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 OMP_NUM_THREADS=1 \
	  $(BIN)/python -m pytest $(SIDE_BY_SIDE) -m 'not slow' $(NUMERIC) $(ARGS)

# On a machine with a GPU. Its own torch is used, of 2.11 or newer, by GPU_PYTHON; nothing is installed, for such a machine
# may reach nothing. What its Python lacks is taken from GPU_PACKAGES, which `make gpu-packages` fills on another machine.
GPU_PYTHON ?= $(shell command -v python3)
GPU_PACKAGES ?= build/gpu_packages
OUT ?= benchmarks/results
gpu:
	@$(GPU_PYTHON) -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null || { \
	  echo "error: the torch of $(GPU_PYTHON) sees no GPU; GPU_PYTHON=another interpreter" >&2; exit 1; }
	PYTHONPATH="$$PYTHONPATH:$(abspath $(GPU_PACKAGES))" $(GPU_PYTHON) benchmarks/gpu.py --out $(OUT) $(if $(STAGE),--stage $(STAGE)) $(ARGS)

# Wheels for Linux on x86-64 and this Python; DeepSpeed is built of its source and needs no torch for it.
GPU_PYTHON_VERSION ?= 3.12
PINS = $(foreach p,simplejpeg prettytable tomli-w pydantic safetensors pillow,$(shell sed -n 's/^\($(p)==[^ ]*\).*/\1/p' requirements.txt))
LOCKED = $(foreach p,msgpack packaging psutil tqdm,$(shell sed -n 's/^\($(p)==[^ ]*\).*/\1/p' containers/requirements-cuda.txt))
gpu-packages: $(STAMP)
	rm -rf $(GPU_PACKAGES)
	$(BIN)/pip install --quiet --target $(GPU_PACKAGES) --only-binary :all: --implementation cp --python-version $(GPU_PYTHON_VERSION) \
	  --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 $(filter-out pillow%,$(PINS)) $(LOCKED)
	$(BIN)/pip install --quiet --target $(GPU_PACKAGES) --no-deps $$(sed -n 's/^\(deepspeed==[^ ]*\).*/\1/p' requirements.txt) hjson==3.1.0 py-cpuinfo==9.0.0 einops==0.8.2
	rm -rf $(GPU_PACKAGES)/numpy* $(GPU_PACKAGES)/bin

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	for script in .ci/run launch/*.sh launch/slurm/train.sbatch containers/*.sh; do bash -n $$script || exit 1; done

docs: $(STAMP)
	$(BIN)/python -m sphinx -q -W -E -c docs/site -b html docs build/docs
	@echo "$(CURDIR)/build/docs/index.html"

clean:
	rm -rf $(VENV) $(MXNET_VENV) $(EDGE_VENV) $(ALONE_VENV) build docs/generated *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
