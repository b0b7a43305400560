# Every target sets up what it needs in .venv; a second run starts at once.
#   make demo     stylise an example picture        make lint     style, types, layers
#   make test     run the tests                     make format   rewrite to the style
#   make bench    measure, draw, fill the tables    make clean    remove everything built
#   make quick    the tests of a minute           make fuzz     damaged files, odd values
#   make docs     build the manual into site/       make guide    draw the pictures of docs/guide.md
#   make sanitize run the C++ kernels under the sanitizers of memory, arithmetic and threads

CONTENT := examples/content_lake.jpg
STYLE   := examples/style_swirls.jpg
PICTURE := demo.png

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet
BUILT_FROM := pyproject.toml $(wildcard CMakeLists.txt csrc/*.cpp csrc/*.h csrc/*.cu csrc/*.cuh)

.PHONY: demo test quick lint format bench fuzz wheel-test coverage docs guide sanitize clean
.NOTPARALLEL:

demo: $(VENV)/.package
	@$(BIN)/nst-fast stylize $(CONTENT) $(STYLE) -o $(PICTURE)
	@echo "The picture is $(CURDIR)/$(PICTURE)"

# Two runs: the tests that raise SIGINT in their own process crashed it once after those that start
# Ray, an S3 server and torch.compile in it. The latter by file: --address auto would find the Ray
# cluster of a test beside it. The files that take longest begin, and short ones fill the end.
LONG  := $(addprefix tests/test_,bench_suites.py bench.py batch_command.py batch_runner.py batch_ray.py batch_stores.py)
APART := $(LONG) $(filter-out $(LONG),$(wildcard tests/test_batch*.py tests/test_bench*.py))
# They start hundreds of processes, which bytecode serves whatever the surroundings say of it.
PYTEST := PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4
BY_FILE := --dist loadfile --no-loadscope-reorder

test: $(VENV)/.test
	@$(PYTEST) --dist worksteal $(addprefix --ignore=,$(APART))
	@$(PYTEST) $(BY_FILE) $(APART)

# For the inner loop: what needs no export, no process and no long run.
QUICK := batch_inputs batch_manifest canvas cli_refusals closeness colour_control config files \
  graphs host image_formats image_writing images kernels kernel_arguments kernel_features kernel_pictures \
  kernel_steps limits moments optimizers pack_manifest public_api runtime tiles transparency

quick: $(VENV)/.test
	@$(PYTEST) --dist worksteal $(QUICK:%=tests/test_%.py)

lint: $(VENV)/.lint $(VENV)/.test # mypy reads torch's types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: $(VENV)/.bench
	@$(BIN)/nst-fast bench --json bench/results --plot docs/img --fill README.md --fill docs/benchmarks.md

# Damaged files and odd values, over 200,000 in all; the tests do a few thousand of them.
fuzz: $(VENV)/.test
	@$(BIN)/python tools/fuzz.py decode --inputs 70000
	@$(BIN)/python tools/fuzz_targets.py settings --inputs 80000
	@$(BIN)/python tools/fuzz_targets.py manifest --inputs 60000
	@$(BIN)/python tools/fuzz_targets.py pack --inputs 4000

wheel-test: $(VENV)/.python
	@tools/wheel_test.sh $(CURDIR)/$(BIN)/python .

# What the tests run of the package, branches included; the least, of both runs, is in pyproject.toml.
coverage: $(VENV)/.test
	@$(PYTEST) --dist worksteal --cov --cov-fail-under=0 --cov-report= $(addprefix --ignore=,$(APART))
	@$(PYTEST) $(BY_FILE) --cov --cov-append --cov-report=term-missing:skip-covered $(APART)

# The theme's notice about MkDocs 2, which the extra rules out, would be the only output.
docs: $(VENV)/.docs
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo "The manual is $(CURDIR)/site/index.html"

guide: $(VENV)/.package
	@$(BIN)/python tools/guide.py

# A compiler without the libraries of the sanitizers is named, and passed over.
sanitize: $(VENV)/.cmake
	@mkdir -p build
	@for kinds in address,undefined thread; do \
	  echo "Sanitizers: $$kinds"; \
	  $(BIN)/cmake -S . -B "build/sanitize-$$kinds" -DNST_SANITIZE="$$kinds" > build/sanitize.log || \
	    { cat build/sanitize.log; exit 1; }; \
	  $(BIN)/cmake --build "build/sanitize-$$kinds" --parallel 4 --target check > build/sanitize.log 2>&1 || \
	    { cat build/sanitize.log; exit 1; }; \
	  grep -E 'right$$|^skipped' build/sanitize.log; \
	done

format: $(VENV)/.lint
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist site *.egg-info $(PICTURE)
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

# The stamps: one for the package with its C++ kernels, one for each set of tools on top.
$(VENV)/.python:
	@$(if $(PYTHON),,$(error no python3 found: install Python 3.11 or newer, or run make PYTHON=/path/to/python))
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "$(PYTHON) is not Python 3.11 or newer: run make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "Setting up $(VENV) with $(PYTHON)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.package: $(VENV)/.python $(BUILT_FROM)
	@echo "Building and installing nst-fast (editable)"
	@$(PIP) install --editable ".[cpu,openvino]"
	@touch $@

$(VENV)/.cmake: $(VENV)/.python
	@$(PIP) install cmake
	@touch $@

# nst-fast is installed, so only what the extra adds is fetched; nothing is built again.
$(VENV)/.test $(VENV)/.lint $(VENV)/.bench $(VENV)/.docs: $(VENV)/.%: $(VENV)/.package
	@echo "Installing what make $* needs"
	@$(PIP) install "nst-fast[$*]"
	@touch $@
