# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-all lint clean

# what using distwsss takes; torch and torchvision first and together, so that pip takes a matching pair
$(VENV)/usable: setup.cfg pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=23"
	$(BIN)/python -m pip install --quiet torch torchvision
	$(BIN)/python -m pip install --quiet -e .
	touch $@

# and what testing takes beside it: Ray, DeepSpeed, the developers' tools
$(VENV)/installed: $(VENV)/usable
	$(BIN)/python -m pip install --quiet -e ".[lite2,saliency,ray,deepspeed,dev]"
	touch $@

demo: $(VENV)/usable  ## image-level labels to mIoU and pictures, on generated data, and what each part brings
	$(BIN)/distwsss run --config configs/demo/shapes.yaml
	$(BIN)/distwsss ablate configs/ablations/demo_parts.yaml
	$(BIN)/distwsss report --config configs/demo/shapes.yaml

# what computes on one thread runs in two processes on two cores; tests/dist starts several processes itself
test: $(VENV)/installed lint  ## about 10 minutes on two cores
	$(BIN)/python -m pytest -m "not slow and not gpu" -n 2 --dist loadfile tests/unit tests/contract tests/integration
	$(BIN)/python -m pytest -m "not slow and not gpu" tests/dist

test-all: $(VENV)/installed  ## real kills and long runs, about half an hour
	$(BIN)/python -m pytest -m "slow and not gpu" -n 2 --dist loadfile tests/unit tests/integration
	$(BIN)/python -m pytest -m "slow and not gpu" tests/dist

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf runs shards/demo build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
