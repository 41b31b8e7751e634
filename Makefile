# Each target makes what it needs. PYTHON names the interpreter that the environment is made with (3.11 or later).
PYTHON ?= python3
BIN := .venv/bin
DEMO := runs/demo-data

.PHONY: demo test test-on-ray test-without check audit fuzz clean

demo: .venv/.installed
	@test -f $(DEMO)/test-00000.parquet || $(BIN)/python -m pipelines data shapes --to $(DEMO) --images 3600
	$(BIN)/python -m pipelines pretrain demo --data.train $(DEMO)/train-00000.parquet \
		--data.test $(DEMO)/test-00000.parquet --run.workers 2 --run.name demo --run.resume
	$(BIN)/python -m pipelines evaluate runs/demo knn retrieval

test: .venv/.installed-dev .venv/moto/.installed
	@$(MAKE) --no-print-directory -j2 test-on-ray test-without

# Side by side, as neither keeps two cores busy by itself: one thread each, and the half with the longer way goes first.
test-on-ray test-without: export OMP_NUM_THREADS := 1

test-on-ray:
	RAY_worker_niceness=0 $(BIN)/python -m pytest -m ray

test-without:
	nice -n 19 $(BIN)/python -m pytest -m 'not ray'

check: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Exit code 1: known vulnerabilities; 2: the advisory database is out of reach. In an environment of its own, so that
# what is looked at stays as it is.
audit: .venv/.installed-dev .venv/.audit/.installed
	@$(BIN)/python tests/audit.py .venv/.audit/bin/pip-audit \
		"$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"

fuzz: .venv/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz --cases 2000

.venv/.audit/.installed: .venv/.made
	$(PYTHON) -m venv .venv/.audit
	.venv/.audit/bin/python -m pip install -q 'pip-audit>=2.9,<3'
	touch $@

# A server of S3 for tests, apart since it needs an older python-dateutil.
.venv/moto/.installed: .venv/.made
	$(PYTHON) -m venv .venv/moto
	.venv/moto/bin/python -m pip install -q 'moto[s3]==5.2.5' flask flask-cors
	touch $@

.venv/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or later is needed: make PYTHON=python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	touch $@

.venv/.installed: .venv/.made pyproject.toml constraints.txt
	$(BIN)/python -m pip install -q -c constraints.txt -e .
	touch $@

.venv/.installed-dev: .venv/.made pyproject.toml constraints.txt
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev,onnx,optuna,timm]'
	touch $@ .venv/.installed

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache *.egg-info
