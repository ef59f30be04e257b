# Everything a newcomer needs: `make demo` and `make test`. Each installs what it needs into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# PyTorch through plain pip: 2.13.0 is the version the project is tested with; newer ones are accepted.
TORCH ?= torch==2.13.0

.PHONY: demo test test-all sanitize lint bench page clean
.DEFAULT_GOAL := demo

# The C++ kernels are compiled by pip, so a change of theirs is a reason to install again.
NATIVE := CMakeLists.txt $(shell find csrc -type f)

$(VENV)/run.stamp: pyproject.toml $(NATIVE)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Ridgeline needs Python 3.11 or newer; set PYTHON=..." >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet '$(TORCH)'
	$(BIN)/python -m pip install --quiet --editable '.[run,serve,constrain]'
	@touch $@

$(VENV)/dev.stamp: $(VENV)/run.stamp
	$(BIN)/python -m pip install --quiet --editable '.[run,dev]'
	@touch $@

demo: $(VENV)/run.stamp
	$(BIN)/ridgeline demo

test: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -n 2 -m 'not slow'

test-all: $(VENV)/dev.stamp
	RIDGELINE_HYPOTHESIS=explore $(BIN)/python -m pytest

# The kernels' tests with AddressSanitizer, on a build of its own (minutes): -S keeps Python from the editable
# install, whose kernels are not instrumented.
SANITIZED := build/sanitized
sanitize: $(VENV)/dev.stamp
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(SANITIZED) \
		--config-settings cmake.define.RIDGELINE_SANITIZE=ON --config-settings build-dir=build/sanitize .
	PYTHONSAFEPATH=1 PYTHONPATH=$(SANITIZED):.:$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') \
		LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" ASAN_OPTIONS=detect_leaks=0 \
		$(BIN)/python -S -m pytest -p no:cacheprovider tests/kernels

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: $(VENV)/dev.stamp
	$(BIN)/python -m benchmarks.check
	$(BIN)/python -m benchmarks.linear

# The server's page, for who changes it: needs Node 20.19 or newer.
page:
	cd page && npm ci && npm run check && npm test && npm run build

clean:
	rm -rf $(VENV) page/node_modules build dist .pytest_cache .ruff_cache .hypothesis *.egg-info report.html
