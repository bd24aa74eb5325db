# Two commands that do all their own set-up on a fresh machine with python3 and nothing else:
#   make demo   builds .venv and runs the main job on real X-rays (or on synthetic ones where there are none)
#   make test   builds what it needs and runs every check
PYTHON ?= python3
# tflite-runtime 2.14 has no wheels above Python 3.11: its tests run with the first of these that is there.
PYTHON_TFLITE ?= $(firstword $(foreach name,$(PYTHON) python3.11 python3.10,$(if \
  $(shell $(name) -c "import sys; print(*['old enough'] * (sys.version_info < (3, 12)))" 2>/dev/null),$(name))))
PIP = -m pip install --disable-pip-version-check --quiet
BIN := .venv/bin
SETUP := setup.cfg setup.py .ci/constraints.txt
# Not reordered: else the files with the fewest tests, which take longest, come last and one core waits.
TESTS := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
# Tests that need another environment find its Python in a variable, CXR_TORCH_PYTHON for instance, and skip by name
# where it could not be built.
OTHERS = $(shell set -- LITERT .venv-litert/bin/python TFLITE .venv-tflite/bin/python AARCH64 .venv-aarch64/python \
  TORCH .venv-torch/bin/python METADATA .venv-metadata/bin/python; \
  while [ -n "$$1" ]; do if [ -x "$$2" ]; then echo "CXR_$$1_PYTHON=$(CURDIR)/$$2"; fi; shift 2; done)
DEVICE_TESTS := -m pytest -p no:cacheprovider tests/device

.PHONY: demo test lint clean

demo: .venv/.train
	$(BIN)/python experiments/demo.py

test: lint .venv-litert/.device .venv-tflite/.device .venv-aarch64/.device .venv-torch/.device .venv-metadata/.device
	@echo "== device code where only LiteRT is installed"
	.venv-litert/bin/python $(DEVICE_TESTS)
	@if [ -x .venv-tflite/bin/python ]; then \
	  echo "== device code where only tflite-runtime 2.14 is installed" && .venv-tflite/bin/python $(DEVICE_TESTS); \
	else echo "== SKIPPED tests with tflite-runtime 2.14: it needs a python3.11 or older on the PATH"; fi
	@if [ -x .venv-aarch64/python ]; then \
	  echo "== device code on emulated aarch64 with tflite-runtime 2.14" && .venv-aarch64/python $(DEVICE_TESTS); \
	else echo "== SKIPPED tests on emulated aarch64: they need qemu-aarch64-static, apt-get and Debian's arm64 packages"; fi
	@echo "== the whole package"
	env $(OTHERS) $(TESTS)

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.venv/.train: $(SETUP)
	@echo "building .venv (about a minute)"
	$(PYTHON) -m venv .venv
	$(BIN)/python $(PIP) -c .ci/constraints.txt -e '.[train]'
	@touch $@

.venv/.dev: .venv/.train
	$(BIN)/python $(PIP) -c .ci/constraints.txt -e '.[train,dev,dicom,report,sign]'
	@touch $@

.venv-litert/.device: $(SETUP)
	$(PYTHON) -m venv .venv-litert
	.venv-litert/bin/python $(PIP) -c .ci/constraints.txt -e '.[litert]' pytest hypothesis
	@touch $@

.venv-tflite/.device: $(SETUP) .ci/constraints-tflite.txt
	@mkdir -p .venv-tflite
	@if [ -n "$(PYTHON_TFLITE)" ]; then \
	  $(PYTHON_TFLITE) -m venv .venv-tflite && \
	  .venv-tflite/bin/python $(PIP) -c .ci/constraints-tflite.txt -e '.[tflite]' pytest hypothesis; fi
	@touch $@

# PyTorch (its CPU build does) writes the files that the importers are tested with, and Torch-Pruning is what removal is
# measured beside; nothing of ours imports either.
.venv-torch/.device: .ci/constraints-torch.txt
	@rm -rf .venv-torch && mkdir -p .venv-torch
	@$(PYTHON) -m venv .venv-torch && .venv-torch/bin/python $(PIP) -r .ci/constraints-torch.txt || rm -rf .venv-torch/bin
	@touch $@

# MediaPipe and the Task library read what our files say about themselves; nothing of ours imports either.
.venv-metadata/.device: .ci/constraints-metadata.txt
	@rm -rf .venv-metadata && mkdir -p .venv-metadata
	@$(PYTHON) -m venv .venv-metadata && .venv-metadata/bin/python $(PIP) -r .ci/constraints-metadata.txt || rm -rf .venv-metadata/bin
	@touch $@

.venv-aarch64/.device: setup.cfg .ci/aarch64 .ci/constraints-tflite.txt
	@mkdir -p .venv-aarch64
	@if command -v qemu-aarch64-static >/dev/null && command -v apt-get >/dev/null; then \
	  PYTHON=$(PYTHON) .ci/aarch64 .venv-aarch64 || rm -f .venv-aarch64/python; fi
	@touch $@

clean:
	rm -rf .venv .venv-litert .venv-tflite .venv-aarch64 .venv-torch .venv-metadata demo_run build *.egg-info
