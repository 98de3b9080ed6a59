# `make simulate` and `make test` need nothing but Python 3.11 and make.
PYTHON ?= python3
SEED ?= 1
BIN := .venv/bin
# Two tests at a time on two cores: threads of torch beside them would wait for each other.
ONE_THREAD := OMP_NUM_THREADS=1
STAMP := .venv/.installed
PEERS := .peers/.installed
FASHION := .data/usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz

.PHONY: install simulate test check e2e bench bench-peers bench-gpu soak lock data

install: $(STAMP)

$(STAMP): pyproject.toml requirements.lock
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fedlearn needs Python 3.11 or newer; set PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	# torch first and by its exact version: a range would fetch gigabytes of CUDA
	$(BIN)/pip install -q -c requirements.lock torch hatchling editables
	$(BIN)/pip install -q -c requirements.lock --no-build-isolation -e '.[ray,data,dev]'
	touch $(STAMP)

simulate: install
	$(BIN)/fedlearn simulate

test: install
	$(ONE_THREAD) $(BIN)/python -m pytest -n 2 --dist worksteal

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(ONE_THREAD) $(BIN)/python -m pytest -n 2 --dist worksteal -x -m 'not slow and not lengthy'

e2e: install
	$(BIN)/python -m pytest -m slow

bench: install
	$(BIN)/python simulations/benchmarks/scenarios.py
	$(BIN)/python simulations/benchmarks/scenarios.py --scenario fashion_cross_device --runs 1 \
		--set secure_aggregation.masking=true --set run.rounds=1
	$(BIN)/python simulations/benchmarks/secagg.py --clients 20 --dimension 1000000
	$(BIN)/python simulations/benchmarks/secagg.py --clients 100 --dimension 100000
	$(BIN)/python simulations/benchmarks/memory.py
	$(BIN)/python simulations/benchmarks/latency.py

bench-gpu: bench-peers
	$(BIN)/python simulations/benchmarks/gpu.py

# The engines that simulations/benchmarks/engines.py compares with, in an environment of their own.
bench-peers: install $(FASHION) $(PEERS)

$(PEERS): simulations/benchmarks/peers.txt
	test -x .peers/bin/python || $(PYTHON) -m venv .peers
	sed 's/\[.*\]//' simulations/benchmarks/peers.txt > .peers/constraints.txt
	.peers/bin/pip install -q -c .peers/constraints.txt torch
	.peers/bin/pip install -q -c .peers/constraints.txt -r simulations/benchmarks/peers.txt
	touch $(PEERS)

soak: install
	FEDLEARN_MUTATIONS=1000000 $(BIN)/python -m pytest tests/attacks/test_mutated_messages.py --timeout 600
	FEDLEARN_KILLS=50 $(BIN)/python -m pytest tests/test_crashes.py --timeout 600
	$(BIN)/python -m tests.soak --seed $(SEED) --minutes 18

lock: install
	$(BIN)/pip freeze --exclude-editable | sed 's/^torch==\(.*\)+cpu$$/torch==\1/' > requirements.lock

data: $(FASHION)

$(FASHION):
	mkdir -p .data
	cd .data && apt-get download -q dataset-fashion-mnist && dpkg -x dataset-fashion-mnist_*.deb . && rm dataset-fashion-mnist_*.deb
