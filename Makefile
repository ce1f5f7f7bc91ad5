# Every target does its own set-up and reuses what is there. `make` alone lists them.
#
#   make train ARGS="--epochs 1"     ARGS go to the command of the target (train.py, pytest)
#   make PYTHON=python3.12 test      the interpreter to make .venv with (default: python3, else the newest on the PATH)
#   make data DATA_DIR=/big/disk     the folder for the data sets (default: TFDS_DATA_DIR, else ~/tensorflow_datasets)

PY := .venv/bin/python
ARGS ?=

ifdef DATA_DIR
export TFDS_DATA_DIR := $(DATA_DIR)
endif

.DEFAULT_GOAL := help
.PHONY: help train data test test-real test-long check format accelerators clean native venv venv-test venv-dev

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*  ## /\1: /p' $(firstword $(MAKEFILE_LIST)) | while IFS=: read -r name text; do \
		printf '  make %-14s%s\n' "$$name" "$$text"; done

# ARGS that name no recipe (--arch, --config) and no run to go on with (--resume) get resnet18's, the chapter's own.
# Without ARGS: the same on an accelerator, else the quick one.
train: data  ## train ResNet-18 on Fashion-MNIST (ARGS="--epochs 1": flags of train.py; --arch or --config names another recipe)
ifneq ($(strip $(ARGS)),)
	$(PY) train.py $(if $(filter --arch --arch=% --config --config=% --resume,$(ARGS)),,--arch resnet18 )$(ARGS)
else
	@if $(PY) -c 'import jax, sys; sys.exit(jax.default_backend() == "cpu")'; then set -- --arch resnet18; else \
		echo 'No accelerator here: the quick recipe (minutes). The chapter'"'"'s full job (hours): make train ARGS="--arch resnet18"'; \
		set -- --config quick; \
	fi; echo "$(PY) train.py $$*"; $(PY) train.py "$$@"
endif

# Exit code 3: the download cannot be reached. Prepared data needs no source, so what Debian's package gives may go after it.
data: venv  ## prepare Fashion-MNIST (from the download, else from Debian's package)
	@status=0; $(PY) -m resnet_jax.data || status=$$?; \
	if [ $$status = 3 ]; then \
		echo "trying Debian's package dataset-fashion-mnist"; \
		files=$$(mktemp -d) && trap 'rm -rf "$$files"' EXIT && trap 'exit 130' INT TERM && \
		sh scripts/debian_dataset.sh "$$files" && $(PY) -m resnet_jax.data --source-dir "$$files"; status=$$?; \
	fi; exit $$status

test: venv-test  ## the tests (ARGS="-k name": flags of pytest)
	$(PY) -m pytest $(ARGS)

test-real: venv-test data  ## the tests that read the real Fashion-MNIST
	$(PY) -m pytest -m real_data $(ARGS)

test-long: venv-test data  ## the tests that train for minutes
	$(PY) -m pytest -m long $(ARGS)

check: venv-dev  ## lint, format and types (ruff, pyright)
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m pyright

format: venv-dev  ## rewrite the code as `make check` wants it
	$(PY) -m ruff check --fix
	$(PY) -m ruff format

accelerators:  ## compile the train step for 8 TPUs and 8 H100s, on a machine that has neither, and test the result
	@sh scripts/venv.sh .venv-accelerators accelerators
	JAX_PLATFORMS=cpu .venv-accelerators/bin/python benchmarks/ahead_of_time.py --json build/ahead_of_time.json
	JAX_PLATFORMS=cpu AHEAD_OF_TIME=build/ahead_of_time.json .venv-accelerators/bin/python -m pytest -m accelerators $(ARGS)

venv:
	@sh scripts/venv.sh .venv here && sh scripts/native.sh .venv
venv-test:
	@sh scripts/venv.sh .venv here test && sh scripts/native.sh .venv
venv-dev:
	@sh scripts/venv.sh .venv here test dev && sh scripts/native.sh .venv

native: venv  ## build the oneDNN kernels anew
	@rm -f .venv/.native && sh scripts/native.sh .venv

clean:  ## remove the environments and caches; runs/ and the data stay
	rm -rf .venv .venv-accelerators .pytest_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
