# make demo        pre-train on pictures for three minutes, evaluate, and show the result
# make test        run the tests
# make lint        style, format and types
# make docs        build the documentation into site/
# make evidence    record which methods agree with their recorded numbers
#
# Each makes its environment first: PYTHON (3.11 or newer) makes .venv, once.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
JOBS ?= 2

.PHONY: demo test lint docs evidence env clean
.DEFAULT_GOAL := demo

# make demo DATA=photos/ runs on an own folder; class folders in it are labels
demo: $(STAMP)
	@$(BIN)/eyespot demo $(if $(DATA),--data '$(DATA)') $(if $(TEST_DATA),--test-data '$(TEST_DATA)') $(DEMO)

test: $(STAMP)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) --dist loadgroup $(TESTS)

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright

docs: $(STAMP)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "documentation: site/index.html"

# which methods agree with their recorded numbers: writes eyespot/methods/evidence.json
evidence: $(STAMP)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m golden --record-evidence

env: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; }
	@test -x $(BIN)/python || { echo "making $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing PyTorch into $(VENV): large, some minutes, once"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --upgrade pip setuptools
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt torch torchvision
	@echo "installing eyespot and the rest"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev,docs,lightning,onnx,huggingface,video,flow,audio,language,points]'
	@touch $@

clean:
	@rm -rf site build .pytest_cache .ruff_cache .hypothesis
