# Everything a developer runs. `make help` lists the targets; CONTRIBUTING.md says when to use which.

STACK ?= openmmlab
VENV ?= .venv
PYTHON3 ?= python3
CONSTRAINTS ?= constraints.txt
# Two processes of one thread each (tests/conftest.py) took 0.5 to 0.6 of the time of one process with two threads.
PYTEST_ARGS ?= -n 2 --dist worksteal

STACKS := openmmlab onedl
ifneq ($(words $(STACK))$(filter-out $(STACKS),$(STACK)),1)
$(error STACK='$(STACK)' is not known: use STACK=openmmlab or STACK=onedl)
endif

# The distributions that provide mmengine, mmcv, mmseg and mmpretrain, for `make versions`.
DISTS_openmmlab := mmsegmentation mmengine mmcv-lite mmpretrain
DISTS_onedl := onedl-mmsegmentation onedl-mmengine onedl-mmcv onedl-mmpretrain

# Both families share one environment, because PyTorch alone takes gigabytes. The onedl packages have the same import names
# as the openmmlab ones in the environment, so they are in a separate folder that PYTHONPATH puts first.
# The checkout is on PYTHONPATH as well, so that checkouts which share an environment import their own code.
ROOT := $(CURDIR)
VENV_DIR := $(if $(filter /%,$(firstword $(VENV))),$(VENV),$(ROOT)/$(VENV))
PYTHON := $(VENV)/bin/python
PIP := "$(PYTHON)" -m pip --disable-pip-version-check
ONEDL_DIR := $(VENV_DIR)/stack-onedl
PYTHONPATH_openmmlab := $(ROOT)
PYTHONPATH_onedl := $(ROOT):$(ONEDL_DIR)
RUN := STACK=$(STACK) MPLBACKEND=Agg PYTHONPATH="$(PYTHONPATH_$(STACK))" "$(PYTHON)"

# The stamp is written last, so that an interrupted setup is continued. Its name has a checksum of the files it depends on,
# so that a clone or a branch switch that only changes file times installs nothing.
KEY := $(shell cat setup.py $(CONSTRAINTS) | cksum | cut -d ' ' -f 1)
STAMP_openmmlab := $(VENV)/.ready-openmmlab-$(KEY)
STAMP_onedl := $(VENV)/.ready-onedl-$(KEY)
READY := $(STAMP_$(STACK))

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help setup versions test test-all lint format docs demo clean distclean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo "  STACK=openmmlab|onedl   package family (now: $(STACK))"
	@echo "  VENV=path               virtual environment (now: $(VENV))"
	@echo "  PYTHON3=path            Python >= 3.10 that creates the environment (now: $(PYTHON3))"
	@echo "  CONSTRAINTS=path        versions to install; use another VENV for others (now: $(CONSTRAINTS))"
	@echo "  PYTEST_ARGS='...'       arguments for pytest, such as -k fuse (now: $(PYTEST_ARGS))"

setup: $(READY) ## create the environment and install what STACK needs, unless this is done
	@echo "$(STACK) is ready in $(VENV)"

versions: $(READY) ## print the versions that STACK uses
	@$(RUN) -c 'import sys; from importlib.metadata import version; \
	print("STACK=$(STACK): Python", sys.version.split()[0], *(f"| {n} {version(n)}" for n in sys.argv[1:]))' \
	torch torchvision numpy opencv-python $(DISTS_$(STACK))

test: $(READY) ## run the quick tests
	@echo "Testing with STACK=$(STACK)"
	@$(RUN) -m pytest -q -m "not slow" $(PYTEST_ARGS)

test-all: $(READY) ## run all tests, the slow ones too
	@echo "Testing with STACK=$(STACK)"
	@$(RUN) -m pytest -q $(PYTEST_ARGS)

lint: $(STAMP_openmmlab) ## check style, types and spelling
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	$(PYTHON) -m codespell_lib

format: $(STAMP_openmmlab) ## rewrite the code in the house format
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

docs: $(STAMP_openmmlab) ## build the documentation site in site/, warnings are errors
	@NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict --quiet

demo: $(READY) ## train, fuse and compare on built-in scenes; a second run only shows the result
	@$(RUN) tools/demo.py --work-dir work_dirs/demo-$(STACK)

clean: ## remove caches and build leftovers; never work_dirs, data or the environment
	@rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist site *.egg-info
	@find mmseg_repvgg configs tools tests -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

distclean: clean ## as clean, and remove the environment
	@if [ -e "$(VENV)/pyvenv.cfg" ]; then rm -rf "$(VENV)"; fi

# The interpreter is missing on the first run, and when the Python that it links to was removed. Then everything is
# installed again.
$(PYTHON):
	@command -v "$(PYTHON3)" >/dev/null || \
	{ echo "error: there is no '$(PYTHON3)': install Python >= 3.10 or name one with PYTHON3=path" >&2; exit 1; }
	@"$(PYTHON3)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	{ echo "error: Python >= 3.10 is needed, '$(PYTHON3)' is $$("$(PYTHON3)" -V 2>&1): name another with PYTHON3=path" >&2; exit 1; }
	@echo "Creating $(VENV)"
	@"$(PYTHON3)" -m venv "$(VENV)"
	@rm -f "$(VENV)"/.ready-*

# An interrupted setup may leave an environment without pip, or distributions with metadata but missing files. pip writes
# INSTALLER after the files; metadata without it are removed, so that pip installs again.
$(STAMP_openmmlab): $(PYTHON)
	@echo "Installing into $(VENV): PyTorch, the openmmlab family, runtimes, development tools (6 GB and minutes the first time)"
	@"$(PYTHON)" -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m ensurepip --upgrade
	@for info in "$(VENV)"/lib/python3*/site-packages/*.dist-info; do [ -e "$$info/INSTALLER" ] || rm -rf "$$info"; done
	@$(PIP) install --quiet -c $(CONSTRAINTS) -e '.[openmmlab,dev,docs,deploy,int8,ray]'
	@rm -f "$(VENV)"/.ready-openmmlab-* && touch "$@"

# --no-deps, because a dependency installed here would hide the environment's; pip check names what is missing there.
$(STAMP_onedl): $(STAMP_openmmlab)
	@echo "Installing the onedl family into $(VENV)/stack-onedl"
	@rm -rf "$(ONEDL_DIR)" "$(ONEDL_DIR).part"
	@$(PIP) install --quiet --no-deps --target "$(ONEDL_DIR).part" $$(grep -o '^onedl-[^ ]*' $(CONSTRAINTS))
	@mv "$(ONEDL_DIR).part" "$(ONEDL_DIR)"
	@if PYTHONPATH="$(ONEDL_DIR)" $(PIP) check | grep '^onedl-'; then \
	echo "error: $(VENV) lacks what onedl requires (above): run 'make distclean' and set up again, or add it to setup.py" >&2; \
	exit 1; fi
	@rm -f "$(VENV)"/.ready-onedl-* && touch "$@"
