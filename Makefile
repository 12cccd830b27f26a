# `make help` lists the targets. What they install goes to .venv and .tools of this folder and to the
# user's cache; only `make test` and `--profile stack` need system packages.
.DEFAULT_GOAL := help
PYTHON ?= $(or $(shell command -v python3.11),python3)
BIN := .venv/bin
UV = $(firstword $(wildcard .tools/uv/bin/uv .tools/venv/bin/uv) uv)
# Two lanes side by side (tests/conftest.py): most tests wait for servers half of the time.
LANES ?= -n 2 --dist loadscope
PYTEST ?=
# Images of Python set it, and then each of hundreds of processes compiles the packages that it imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup services dev run test test-embedded bench figures pictures lint format lock proto docs clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' Makefile

setup: ## make the environment in .venv, nothing else
	@$(PYTHON) deploy/bootstrap.py run

services: ## the smaller environment of a host that only serves (`headrace serve NAME`)
	@$(PYTHON) deploy/bootstrap.py services

dev:
	@$(PYTHON) deploy/bootstrap.py dev

run: setup ## start the platform and show the demo once; Ctrl-C ends it (ARGS="--port-base 1000" …)
	@exec $(BIN)/headrace up --demo $(ARGS)

test: dev ## provision the real servers, then lint, types and every test
	@$(BIN)/headrace provision
	@$(MAKE) --no-print-directory lint
	@$(BIN)/pytest $(LANES) $(PYTEST)

test-embedded: dev ## the tests that need neither root nor a system package
	@$(BIN)/pytest $(LANES) -m "not stack" $(PYTEST)

bench: dev ## measure, for example NAME=slices; writes build/bench/NAME.json
	@test -n "$(NAME)" || { echo "usage: make bench NAME=slices"; exit 2; }
	@$(BIN)/python -m tests.bench.$(NAME) $(ARGS)

pictures: dev ## photograph the pages for README.md, on a fresh installation (ARGS="--data DIR" for a running one)
	@$(BIN)/headrace provision
	@$(BIN)/python -m tests.e2e.pictures $(ARGS)

figures: dev ## write what the benches measured into README.md
	@$(BIN)/python -m tests.bench.readme

lint: dev ## ruff, strict mypy, import contracts, the laws of money
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python -m tests.lint.money

format: dev ## let ruff mend what it can
	@$(BIN)/ruff check --fix --quiet .
	@$(BIN)/ruff format .

COMPILE = $(UV) pip compile --quiet --upgrade --generate-hashes --python-version 3.11 --custom-compile-command "make lock"
lock: dev ## resolve all versions anew into requirements/
	@$(COMPILE) --group services --group launcher --group data --group dev -o requirements/dev.txt pyproject.toml
	@$(COMPILE) --group services --group launcher --group data -c requirements/dev.txt -o requirements/run.txt pyproject.toml
	@$(COMPILE) --group services -c requirements/dev.txt -o requirements/services.txt pyproject.toml
	@$(COMPILE) --group jre -o requirements/jre.txt pyproject.toml
	@$(COMPILE) --group go -o requirements/go.txt pyproject.toml
	@$(COMPILE) --group milvus -o requirements/milvus.txt pyproject.toml
	@echo 'uv' | $(COMPILE) -o requirements/uv.txt -
	@echo 'setuptools>=77' | $(COMPILE) -o requirements/build.txt -

proto: dev ## generate core/contracts/memory from its .proto
	@$(BIN)/python -m grpc_tools.protoc -I . --python_out=. --grpc_python_out=. core/contracts/memory/memory.proto

docs: dev ## write .env.example, docs/settings.md and docs/asyncapi.json from settings and topology
	@$(BIN)/python -m deploy.reference

clean: ## delete .venv, .tools and everything that was built
	@rm -rf .venv .tools build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info
