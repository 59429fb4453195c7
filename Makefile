# Everything a checkout needs, one command each; `make help` lists them.
# All set-up is included: the first command that needs the environment makes it.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# Where Python may not keep what it compiles, each process compiles Beam, JAX and Prefect anew: twice the CPU.
unexport PYTHONDONTWRITEBYTECODE
.PHONY: help demo flink infra test lint types layers check lock peers setup clean kills bench-memory bench-calls mutants storm simulate chaos tpu plans pictures bench-ui image simulate-scale price-billion bench-scale bench-workers bench-plan bench-resume

BIN := .venv/bin
INSTALLED := .venv/.installed
PEERS := build/peers/.installed
TPU := build/tpu/.installed
AIMOCK := build/peers/node_modules/@copilotkit/aimock
FAKE_GCS := build/peers/.fake-gcs-server
FAKE_GCS_VERSION := v1.56.1
COMPOSE := build/peers/.compose-spec
COMPOSE_VERSION := v2.16.2
TERRAFORM := build/peers/.terraform
TERRAFORM_VERSION := v1.5.7
SCHEMAS := build/peers/schemas/.installed
LOCKS := infra/locks/requirements.txt infra/locks/uv.txt
# Test processes: as many as there are cores, at most 4; a file's tests stay together.
WORKERS ?= $(shell $(BIN)/python -c 'import os; print(min(4, len(os.sched_getaffinity(0))))' 2>/dev/null || echo 2)
# More for pytest, for example: make test ARGS="-k ledger"
ARGS ?=
SEEDS ?= 1000000

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile

demo: $(INSTALLED) ## set up, then run the main job on the installed packages' documentation
	@$(BIN)/switchgear demo

test: $(INSTALLED) peers ## set up, then run every test
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

simulate: $(INSTALLED) ## play SEEDS jobs (a million, hours) in the simulator, crashes and all
	@SWITCHGEAR_SEEDS=$(SEEDS) $(BIN)/python -m pytest -n $(WORKERS) tests/simulator $(ARGS)

lint: $(INSTALLED) ## ruff: rules and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(INSTALLED) ## mypy, strict
	@$(BIN)/mypy

layers: $(INSTALLED) ## import-linter: imports point up the layers only
	@$(BIN)/lint-imports

check: lint types layers ## lint, types and layers

setup: $(INSTALLED) ## make .venv from the lock

$(INSTALLED): $(LOCKS) pyproject.toml
	@PYTHON="$(PYTHON)" sh infra/locks/install.sh

flink: $(INSTALLED) ## bring Beam's Flink job server and a Flink for the tests (needs Java 17 and Maven)
	@$(BIN)/python infra/flink/install.py --cluster

peers: $(FAKE_GCS) $(COMPOSE) ## install the peers of the tests (needs npm and Go; tests without their peer are skipped)
	@if [ "$(AIMOCK)/package.json" -nt infra/locks/npm/package-lock.json ]; then :; \
	elif ! command -v npm >/dev/null 2>&1; then \
	  echo "peers: npm is missing, so tests against the mock vendor will be skipped (install Node.js 20 or newer)"; \
	else \
	  echo "peers: installing the mock vendor (npm, a few seconds)"; \
	  mkdir -p build/peers && cp infra/locks/npm/package.json infra/locks/npm/package-lock.json build/peers/ && \
	  npm ci --prefix build/peers --no-audit --no-fund --loglevel=error --fetch-retries=1 --fetch-timeout=60000 </dev/null \
	  && touch "$(AIMOCK)/package.json" \
	  || echo "peers: npm could not install it, so tests against the mock vendor will be skipped"; \
	fi

# Without cgo: its probes write to /dev/null by name, which as root can take it away.
$(FAKE_GCS): ; @if ! command -v go >/dev/null 2>&1; then \
	  echo "peers: Go is missing, so Cloud Storage is tested with one stand-in only (install Go 1.26 or newer)"; \
	else \
	  echo "peers: building fake-gcs-server (Go, up to a minute)"; mkdir -p build/peers/bin && \
	  CGO_ENABLED=0 GOBIN="$(CURDIR)/build/peers/bin" timeout 180 go install \
	    github.com/fsouza/fake-gcs-server@$(FAKE_GCS_VERSION) >build/peers/go.log 2>&1 </dev/null \
	  && touch $@ || echo "peers: Go could not build it (build/peers/go.log), so one stand-in is left"; \
	fi

# The Compose project's own loader, to check infra/operate/compose.yaml where there is no `docker compose`.
$(COMPOSE): ; @if command -v go >/dev/null 2>&1; then \
	  mkdir -p build/peers/compose build/peers/bin && \
	  CGO_ENABLED=0 GOBIN="$(CURDIR)/build/peers/compose" timeout 180 go install \
	    github.com/compose-spec/compose-go/v2/cmd@$(COMPOSE_VERSION) >build/peers/compose.log 2>&1 </dev/null \
	  && mv build/peers/compose/cmd build/peers/bin/compose-spec && touch $@ \
	  || echo "peers: Go could not build the loader of compose files (build/peers/compose.log)"; \
	fi

infra: $(SCHEMAS) $(TERRAFORM) ## bring Terraform and the schemas that the files of infra/ are held to (three minutes; needs Go)

# The last version that can be built from its Go module alone (later ones replace modules by folders).
$(TERRAFORM): ; @mkdir -p build/peers/bin; if command -v terraform >/dev/null 2>&1 || command -v tofu >/dev/null 2>&1; then \
	  touch $@; \
	elif ! command -v go >/dev/null 2>&1; then \
	  echo "infra: Go is missing, so no file goes through Terraform (install Terraform, OpenTofu or Go)"; exit 1; \
	else \
	  echo "infra: building Terraform (Go, up to three CPU minutes)"; \
	  CGO_ENABLED=0 GOBIN="$(CURDIR)/build/peers/bin" timeout 600 go install \
	    github.com/hashicorp/terraform@$(TERRAFORM_VERSION) >build/peers/terraform.log 2>&1 </dev/null && touch $@; \
	fi

# Both are data for two tests: 16,000 files that no environment has to carry.
$(SCHEMAS): infra/locks/schemas.txt | $(INSTALLED)
	@echo "infra: installing the schemas of the Google provider and of Kubernetes (75 MB to fetch)"
	@rm -rf build/peers/schemas
	@$(BIN)/python -m pip install --disable-pip-version-check --no-input --quiet --no-deps --require-hashes \
	  --no-compile --only-binary :all: --target build/peers/schemas -r infra/locks/schemas.txt </dev/null
	@touch $@

pictures: $(INSTALLED) peers ## make the pictures of the operators' page again, with a real browser
	@SWITCHGEAR_PICTURES=1 $(BIN)/python -m pytest tests/browser/test_operating.py $(ARGS)

bench-ui: $(INSTALLED) ## what Prefect adds to a run of 200 groups, and how fast its pages are (ARGS="--database postgresql")
	@$(BIN)/python -m tests.browser.bench_ui $(ARGS)

image: ## build the image of infra/operate with docker, podman or buildah (ARGS="--target worker -t switchgear-worker")
	@sh infra/operate/image.sh $(or $(ARGS),-t switchgear)

kills: $(INSTALLED) peers ## kill -9 a thousand small runs (JOBS=)
	@SWITCHGEAR_KILL_JOBS="$(or $(JOBS),1000)" $(BIN)/python -m pytest -n $(WORKERS) tests/e2e/test_light_kills.py $(ARGS)

mutants: $(INSTALLED) ## read 50,000 damaged Parquet files (a few minutes; COUNT=)
	@SWITCHGEAR_MUTANTS="$(or $(COUNT),50000)" $(BIN)/python -m pytest -n $(WORKERS) tests/hostile/test_mutants.py $(ARGS)

chaos: $(INSTALLED) $(FAKE_GCS) ## 200 small runs over Cloud Storage in bad weather (minutes; RUNS=)
	@SWITCHGEAR_CHAOS_SEEDS="$(or $(RUNS),200)" $(BIN)/python -m pytest -n $(WORKERS) --dist load tests/e2e/test_cloud_chaos.py $(ARGS)

storm: $(INSTALLED) ## 50,000 documents through a storm of faults, held to the provider's journal (ROWS=, SEED=)
	@$(BIN)/python -m tests.e2e.storm --rows $(or $(ROWS),50000) --seed $(or $(SEED),0)

simulate-scale: $(INSTALLED) ## simulate 1 to 2,000 workers and print what holds them back (minutes; ARGS="--jobs 2")
	@$(BIN)/python -m infra.bench.scale.simulate $(ARGS)

price-billion: $(INSTALLED) ## price and time of a billion documents, hosted and on TPUs (for these `make tpu` first)
	@$(BIN)/python -m infra.bench.scale.billion $(ARGS)

bench-memory: $(INSTALLED) ## peak memory over 100,000 and 1,000,000 documents (about 15 minutes; SIZES=)
	@$(BIN)/python infra/bench/memory.py

bench-scale: $(INSTALLED) ## wall, CPU, memory, store operations at 10 k to 10 M documents (hours; ARGS="--sizes 10000,100000")
	@$(BIN)/python -m infra.bench.scale.sizes $(ARGS)

bench-plan: $(INSTALLED) ## seconds, memory, store operations of planning 10 k to 1 M batches (minutes; ARGS="--sizes 10000")
	@$(BIN)/python -m infra.bench.scale.planning $(ARGS)

bench-resume: $(INSTALLED) ## seconds, memory, store operations of resuming and settling 10 k to 1 M batches (a minute or two)
	@$(BIN)/python -m infra.bench.scale.resume $(ARGS)

bench-workers: $(INSTALLED) ## what each further worker process adds (minutes; on a quiet machine)
	@$(BIN)/python -m infra.bench.scale.workers $(ARGS)

bench-embed: $(INSTALLED) ## race our embedder against its peers (first time: installs them; ARGS="--device gpu")
	@$(BIN)/python infra/bench/embed/race.py $(ARGS)

bench-calls: $(INSTALLED) ## the call engine beside what one would use instead (ARGS="--rows 2000 --rounds 1")
	@$(BIN)/python -m infra.bench.calls.bench $(ARGS)

lock: $(INSTALLED) ## compile the locks in infra/locks from pyproject.toml (UPGRADE=1: newest versions)
	@echo "lock: resolving, about ten seconds"
	@$(BIN)/python -m uv pip compile --quiet --python-version 3.11 --extra dev --extra model \
	  --generate-hashes --no-emit-index-url --no-annotate --no-header $(if $(UPGRADE),--upgrade) \
	  --output-file infra/locks/requirements.txt pyproject.toml >/dev/null
	@echo "lock: the same for the image of infra/operate: without the tests' packages, and what builds the wheel"
	@$(BIN)/python -m uv pip compile --quiet --python-version 3.11 --extra model --generate-hashes \
	  --no-emit-index-url --no-annotate --no-header --constraint infra/locks/requirements.txt \
	  --output-file infra/locks/runtime.txt pyproject.toml >/dev/null
	@echo hatchling | $(BIN)/python -m uv pip compile --quiet --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-annotate --no-header --constraint infra/locks/requirements.txt \
	  --output-file infra/locks/build.txt - >/dev/null
	@$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["tpu"], sep="\n")' \
	  | $(BIN)/python -m uv pip compile --quiet --no-deps --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --no-annotate --no-header $(if $(UPGRADE),--upgrade) \
	  --output-file infra/locks/tpu.txt - >/dev/null
	@$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["schemas"], sep="\n")' \
	  | $(BIN)/python -m uv pip compile --quiet --no-deps --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --no-annotate --no-header $(if $(UPGRADE),--upgrade) \
	  --output-file infra/locks/schemas.txt - >/dev/null

tpu: $(TPU) ## install the TPU's compiler into build/tpu, for `switchgear embed plan` (700 MB)

$(TPU): infra/locks/tpu.txt | $(INSTALLED)
	@echo "tpu: installing libtpu into build/tpu, checked by its hash (140 MB to fetch)"
	@rm -rf build/tpu
	@$(BIN)/python -m pip install --disable-pip-version-check --no-input --quiet --no-deps --require-hashes \
	  --only-binary :all: --target build/tpu -r infra/locks/tpu.txt </dev/null
	@touch $(TPU)

plans: $(INSTALLED) $(TPU) ## compile large models for TPUs that are not here (a few minutes)
	@SWITCHGEAR_LARGE_PLANS=1 $(BIN)/python -m pytest tests/transforms/embed/test_ahead.py $(ARGS)

clean: ## remove the environment and everything that was built
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
