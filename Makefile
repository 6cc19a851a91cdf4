# sdturbo: `make engines` builds and proves the engines of a model, `make test` passes the tests. `make help` lists all.
MODEL   ?= tiny
PROMPT  ?= a red cat in the snow
STEPS   ?= 1
SEED    ?= 0
RUNS    ?= 10
LOAD_S  ?= 60
PYTHON  ?= python3
BUNDLE  ?= build/$(notdir $(patsubst %/,%,$(MODEL)))

VENV := .venv
BIN  := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help engines image verify bench serve serve-load test test-page test-gpu-refusals test-full tiny tiny-eval lint format clean

help:  ## This list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-17s %s\n", $$1, $$2}'

engines: $(VENV)/.export  ## Build the engines of MODEL (tiny, small, seeded, a Hub id, a directory) and draw a picture
	$(BIN)/sdturbo-export build --model "$(MODEL)" --out "$(BUNDLE)" $(BUILD_OPTIONS)
	$(BIN)/sdturbo generate "$(PROMPT)" --bundle "$(BUNDLE)" --steps $(STEPS) --seed $(SEED) --out "$(BUNDLE).png"

image: $(VENV)/.export  ## Draw PROMPT with the engines of MODEL
	@test -d "$(BUNDLE)" || $(MAKE) --no-print-directory engines
	$(BIN)/sdturbo generate "$(PROMPT)" --bundle "$(BUNDLE)" --steps $(STEPS) --seed $(SEED) --out "$(BUNDLE).png"

verify: $(VENV)/.export  ## Compare the engines of MODEL with PyTorch and diffusers, stage by stage and picture by picture
	$(BIN)/sdturbo-export verify "$(BUNDLE)" --model "$(MODEL)"

bench: $(VENV)/.export  ## Time the engines of MODEL, their requests' parts, and the runtime around them
	@test -d "$(BUNDLE)" || $(MAKE) --no-print-directory engines
	$(BIN)/sdturbo bench --bundle "$(BUNDLE)" --runs $(RUNS) --steps $(STEPS)
	$(BIN)/python benchmarks/runtime.py --bundle "$(BUNDLE)"

serve: $(VENV)/.export  ## Serve the engines of MODEL on http://127.0.0.1:8000: OpenAI's images API, a live stream and a page
	@test -d "$(BUNDLE)" || $(MAKE) --no-print-directory engines
	$(BIN)/sdturbo-serve --bundle "$(BUNDLE)"

serve-load: $(VENV)/.dev  ## Load the server: overhead, 2x capacity, throughput, live stream, drain (LOAD_S=600 for the long run)
	@test -d "$(BUNDLE)" || $(MAKE) --no-print-directory engines
	$(BIN)/python benchmarks/serve_load.py --bundle "$(BUNDLE)" --seconds $(LOAD_S)

test: $(VENV)/.dev  ## The tests (no network, no GPU; minutes)
	$(BIN)/pytest

test-page: $(VENV)/.dev  ## The page in Debian's chromium, which is installed if missing; screenshots in build/page
	command -v chromium >/dev/null || (apt-get update && apt-get install -y --no-install-recommends chromium fonts-dejavu-core)
	$(BIN)/pytest -m page tests/serve

# what onnxruntime-gpu does where it finds no GPU: its own directory, for it and the CPU build exclude each other
GPU_SITE := build/onnxruntime-gpu
test-gpu-refusals: $(VENV)/.dev  ## With onnxruntime-gpu and no GPU: asking for CUDA is an error, never a fall-back (256 MB)
	test -d $(GPU_SITE) || $(BIN)/pip install --quiet --target $(GPU_SITE) --no-deps "onnxruntime-gpu==1.31.1" cuda-bindings cuda-pathfinder
	SDTURBO_GPU_SITE=$(GPU_SITE) $(BIN)/pytest tests/runtime/test_cuda.py

test-full: $(VENV)/.dev  ## The tests of the full-size model (16 GB of disk, 16 GB of memory, half an hour)
	$(BIN)/pytest -m full -s

# where the embedded model lives, and where it is trained: renders, states, charts and sheets
CHECKPOINT := export/sdturbo_export/tiny/checkpoint
EMBEDDED   := engine/sdturbo/bundles/tiny
RUN        := build/tiny-run

tiny: $(VENV)/.export  ## Train the embedded model anew and put it in its place (four hours; goes on where it was stopped)
	$(BIN)/python -m sdturbo_export.tiny.train_vae $(RUN)
	$(BIN)/python -m sdturbo_export.tiny.train_unet $(RUN)
	$(BIN)/python -m sdturbo_export.tiny.checkpoint_writer $(RUN) $(CHECKPOINT)
	$(BIN)/sdturbo-export build --model tiny --out $(EMBEDDED)
	$(MAKE) --no-print-directory tiny-eval
	$(BIN)/python -m sdturbo_export.tiny.checkpoint_writer $(RUN) $(CHECKPOINT) --results build/tiny-eval/results.md
	cp build/tiny-eval/examples.jpg benchmarks/pictures/tiny.jpg

tiny-eval: $(VENV)/.export  ## Measure the embedded model on what it was not trained on: figures and contact sheets (minutes)
	$(BIN)/python -m sdturbo_export.tiny.evaluate build/tiny-eval

lint: $(VENV)/.dev  ## ruff, pyright in strict mode on engine/, import boundaries
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

format: $(VENV)/.dev  ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## Remove everything that was built, the environment included
	rm -rf build dist $(VENV)

$(VENV)/.export: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[cpu,openvino,serve,export]"
	touch $@

$(VENV)/.dev: $(VENV)/.export
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[cpu,openvino,serve,export,dev]"
	touch $@
