# The two that matter: `make demo` and `make test`. `make help` lists the rest.
# Everything is installed into .venv; nothing outside this folder is touched.

PYTHON ?= python3
VENV ?= .venv
# Any torch in the range of pyproject.toml; without an NVIDIA GPU its CPU build is taken.
TORCH ?= torch==2.13.0
# Where the demo keeps its run, and its seeds, e.g. make demo SEEDS="0 1 2"
OUT ?= runs/demo
SEEDS ?=
# More arguments for the command behind a target, e.g. make test ARGS="-k replay -x"
ARGS ?=

# Processes that run the tests; each takes a core and half a gigabyte.
JOBS ?= $(shell n=$$(nproc); echo $$((n < 4 ? n : 4)))

PY := $(VENV)/bin/python
STAMP := $(VENV)/.sacglam-installed
NATIVE := $(sort $(wildcard csrc/*.cpp csrc/*.hpp csrc/*/*.cpp csrc/*/*.hpp))

.DEFAULT_GOAL := help
.PHONY: help demo test gpu stress lint format typecheck bench smoke native package install clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(STAMP) ## Train an agent in about 5 minutes and show what it learned [SEEDS="0 1 2"] [OUT=runs/demo]
	@$(PY) -m sacglam demo --out $(OUT) $(if $(SEEDS),--seeds $(SEEDS)) $(ARGS)
	@echo "(sacglam is in $(VENV)/bin: source $(VENV)/bin/activate)"

test: $(STAMP) ## Run all tests [ARGS="-k replay"] [JOBS=1]
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(PY) -m pytest tests -n $(JOBS) --dist loadfile $(ARGS)

gpu: $(STAMP) ## Check kernels, models and updates on an NVIDIA GPU against the CPU [ARGS=...]
	@$(PY) bench/device.py --out build/gpu --only check --skip ceilings --minutes 30 --workers $(JOBS) $(ARGS)

# 60 s for each of the stress runs and the fuzzers, 1000 killed producers, the model checkers further,
# extensions built with sanitizers: 19 minutes of CPU time on two AVX2 cores (with a load of 6, 55 minutes).
stress: $(STAMP) ## Run the long form of the replay buffer's tests (under 30 minutes)
	@SACGLAM_STRESS=1 SACGLAM_STRESS_SECONDS=$${SACGLAM_STRESS_SECONDS:-60} OMP_NUM_THREADS=1 \
	  $(PY) -m pytest tests/replay $(ARGS)

lint: $(STAMP) ## Check the Python and C++ style
	@$(PY) tools/style.py --check

format: $(STAMP) ## Format the Python and C++ sources in place
	@$(PY) tools/style.py

typecheck: $(STAMP) ## Check the types of the public API
	@$(PY) -m mypy $(ARGS)

bench: $(STAMP) ## Run the benchmarks, the quick form of each [ARGS=...]
	@$(PY) -m sacglam bench all --quick $(ARGS)

smoke: $(STAMP) ## Run every method of every benchmark once, unmeasured, at small sizes [ARGS=...]
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(PY) -m pytest bench --quick --benchmark-disable $(ARGS)

native: $(STAMP) ## Build the C++ with warnings as errors, and run its own tests
	@$(PY) tools/native_check.py $(ARGS)

package: $(STAMP) ## Build sdist and wheel, install the wheel elsewhere, import it there
	@$(PY) tools/package_check.py $(ARGS)

install: $(STAMP) ## Make .venv and install the package, editable, with what development needs
	@echo "sacglam is installed in $(VENV)"

clean: ## Remove .venv and everything built; keeps runs/
	rm -rf $(VENV) build dist *.egg-info python/*.egg-info python/sacglam/_C*.so
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find python kernels bench tests tools -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp holds the folder that it was made in, since a venv does not survive a move.
ifneq ($(file <$(STAMP)),$(CURDIR))
.PHONY: $(STAMP)
endif
$(STAMP): pyproject.toml setup.py CMakeLists.txt $(NATIVE)
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is missing: sudo apt-get install python3 python3-venv" >&2; exit 1; }
	@$(PYTHON) tools/setup_env.py --venv $(VENV) --torch "$(TORCH)"
	@printf '%s\n' "$(CURDIR)" > $@
