PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# other people's clients, each as published: some of them cannot share an environment
CLIENTS := openai runpod runware runware-sdk
PROCESSES ?= 2

.PHONY: setup clients demo test check bench soak serve format clean

setup: $(VENV)/.complete

$(VENV)/.complete: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -r requirements-dev.txt
	touch $@

clients: $(CLIENTS:%=.clients/%/.complete)

.clients/%/.complete: tests/clients/%.txt | $(VENV)/.complete
	$(PYTHON) -m venv --clear --without-pip .clients/$*
	$(BIN)/python -m pip --python .clients/$*/bin/python install --quiet --disable-pip-version-check -r $<
	touch $@

demo: setup
	$(BIN)/python -m ltx2.cli --input test_input.json

# A file of tests belongs to one process. Of torch's own threads each would wait for all others.
test: setup clients
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(PROCESSES) --dist loadfile

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup
	$(BIN)/python -m bench
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.plan

soak: setup
	$(BIN)/python -m bench.reliability
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m soak

serve: setup
	$(BIN)/python server.py

clean:
	rm -rf $(VENV) .clients build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
