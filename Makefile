# Each target sets up what it needs, and keeps what is already there. `make` alone lists the targets.
#
#   make train ARGS="--epochs 1"     ARGS are passed on to the target's command (train.py or pytest)
#   make PYTHON=python3.12 test      the interpreter for the environment (default: python3, else the newest on the PATH)
#   make data DATA_DIR=/big/disk     the folder for the data sets (default: TFDS_DATA_DIR, else ~/tensorflow_datasets)

PY := .venv/bin/python
ARGS ?=
# One test process per core, at most 8. A free worker takes over tests that wait for a busy one.
PYTEST := -m pytest -n auto --maxprocesses 8 --dist worksteal

ifdef DATA_DIR
export TFDS_DATA_DIR := $(DATA_DIR)
endif

.DEFAULT_GOAL := help
.PHONY: help train data test test-thorough test-oldest test-newest test-real test-long test-browser check lint types \
	format accelerators docs clean native venv venv-test venv-dev venv-browser

help:  ## show this list
	@sed -n 's/^\([a-z-]*\):.*  ## /\1: /p' $(firstword $(MAKEFILE_LIST)) | while IFS=: read -r name text; do \
		printf '  make %-14s%s\n' "$$name" "$$text"; done

# ARGS that name neither a recipe (--arch, --config) nor a run to continue (--resume) are added to the resnet18 recipe.
# Without ARGS an accelerator trains resnet18, and a CPU the quick recipe.
train: data  ## train a network on Fashion-MNIST (ARGS="--epochs 1": flags of train.py; --arch or --config: another recipe)
ifneq ($(strip $(ARGS)),)
	$(PY) train.py $(if $(filter --arch --arch=% --config --config=% --resume,$(ARGS)),,--arch resnet18 )$(ARGS)
else
	@if $(PY) -c 'import jax, sys; sys.exit(jax.default_backend() == "cpu")'; then set -- --arch resnet18; else \
		echo 'No accelerator here: the quick recipe (minutes). The chapter'"'"'s full job (10 epochs at 96x96): make train ARGS="--arch resnet18"'; \
		set -- --config quick; \
	fi; echo "$(PY) train.py $$*"; $(PY) train.py "$$@"
endif

# Exit code 3 means that the download site cannot be reached. Prepared data does not depend on its source files, so the
# files from Debian's package are deleted afterwards.
data: venv  ## prepare Fashion-MNIST (downloaded, or from Debian's package)
	@status=0; $(PY) -m resnet_jax.data || status=$$?; \
	if [ $$status = 3 ]; then \
		echo "trying Debian's package dataset-fashion-mnist"; \
		files=$$(mktemp -d) && trap 'rm -rf "$$files"' EXIT && trap 'exit 130' INT TERM && \
		sh scripts/debian_dataset.sh "$$files" && $(PY) -m resnet_jax.data --source-dir "$$files"; status=$$?; \
	fi; exit $$status

test: venv-test  ## run the tests (ARGS="-k name": flags of pytest; -n 0: in one process)
	$(PY) $(PYTEST) $(ARGS)

test-thorough: venv-test  ## run the tests that repeat those of make test in other settings
	$(PY) $(PYTEST) -m thorough $(ARGS)

test-oldest:  ## run the tests on the oldest versions that pyproject.toml admits (constraints-oldest.txt, Python 3.13)
	@sh scripts/venv.sh -c constraints-oldest.txt -p 3.13 .venv-oldest test
	@sh scripts/native.sh .venv-oldest constraints-oldest.txt
	.venv-oldest/bin/python $(PYTEST) $(ARGS)

test-newest:  ## run the tests on the newest versions in the registry, with the newest Python here
	@sh scripts/venv.sh -c none -p newest .venv-newest test
	@sh scripts/native.sh .venv-newest none
	.venv-newest/bin/python $(PYTEST) $(ARGS)

test-real: venv-test data  ## run the tests that read the real Fashion-MNIST
	JAX_DISABLE_MOST_OPTIMIZATIONS=0 $(PY) -m pytest -m real_data $(ARGS)

test-long: venv-test data  ## run the tests that train for minutes
	JAX_DISABLE_MOST_OPTIMIZATIONS=0 $(PY) -m pytest -m long $(ARGS)

test-browser: venv-browser  ## test the pages in Chromium (installs Debian's if it is missing)
	$(PY) -m pytest -m browser $(ARGS)

# A tool prints its own findings. The line before it says which check it belongs to.
check: lint types  ## check the code without running it: lint, then types

lint: venv-dev  ## find mistakes (ruff check) and code that is not in the standard layout (ruff format)
	@echo 'ruff check: mistakes, unused names, the order of imports'; $(PY) -m ruff check
	@echo 'ruff format: the layout of the code (make format corrects it)'; $(PY) -m ruff format --check

types: venv-dev  ## check the types (pyright)
	@echo 'pyright: types'; $(PY) -m pyright

format: venv-dev  ## correct what ruff can: the layout, the order of imports, some mistakes
	$(PY) -m ruff check --fix
	$(PY) -m ruff format

accelerators:  ## compile the train step for 8 TPUs and 8 H100s (needs neither) and test the programs
	@sh scripts/venv.sh .venv-accelerators accelerators
	JAX_PLATFORMS=cpu .venv-accelerators/bin/python benchmarks/ahead_of_time.py --json build/ahead_of_time.json
	JAX_PLATFORMS=cpu AHEAD_OF_TIME=build/ahead_of_time.json .venv-accelerators/bin/python -m pytest -m accelerators $(ARGS)

venv:
	@sh scripts/venv.sh .venv here report && sh scripts/native.sh .venv
venv-test:
	@sh scripts/venv.sh .venv here test && sh scripts/native.sh .venv
venv-dev:
	@sh scripts/venv.sh .venv here test dev && sh scripts/native.sh .venv
venv-browser:
	@sh scripts/chromium.sh
	@sh scripts/venv.sh .venv here browser && sh scripts/native.sh .venv

docs:  ## build the documentation into build/docs (open build/docs/index.html)
	@sh scripts/venv.sh .venv here docs
	$(PY) -m sphinx -b html -c docs -d build/doctrees -W --keep-going -q . build/docs
	@echo 'the documentation: build/docs/index.html'

native: venv  ## build the oneDNN kernels again
	@rm -f .venv/.native && sh scripts/native.sh .venv

clean:  ## delete the environments and caches, but not runs/ and the data
	rm -rf .venv .venv-accelerators .venv-oldest .venv-newest .pytest_cache .ruff_cache \
		.hypothesis .cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
