# Framebox. `make help` lists what there is. Every target sets up what it needs first: see deploy/prepare.sh.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
PY := .venv/bin/python
PYTEST_ARGS ?=
TEST_WORKERS ?= $(shell n=$$(( 2 * $$(nproc) )); echo $$(( n < 8 ? n : 8 )))
BENCHMARK_ARGS ?=
ADDRESS ?=
LOCK_ARGS ?=
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

.PHONY: serve
serve: ready-to-serve ## Run the service on port 8080 (FRAMEBOX_PORT), data in var/ (FRAMEBOX_DATA); Ctrl-C stops it
	@exec $(PY) -m app serve

.PHONY: test
test: check lint-deploy pytest ## Everything that CI runs

.PHONY: check
check: ready-to-test ## Lint, format, types and unfinished merges
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	! git grep -nE '^(<{7}|>{7}) ' # marks of an unfinished merge

.PHONY: lint-deploy
lint-deploy: ready-to-test ## Check the Dockerfile, the compose files and the shell scripts
	.venv/bin/hadolint Dockerfile
	$(PY) -m check_jsonschema --builtin-schema vendor.compose-spec docker-compose.yml
	.venv/bin/shellcheck deploy/*.sh tests/e2e/*.sh .ci/run

.PHONY: pytest
pytest: ready-to-test ## The tests alone; PYTEST_ARGS="-k upload tests/unit" chooses some
	$(PY) -m pytest -n $(TEST_WORKERS) --durations 25 --junit-xml build/tests.xml $(PYTEST_ARGS)

.PHONY: benchmark
benchmark: ready-to-test ## Measure a whole job against ffmpeg's own decoding; BENCHMARK_ARGS="--seconds 60"
	$(PY) -m benchmarks job $(BENCHMARK_ARGS)

# Each in an environment of its own: no exporter is a dependency of the service. TORCH_CPU_INDEX has torchvision.
EXPORTS ?= build/exports
EXPORTERS ?= build/exporters
.PHONY: exports
exports: ready-to-test ## Make models with the exporters themselves, and their own boxes, in EXPORTS; half an hour
	for name in exporters optimum; do \
		folder="$(EXPORTERS)/$$name"; \
		[ -e "$$folder/installed" ] || { python3 -m venv "$$folder" && "$$folder/bin/pip" install --quiet \
			--extra-index-url $(TORCH_CPU_INDEX) -r benchmarks/exporters/requirements-$$name.txt && \
			touch "$$folder/installed"; }; \
	done
	for name in ultralytics signature torchvision rfdetr authors; do \
		"$(EXPORTERS)/exporters/bin/python" -m benchmarks.exporters "$(EXPORTS)" $$name; \
	done
	"$(EXPORTERS)/optimum/bin/python" -m benchmarks.exporters "$(EXPORTS)" optimum
	$(PY) -m benchmarks.exporters "$(EXPORTS)" huggingface

.PHONY: proof-100gb
proof-100gb: ready-to-test ## Post a valid video of 100 GB to an instance within 4 GiB; as root, a quarter of an hour
	$(PY) -m benchmarks large_upload $(BENCHMARK_ARGS)

.PHONY: fix
fix: ready-to-test ## Let ruff mend and format what it can
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

.PHONY: docs
docs: ready-to-test ## Write docs/settings.md anew; the README's examples too: ADDRESS=http://localhost:8080
	$(PY) docs/make_settings.py
	$(if $(ADDRESS),$(PY) docs/make_examples.py "$(ADDRESS)")

.PHONY: notices
notices: ready-to-test ## Write THIRD_PARTY_NOTICES.md anew, from what is installed
	$(PY) docs/make_notices.py

# A lock pins the whole tree of its *.in file, with the hashes of all platforms. uv keeps the versions that are in the
# lock already; LOCK_ARGS="--upgrade" or LOCK_ARGS="--upgrade-package NAME" takes newer ones.
LOCK := .venv/bin/uv pip compile --quiet --system-certs --universal --python-version 3.11 --fork-strategy fewest \
	--generate-hashes --annotation-style line --custom-compile-command "make requirements"
# Only requirements-torch-cuda.txt names what torch needs for CUDA; this finds it there.
NO_CUDA := sed -En 's/^((torch|triton|cuda-|nvidia-)[a-z0-9-]*)==.*/--no-emit-package \1/p' requirements-torch-cuda.txt

.PHONY: requirements
requirements: ready-to-test ## Write the locks (requirements*.txt) anew from requirements*.in; LOCK_ARGS="--upgrade"
	$(LOCK) $(LOCK_ARGS) requirements-torch.in --output-file requirements-torch-cuda.txt
	$(LOCK) $(LOCK_ARGS) requirements.in requirements-torch.in --constraint requirements-torch-cuda.txt \
		$$($(NO_CUDA)) --output-file requirements.txt
	$(LOCK) $(LOCK_ARGS) requirements-onnx-gpu.in --constraint requirements.txt \
		--output-file requirements-onnx-gpu.txt
	$(LOCK) $(LOCK_ARGS) requirements-huggingface.in --constraint requirements.txt \
		--output-file requirements-huggingface.txt
	$(LOCK) $(LOCK_ARGS) requirements-dev.in --constraint requirements.txt \
		--constraint requirements-huggingface.txt --output-file requirements-dev.txt
	@grep -q "^$$(grep ^torch== requirements-torch.in)+cpu " requirements-torch-cpu.txt || $(MAKE) torch-cpu

# Apart from the others, because PyTorch's index is asked: only the lock of another version of torch needs it.
.PHONY: torch-cpu
torch-cpu: ready-to-test ## Write requirements-torch-cpu.txt anew, from PyTorch's own index (TORCH_CPU_INDEX)
	{ echo "--extra-index-url $(TORCH_CPU_INDEX)"; \
		grep ^torch== requirements-torch.in | sed 's/$$/+cpu/' | $(LOCK) --no-deps --index $(TORCH_CPU_INDEX) -; \
	} > .venv/torch-cpu.txt
	mv .venv/torch-cpu.txt requirements-torch-cpu.txt

.PHONY: clean
clean: ## Remove the environment and all caches; the data folder stays
	rm -rf .venv build .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: ready-to-serve ready-to-test
ready-to-serve:
	@deploy/prepare.sh serve
ready-to-test:
	@deploy/prepare.sh test
