# SPDX-License-Identifier: Apache-2.0
# Everything a developer runs. What has been built and has not changed is not built again.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMPS := build/stamps
WERROR ?= true
# Other people's test suites under toggling: full (half an hour), or short.
SUITES ?= full
LONG := python_suite unmodified_suites differential debuggers tracers redis_stall real_branches
LARGE := mariadbd cmake

export PATH := $(CURDIR)/$(BIN):$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# Directories are in the list too: their time changes when a file comes or goes.
SOURCES := meson.build meson.options pyproject.toml LICENSE $(wildcard README.md) \
	$(shell find src native \( -name __pycache__ -o -path native/tests \) -prune -o -print)
PYTHON_FILES := src tests tools $(wildcard bench examples docs)
C_FILES = $(shell find native tests/targets tests/fuzz -name '*.[ch]')

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help build demo test test-c test-python test-real proof proof-library fuzz stress soak kills steps \
	bench docs tutorial lint format clean

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS='	' read -r name text; do printf '  make %-12s %s\n' "$$name" "$$text"; done

build: $(STAMPS)/installed ## make the wheel in dist/ and install it into .venv

demo: build ## trace a real program for a few seconds (under 2 minutes on a fresh machine)
	$(BIN)/python examples/demo.py

test: test-c lint test-python ## C tests under ASan and UBSan, lint, unit and integration tests on the wheel

test-c: build/sanitize/build.ninja ## the C unit tests alone
	$(BIN)/meson test -C build/sanitize --print-errorlogs --quiet

test-python: build proof-library ## the Python tests alone (make test-python ARGS='tests/unit -k name')
ifdef ARGS
	$(BIN)/python -m pytest -p no:cacheprovider $(ARGS)
else
	$(BIN)/python -m pytest -p no:cacheprovider -n auto tests/unit tests/proof
	$(BIN)/python -m pytest -p no:cacheprovider tests/integration tests/stress
endif

test-real: build ## real programs, and Redis's and CPython's own tests under toggling (needs root and apt)
	@test $(SUITES) = full || echo "SUITES=$(SUITES): few of Redis's own tests; left out: $(LONG), which take half an hour, and $(LARGE), which are large packages"
	SUITES=$(SUITES) $(BIN)/python -m pytest -p no:cacheprovider tests/real \
		$(if $(filter-out full,$(SUITES)),$(LONG:%=--ignore=tests/real/test_%.py) \
		$(LARGE:%=--deselect='tests/real/test_unmodified.py::test_every_function_of_a_program_and_of_libc[%]')) $(ARGS)

proof: proof-library ## the engine under fetch model and fault injection (ARGS=5000: so many batches)
	$(BIN)/python tests/proof/run.py $(ARGS)

CASES ?= 1000000
fuzz: build build/sanitize/build.ninja ## feed everything that reads strangers' bytes damaged ones (CASES=1000000 each)
	$(BIN)/meson compile -C build/sanitize fuzz_ring_read fuzz_unpack fuzz_classify >build/fuzz.log || { cat build/fuzz.log; exit 1; }
	$(BIN)/python tests/fuzz/fuzz.py --cases $(CASES) $(ARGS)

bench: build ## measure toggling, one event, and an attach against the alternatives (10 minutes)
	$(BIN)/python bench/toggle.py
	$(BIN)/python bench/event.py
	$(BIN)/python bench/attach.py
	$(BIN)/python bench/entries.py
	$(BIN)/python bench/decode.py
	$(BIN)/python bench/capture.py

docs: build $(STAMPS)/docs_packages ## the documentation in build/docs/html, the man page in build/docs/textpoke.1
	@mkdir -p build/docs
	$(BIN)/python tools/manpage.py >build/docs/textpoke.1
	$(BIN)/python -m sphinx -q -W --keep-going -E -a -d build/docs/doctrees docs build/docs/html

REDIS ?= build/real/redis
tutorial: build ## run the commands of docs/tutorial.md again, and keep what they print (root; REDIS=its directory)
	PATH="$(abspath $(REDIS)):$$PATH" $(BIN)/python tools/tutorial.py docs/tutorial.md

SECONDS ?= 600
CYCLES ?= 1000
KILLS ?= 200
SHARE ?= 1.0

stress: build ## toggle sites under load, soak, random kills (make stress SECONDS=60 does a tenth of all)
	$(BIN)/python tests/stress/run.py all --seconds $(SECONDS)

soak: build ## 1,000 attach-detach cycles on one loaded process (CYCLES=n)
	$(BIN)/python tests/stress/run.py soak --cycles $(CYCLES)

kills: build ## kill 200 tools and 200 targets at random moments (KILLS=n)
	$(BIN)/python tests/stress/run.py kills --kills $(KILLS)

steps: build ## kill the tool, then its target, at every step of record and detach (SHARE=0.1 for a tenth)
	$(BIN)/python tests/stress/run.py steps --share $(SHARE)

lint: $(STAMPS)/packages ## style, types, import order between modules, C format
	$(BIN)/ruff check --quiet $(PYTHON_FILES)
	$(BIN)/ruff format --quiet --check $(PYTHON_FILES)
	$(BIN)/mypy --no-error-summary
	PYTHONPATH=src $(BIN)/lint-imports --no-cache
	$(BIN)/clang-format --dry-run -Werror $(C_FILES)
	@! grep -L 'SPDX-License-Identifier: Apache-2.0' $(C_FILES) | sed 's/$$/: no licence in line one/' | grep .

format: $(STAMPS)/packages ## format Python and C in place
	$(BIN)/ruff check --quiet --fix-only $(PYTHON_FILES)
	$(BIN)/ruff format --quiet $(PYTHON_FILES)
	$(BIN)/clang-format -i $(C_FILES)

clean: ## remove everything that was built
	rm -rf build dist $(VENV) .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	tools/check_machine.sh $(PYTHON)
	$(PYTHON) -m venv $(VENV)

# The list is rewritten only when it differs, so that other edits of pyproject.toml cost nothing.
build/requirements.txt: pyproject.toml tools/requirements.py | $(BIN)/python
	@mkdir -p $(@D)
	@$(BIN)/python tools/requirements.py >$@.new
	@cmp -s $@.new $@ && rm $@.new || mv $@.new $@

$(STAMPS)/packages: build/requirements.txt
	$(BIN)/python -m pip install -qq -r $<
	@mkdir -p $(@D)
	@touch $@

$(STAMPS)/docs_packages: build/requirements.txt
	$(BIN)/python tools/requirements.py docs >build/docs-requirements.txt
	$(BIN)/python -m pip install -qq -r build/docs-requirements.txt
	@touch $@

$(STAMPS)/wheel: $(STAMPS)/packages $(SOURCES)
	@rm -rf dist
	$(BIN)/python -m pip wheel -qq --no-deps --no-build-isolation -w dist \
		--config-settings=build-dir=build/wheel --config-settings=setup-args=-Dwerror=$(WERROR) .
	@case "$$(echo dist/*.whl)" in *-cp311-abi3-*) ;; *) $(BIN)/wheel tags --remove --python-tag cp311 dist/*.whl ;; esac
	@touch $@

$(STAMPS)/installed: $(STAMPS)/wheel
	$(BIN)/python -m pip install -qq --force-reinstall --no-deps dist/*.whl
	@touch $@

build/sanitize/build.ninja: $(STAMPS)/packages
	$(BIN)/meson setup --reconfigure build/sanitize -Dbuildtype=debug -Doptimization=1 -Dwerror=$(WERROR) \
		-Db_sanitize=address,undefined -Db_lundef=false >build/sanitize.log || { cat build/sanitize.log; exit 1; }
	@touch $@

proof-library: build/proof/build.ninja
	@$(BIN)/meson compile -C build/proof proof code >build/proof.log || { cat build/proof.log; exit 1; }

build/proof/build.ninja: $(STAMPS)/packages
	$(BIN)/meson setup --reconfigure build/proof -Dbuildtype=release -Doptimization=2 \
		-Dwerror=$(WERROR) >build/proof.log || { cat build/proof.log; exit 1; }
	@touch $@
