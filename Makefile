# `make` lists the targets. Everything that needs Python packages creates $(VENV) first; stamp files in it
# make a second call quick.

PYTHON ?= python3
VENV ?= .venv
# Installed first, with what builds the package, so that no other requirement picks another torch.
TORCH ?= torch==2.13.0
EXTRAS ?= bench,train,serve,dev
# The oldest that is supported, in an environment of its own, and the tests that are run with it.
OLDEST ?= transformers==4.57.*
OLDEST_VENV ?= $(VENV)/oldest
OLDEST_TESTS ?= tests/hf tests/nn tests/models tests/cli/test_cli_check.py
# Modules are compiled to bytecode when they are first imported: most of them never are. Where that
# may not be kept, each process would compile PyTorch anew.
unexport PYTHONDONTWRITEBYTECODE
PIP_INSTALL = $(BIN)/python -m pip install --disable-pip-version-check --no-compile

# The site's tools, named in pyproject.toml, have an environment to themselves: they read the sources
# and need neither torch nor the package.
DOCS_VENV ?= $(VENV)/docs
extra = $(shell sed -n 's/^$(1) = \[\(.*\)\]/\1/p' pyproject.toml | tr -d ,)
# So have the tools that users run models with; what is in $(VENV), torch and this package, they see.
INTEGRATIONS_VENV ?= $(VENV)/integrations
# The same for AWS in one process, the client of KServe, and Ray.
AWS_VENV ?= $(VENV)/aws
RAY_VENV ?= $(VENV)/ray
# The same for JAX with the compiler of TPUs, about 830 MB.
TPU_VENV ?= $(VENV)/tpu
# And so have the clients that ask a server, which runs in $(VENV), and what drives a browser: Debian's
# Chromium, or the one that CHROMIUM names. What the page looks like is written to SCREENSHOTS.
SERVING_VENV ?= $(VENV)/serving
FUZZ_VENV ?= $(VENV)/fuzz
CHROMIUM ?= $(shell command -v chromium || command -v chromium-browser || command -v google-chrome)
SCREENSHOTS ?= page_out
# Seconds for one of examples/, which takes ten.
EXAMPLES_TIMEOUT ?= 120

BENCH_OUT ?= bench_out
BENCH_FLAGS ?= --preset quick
# Neighbours stay together: they share what a file or a worker makes once.
PYTEST_FLAGS ?= -n 2 --dist worksteal --benchmark-disable
# All five chips take about twenty minutes from scratch; --arch 90 asks for one, --backend cuda for the
# CUDA C++ kernels alone, which need nvcc.
REPORT_FLAGS ?=
GPU_FLAGS ?= --minutes 20 --out gpu_out
TUNE_FLAGS ?= --minutes 20 --out gpu_out --write
SANITIZE_FLAGS ?=
# --minutes 5 --clients 8 unless told.
SOAK_FLAGS ?=
# --examples 250 --seconds 300 unless told; --checks all for what the description promises, too.
FUZZ_FLAGS ?=
SANITIZE_CPU_FLAGS ?=
# --only 'masks: *' tries some, --jobs 2 two at a time; --out FILE --resume goes on with what was cut off.
MUTANTS_FLAGS ?=

BIN := $(VENV)/bin
CPP_FILES := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
EXT_FILES := setup.py xlnet_fast/_version.py $(addprefix xlnet_fast/builder/,recipe.py nvcc.py progress.py) \
	$(filter-out csrc/cuda/emulation/%,$(filter csrc/bindings.cpp csrc/%.h csrc/cpu/% csrc/cuda/%,$(CPP_FILES)))

# Two workers, one thread each: more threads than cores make the small tests slower, not faster.
TEST_ENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.DEFAULT_GOAL := help
.PHONY: help bench test oldest lint format docs examples onnx exports integrations serving browser fuzz soak aws ray tpu tpu-device ext kernels-report ptx gpu tune sanitize sanitize-cpu mutants clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) '$(TORCH)' $(call extra,requires)
	@touch $@

# What measuring needs, a part of what is installed for the rest.
$(VENV)/.bench: $(VENV)/.torch pyproject.toml $(EXT_FILES)
	$(PIP_INSTALL) --no-build-isolation -e '.[bench]'
	@touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml $(EXT_FILES)
	$(PIP_INSTALL) --no-build-isolation -e '.[$(EXTRAS)]'
	@touch $(VENV)/.bench $@

bench: $(VENV)/.bench ## compare Hugging Face's XLNet with the accelerated one, into bench_out/
	$(BIN)/xlnet-fast bench $(BENCH_FLAGS) --out $(BENCH_OUT)

test: $(VENV)/.installed ## run the tests
	$(TEST_ENV) $(BIN)/python -m pytest $(PYTEST_FLAGS)

# The extension is the one that lies in the package's folder.
$(OLDEST_VENV)/.installed: $(VENV)/.installed pyproject.toml
	$(PYTHON) -m venv $(OLDEST_VENV)
	$(OLDEST_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile '$(TORCH)' $(call extra,requires)
	XLNET_FAST_NO_EXT=1 $(OLDEST_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile \
		--no-build-isolation -e . '$(OLDEST)' accelerate pytest pytest-benchmark pytest-timeout pytest-xdist hypothesis
	@touch $@

oldest: $(OLDEST_VENV)/.installed ## run the tests of the drop-in with the oldest transformers that is supported
	$(TEST_ENV) $(OLDEST_VENV)/bin/python -m pytest $(PYTEST_FLAGS) $(OLDEST_TESTS)

lint: $(VENV)/.installed ## check format, style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CPP_FILES)

format: $(VENV)/.installed ## rewrite the sources in the house format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i $(CPP_FILES)

$(DOCS_VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(DOCS_VENV)
	$(DOCS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile $(call extra,docs)
	@touch $@

docs: $(DOCS_VENV)/.installed ## build the documentation into site/; a broken link is an error
	PATH="$(abspath $(DOCS_VENV))/bin:$$PATH" NO_MKDOCS_2_WARNING=1 mkdocs build

$(VENV)/.examples: $(VENV)/.installed
	$(PIP_INSTALL) --quiet '$(TORCH)' $(call extra,examples)
	@touch $@

examples: $(VENV)/.examples ## run what is in examples/, on models made on the spot
	@for example in trainer peft_lora sentence_embeddings pipeline speech; do \
		echo "== $$example"; \
		$(TEST_ENV) timeout $(EXAMPLES_TIMEOUT) $(BIN)/python examples/$$example.py || exit 1; \
	done

$(VENV)/.onnx: $(VENV)/.installed
	$(PIP_INSTALL) --quiet '$(TORCH)' $(call extra,onnx)
	@touch $@

onnx: $(VENV)/.onnx ## export models to ONNX and compare them in onnxruntime
	$(TEST_ENV) $(BIN)/python -m pytest $(PYTEST_FLAGS) tests/hf/onnx_classes.py tests/export/onnx_exports.py

exports: $(VENV)/.installed ## compile a model with AOTInductor and run it in processes of its own
	$(TEST_ENV) $(BIN)/python -m pytest $(PYTEST_FLAGS) tests/export/compiled_exports.py

# What the compilers make of every kernel, on the CPU; the CUDA kernels where there is an nvcc.
ptx: $(VENV)/.installed ## run every case of the GPU kernels as PTX, races and stray accesses looked for
	$(TEST_ENV) $(BIN)/python -m pytest $(PYTEST_FLAGS) tests/ptx tests/ptx/ptx_every_run.py tests/ptx/ptx_every_fault.py

# An environment that sees what is in $(VENV), and what an extra names besides.
define beside
	$(BIN)/python -m venv $(1)
	site='import sysconfig; print(sysconfig.get_path("purelib"))'; \
	echo "import site; site.addsitedir('$$($(BIN)/python -c "$$site")')" \
		> "$$($(1)/bin/python -c "$$site")/development.pth"
	$(1)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile \
		'$(TORCH)' $(call extra,$(2))
	@touch $@
endef

$(INTEGRATIONS_VENV)/.installed: $(VENV)/.installed pyproject.toml
	$(call beside,$(INTEGRATIONS_VENV),integrations)

# What these tools do to PyTorch as they are imported is why they are no part of `make test`.
integrations: $(INTEGRATIONS_VENV)/.installed ## run PEFT, torchao, captum, Lightning, Trainer and the like on models of ours
	$(TEST_ENV) $(INTEGRATIONS_VENV)/bin/python -m pytest $(PYTEST_FLAGS) --dist loadfile \
		tests/integrations/*_integration.py

$(AWS_VENV)/.installed: $(VENV)/.installed pyproject.toml
	$(call beside,$(AWS_VENV),aws)

aws: $(AWS_VENV)/.installed ## deploy to an AWS that is mocked; lint Dockerfile and KServe's manifest
	$(TEST_ENV) $(AWS_VENV)/bin/python -m pytest $(PYTEST_FLAGS) tests/aws/*_moto.py

$(RAY_VENV)/.installed: $(VENV)/.installed pyproject.toml
	$(call beside,$(RAY_VENV),ray)

# Takes minutes on two cores, most of them Ray's start: no part of continuous integration.
ray: $(RAY_VENV)/.installed ## serve on two replicas of a local Ray, kill one under load, let them scale
	$(TEST_ENV) timeout --kill-after 10 1500 $(RAY_VENV)/bin/python -m pytest --benchmark-disable -s \
		--timeout 700 tests/replicas/ray_replicas.py

$(TPU_VENV)/.installed: $(VENV)/.installed pyproject.toml
	$(call beside,$(TPU_VENV),tpu)

# -m 'not slow' leaves out most of what is compiled; -s shows the compiler's figures.
TPU_FLAGS ?= $(PYTEST_FLAGS)
TPU_TESTS ?= tests/tpu
tpu: $(TPU_VENV)/.installed ## run the Pallas kernels on the CPU, and compile them for five TPUs that are not here
	$(TEST_ENV) $(TPU_VENV)/bin/python -m pytest $(TPU_FLAGS) $(TPU_TESTS)
	$(TEST_ENV) JAX_PLATFORMS=cpu $(TPU_VENV)/bin/python examples/train_tpu.py

# A TPU is one process's alone.
tpu-device: $(TPU_VENV)/.installed ## on a TPU machine: the tests of the kernels, compiled and run there
	JAX_PLATFORMS=tpu,cpu $(TPU_VENV)/bin/python -m pytest -n 0 --benchmark-disable \
		$(foreach name,arguments tiles dropout rel_attention two_streams,tests/tpu/test_tpu_$(name).py)

$(SERVING_VENV)/.installed: $(VENV)/.installed pyproject.toml
	$(call beside,$(SERVING_VENV),serving)

serving: $(SERVING_VENV)/.installed ## ask a real server with the clients of KServe and OpenAI, and as SageMaker
	$(TEST_ENV) SERVER_PYTHON=$(abspath $(BIN)/python) $(SERVING_VENV)/bin/python -m pytest \
		tests/serving/kserve_client.py tests/serving/openai_client.py tests/serving/container_contract.py

soak: $(VENV)/.installed ## ask a server for five minutes, well, badly and hanging up: does it keep its memory?
	$(TEST_ENV) $(BIN)/python tests/serving/serving_soak.py $(SOAK_FLAGS)

$(FUZZ_VENV)/.installed: $(VENV)/.installed pyproject.toml
	$(call beside,$(FUZZ_VENV),fuzz)

fuzz: $(FUZZ_VENV)/.installed ## send a server thousands of odd requests: no 5xx but refusals
	$(TEST_ENV) SERVER_PYTHON=$(abspath $(BIN)/python) $(FUZZ_VENV)/bin/python tests/serving/fuzz_server.py $(FUZZ_FLAGS)

browser: $(SERVING_VENV)/.installed ## try the page of a real server in headless Chromium
	@test -n "$(CHROMIUM)" || { echo "there is no Chromium: apt-get install chromium, or name one by CHROMIUM"; exit 1; }
	$(TEST_ENV) SERVER_PYTHON=$(abspath $(BIN)/python) CHROMIUM=$(CHROMIUM) SCREENSHOTS=$(SCREENSHOTS) \
		$(SERVING_VENV)/bin/python -m pytest tests/serving/page_in_browser.py

ext: $(VENV)/.installed ## build the C++ extension in place, CUDA kernels too; a failing compiler is an error
	XLNET_FAST_CUDA=1 XLNET_FAST_REQUIRE_EXT=1 $(BIN)/python setup.py build_ext --inplace

kernels-report: $(VENV)/.installed ## compile the kernels without a GPU or a TPU: registers, spills, memory
	$(BIN)/xlnet-fast kernels-report $(REPORT_FLAGS)

gpu: ## on a GPU machine: checks, benchmarks and tests with the system's Python, nothing installed
	$(PYTHON) -m benchmarks.reproduce $(GPU_FLAGS)

tune: ## on a GPU machine: measure every tile of the attention kernels, into the package's table
	$(PYTHON) -m benchmarks tune $(TUNE_FLAGS)

sanitize: ## on a GPU machine: memcheck and racecheck of every GPU kernel at small shapes
	$(PYTHON) -m benchmarks sanitize $(SANITIZE_FLAGS)

sanitize-cpu: $(VENV)/.installed ## CPU attention under AddressSanitizer and UndefinedBehaviorSanitizer
	$(TEST_ENV) $(BIN)/python tests/sanitize_cpu.py $(SANITIZE_CPU_FLAGS)

mutants: $(VENV)/.installed ## try every deliberate fault of tests/mutants: which do the tests find?
	$(TEST_ENV) $(BIN)/python tests/mutants/mutants_run.py $(MUTANTS_FLAGS)

clean: ## remove what was built and every cache; .venv stays
	rm -rf build dist site *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .benchmarks
	rm -f xlnet_fast/_C.*.so xlnet_fast/_C.*.pyd $(VENV)/.bench $(VENV)/.installed
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
