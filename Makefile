# If .venv is missing or older than the files that define it, every target sets it up first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
export MLFLOW_DISABLE_TELEMETRY := true
export DVC_NO_ANALYTICS := true
export WANDB_ERROR_REPORTING := false
# uv does not read pip's variable, and that list of wheel folders may hold the CPU build of torch.
ifdef PIP_FIND_LINKS
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
endif

.PHONY: repro report lock test test-pipelines test-s3 test-faults test-slurm test-slurm-long test-containers test-browser test-long lint audit format type docs docs-check doctor ui setup constraints constraints-gpu clean help

help: ## what each target does
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

setup: $(VENV)/.ready .dvc/plots/offline.html ## make .venv and the offline page that `dvc plots show` fills

repro: setup ## run the whole recipe that params.yaml names, and say where to look next
	azneobert recipe check
	dvc repro
	azneobert runs deliver
	azneobert registry restore
	azneobert next

lock: setup ## bring dvc.lock, which is in git, up to date: what `make repro` makes of the sample; commit first
	azneobert recipe use sample
	rm -f dvc.lock
	dvc repro

report: setup ## what the change since BASE does to the numbers: report/report.md
	python .github/report.py "$(or $(BASE),origin/main)"

# `make test` leaves out the tests that have their own targets.
LIBRARY = --ignore tests/pipelines --ignore tests/faults --ignore tests/slurm --ignore tests/containers --ignore tests/browser

test: setup ## run the tests
	python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not long" $(LIBRARY)

test-pipelines: setup ## whole projects at toy size, by the commands that a user types
	python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not s3" tests/pipelines

test-s3: setup ## hand a project over through an S3-compatible server on this machine
	python -m pytest -m s3 tests/pipelines

test-faults: setup ## real faults: killed and stopped processes, flipped bytes, full disks, hostile files
	python -m pytest -n 2 --dist loadfile tests/faults

test-slurm: setup ## phases as jobs of a real SLURM, which is started here for the tests
	python -m pytest -m "not long" tests/slurm

test-slurm-long: setup ## the same with every case
	python -m pytest tests/slurm

test-containers: setup ## the CPU image, which is built once, and jobs whose ranks run in it
	python -m pytest tests/containers

test-long: setup ## those of the library that take long: trainings that are compared, whole commands, kills at any moment, MLflow's server with a password
	python -m pytest -n 2 --dist loadfile -m long $(LIBRARY)

test-browser: setup ## MLflow's pages in a headless Chromium, where one is installed
	python -m pytest tests/browser

lint: setup ## format check, lint, types
	ruff format --check .
	ruff check .
	mypy

# If no index has data on a package, pip-audit says so and still succeeds. That must not look like a clean result.
audit: setup ## known vulnerabilities of what constraints.txt pins, where their data can be had
	@$(BIN)/python -m pip_audit --version >/dev/null 2>&1 \
	  || { echo "audit: skipped: pip-audit is not installed; use pip install pip-audit"; exit 0; }; \
	said=$$($(BIN)/python -m pip_audit -r constraints.txt --no-deps --disable-pip --progress-spinner off 2>&1); found=$$?; \
	if [ "$$(echo "$$said" | grep -c 'could not be audited')" -ge "$$(grep -c == constraints.txt)" ]; then \
	  echo "audit: skipped: the index here has no data on vulnerabilities; use a machine that reaches pypi.org"; \
	else echo "$$said"; exit $$found; fi

format: setup ## rewrite the code in the one format
	ruff format .
	ruff check --fix .

docs: setup ## the documentation as a site, in site/
	NO_MKDOCS_2_WARNING=true mkdocs build --strict --quiet

docs-check: setup ## every link and every command of the documentation
	python -m pytest tests/pipelines/test_readme.py

doctor: setup ## what this machine can do, and what is in the way
	azneobert doctor

ui: setup ## MLflow's page of the runs: prints its address
	azneobert ui

# For 3.11.0 on, since Debian 12 has 3.11.2 and newer releases of some packages ask for more.
constraints: setup ## pin what pyproject.toml needs; what is pinned stays where it can (`UPGRADE=--upgrade` moves it)
	sed 's/^torch==.*/torch==2.13.0+cpu/' constraints.txt > constraints.new  # or the CUDA build is taken, 2.9 GB
	echo "torch==2.13.0" | uv pip compile --quiet --python-version 3.11 $(UPGRADE) \
	  --extra dev --extra docs --extra wandb --extra s3 --extra ssh --no-annotate --no-header \
	  --output-file constraints.new pyproject.toml -
	sed 's/+cpu$$//' constraints.new > constraints.txt
	rm constraints.new

# torch in the version measured on GPUs (docs/containers.md), setuptools as torch needs it, the rest by constraints.txt.
constraints-gpu: setup ## pin what the image for GPUs is made of, by constraints.txt but for torch and what is for GPUs alone
	sed 's/^torch==.*/torch==2.11.0/; /^setuptools==/d' constraints.txt > constraints.new
	UV_FIND_LINKS= uv pip compile --quiet --python-version 3.11 --python-platform x86_64-manylinux_2_35 $(UPGRADE) \
	  --extra gpu --extra wandb --extra s3 --extra ssh --no-annotate --no-header --constraints constraints.new \
	  --output-file constraints-gpu.txt pyproject.toml
	rm constraints.new

clean: ## remove everything that a run makes, the DVC cache and the environment left alone
	rm -rf outputs mlruns mlflow.db* dvc_plots wandb report

# uv resolves and installs in seconds. Without uv, plain pip does the same in minutes.
$(VENV)/.ready: pyproject.toml constraints.txt
	@echo "setting up $(VENV)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv || echo "uv cannot be had here: using pip"
	@if test -x $(BIN)/uv; then \
	  $(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -c constraints.txt -e '.[dev,docs,wandb,s3]'; \
	else \
	  $(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,docs,wandb,s3]'; \
	fi
	@touch $@

.dvc/plots/offline.html: $(VENV)/.ready pipelines/offline_plots.py
	@python pipelines/offline_plots.py $@
