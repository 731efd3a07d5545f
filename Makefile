# Every target sets up .venv by itself, once, and quietly.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.ready
ARGS ?=

.PHONY: demo test check zoo fuzz bench clean setup

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@echo "setting up .venv (once)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt torch numpy
	@$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[test,study]'
	@touch $@

test: $(STAMP)
	@$(BIN)/python -m pytest $(ARGS)

zoo: $(STAMP)
	@$(BIN)/python -m tests.zoo $(ARGS)

peers: $(STAMP)
	@$(BIN)/python -m tests.zoo.peers $(ARGS)

fuzz: $(STAMP)
	@$(BIN)/python -m tests.fuzz $(or $(N),3000) $(or $(SEED),0)

check: $(STAMP)
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache demo-out
