# Set-up is part of every target: a fresh machine needs python3 (>= 3.10) and make, nothing else.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

export TOKENIZERS_PARALLELISM := false
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: demo docs pictures test test-browser lint mutations fuzz bench clean

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "pip>=25.1"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e . --group dev --group field
	touch $(READY)

## The main job on the built-in model and data: check, matrix, report in reports/demo/.
demo: $(READY)
	$(BIN)/mpsdiag check --emulate 2.8 || test $$? -eq 1  # 1 is the finding: affected
	$(BIN)/mpsdiag bench benchmarks/demo.toml --out reports/demo --fresh

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m "not browser"

## The HTML report in a real Chromium; skipped with the reason where there is none (Debian: chromium chromium-driver).
test-browser: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/reporting -m browser

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

## Inputs that nobody meant: 2,500 of each of eight kinds; about 20 minutes on two cores. The suite tries 40 of each.
fuzz: $(READY)
	MPSDIAG_FUZZ=2500 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --timeout 0 tests/test_fuzz.py

## The site, in site/.
docs: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --group docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

## Every picture of README, docs and reports, drawn from what the program says now.
pictures: $(READY)
	$(BIN)/python docs/pictures.py
	$(BIN)/python docs/notebook.py

## Changes single lines of a copy and reports those that no test notices; takes minutes.
mutations: $(READY)
	$(BIN)/python tests/mutations/apply_mutations.py

## Figures about mpsdiag itself, as ratios; see benchmarks/README.md.
bench: $(READY)
	$(BIN)/python benchmarks/startup.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/emulator.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/eval_speed.py --clock cpu
	$(BIN)/python benchmarks/harness.py
	$(BIN)/python benchmarks/report_speed.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/trace_overhead.py

clean:
	rm -rf $(VENV) site reports/demo .mypy_cache .ruff_cache .pytest_cache .hypothesis
