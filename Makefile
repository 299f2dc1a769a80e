# make demo   the main job: data, training, evaluation, prediction, report (pictures in demo/)
# make test   every check of a commit;  make test PYTHON=python3.12 uses another interpreter, in .venv-python3.12
# Each makes its own virtual environment first. Safe to repeat.

PYTHON ?= python3
VENV := $(if $(filter python3,$(PYTHON)),.venv,.venv-$(notdir $(PYTHON)))
BIN := $(VENV)/bin
DEMO := demo

.PHONY: demo test test-all venv clean help

help:
	@sed -n 's/^# //p' Makefile

venv: $(VENV)/installed

$(VENV)/installed: pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) not found; install Python 3.11 to 3.13, or give PYTHON=..."; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2])' || { echo "make: $(PYTHON) is $$($(PYTHON) -V); Python 3.11 or newer is required, e.g. PYTHON=python3.12"; exit 2; }
	@echo "installing jaxseg and what it needs into $(VENV) (a few minutes the first time) ..."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar on --quiet -e '.[test]'
	@touch $@

demo: venv
	$(BIN)/jaxseg data prepare cells --data-dir $(DEMO)/data
	$(BIN)/jaxseg data show cells --data-dir $(DEMO)/data --out $(DEMO)/cells.png
	$(BIN)/jaxseg train configs/cells_unet.py --data-dir $(DEMO)/data --workdir $(DEMO)/run
	$(BIN)/jaxseg evaluate $(DEMO)/run --split test
	@echo "look at: $(DEMO)/run/report.html and $(DEMO)/cells.png"

test: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist worksteal

test-all: venv
	$(BIN)/python -m pytest -n 2 --dist worksteal

clean:
	rm -rf $(DEMO) .venv .venv-*
