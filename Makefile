# Two commands do all the set-up: `make demo` runs the whole job in the sandbox, `make test` passes the tests.
PYTHON ?= python3
VENV   ?= .venv
OUTPUT ?= demo-output
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: demo test torture lint format types bench clean

demo: $(READY)
	$(BIN)/cmcr demo --output $(OUTPUT)

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -m "not slow and not gpu" -n auto --maxprocesses 4 --dist loadfile

torture: $(READY)   # the long counts: kills, fuzzing, memory, full-length fits
	$(BIN)/python -m pytest tests -m "slow" --timeout=3600 -s

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(READY)   # through a link, since the folder of a clone may have any name
	mkdir -p build/types && ln -sfn "$(CURDIR)" build/types/cmcr
	MYPYPATH=build/types $(BIN)/mypy --strict -p cmcr | tee build/types.log
	grep -qE 'no issues found in [0-9]{2,} source files' build/types.log   # it must have seen the rooms

bench: $(READY)
	for script in benchmarks/*.py; do $(BIN)/python $$script || exit 1; done

$(READY): setup.cfg constraints.txt
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(f"cmcr needs Python 3.10 to 3.12, this is {v[0]}.{v[1]}; try: make PYTHON=python3.11") if not (3, 10) <= v <= (3, 12) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[cpu,dev]'
	touch $(READY)

clean:
	rm -rf build $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
