# make demo, make test, make test-faults, make test-containers, make images, make parity, make families,
# make vllm-env, make vllm-families, make test-clients, make test-harness, make test-deepspeed,
# make test-liger, make test-trackers,
# make lint, make format, make docs, make lock, make clean
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# each worker computes on one thread, so that results don't depend on the machine
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM := false
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# where it is set, each of the hundreds of processes of the tests compiles torch and transformers anew
unexport PYTHONDONTWRITEBYTECODE

.PHONY: vllm-env vllm-families test-clients test-harness test-deepspeed test-liger test-trackers families parity test-faults test-containers images demo test lint format docs lock clean

# the stamp is newer than the lock file when the environment is what the lock file says
$(VENV)/stamp: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

demo: $(VENV)/stamp
	$(BIN)/python examples/demo.py

test: lint
	$(BIN)/python -m pytest -n 2 --no-loadscope-reorder \
	  -m "not real_model and not faults and not slow and not containers and not clients"

# minutes each: a cluster that shrinks and grows, a sweep, the page, several launchers, a run killed 25 times
test-faults: $(VENV)/stamp
	$(BIN)/python -m pytest -m "faults or slow"
	$(BIN)/python -m tests.faults.kills --kills 25 --output outputs/kills.json
	for way in colocated apart asynchronous; do \
	  $(BIN)/python -m tests.faults.kills_of_rollouts --way $$way --kills 9 \
	    --output outputs/kills_of_rollouts.json || exit; \
	done

# vLLM on a CPU in an environment of its own (AIFT_VLLM_ENV, else build/vllm-env), to test that engine
vllm-env:
	$(PYTHON) tests/serving/vllm_environment.py

# the architectures of that vLLM's registry, by which the engine is refused; then make families
vllm-families: $(VENV)/stamp
	$(BIN)/python -m tests.serving.vllm_architectures

# clients of other projects, unchanged, against a launched server; in AIFT_CLIENTS_ENV, else
# build/clients-env
test-clients: $(VENV)/stamp
	$(PYTHON) tests/clients/environment.py
	$(BIN)/python -m pytest -m clients

# lm-evaluation-harness on the same rows, in AIFT_HARNESS_ENV, else build/harness-env
test-harness: $(VENV)/stamp
	python=$$($(BIN)/python -m tests.evaluation.harness_environment) && $$python -m pytest tests/tasks \
	  tests/evaluation/test_harness_equality.py

# fused kernels in Triton's interpreter, in AIFT_LIGER_ENV, else build/liger-env
test-liger: $(VENV)/stamp
	python=$$($(BIN)/python -m tests.models.liger_environment) && \
	  TRITON_INTERPRET=1 $$python -m pytest tests/models/test_fused_kernels.py

# Weights & Biases, MLflow and Trackio offline, in AIFT_TRACKERS_ENV, else build/trackers-env
test-trackers: $(VENV)/stamp
	python=$$($(BIN)/python -m tests.engine.trackers_environment) && \
	  $$python -m pytest tests/engine/test_trackers.py tests/launch/test_tracked_runs.py

# what makes an image of a Dockerfile, and further arguments for it: BUILD="podman build --format docker"
BUILD ?= docker build
IMAGES ?= cpu cuda
images:
	for target in $(IMAGES); do \
	  $(BUILD) $(BUILD_OPTIONS) -f docker/Dockerfile --target $$target -t aift-ray:$$target \
	    --label org.opencontainers.image.version=$$(sed -n 's/^__version__ = "\(.*\)"/\1/p' aift_ray/__init__.py) \
	    --label org.opencontainers.image.revision=$$(git rev-parse HEAD) . || exit; \
	done

# ZeRO by DeepSpeed, in AIFT_DEEPSPEED_ENV, else build/deepspeed-env; its rows of the table too
test-deepspeed: $(VENV)/stamp
	python=$$($(BIN)/python -m tests.parallel.deepspeed_environment) && \
	  $$python -m pytest tests/parallel/test_deepspeed_zero.py tests/parallel/test_deepspeed_runs.py \
	    tests/test_private_interfaces.py && $$python -m tests.parity deepspeed

# a cluster of containers of the image aift-ray:cpu (or of AIFT_IMAGE)
test-containers: $(VENV)/stamp
	$(BIN)/python -m pytest -m containers

# each strategy and method against a single process; rewrites the table in docs/strategies.md
parity: $(VENV)/stamp
	$(BIN)/python -m tests.parity

# each architecture of transformers against its eager forward; rewrites the tables of models
families: $(VENV)/stamp
	$(BIN)/python -m tests.families

lint: $(VENV)/stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# the site, under build/site; a broken link is an error
docs: $(VENV)/stamp
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable ".[docs]"
	$(BIN)/mkdocs build --strict

# resolves pyproject.toml anew in an environment of its own
lock:
	rm -rf build/lock && $(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet torch==2.13.0
	build/lock/bin/python -m pip install --quiet ".[dev]"
	(echo "# made by 'make lock'"; build/lock/bin/python -m pip freeze --all --exclude aift-ray --exclude pip \
	  | sed -E 's/^(torch==[0-9.]+)\+.*/\1/' | grep -v ' @ ') > requirements.lock
	build/lock/bin/python -m pip install --quiet -c requirements.lock ".[deepspeed]"
	(echo "# what the extra deepspeed adds to requirements.lock; install it with --no-deps after that"; \
	  build/lock/bin/python -m pip freeze --all --exclude aift-ray --exclude pip | sed -E 's/\+cpu$$//' \
	  | grep -v ' @ ' | grep -vxFf requirements.lock) > requirements-deepspeed.lock
	rm -rf build/lock && $(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet torch==2.13.0
	build/lock/bin/python -m pip install --quiet ".[vllm,liger]"
	(echo "# the set of packages with the extras vllm and liger, some in older versions: pip install -c this file"; \
	  build/lock/bin/python -m pip freeze --all --exclude aift-ray --exclude pip --exclude torch \
	  | grep -vE ' @ |^(triton|cuda-|nvidia-(cuda|nvvm))') > requirements-vllm.lock
	rm -rf build/lock

clean:
	rm -rf $(VENV) build dist outputs *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
