# Development commands. Each works from a bare clone.
PYTHON := $(or $(VENV_DIR),.venv)/bin/python
# uv's own certificates lack a private CA.
COMPILE = UV_NATIVE_TLS=true $(PYTHON) -m uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --extra build

.PHONY: help
help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

.PHONY: environment
environment:
	@bash -c 'set -euo pipefail; . scripts/environment.sh; make_environment requirements-dev.txt'

.PHONY: demo
demo:  ## one map through the whole service on this machine, into demo-output/
	./start_worker.sh --demo

.PHONY: test
test:  ## all tests
	./run_tests.sh

.PHONY: check
check: environment  ## lint, format, types, import layers
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	PYTHONPATH=typings $(dir $(PYTHON))lint-imports

.PHONY: format
format: environment  ## apply ruff's fixes
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

.PHONY: bench-render
bench-render: environment  ## rendering against GDAL's tools (needs gdal-bin)
	$(PYTHON) benchmarks/bench_render.py --large

.PHONY: contact-sheet
contact-sheet: environment  ## thumbnails of all GeoTIFFs in FOLDER=…, into contact-sheet/
	$(PYTHON) scripts/contact_sheet.py $(FOLDER) -o contact-sheet

.PHONY: bench-queue
bench-queue: environment  ## the queue against Procrastinate, and its other bars (needs wrk)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-bench.txt
	$(PYTHON) benchmarks/bench_queue.py

.PHONY: bench-schedules
bench-schedules: environment  ## two schedulers, killed at random, fire 2,000 moments exactly once
	$(PYTHON) benchmarks/bench_schedules.py

.PHONY: bench-limits
bench-limits: environment  ## limits, hung jobs, fair share, long queues and schedules, each beside its bar
	$(PYTHON) benchmarks/bench_limits.py

.PHONY: bench-storm
bench-storm: environment  ## p99 of a caller beside another with 300,000 jobs at its rate limit. The bar is five times the quiet p99
	$(PYTHON) benchmarks/bench_storm.py

.PHONY: bench-black-hole
bench-black-hole: environment  ## one worker of four with each kind of trouble: attempts that it spends, pace of the others
	$(PYTHON) benchmarks/bench_black_hole.py

.PHONY: chaos
chaos: environment  ## 2,000 jobs during faults. SEED=n repeats a run, JOBS=n shortens it, FAULTS=a,b selects
	$(PYTHON) -m tests.chaos.storm $(if $(SEED),--seed $(SEED)) $(if $(JOBS),--jobs $(JOBS)) $(if $(FAULTS),--faults $(FAULTS))

.PHONY: conformance
conformance: export KIT_MAKE_JOB = $(value MAKE_JOB)
conformance: export KIT_CANCEL_JOB = $(value CANCEL_JOB)
conformance: environment  ## check a server against docs/PROTOCOL.md: API_BASE_URL=… WORKER_AUTH_TOKEN=… MAKE_JOB='…' or JWT=…
	@$(PYTHON) -m tests.contract.conformance --api "$(API_BASE_URL)" --worker-token "$(WORKER_AUTH_TOKEN)" \
	  --jwt "$(JWT)" --make-job "$$KIT_MAKE_JOB" --cancel-job "$$KIT_CANCEL_JOB"

.PHONY: bench-small-jobs
bench-small-jobs: environment  ## CPU, pace and latency of small jobs through the whole stack. AGAINST=REF compares with a commit
	$(PYTHON) benchmarks/bench_small_jobs.py $(if $(AGAINST),--against $(AGAINST))

.PHONY: bench-layers
bench-layers: environment  ## cost of the layers around a file
	$(PYTHON) benchmarks/bench_layers.py

# Not by -m, since each child would then import the module again as __main__.
.PHONY: fuzz
fuzz: environment  ## mutated TIFFs through walker and child. SEED=n, COUNT=n, START=n choose them
	$(PYTHON) -c 'import sys; from tests.support.fuzz import main; sys.exit(main())' \
	  --seed $(or $(SEED),1) --start $(or $(START),0) --count $(or $(COUNT),20000) $(FUZZ_OPTIONS)

.PHONY: schemathesis
schemathesis: environment  ## requests generated from our OpenAPI document, all checks. SEED=n
	$(PYTHON) -m tests.support.openapi --seed $(or $(SEED),1)

.PHONY: audit
audit: environment  ## known weaknesses (from the registry) and hashes of the pins, and sbom.json (CycloneDX)
	$(PYTHON) scripts/audit.py

.PHONY: schemas
schemas: environment  ## write the payload schemas of the built-in task types for the API
	$(PYTHON) scripts/payload_schemas.py

.PHONY: settings
settings: environment  ## write docs/SETTINGS.md and .env.example from the settings of both programs
	$(PYTHON) scripts/settings_tables.py

.PHONY: wheel
wheel: environment  ## build the wheel into dist/
	$(PYTHON) -m build --wheel --no-isolation

.PHONY: lock
lock: environment  ## compile requirements*.txt from pyproject.toml
	$(COMPILE) --extra local pyproject.toml -o requirements.txt
	$(COMPILE) --extra worker --constraint requirements.txt pyproject.toml -o requirements-worker.txt
	$(COMPILE) --extra api --constraint requirements.txt pyproject.toml -o requirements-api.txt
	$(COMPILE) --extra dev pyproject.toml -o requirements-dev.txt
	$(COMPILE) --extra bench --constraint requirements-dev.txt pyproject.toml -o requirements-bench.txt
