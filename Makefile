# Everything a user or the continuous integration runs. Needs python 3.11 or later, git and make.
PYTHON ?= $(firstword $(foreach p,python3.13 python3.12 python3.11 python3 python,$(shell \
	$(p) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(p))))
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
PEERS_PIP := .venv-peers/bin/python -m pip install --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-slow lint evidence bench peers docs figures clean

demo: .venv/.package
	$(BIN)/fewstep demo

# One thread a process: the two test processes share the cores, and the tests of a file what they prepare.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --durations=20

test: .venv/.test
	$(PYTEST) --dist loadfile -m "not slow and not gpu"

# What six minutes have no room for. In parts: `make test-slow PART=2/4` runs the second quarter.
PART ?= 1/1
test-slow: .venv/.test-slow
	$(PYTEST) -m "slow and not gpu" --part $(PART)

lint: .venv/.test
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

# Runs every claim and writes docs/evidence.json.
evidence: .venv/.package
	$(BIN)/python -m claims

bench: .venv/.package
	$(BIN)/python -m benchmarks

# Beside diffusers, k-diffusion, azula, deepinv and torchdiffeq, in an environment of their own: about half an hour.
peers: .venv-peers/.package
	OMP_NUM_THREADS=1 .venv-peers/bin/python -m benchmarks.peers

docs: .venv/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# Puts the figures of the last demo into the README and the docs.
figures: .venv/.package
	$(BIN)/python tools/figures.py runs/demo

clean:
	rm -rf .venv .venv-peers site .mypy_cache .pytest_cache .ruff_cache

# Stamps: nothing is installed again until what was asked for changes.
.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "make: python 3.11 or later is needed, and none was found" >&2; exit 1; }
	$(PYTHON) -m venv .venv

.venv/.package: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) -e .
	@touch $@

.venv/.test: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) -e '.[test]'
	@touch $@ .venv/.package

.venv/.test-slow: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) -e '.[test-slow]'
	@touch $@ .venv/.test .venv/.package

.venv/.docs: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) -e '.[docs]'
	@touch $@ .venv/.package

# azula, deepinv and k-diffusion ask for torchvision, which nothing here uses: hence without what they depend on.
.venv-peers/.package: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "make: python 3.11 or later is needed, and none was found" >&2; exit 1; }
	$(PYTHON) -m venv .venv-peers
	$(PEERS_PIP) torch -e .
	$(PEERS_PIP) diffusers transformers accelerate torchsde torchdiffeq einops
	$(PEERS_PIP) requests natsort
	$(PEERS_PIP) --no-deps azula deepinv k-diffusion
	@touch $@
