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
.PHONY: help dist test-dist container chromium test-tensorrt engines engines-cpu gpu-acceptance gpu-smoke tensorrt-layers image verify bench bench-peers bench-quality roofline figures serve serve-ray serve-load test test-offline test-page test-javascript test-ray test-gpu-refusals test-tensorrt-bindings test-peers test-full tiny tiny-eval lint format clean

help:  ## This list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-17s %s\n", $$1, $$2}'

DRAW = $(BIN)/sdturbo generate "$(PROMPT)" --bundle "$(BUNDLE)" --steps $(STEPS) --seed $(SEED) --out "$(BUNDLE).png"

# ENGINES=cpu or one of GPU_ENGINES or RTX_ENGINES overrules what the NVIDIA driver, or its absence, decides
engines:  ## Build the engines of MODEL (tiny, small, seeded, a Hub id, a directory) and draw a picture
	@$(MAKE) --no-print-directory engines-$(or $(ENGINES),$(shell $(PYTHON) export/machine.py))

engines-cpu: $(VENV)/.export
	$(BIN)/sdturbo-export build --model "$(MODEL)" --out "$(BUNDLE)" $(BUILD_OPTIONS)
	$(DRAW)

# each is an extra of pyproject.toml, and a stamp below. Those of CUDA 12 are for drivers below 580
TENSORRT_ENGINES := tensorrt tensorrt-cu12
CUDA_ENGINES     := cuda cuda-cu12 cuda-tensorrt
GPU_ENGINES      := $(TENSORRT_ENGINES) $(CUDA_ENGINES)
RTX_ENGINES      := tensorrt-rtx

$(TENSORRT_ENGINES:%=engines-%): engines-%: $(VENV)/.%
	$(BIN)/sdturbo-export build --model "$(MODEL)" --out "$(BUNDLE)" --precision fp16 $(BUILD_OPTIONS)
	$(BIN)/sdturbo-export trt "$(BUNDLE)"
	$(DRAW) --backend tensorrt

# on any x86-64 machine, without a GPU. CAPABILITY="8.9 12.0": for these cards alone
$(RTX_ENGINES:%=engines-%): engines-%: $(VENV)/.%
	$(BIN)/sdturbo-export build --model "$(MODEL)" --out "$(BUNDLE)" --precision fp16 $(BUILD_OPTIONS)
	$(BIN)/sdturbo-export trt "$(BUNDLE)" --library $* $(CAPABILITY:%=--capability %)
	@echo "no picture is drawn: plans for RTX cards run on such a card"

$(CUDA_ENGINES:%=engines-%): engines-%: $(VENV)/.%
	$(BIN)/sdturbo-export build --model "$(MODEL)" --out "$(BUNDLE)" --precision fp16 $(BUILD_OPTIONS)
	$(DRAW) --backend $(subst -cu12,,$*)

# the extra of BACKEND, that of CUDA 12 where the driver asks for it. In recipes alone, for it asks the driver
BACKEND  ?= tensorrt
GPU_EXTRA = $(BACKEND)$(if $(findstring -cu12,$(shell $(PYTHON) export/machine.py 2>/dev/null)),-cu12)

# a dry run needs no GPU: it shows the report and runs all but CUDA's calls
gpu-acceptance: MODEL = $(if $(DRY),small,seeded)
gpu-acceptance:  ## On an NVIDIA GPU: engines, parity, latency, memory, soak; BACKEND=cuda; BATCH="1 2 4 8"; DRY=1 anywhere
	@$(MAKE) --no-print-directory $(VENV)/$(if $(DRY),.export,.$(GPU_EXTRA))
	$(BIN)/python -m benchmarks.gpu_acceptance --model "$(MODEL)" --bundle "$(BUNDLE)" --backend $(BACKEND) $(BATCH:%=--batch-size %) $(if $(DRY),--dry)

gpu-smoke: $(VENV)/$(if $(IMITATE),.export,.cuda)  ## On an NVIDIA GPU: our CUDA code, with small kernels as stages, in seconds; IMITATE=1 anywhere
	$(BIN)/python -m benchmarks.gpu.smoke $(if $(IMITATE),--imitate)

# its own bundle, in the precision of a GPU
SM ?= SM89
tensorrt-layers: MODEL = small
tensorrt-layers: BUNDLE = build/$(notdir $(patsubst %/,%,$(MODEL)))-fp16
tensorrt-layers: $(VENV)/.rtx  ## What NVIDIA's compiler makes of MODEL: layers, their bytes, fused attentions (no GPU; SM=SM120)
	@test -d "$(BUNDLE)" || $(BIN)/sdturbo-export build --model "$(MODEL)" --out "$(BUNDLE)" --precision fp16 $(BUILD_OPTIONS)
	$(BIN)/python -m benchmarks.gpu.rtx_layers $(SM) $(foreach stage,text_encoder denoiser decoder encoder,"$(BUNDLE)/onnx/$(stage).onnx")

image: $(VENV)/.export  ## Draw PROMPT with the engines of MODEL
	@test -d "$(BUNDLE)" || $(MAKE) --no-print-directory engines
	$(DRAW)

verify: $(VENV)/.export  ## Compare the engines of MODEL with PyTorch and diffusers, stage by stage and picture by picture
	$(BIN)/sdturbo-export verify "$(BUNDLE)" --model "$(MODEL)"

# a bundle of its own, for other bundles have batch size 1 alone unless BUILD_OPTIONS says more
BATCHES ?= 1 2 4 8
bench: BUNDLE = build/$(notdir $(patsubst %/,%,$(MODEL)))-batches
bench: $(VENV)/.bench  ## Time every engine of MODEL that runs here, and how it scales; stored in benchmarks/results
	@test -d "$(BUNDLE)" || $(MAKE) --no-print-directory engines BUNDLE="$(BUNDLE)" BUILD_OPTIONS="$(BATCHES:%=--batch-size %) $(BUILD_OPTIONS)"
	$(BIN)/python benchmarks/runtime.py --bundle "$(BUNDLE)"
	$(BIN)/python -m benchmarks.suite --bundle "$(BUNDLE)" --runs $(RUNS) $(if $(THREADS),--threads $(THREADS))

# environments, bundles and conversions are made when a row needs them. A second call goes on where the first stopped
bench-peers: $(VENV)/.bench  ## In turn with other programs at their best: stored row by row; LIST=1 shows them; ROW="NAME ..." again
	$(BIN)/python -m benchmarks.compare --model "$(MODEL)" --steps $(STEPS) $(if $(THREADS),--threads $(THREADS)) $(if $(LIST),--list) $(if $(ROW),--row $(ROW))

bench-quality: $(VENV)/.bench  ## PSNR and SSIM of every backend and precision against PyTorch fp32, 32 prompts of tiny
	@test -d "$(BUNDLE)" || $(MAKE) --no-print-directory engines
	$(BIN)/python -m benchmarks.quality --bundle "$(BUNDLE)" --model "$(MODEL)" --steps $(STEPS)

roofline: $(VENV)/.bench  ## Share of this machine's ceiling that each stage reaches; GPU=h100|a100|4090|l4|t4: bounds on paper
	@test -d "$(BUNDLE)" || $(MAKE) --no-print-directory engines
	$(BIN)/python -m benchmarks.roofline --bundle "$(BUNDLE)" $(if $(GPU),--gpu $(GPU))

figures: $(VENV)/.bench  ## Write the figures and charts of benchmarks/README.md from benchmarks/results
	$(BIN)/python -m benchmarks.readme

serve: $(VENV)/.export  ## Serve the engines of MODEL on http://127.0.0.1:8000: OpenAI's images API, live connections and a page
	@test -d "$(BUNDLE)" || $(MAKE) --no-print-directory engines
	$(BIN)/sdturbo-serve --bundle "$(BUNDLE)"

# a home of its own: Ray asks no cloud where it runs if it finds this file there, and writes its token beside it
RAY_HOME := build/ray-home
serve-ray: $(VENV)/.ray  ## The same on Ray Serve, by engine/examples/ray.yaml: two replicas and more
	@test -d "$(BUNDLE)" || $(MAKE) --no-print-directory engines
	sed 's#bundle: build/tiny#bundle: $(abspath $(BUNDLE))#' engine/examples/ray.yaml > build/ray.yaml
	mkdir -p $(RAY_HOME) && echo '{}' > $(RAY_HOME)/ray_bootstrap_config.yaml
	SDTURBO_CACHE_DIR="$${SDTURBO_CACHE_DIR:-$${XDG_CACHE_HOME:-$$HOME/.cache}/sdturbo}" HOME="$(abspath $(RAY_HOME))" \
	  RAY_USAGE_STATS_ENABLED=0 RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=sdturbo_serve.ray_proxy.middlewares \
	  $(BIN)/serve run build/ray.yaml

serve-load: $(VENV)/.dev  ## Load the server: overhead, 2x capacity, throughput, live connection, drain (LOAD_S=600 for the long run)
	@test -d "$(BUNDLE)" || $(MAKE) --no-print-directory engines
	$(BIN)/python -m benchmarks.serve_load --bundle "$(BUNDLE)" --seconds $(LOAD_S)

# two processes, which share what is built once. A file's tests stay together, and those of the exporter, the longest, come first
test: $(VENV)/.dev  ## The tests (no network, no GPU; minutes)
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST_OPTIONS)

test-offline: $(VENV)/.dev  ## That an export opens no connection: its system calls followed by strace, which is installed if missing
	command -v strace >/dev/null || (apt-get update && apt-get install -y --no-install-recommends strace)
	$(BIN)/pytest -m offline tests

test-page: $(VENV)/.dev  ## The page in Debian's chromium, which is installed if missing; screenshots in build/page
	$(MAKE) --no-print-directory chromium
	$(BIN)/pytest -m page tests/serve

chromium:
	command -v chromium >/dev/null || (apt-get update && apt-get install -y --no-install-recommends chromium fonts-dejavu-core)

# OpenAI's own client for JavaScript, in a directory of its own
OPENAI_JS := build/openai-javascript
test-javascript: $(VENV)/.dev  ## The server under OpenAI's JavaScript client, which needs node and npm (15 MB)
	test -d $(OPENAI_JS)/node_modules/openai || npm install --silent --prefix $(OPENAI_JS) openai@6.49.0
	SDTURBO_OPENAI_JS=$(OPENAI_JS) $(BIN)/pytest tests/serve/test_openai_javascript.py

test-ray: $(VENV)/.ray  ## The server on a real Ray of this machine, which is installed if missing (250 MB, minutes)
	$(BIN)/pytest -m ray tests/serve

test-tensorrt: $(VENV)/.rtx  ## Every stage parsed and compiled by NVIDIA's own TensorRT for RTX, which needs no GPU (97 MB)
	$(BIN)/pytest -m tensorrt tests

# what onnxruntime-gpu does where it finds no GPU: its own directory, for it and the CPU build exclude each other
GPU_SITE := build/onnxruntime-gpu
test-gpu-refusals: $(VENV)/.dev  ## With onnxruntime-gpu and no GPU: asking for CUDA is an error, never a fall-back (256 MB)
	test -d $(GPU_SITE) || $(BIN)/pip install --quiet --target $(GPU_SITE) --no-deps "onnxruntime-gpu==1.31.1" cuda-bindings cuda-pathfinder
	SDTURBO_GPU_SITE=$(GPU_SITE) $(BIN)/pytest tests/runtime/test_cuda.py

# the real bindings, without the libraries behind them: what can be made of them on a CPU
test-tensorrt-bindings: $(VENV)/.dev  ## With the real TensorRT 10 and 11 bindings and no GPU: classes, callbacks, refusals (30 MB)
	test -d build/tensorrt10 || $(BIN)/python tests/typings/generate.py tensorrt-cu12-bindings==10.16.1.11 cuda-bindings==12.9.5 --site build/tensorrt10
	test -d build/tensorrt11 || $(BIN)/python tests/typings/generate.py tensorrt-cu12-bindings==11.4.0.106 cuda-bindings==13.5.0 --site build/tensorrt11
	SDTURBO_TRT_SITES=build/tensorrt10:build/tensorrt11 $(BIN)/pytest tests/runtime/test_trt_bindings.py

test-peers: $(VENV)/.dev  ## What optimum-onnx draws of our export, in its own environment (2 GB, built if missing)
	$(BIN)/pytest -m peers tests

test-full: $(VENV)/.dev  ## The tests of the full-size model (16 GB of disk, 16 GB of memory, half an hour)
	$(BIN)/pytest -m full -s

dist: $(VENV)/.release  ## Wheel, sources, SBOM and SHA256SUMS of the last commit in dist/, the same bytes on every machine
	$(BIN)/python -m release.dist dist

test-dist: $(VENV)/.release  ## What `make dist` makes, and installs from it in empty environments (2 GB, minutes)
	$(BIN)/pytest -m dist tests/release

# as root, on Debian: the base image comes from Debian's mirror, and the packages from pip's index
CONTAINER_TOOLS := podman buildah runc debootstrap iproute2
container: $(VENV)/.release  ## Build the container images and run them with Debian's podman, which is installed if missing (3 GB)
	dpkg --status $(CONTAINER_TOOLS) >/dev/null 2>&1 || (apt-get update && apt-get install -y --no-install-recommends $(CONTAINER_TOOLS))
	$(BIN)/pytest -s -m container tests/container

# where the embedded model lives, and where it is trained: renders, states, charts and sheets
CHECKPOINT := export/sdturbo_export/tiny/checkpoint
EMBEDDED   := engine/sdturbo/bundles/tiny
RUN        := build/tiny-run
# not installed, so export/ must be on Python's path
TRAIN      := PYTHONPATH=export $(BIN)/python -m training.tiny

# without upsample: at so few channels its phases gain nothing, and in fp32 they weigh 1 MB
tiny: $(VENV)/.export  ## Train the embedded model anew and put it in its place (four hours; goes on where it was stopped)
	$(TRAIN).train_vae $(RUN)
	$(TRAIN).train_unet $(RUN)
	$(TRAIN).train_decoder $(RUN)
	$(TRAIN).checkpoint_writer $(RUN) $(CHECKPOINT)
	$(TRAIN).caption_lists $(dir $(CHECKPOINT))
	$(BIN)/sdturbo-export build --model tiny --without upsample --out $(EMBEDDED)
	$(MAKE) --no-print-directory tiny-eval
	$(TRAIN).checkpoint_writer $(RUN) $(CHECKPOINT) --results build/tiny-eval/results.md
	cp build/tiny-eval/examples.jpg benchmarks/pictures/tiny.jpg

tiny-eval: $(VENV)/.export  ## Measure the embedded model on what it was not trained on: figures and contact sheets (minutes)
	$(TRAIN).evaluate build/tiny-eval

lint: $(VENV)/.dev  ## ruff, pyright (strict on engine/, which is read as on Windows too, basic on export/), import boundaries
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python
	$(BIN)/basedpyright --pythonpath $(BIN)/python --pythonplatform Windows engine
	$(BIN)/basedpyright --pythonpath $(BIN)/python -p tests/typings/tensorrt10.json
	$(BIN)/basedpyright --pythonpath $(BIN)/python -p tests/typings/export.json
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

# TensorRT's packages for CUDA 12 and 13 are one Python module and overwrite each other, so do onnxruntime and onnxruntime-gpu.
# What the new extra excludes goes first, with its stamps
CU12        := $(filter %-cu12,$(GPU_ENGINES))
CU13        := $(filter-out %-cu12,$(GPU_ENGINES))
trt_packages = tensorrt-$1 tensorrt-$1-bindings tensorrt-$1-libs
$(CU12:%=$(VENV)/.%): STAMPS = $(CU13:%=$(VENV)/.%)
$(CU12:%=$(VENV)/.%): PACKAGES = tensorrt $(call trt_packages,cu13)
$(CU13:%=$(VENV)/.%): STAMPS = $(CU12:%=$(VENV)/.%)
$(CU13:%=$(VENV)/.%): PACKAGES = $(call trt_packages,cu12)
$(VENV)/.tensorrt: STAMPS += $(VENV)/.cuda-tensorrt
$(VENV)/.cuda-tensorrt: STAMPS += $(VENV)/.tensorrt
$(GPU_ENGINES:%=$(VENV)/.%): $(VENV)/.%: $(VENV)/.export
	rm -f $(STAMPS)
	$(BIN)/pip uninstall --quiet --yes $(PACKAGES) $(if $(filter $*,$(CUDA_ENGINES)),onnxruntime)
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[$*]"
	touch $@

# a module of its own, which excludes nothing
$(RTX_ENGINES:%=$(VENV)/.%): $(VENV)/.%: $(VENV)/.export
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[$*]"
	touch $@

$(VENV)/.bench: $(VENV)/.export
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[cpu,openvino,serve,export,bench]"
	touch $@

$(VENV)/.dev: $(VENV)/.export
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[cpu,openvino,serve,export,dev]"
	touch $@

$(VENV)/.rtx: $(VENV)/.dev
	$(BIN)/pip install --quiet --disable-pip-version-check "tensorrt-rtx-cu13==1.7.1.116"
	touch $@

$(VENV)/.release: $(VENV)/.dev
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[release]"
	touch $@

# Ray is a quarter of a gigabyte: neither the tests of `make test` nor the server needs it
$(VENV)/.ray: $(VENV)/.dev
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[ray]"
	touch $@
