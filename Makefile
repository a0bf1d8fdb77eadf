PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PACK ?= .pack
# Without an environment of ours: the machine's own Python, which has torch, and what PACK brings.
GPU_PYTHON = $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-train test lint types bench bench-peers gpu-check gpu-pack clean

help:  ## list these targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.ready  ## make the virtual environment with everything that tests and demo need

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt "torch==2.13.0" --editable ".[dev]"
	touch $@

demo: setup  ## export the checkpoint in the tree, serve it on Triton, ask about a picture, stream the answer
	VITRAIL=$(BIN)/vitrail demo/run.sh

demo-train: setup  ## train the demo checkpoint (hours; goes on where it stopped), convert it, draw its curves
	nice -n 19 $(BIN)/python -m demo.recipe all
	$(BIN)/python -m demo.recipe convert
	$(BIN)/python -m demo.recipe curves

test: setup  ## run every test that needs no GPU
	$(BIN)/python -m pytest

lint: setup  ## style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup  ## strict type checking
	$(BIN)/mypy

bench: setup  ## time and memory of exporting a synthesized InternVL2-2B
	$(BIN)/python bench/export.py internvl2-2b --precision fp16
	$(BIN)/python bench/export.py internvl2-2b --precision int4

bench-peers: setup  ## vitrail beside transformers, OpenVINO, onnxruntime-genai and llama.cpp on this CPU; installs those
	$(BIN)/python -m bench.peers

gpu-check:  ## on a machine with a GPU: its tests, then the benchmark beside PyTorch; 9 minutes, no network
	PYTHONPATH=$(CURDIR)/runtime:$(CURDIR)/export:$(CURDIR)/$(PACK) $(GPU_PYTHON) -m bench.gpu.check

gpu-pack: setup  ## wheels that gpu-check needs where there is no network, in .pack-wheels
	$(BIN)/python -m bench.gpu.pack

clean:  ## remove the environment and exported models
	rm -rf $(VENV) models
