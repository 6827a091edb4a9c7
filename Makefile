# One command for each thing people do here, the same on a laptop and in CI.
# Rules: a target leaves nothing outside this folder but Debian packages; everything Python lives in .venv.

PYTHON ?= python3
PYTEST_ARGS ?=
# As many tests at once as there are processors; WORKERS=1 gives them one after the other.
WORKERS ?= $(shell nproc 2>/dev/null || echo 1)

VENV := .venv
BIN := $(VENV)/bin
DEMO := demo-terminal
POSAGENT := $(BIN)/posagent --root $(DEMO)
LINE_DEMO := demo-line-terminal

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo demo-line test lint bench clean
# Two targets share one .venv, and pip may not run in it twice at once.
.NOTPARALLEL:
.DELETE_ON_ERROR:

help: ## Say what can be made.
	@sed -n 's/^\([a-z-]*\):[^#]*## /make \1|/p' Makefile | while IFS='|' read -r name text; do \
		printf '%-15s %s\n' "$$name" "$$text"; done
	@echo "PYTHON=/usr/bin/python3.11 chooses the interpreter, PYTEST_ARGS='-k switch' the tests, WORKERS=1 how many at once."

demo: $(VENV)/.installed ## Upgrade a sample terminal of 100,000 records at boot and show the result.
	rm -rf $(DEMO)
	$(BIN)/python -m tools.termsim new $(DEMO) --profile generic --records 100000 --unsettled 212 --seed 1
	$(POSAGENT) boot
	$(POSAGENT) status
	$(POSAGENT) history
	$(POSAGENT) backups

demo-line: $(VENV)/.installed-host ## Upgrade a simulated terminal that sells, over a noisy serial line, and watch it.
	rm -rf $(LINE_DEMO)
	$(BIN)/python -m tools.termsim new $(LINE_DEMO) --profile generic --records 100000 --unsettled 212 --seed 1
	$(BIN)/python -m tools.termsim serve $(LINE_DEMO) --pending --sales-per-s 5 --noise 0.0005 --baud 115200 --at-most-s 600 \
		-- $(BIN)/posctl -p $(LINE_DEMO)/line migrate --yes

test: $(VENV)/.installed-dev ## Check everything: lint, types and tests. This is what CI runs.
	@PYTHON=$(BIN)/python sh tools/setup.sh tests
	@$(MAKE) --no-print-directory lint
	$(BIN)/python -m pytest --numprocesses=$(WORKERS) $(PYTEST_ARGS)

lint: $(VENV)/.installed-dev ## Check style and types only.
	$(BIN)/python -m ruff check
	$(BIN)/python -m ruff format --check
	$(BIN)/python -m mypy --strict

bench: $(VENV)/.installed-dev ## Measure, and print each figure beside its budget.
	$(BIN)/python -m tools.bench

clean: ## Remove everything that was made here, .venv included.
	rm -rf $(VENV) $(DEMO) $(LINE_DEMO) dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A .venv that is there and has a working pip is kept; half of one, as an interruption leaves it, is made anew.
$(VENV)/.created:
	@PYTHON='$(PYTHON)' sh tools/setup.sh venv
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@touch $@

# Stamped, so that pip runs again only when pyproject.toml was edited.
$(VENV)/.installed: pyproject.toml $(VENV)/.created
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.installed-host: pyproject.toml $(VENV)/.created
	$(BIN)/python -m pip install --quiet --editable '.[host]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-dev: pyproject.toml $(VENV)/.created
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@ $(VENV)/.installed $(VENV)/.installed-host
