# GNU make 3.81 (macOS) or later, and a Python >= 3.10 with venv. Everything is installed into .venv, nothing outside it.
#
#   make demo | test | lint | slow     each sets up what it needs first, once; later calls need no network
#   make test ARGS="-k window -x"      ARGS go to the command
#   make setup PYTHON=python3.12       which interpreter makes .venv (only when there is none yet)
#   make setup TORCH="torch==2.13.0 torchvision"   another PyTorch; PIP_INDEX_URL and pip's other settings apply too

PYTHON ?= python3
TORCH  ?= torch torchvision
SAM2   ?= sam2==1.1.0
ARGS   ?=
# Test processes; one takes up to 2 GiB.
JOBS   ?= 2

VENV  := .venv
PY    := $(VENV)/bin/python
STAMP := $(VENV)/.setup-done
# Nothing here upgrades what already satisfies, so that a repeated step needs no network.
PIP   := PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_USER=0 $(PY) -m pip install --no-build-isolation

# What the stamp must say: the two files that decide what is installed, and where it was installed (a moved .venv has
# the old place in its scripts and in the editable install).
define KEY
import hashlib, os
key = hashlib.sha256(os.getcwd().encode())
for name in ("pyproject.toml", "Makefile"):
    key.update(open(name, "rb").read())
print(key.hexdigest())
endef
define CHECK
import torch, torchvision, surgery
from sam2.sam2_video_predictor import SAM2VideoPredictor
from transformers import Sam2VideoModel
endef
export KEY CHECK

.PHONY: help setup demo test slow lint format clean distclean

help:
	@echo "make demo      run the demonstration"
	@echo "make test      run the tests (slow ones: make slow)"
	@echo "make lint      ruff, ruff format --check, mypy"
	@echo "make format    let ruff rewrite the files"
	@echo "make setup     create or refresh .venv (the others do it too)"
	@echo "make clean     remove caches and outputs (make distclean: .venv too)"

setup:
	@set -e; \
	if [ -f $(STAMP) ] && [ "`cat $(STAMP)`" = "`$(PY) -c "$$KEY" 2>/dev/null`" ]; then exit 0; fi; \
	rm -f $(STAMP); \
	if ! $(PY) -m pip --version >/dev/null 2>&1; then \
	  if ! command -v "$(PYTHON)" >/dev/null 2>&1; then \
	    echo "setup: '$(PYTHON)' is not here. Install Python 3.10 or later, or say: make setup PYTHON=/path/to/python3" >&2; exit 1; fi; \
	  if ! "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then \
	    echo "setup: '$(PYTHON)' is `"$(PYTHON)" -V 2>&1`; 3.10 or later is needed. Say: make setup PYTHON=python3.12" >&2; exit 1; fi; \
	  if ! "$(PYTHON)" -c 'import venv, ensurepip' >/dev/null 2>&1; then \
	    echo "setup: '$(PYTHON)' has no venv or no ensurepip. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; fi; \
	  echo "setup: creating $(VENV) with `"$(PYTHON)" -V 2>&1`; this downloads PyTorch, several GB on Linux"; \
	  "$(PYTHON)" -m venv --clear $(VENV); \
	fi; \
	trap 'echo "setup: not finished; say make setup again when the cause above is gone (make distclean starts from nothing)" >&2' EXIT; \
	$(PIP) setuptools wheel "hatchling>=1.27" editables $(TORCH); \
	SAM2_BUILD_CUDA=0 $(PIP) "$(SAM2)"; \
	$(PIP) -e ".[dev]"; \
	$(PY) -I -c "$$CHECK"; \
	$(PY) -c "$$KEY" > $(STAMP).new; \
	mv $(STAMP).new $(STAMP); \
	trap - EXIT; \
	echo "setup: $(VENV) is ready"

demo: setup
	$(VENV)/bin/surgery demo $(ARGS)

test: setup
	$(PY) -m pytest -n $(JOBS) $(ARGS)

slow: setup
	$(PY) -m pytest -m slow $(ARGS)

lint: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: setup
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean:
	rm -rf build dist demo-output .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name .git -prune -o -name $(VENV) -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV) surgery.egg-info
