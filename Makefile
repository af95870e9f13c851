# Everything needs only Python ≥ 3.11, make and a C++ compiler; each target does its own set-up.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.ready

.PHONY: verify test check lock clean
verify: $(STAMP)   ## the main job: every kernel, standard profile, reports/index.html
	$(BIN)/implicit-em verify --report reports --json reports/report.json

test: $(STAMP)     ## the test suite
	$(BIN)/python -m pytest -n 2 --dist worksteal

check: $(STAMP)    ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lock: $(STAMP)     ## pins every version anew
	$(BIN)/pip-compile --quiet --extra dev --strip-extras --no-emit-find-links --no-emit-index-url --no-header \
	    --constraint constraints.txt --output-file requirements.lock pyproject.toml
	sed -i "s/^\(torch==[^+]*\)+.*/\1/" requirements.lock  # the build for this machine is the installer's choice

clean:
	rm -rf .venv reports

$(STAMP): requirements.lock pyproject.toml
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --requirement requirements.lock
	$(BIN)/pip install --quiet --no-deps --editable .
	$(BIN)/implicit-em primitives --missing  # minutes on a processor nobody has measured, else nothing
	touch $@
