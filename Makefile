# Two commands matter: `make demo` and `make test`. `make check` is what CI runs.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
PROTOS := $(wildcard protos/molora/v1/*.proto)

.DEFAULT_GOAL := help
.PHONY: help setup demo test check lint breaking bench miniature clean

help: ## Show this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

setup: $(INSTALLED) ## Create .venv with everything for development

# Torch first and pinned: asked for together with the rest, pip may take a build for another device.
# TORCH_INDEX=https://download.pytorch.org/whl/cpu takes the one without CUDA.
$(INSTALLED): pyproject.toml hatch_build.py $(PROTOS)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/pip install $(addprefix --index-url ,$(TORCH_INDEX)) torch==2.13.0
	$(BIN)/pip install -e '.[dev]'
	touch $@

demo: setup ## Two services route held-out screens to experts and click; see artifacts/demo
	$(BIN)/python -m training.demo

test: setup ## Run every test
	$(BIN)/pytest

check: lint test ## Everything that CI runs

# Whether the generated stubs match protos/ is tests/contract/test_stubs.py.
lint: setup breaking
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/buf lint

breaking: setup
	@tag=$$(git describe --tags --abbrev=0 --match 'v*' 2>/dev/null || true); \
	if [ -z "$$tag" ]; then \
		echo "buf breaking: no release tag yet, nothing to compare with"; \
	else \
		echo "buf breaking: against $$tag"; $(BIN)/buf breaking --against ".git#tag=$$tag"; \
	fi

bench: setup ## Measure on this machine
	$(BIN)/molora bench --json artifacts/bench/services.json
	$(BIN)/python benchmarks/gated_model.py --json artifacts/bench/gated_model.json
	$(BIN)/python benchmarks/router.py --json artifacts/bench/router.json
	$(BIN)/python benchmarks/engine.py --json artifacts/bench/engine.json
	$(BIN)/python benchmarks/miniature_steps.py desktop calendar --json artifacts/bench/miniature_steps.json
	$(BIN)/python benchmarks/miniature_tower.py --seconds 120 --json artifacts/bench/miniature_tower.json

miniature: setup ## Train the miniature model, its experts and its router again (resumable)
	$(BIN)/python -m training.miniature

clean: ## Remove caches, build output and artifacts; keep .venv
	rm -rf artifacts build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
