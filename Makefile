# Every target sets up .venv by itself, once, and quietly.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.ready
PEERS := .venv/.peers
BEYOND := .venv/.beyond
LIBRARIES := .venv/libraries
ARGS ?=
PIP := $(BIN)/pip install -qq --disable-pip-version-check -c constraints.txt

.PHONY: demo test check zoo insert-zoo fuzz fuzz-exports peers merging libraries cost bench bench-selfcheck study-known clean setup

setup: $(STAMP)

# torch first, so that its build is the pinned one; the networks that tests fold need it and nothing else of their own
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("bntool needs Python 3.11 or newer" if sys.version_info < (3, 11) else 0)'
	@echo "setting up .venv (once; a few minutes)" >&2
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(PIP) torch numpy
	@$(PIP) -e '.[test,study]'
	@$(PIP) --no-deps torchvision timm
	@touch $@

# the tools that folding is measured against, where torch does not bring them
$(PEERS): $(STAMP)
	@$(PIP) onnxslim
	@touch $@

# libraries of networks, and what they import, beside the packages that everything else is tested with
$(LIBRARIES): $(STAMP)
	@$(PIP) --no-deps --target $@ transformers tokenizers regex requests charset-normalizer urllib3 \
		ultralytics opencv-python-headless polars matplotlib contourpy cycler kiwisolver fonttools pyparsing \
		python-dateutil six segmentation-models-pytorch pytorchcv

# what takes a study beyond one machine
$(BEYOND): $(STAMP)
	@$(PIP) ray
	@touch $@

demo: $(STAMP)
	@$(BIN)/bntool demo $(ARGS)

test: $(STAMP)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup $(ARGS)

zoo: $(STAMP)
	@$(BIN)/python -m tests.zoo $(ARGS)

insert-zoo: $(STAMP)
	@$(BIN)/python -m tests.zoo.inserting $(ARGS)

cost: $(STAMP) $(PEERS)
	@$(BIN)/python -m tests.zoo.cost $(ARGS)

merging: $(STAMP)
	@$(BIN)/python -m tests.zoo.merging $(ARGS)

peers: $(STAMP) $(PEERS)
	@$(BIN)/python -m tests.zoo.peers $(ARGS)

libraries: $(LIBRARIES)
	@PYTHONPATH=$(LIBRARIES) $(BIN)/python -m tests.zoo.libraries $(ARGS)

fuzz: $(STAMP)
	@$(BIN)/python -m tests.fuzz $(or $(N),3000) $(or $(SEED),0)

fuzz-exports: $(STAMP)
	@$(BIN)/python -m tests.fuzz --exports $(or $(N),300) $(or $(SEED),0)

bench: $(STAMP) $(PEERS)
	@$(BIN)/bntool bench $(or $(ARGS),sample_models/resnet.py:resnet sample_models/resnet.py:resnet@onnx)
	@$(if $(ARGS),,$(BIN)/python -m tests.zoo.cost)

# what is known of batch norm has to come out of a study, identical arms must not; a quarter of an hour
study-known: $(STAMP) $(BEYOND)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/study -m slow -rP --timeout 1800 $(ARGS)

# about a quarter of an hour; what it has measured stays in bench-selfcheck.jsonl, and a second run goes on from there
bench-selfcheck: $(STAMP)
	@$(BIN)/python -m tests.bench.selfcheck $(ARGS)

check: $(STAMP)
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache demo-out
