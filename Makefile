# Targets that need Python packages create .venv first (tools/setup_env.py), which takes half a second if it exists.
# PYTHON=/path/to/python3.12 selects the Python, DEMO=small the size of the demo. ARGS='-k nms' goes to pytest, which runs
# JOBS=2 files in parallel (0: all in one process).

.DEFAULT_GOAL := help
.PHONY: help setup doctor demo test test-fast parity rehearsal bench lint format lock clean
RUN := .venv/bin/python
JOBS := 2
# Tests start a hundred processes. Without bytecode files each would compile the packages again, for 1.5 s.
PYTEST := env -u PYTHONDONTWRITEBYTECODE $(RUN) -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

help: ## list the targets
	@echo 'Targets:'
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' Makefile | expand -t 20

setup: ## install everything into .venv, or repair it
	@command -v '$(or $(PYTHON),python3)' > /dev/null || { echo 'setup: $(or $(PYTHON),python3) is not found.' \
		'Install Python 3.10, 3.11 or 3.12 (Debian: sudo apt-get install python3 python3-venv),' \
		'or name one: make setup PYTHON=/path/to/python3.12' >&2; exit 1; }; \
	'$(or $(PYTHON),python3)' tools/setup_env.py

demo: setup ## pretrain, evaluate and compare on images from installed packages (DEMO=small: shorter); resumes after a stop
	$(RUN) tools/suite.py suites/demo.yaml $(if $(DEMO),--size $(DEMO)) --out work_dirs/demo$(if $(DEMO),_$(DEMO)) $(ARGS)

doctor: ## diagnose the installation and the machine
	@$(if $(wildcard $(RUN)),$(RUN),python3) tools/doctor.py

# GPU tests run first, in one process. The CPU tests run last, because CI reads the last line of pytest.
test: setup ## run all tests (tests/gpu only with a GPU)
	$(if $(ARGS),,@if nvidia-smi -L > /dev/null 2>&1; then $(RUN) -m pytest tests/gpu; fi)
	$(PYTEST) $(ARGS)

test-fast: setup ## run the tests that take seconds
	$(PYTEST) -m 'not slow' $(ARGS)

parity: setup ## compare with numbers of the authors' release (ARGS=--compile: compiled, takes minutes)
	$(RUN) tools/parity.py tests/golden/*.npz $(ARGS)

rehearsal: setup ## run all that benchmarks/gpu.py does on a GPU once on the CPU, at toy size (takes minutes)
	out=$$(mktemp -d) && $(RUN) benchmarks/gpu.py --rehearse --budget 1800 --out "$$out" && rm -rf "$$out"

bench: setup ## measure the speed of this machine and update benchmarks/results and the tables (ARGS='--part step')
	$(RUN) benchmarks/all.py $(ARGS)

lint: setup ## check code and format (ruff), imports between folders (import-linter), types (mypy) and spelling (codespell)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check -q .
	.venv/bin/lint-imports --no-logo
	$(RUN) -m mypy
	$(RUN) -m codespell_lib

format: setup ## format the code and apply ruff's automatic fixes
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

# --universal: one file for all supported Pythons and machines; sed drops conditions that always or never hold.
lock: setup ## update requirements.lock from pyproject.toml (UPGRADE=1: to the newest versions)
	@set -e; tmp=$$(mktemp -d); trap 'rm -rf "$$tmp"' EXIT; \
	$(if $(UPGRADE),,cp requirements.lock "$$tmp/lock";) \
	$(RUN) -m uv pip compile -q --universal --python-version 3.10 --extra dev --no-python-downloads \
		--no-header --no-annotate --no-emit-index-url --no-emit-find-links pyproject.toml -o "$$tmp/lock"; \
	sed -E -e "/sys_platform == '(never|emscripten)'/d" -e "s/python_full_version < '3.13' and //" \
		-e "s/ (and|;) (python_full_version < '3.13'|sys_platform != 'emscripten'|platform_python_implementation != 'PyPy')//" \
		"$$tmp/lock" > requirements.lock

clean: ## remove .venv, caches and the demo's results
	rm -rf .venv .venv.lock .nox build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache work_dirs/demo*
	find . -name __pycache__ -prune -exec rm -rf {} +
