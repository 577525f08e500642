# make run and make test do all the set-up themselves; every target can be repeated.
VENV := .venv
BIN := $(VENV)/bin
# make PYTHON=python3.13 chooses another Python; without it, the one that is installed stays.
PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,python3)
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
# A machine with an NVIDIA driver gets TensorFlow's CUDA libraries too.
LOCK := requirements/$(shell command -v nvidia-smi >/dev/null 2>&1 && echo cuda || echo cpu).lock
INSTALLED := $(VENV)/installed-$(VERSION)-$(notdir $(LOCK))
# make install EXTRAS="microscopy export" adds what requirements/microscopy.lock and export.lock name,
# now or later.
EXTRAS ?=
ALL_EXTRAS := microscopy export peers soak
PIP_INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --no-deps

.PHONY: install run test test-all soak lint lock worker docs robustness

install: $(INSTALLED) $(EXTRAS:%=$(INSTALLED)-%)

# The lock is complete: pip looks nothing up, and checks the hash of every file.
$(INSTALLED): $(LOCK) pyproject.toml
	@echo "Setting up $(VENV): some 4 GB, with CUDA more; a few minutes"
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14) and "Python 3.11 to 3.13 is needed: make PYTHON=python3.13")'
	@[ -d $(VENV)/lib/python$(VERSION) ] || rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	rm -f $(VENV)/installed-*
	$(PIP_INSTALL) --require-hashes --requirement $(LOCK)
	$(PIP_INSTALL) --no-build-isolation --editable .
	cp $(LOCK) $@

# The lock of an extra holds only what the first lock lacks.
$(INSTALLED)-%: requirements/%.lock $(INSTALLED)
	$(PIP_INSTALL) --require-hashes --requirement $<
	cp $< $@

run: install
	$(BIN)/nucleus retrain

# Two at a time: much of a test's time goes by while a new process imports TensorFlow.
QUICK := -m "not slow and not soak" -n 2 --dist loadfile
test: install lint
	$(BIN)/pytest $(QUICK)

# Much of a slow test's time is spent waiting for a server, a worker or a fault to be noticed.
SLOW := -m slow -n 2 --dist loadfile
test-all: install lint $(patsubst %,$(INSTALLED)-%,$(filter-out soak,$(ALL_EXTRAS)))
	$(BIN)/pytest $(QUICK)
	$(BIN)/pytest $(SLOW)

# Hours; an interrupted soak continues.
soak: install $(INSTALLED)-soak
	$(BIN)/python -m soak.fuzz
	$(BIN)/pytest -m soak

worker: install
	$(BIN)/nucleus worker

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy nucleus_cli flows tasks nucleus_unet benchmarks docs soak tests

# The manual as a site, in site/; a broken link is an error.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

robustness: install
	$(BIN)/python docs/robustness.py

# Needs uv. No header and no annotation: the lock names no host and no path.
COMPILE := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate
lock:
	$(COMPILE) --group dev --extra dask --extra server pyproject.toml --output-file requirements/cpu.lock
	$(COMPILE) --group dev --extra dask --extra server --extra cuda pyproject.toml \
	    --output-file requirements/cuda.lock
	others=requirements/cpu.lock; for extra in $(ALL_EXTRAS); do \
	    $(COMPILE) --extra $$extra --constraint requirements/cpu.lock \
	        $$(sed -nE 's/^([a-z0-9._-]+)==.*/--no-emit-package \1/p' $$others) \
	        pyproject.toml --output-file requirements/$$extra.lock || exit 1; \
	    others="$$others requirements/$$extra.lock"; \
	done
	$(COMPILE) benchmarks/stardist.in --output-file benchmarks/stardist.lock
