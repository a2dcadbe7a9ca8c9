# The front door. `make demo` and `make test` set up all they need in .venv.
PYTHON ?= python3
FLAVOUR ?= $(if $(shell command -v nvidia-smi),gpu,cpu)
DATA ?= synthetic
SCHEMA ?=
DEVICE ?= $(if $(filter gpu,$(FLAVOUR)),cuda,cpu)
REPOSITORY ?= build/demo/synthetic/model_repository
USERS ?= build/demo/synthetic/checkpoints/users.jsonl
RESILIENCE ?=
ZOO ?=
BIN := .venv/bin
INSTALLED := -c constraints.txt -e '.[$(FLAVOUR),server,store,sign,train,tune,batch,perf,dev]'
SHELL := /bin/bash -o pipefail
# Some containers forbid it; then each process compiles PyTorch's modules anew, for ten seconds.
export PYTHONDONTWRITEBYTECODE :=
# Recipes read these from the environment: the shell would take a path with spaces or quotes apart.
export DATA SCHEMA REPOSITORY

.PHONY: demo test lint serve perf own quality zoo audit resilience clean

demo: .venv/ready
	@mkdir -p build/demo
	$(BIN)/python -m perf.demo --data "$$DATA" $(if $(SCHEMA),--schema "$$SCHEMA") --out build/demo --device $(DEVICE) | tee build/demo/output.txt

# Each of pytest's processes has one core: more threads would wait for each other.
test: .venv/ready
	@mkdir -p build
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest | tee build/test.txt

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

serve: .venv/ready
	$(BIN)/python -m cascade.server --repository "$$REPOSITORY"

perf: .venv/ready
	@mkdir -p build/perf
	$(BIN)/python -m perf.suite --out build/perf --device $(DEVICE) | tee build/perf/output.txt

own: .venv/ready
	@mkdir -p build/own
	$(BIN)/python -m perf.own --out build/own | tee build/own/output.txt

quality: .venv/ready
	@mkdir -p build/quality
	$(BIN)/python -m perf.quality --out build/quality --device $(DEVICE) | tee build/quality/output.txt

# Every registered model on the same rows, in half an hour; ZOO=--quick asks only whether it runs.
zoo: .venv/ready
	@mkdir -p build/zoo
	$(BIN)/python -m perf.zoo --out build/zoo $(ZOO) | tee build/zoo/output.txt

# What is known of faults in the pinned packages; asks pypi.org.
audit: .venv/ready
	$(BIN)/uv tool run pip-audit --requirement constraints.txt --no-deps --disable-pip

resilience: .venv/ready
	@mkdir -p build/resilience
	$(BIN)/python -m pytest -n 0 -p no:logging -vv tests/resilience $(RESILIENCE) | tee build/resilience/output.txt

# uv installs in half a minute what takes pip three. uv does not read pip's configuration: where it
# finds no index, pip installs.
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt uv
	UV_FIND_LINKS="$(PIP_FIND_LINKS)" $(BIN)/uv pip install --quiet --python .venv $(INSTALLED) \
	  || $(BIN)/pip install --quiet $(INSTALLED)
	touch $@

clean:
	rm -rf build .venv
