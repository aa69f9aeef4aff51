# make demo | test | test-models | test-faults | fuzz | mutants | check | bench | docs | format | clean       each sets up .venv first, once
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ARGS ?=

# On a CUDA machine, as it is: its own Python with its own torch, nothing set up.
GPU_PYTHON ?= python3

.PHONY: demo test test-models test-faults fuzz mutants check bench bench-start docs test-gpu bench-gpu format clean
.DEFAULT_GOAL := test

$(STAMP): pyproject.toml constraints.txt tools/set_up.sh
	@sh tools/set_up.sh "$(PYTHON)" "$(VENV)"
	@touch $@

# Trains a small Llama with marked regions and compares it with eager; ARGS="--steps 10" and others: --help
demo: $(STAMP)
	@$(BIN)/regional-inductor demo $(ARGS)

# Two workers share one Inductor cache, made for the run and removed after it (tests/conftest.py). Each begins at its own half, so that
# tests of a file find what those before them have captured, and takes from the other when it is done.
test: $(STAMP)
	@$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

# Real architectures against eager, each in a process of its own: tens of minutes. ARGS="llama vit" for some.
test-models: $(STAMP)
	@[ -d $(VENV)/models ] || sh tools/set_up_models.sh "$(VENV)"
	@PYTHONPATH=$(VENV)/models $(BIN)/python -m tests.models --table docs/models.md $(ARGS)

# Random programs with random marks against eager; N=5000 takes hours. What differs is shrunk into fuzz-failures/.
N ?= 200
fuzz: $(STAMP)
	@$(BIN)/python -m tests.fuzz --programs $(N) --jobs 2 $(ARGS)

# Compilers that fail, damaged caches, kills, forks, many threads and processes: minutes. ARGS="-k killed" for some.
test-faults: $(STAMP)
	@$(BIN)/python -m pytest -n 2 tests/faults -o python_files='faults_*.py' $(ARGS)

# Faults planted in copies of the library, which the tests must notice; ARGS="key" for some.
mutants: $(STAMP)
	@$(BIN)/python -m tests.mutants $(ARGS)

check: $(STAMP)
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

# QUICK=1 for the short form, ARGS="NAME ..." for some of them; results go to benchmarks/results/
bench: $(STAMP)
	@$(BIN)/python -m benchmarks $(if $(QUICK),--quick) $(ARGS)

# The site, into docs/_build/html; any warning is an error. On Python 3.11 and newer.
docs: $(STAMP)
	@$(BIN)/python -m sphinx -q -W --keep-going -b html $(ARGS) docs docs/_build/html
	@echo "open docs/_build/html/index.html"

# Cold and warm starts of the demo's model, ours beside the others
bench-start: $(STAMP)
	@$(BIN)/python -m benchmarks start $(if $(QUICK),--quick)

# Both need a CUDA device; ARGS for the bench: --help says
test-gpu:
	@PYTHONPATH=src $(GPU_PYTHON) -m pytest tests/gpu -W default $(ARGS)

bench-gpu:
	@PYTHONPATH=src $(GPU_PYTHON) -m benchmarks.gpu $(ARGS)

format: $(STAMP)
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) dist docs/_build .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis benchmarks/results
