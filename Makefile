# For a fresh machine with Python 3.11, a C++ compiler and make:
#   make demo   environment, small cohort, stand-in encoder, cache, LoRA training with DeepSpeed on the CPU, evaluation, HTML report
#   make check  the same environment; lint, types and the tests that take no processes and little time: a minute
#   make test   lint, types and all tests: some minutes
#   make test-faults   thousands of faults injected into the commands: half an hour
#   make audit  hashes of the lock, licences, known vulnerabilities; make release: wheel and SBOM in dist/
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
AUDIT := $(VENV)/.audit
# what is installed beside the packages themselves; empty for a minimal installation
EXTRAS ?= [dev]
# processes that run tests, with one thread each
WORKERS ?= 2
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup --no-loadscope-reorder
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: help install demo test test-faults check lint format lock audit sbom release clean

help:
	@sed -n '2,6p' Makefile | sed 's/^# *//'

install: $(INSTALLED)

$(INSTALLED): pyproject.toml configs/constraints.txt
	@echo "== environment: $(VENV)"
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, found " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c configs/constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c configs/constraints.txt -e '.$(EXTRAS)'
	@touch $(INSTALLED)

demo: $(INSTALLED)
	@echo "== 1/6 a small synthetic cohort: 60 patients, 120 rows each"
	@mkdir -p demo
	$(BIN)/python -m jobs.make_cohort --out demo/cohort.parquet --noise-free demo/oracle.parquet --rows-per-patient 120
	@echo "== 2/6 a stand-in encoder of polyBERT's architecture (random weights)"
	$(BIN)/python -m jobs.make_encoder --out demo/encoder --size polybert
	@echo "== 3/6 the cache: every distinct string encoded once"
	$(BIN)/python -m jobs.build_cache --config configs/quickstart.yaml --overwrite
	@echo "== 4/6 LoRA and fusion network, trained with DeepSpeed on the CPU"
	DS_ACCELERATOR=cpu $(BIN)/deepspeed --num_accelerators 1 jobs/train.py --config configs/quickstart.yaml --overwrite
	@echo "== 5/6 evaluation on patients that training never saw, beside the noise-free oracle"
	$(BIN)/python -m jobs.evaluate_model --run demo/run --oracle demo/oracle.parquet
	@echo "== 6/6 done: open demo/run/report.html"

# everything, with the shapes of all signatures checked
test: lint
	$(PYTEST)

# thousands of faults injected into the commands, with counts: benchmarks/results/faults.md
test-faults: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks faults

# what a change should pass before each commit
check: lint
	$(PYTEST) -m "not slow and not dist" --jaxtyping-packages=

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# what a user installs, each file by its hash on PyPI: pip install --require-hashes -r configs/lock.txt
lock: $(AUDIT)
	$(BIN)/uv pip compile --universal --python-version 3.11 --no-config --default-index https://pypi.org/simple \
	    --generate-hashes --no-emit-index-url --no-header --quiet -c configs/constraints.txt \
	    --extra gpu --extra cohort -o configs/lock.txt pyproject.toml

# hashes, licences, known vulnerabilities; "Error 3" where the advisory database is out of reach
audit: $(AUDIT)
	$(BIN)/python -m jobs.audit

sbom: $(AUDIT)
	@mkdir -p dist
	$(BIN)/cyclonedx-py requirements --pyproject pyproject.toml --mc-type library --output-reproducible \
	    --output-format JSON --output-file dist/sbom.cdx.json configs/lock.txt

# the wheel and its bill of materials, in dist/
release: lint sbom
	$(BIN)/pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .

$(AUDIT): $(INSTALLED)
	$(BIN)/pip install --quiet --disable-pip-version-check -c configs/constraints.txt -e '.[audit]'
	@touch $(AUDIT)

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf demo runs build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
