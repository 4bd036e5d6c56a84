# `make demo` and `make test` work on a fresh clone that has Python, make and git.
# Whatever they need goes into $(VENV) first, and again when its recipe changes.

PYTHON ?= python3
VENV ?= .venv
TORCH_VERSION ?= 2.13.0
TORCH_INDEX ?=
PYTEST_ARGS ?= -n 2 --dist loadgroup
BENCH_ARGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check --no-input
# What an environment was made from: another directory, Python or torch needs another environment.
ORIGIN := $(CURDIR) $(shell $(PYTHON) --version 2>/dev/null) torch $(TORCH_VERSION) $(TORCH_INDEX)

# Two installations at once would break the one environment they share.
.NOTPARALLEL:

.PHONY: help
help: ## list the commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "Settings: PYTHON=$(PYTHON) VENV=$(VENV) TORCH_VERSION=$(TORCH_VERSION) TORCH_INDEX=$(TORCH_INDEX)"

.PHONY: demo
demo: $(VENV)/demo.stamp ## replay the shipped workload on several cache sizes and tiers
	@$(BIN)/pagedkv demo

.PHONY: test
test: $(VENV)/test.stamp ## run the tests
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

.PHONY: check
check: $(VENV)/check.stamp ## check format, style, types and layers
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

.PHONY: format
format: $(VENV)/check.stamp ## put the code into the form that `make check` asks for
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

.PHONY: bench
bench: $(VENV)/test.stamp ## measure the engine; BENCH_ARGS="--quick" takes a minute
	@$(BIN)/python -m benchmarks $(BENCH_ARGS)

.PHONY: build
build: $(VENV)/test.stamp ## build sdist and wheel into dist/
	@$(BIN)/python -m build --no-isolation

.PHONY: clean
clean: ## remove the environment, the caches and dist/
	@rm -rf dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	@test ! -e $(VENV)/origin || rm -rf $(VENV)

$(VENV)/demo.stamp: EXTRAS :=
$(VENV)/test.stamp: EXTRAS := [test]
$(VENV)/check.stamp: EXTRAS := [test,dev]
$(VENV)/%.stamp: $(VENV)/torch.txt pyproject.toml constraints.txt
	@echo "Installing pagedkv$(EXTRAS) into $(VENV)"
	@$(PIP) install --constraint constraints.txt hatchling
	@$(PIP) install --constraint constraints.txt --constraint $(VENV)/torch.txt \
		--no-build-isolation --editable '.$(EXTRAS)'
	@touch $@

# torch comes first and then constrains the rest, so that nothing brings in another build of it.
$(VENV)/torch.txt: $(VENV)/origin
	@echo "Installing torch $(TORCH_VERSION) into $(VENV): minutes, the first time"
	@$(PIP) install $(addprefix --index-url=,$(TORCH_INDEX)) torch==$(TORCH_VERSION)
	@echo "torch==$(TORCH_VERSION)" > $@

.PHONY: always
$(VENV)/origin: always
	@if [ "$$(cat $@ 2>/dev/null)" != "$(ORIGIN)" ]; then \
		$(PYTHON) scripts/check_setup.py || exit 1; \
		if [ -e $(VENV) ] && [ ! -e $@ ]; then \
			echo "$(VENV) was not made by this Makefile: remove it, or choose another with VENV=..."; \
			exit 1; \
		fi; \
		rm -rf $(VENV) && $(PYTHON) -m venv $(VENV) && echo "$(ORIGIN)" > $@; \
	fi
