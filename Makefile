# make repro   set up, then run the pipeline: what is independent at once (JOBS=n stages), then dvc repro confirms
# make test    set up, then run the tests
# make lint    style and types
# make env     only set up: .venv with the pinned, hashed requirements
# make lock    resolve the requirements again (needs a package index)

SHELL := /bin/sh
PYTHON ?= $(shell for p in python3.11 python3.12 python3; do \
	"$$p" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && { echo "$$p"; break; }; done)
BIN := $(CURDIR)/.venv/bin
STAMP := .venv/installed
export PATH := $(BIN):$(PATH)

.PHONY: env repro test lint lock

env: $(STAMP)

# pip installs a hashed uv, uv does the rest in seconds where pip alone takes minutes.
# Bytecode is compiled once here: importing torch anew in every stage then takes half the time.
$(STAMP): requirements.lock requirements-uv.lock
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or 3.12 found; install one, or name it: make PYTHON=/path/to/python3.11"; exit 2; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { echo "error: $(PYTHON) has no venv; on Debian and Ubuntu: apt-get install python3-venv"; exit 2; }
	test -x .venv/bin/python || "$(PYTHON)" -m venv .venv
	.venv/bin/python -m uv --version >/dev/null 2>&1 || .venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-uv.lock
	.venv/bin/python -m uv pip sync --quiet --compile-bytecode --python .venv/bin/python --require-hashes requirements.lock
	@touch $(STAMP)

repro: env
	python -m stages.repro $(if $(JOBS),--jobs $(JOBS))
	dvc repro
	@echo "done: open results/<profile>/report.html (digits unless params.yaml says otherwise), results/claims.md"

test: env
	python -m pytest -n auto --maxprocesses 8 --dist loadfile

lint: env
	ruff check .
	ruff format --check .
	mypy

lock: env
	python -m uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-annotate --no-header --quiet -o requirements.lock
