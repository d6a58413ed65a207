# Every target that needs Python packages makes .venv first (tools/setup_env.py); later that takes half a second.
# PYTHON=/path/to/python3.12 chooses the Python, DEMO=small the size of the demo, ARGS='-k nms' goes to pytest, which runs
# JOBS=2 files side by side (0: one after the other, in one process).

.DEFAULT_GOAL := help
.PHONY: help setup doctor demo test test-fast parity bench lint format lock clean
RUN := .venv/bin/python
JOBS := 2
PYTEST := $(RUN) -m pytest -n $(JOBS) --dist loadfile

help: ## list the targets
	@echo 'Targets:'
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' Makefile | expand -t 20

setup: ## install everything into .venv, or repair it
	@command -v '$(or $(PYTHON),python3)' > /dev/null || { echo 'setup: $(or $(PYTHON),python3) is not found.' \
		'Install Python 3.10, 3.11 or 3.12 (Debian: sudo apt-get install python3 python3-venv),' \
		'or name one: make setup PYTHON=/path/to/python3.12' >&2; exit 1; }; \
	'$(or $(PYTHON),python3)' tools/setup_env.py

demo: setup ## pretrain, judge and compare on images that the wheels carry (DEMO=small: shorter; goes on where it was stopped)
	$(RUN) tools/suite.py suites/demo.yaml $(if $(DEMO),--size $(DEMO)) --out work_dirs/demo$(if $(DEMO),_$(DEMO)) $(ARGS)

doctor: ## say what is wrong with the installation or the machine
	@$(if $(wildcard $(RUN)),$(RUN),python3) tools/doctor.py

# Tests of a GPU come first, in one process. The others are for a CPU, and pytest's last line, which CI reads, is theirs.
test: setup ## run all tests, those of tests/gpu only where there is a GPU
	$(if $(ARGS),,@if nvidia-smi -L > /dev/null 2>&1; then $(RUN) -m pytest tests/gpu; fi)
	$(PYTEST) $(ARGS)

test-fast: setup ## run the tests that take seconds
	$(PYTEST) -m 'not slow' $(ARGS)

parity: setup ## compare with the numbers of the authors' release (ARGS=--compile: compiled, some minutes)
	$(RUN) tools/parity.py tests/golden/*.npz $(ARGS)

bench: setup ## measure this machine's speed; writes benchmarks/results and the tables (ARGS='--part step')
	$(RUN) benchmarks/all.py $(ARGS)

lint: setup ## check code and format (ruff), imports between folders (import-linter), types (mypy) and spelling (codespell)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check -q .
	.venv/bin/lint-imports --no-logo
	$(RUN) -m mypy
	$(RUN) -m codespell_lib

format: setup ## format the code, and fix what ruff can fix by itself
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

# --universal: one file for all supported Pythons and machines; sed drops what is true for all of them, or for none.
lock: setup ## make requirements.lock again from pyproject.toml (UPGRADE=1: with the newest versions)
	@set -e; tmp=$$(mktemp -d); trap 'rm -rf "$$tmp"' EXIT; \
	$(if $(UPGRADE),,cp requirements.lock "$$tmp/lock";) \
	$(RUN) -m uv pip compile -q --universal --python-version 3.10 --extra dev --no-python-downloads \
		--no-header --no-annotate --no-emit-index-url --no-emit-find-links pyproject.toml -o "$$tmp/lock"; \
	sed -E -e "/sys_platform == '(never|emscripten)'/d" -e "s/python_full_version < '3.13' and //" \
		-e "s/ (and|;) (python_full_version < '3.13'|sys_platform != 'emscripten'|platform_python_implementation != 'PyPy')//" \
		"$$tmp/lock" > requirements.lock

clean: ## remove .venv, caches and the demo's results
	rm -rf .venv .venv.lock .nox build *.egg-info .pytest_cache .ruff_cache .mypy_cache work_dirs/demo*
	find . -name __pycache__ -prune -exec rm -rf {} +
