# On a fresh machine: `make demo` and `make test` (`make quick` for a part); `make docs` builds the site, `make dist` a wheel.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= inrun-demo
TUTORIALS ?= 1

.PHONY: demo quick test check docs dist format size clean

# What `make demo` needs: the package with its dependencies.
$(VENV)/installed: requirements.txt pyproject.toml
	@echo "==> creating $(VENV) and installing inrun (torch is the large part)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -r requirements.txt
	$(BIN)/pip install --quiet -e '.[demo]'
	@touch $@

# What tests and checks need on top.
$(VENV)/installed-dev: $(VENV)/installed requirements-dev.txt
	@echo "==> installing what tests and checks need"
	$(BIN)/pip install --quiet -r requirements-dev.txt
	@touch $@

demo: $(VENV)/installed
	@echo "==> the demo: about a minute on 2 cores; the report goes to $(OUT)/report.html"
	@rm -rf $(OUT)
	OMP_NUM_THREADS=1 $(BIN)/inrun demo --out $(OUT) # so small a model is faster on one thread

# Tests of every room that take a minute in all; of several processes what one can say.
UNIT := answers errors kernels cli utility demo integrations training
QUICK := tests/test_layering.py $(wildcard $(UNIT:%=tests/unit/test_%.py) $(UNIT:%=tests/unit/%)) tests/unit/attribution \
	tests/unit/capture/test_[bcr]*.py tests/unit/capture/test_scaling.py tests/unit/directions tests/unit/factors/test_co*.py \
	tests/unit/ledger/test_books.py \
	tests/unit/ledger/test_documents.py tests/unit/ledger/test_running_totals.py \
	tests/unit/ledger/test_store.py tests/unit/momentum tests/unit/optim/test_divided.py \
	tests/unit/optim/test_jacobian.py tests/unit/owners/test_writes.py \
	tests/unit/replay/test_schedule.py tests/unit/replay/test_recorder.py \
	tests/unit/scoring/test_gradients.py tests/unit/scoring/test_marks.py tests/unit/truth/test_game.py \
	tests/unit/uses/test_prune.py tests/unit/uses/test_ranking.py tests/unit/uses/test_rollup.py \
	tests/unit/report/test_places.py \
	tests/integration/test_loop.py tests/integration/test_unattributed.py \
	tests/integration/test_decisions.py \
	$(foreach said,sharded_and_threaded_models_are_refused deepspeed_is_refused_and_fsdp2_named, \
	tests/integration/test_processes.py::test_$(said))

# A file is one process's, which makes its fixtures once; long files come first.
WHOLE_FILES := --dist loadfile --no-loadscope-reorder

quick: $(VENV)/installed-dev
	@echo "==> a part of the tests, in two processes"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(WHOLE_FILES) $(QUICK)

test: $(VENV)/installed-dev
	@echo "==> tests, in two processes"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(WHOLE_FILES)

check: $(VENV)/installed-dev
	@echo "==> ruff: lint and format"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@echo "==> mypy, strict, on src/"
	$(BIN)/mypy
	@echo "==> layering: imports point down only"
	$(BIN)/python -m pytest tests/test_layering.py

# What the site needs on top.
$(VENV)/installed-docs: $(VENV)/installed-dev requirements-docs.txt
	@echo "==> installing what the site is built with"
	$(BIN)/pip install --quiet -r requirements-docs.txt
	@touch $@

# TUTORIALS=0 leaves the tutorials' pictures and outputs out, as CI does: the tests run them anyway.
docs: $(VENV)/installed-docs
	@echo "==> the site, strict: docs/_build/html/index.html (TUTORIALS=$(TUTORIALS))"
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -W -n --keep-going -q -b html \
		-D plot_gallery=$(TUTORIALS) docs docs/_build/html

dist: $(VENV)/installed-dev
	@echo "==> wheel and sdist, into dist/"
	@rm -rf dist
	$(BIN)/python -m build --quiet --no-isolation

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Of files that git knows: the command's reference and the tutorials' pages are made by `make docs`.
size:
	@for part in src/inrun tests benchmarks; do \
		echo "$$part: $$(git ls-files $$part | grep -c '\.py$$') files, $$(git ls-files $$part | grep '\.py$$' | xargs cat | wc -l) lines"; done
	@echo "docs: $$(git ls-files docs | grep -c '\.md$$') pages, $$(git ls-files docs | grep '\.md$$' | xargs cat | wc -w) words"

clean:
	rm -rf $(VENV) $(OUT) dist docs/_build docs/tutorials .pytest_cache .mypy_cache .ruff_cache .hypothesis
