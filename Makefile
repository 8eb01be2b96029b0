# Targets set up what they need; every environment lives in a folder that git ignores.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CPU_TORCH := torch==2.13.0
# Processes that run tests beside each other; each of test-comfyui has a ComfyUI of its own, of 2 GB.
WORKERS ?= 2
PYTEST = $(BIN)/python -m pytest -q -rs -n $(WORKERS) --dist loadfile

.PHONY: demo device-check test test-lowest test-highest lint test-js test-comfyui test-npu test-engines comfyui clean

# Tests compute little at a time: threads that wait for each other take several times what they save.
test test-comfyui: export OMP_NUM_THREADS := 1

demo: $(VENV)/base
	$(BIN)/glm-image demo -o out/demo.png

# Tests of a running ComfyUI and of torch_npu have targets of their own, which set those up.
# What a test needs besides Python (node, tesseract, openssl, g++) makes it skip where it is missing, and say so.
test: $(VENV)/test lint test-js
	$(PYTEST) --ignore tests/comfyui --ignore tests/npu --ignore tests/engines

# The lowest Python and the lowest versions that pyproject.toml states, or the newest of all, in environments of their
# own. PART=part takes the tests that CI runs of them.
test-lowest:
	$(PYTHON) tests/versions/run.py lowest $(PART)

test-highest:
	$(PYTHON) tests/versions/run.py highest $(PART)

lint: $(VENV)/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

test-js:
	@if command -v node >/dev/null; then node --test tests/js/*.test.mjs; \
	else echo "skipped: tests/js needs node, which is not installed"; fi

test-comfyui: $(VENV)/test
	$(PYTHON) tools/comfyui.py setup
	-$(PYTHON) tools/browser.py
	$(PYTEST) tests/comfyui

test-npu:
	$(PYTHON) tests/npu/run.py

# Not in CI: 12 GB and half an hour. With ENGINE_URL it tests a server of yours and needs no engines here.
test-engines: $(VENV)/test
	$(if $(ENGINE_URL),,$(PYTHON) tests/engines/setup.py)
	$(BIN)/python -m pytest -q -rs tests/engines

comfyui:
	$(PYTHON) tools/comfyui.py

# With the torch of $(PYTHON), which knows the card; arguments in ARGS.
device-check:
	mkdir -p build && ln -sfn .. build/comfyui_glm_image
	PYTHONPATH=build $(PYTHON) -m comfyui_glm_image device-check $(ARGS)

# torch is only installed where there is none, in the build that pip's index has. PyPI's for Linux asks for CUDA, on x86-64
# (4.8 GB) and on aarch64 alike; for macOS and Windows it is a CPU build. A CPU build suffices for demo and tests: set
# PIP_INDEX_URL to PyTorch's index of CPU builds for this one step, or put a torch into .venv first.
$(VENV)/base: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/python -m pip install -q $(CPU_TORCH)
	$(BIN)/python -m pip install -q -e .
	touch $@

$(VENV)/test: $(VENV)/base
	$(BIN)/python -m pip install -q -e ".[test]"
	touch $@

clean:
	rm -rf .venv .venv-npu .venv-lowest .venv-highest .comfyui .engines build out
