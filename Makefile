# Two commands: `make demo` walks the whole road on generated scans; `make test` is what CI runs.
# Both set everything up on a fresh clone: they need python3 (3.11 or newer) with venv, and nothing else.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo
BENCHMARKS := ingest data_stream train_step merge metrics inference sweep serve serve_fuzz cluster cluster_costs

.PHONY: setup tools demo test check-style check-types check-floors check-tests benchmarks clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,onnx,openvino,int8,tensorrt-rtx,monai-bundle,postgres]'
	touch $@

tools: # Debian's packages that some tests look for, and skip without: DICOM checkers, an archive, a browser, a database
	apt-get install -y --no-install-recommends dicom3tools dcmtk orthanc orthanc-dicomweb chromium postgresql

demo: setup
	$(BIN)/voxray demo $(DEMO)

test: check-style check-types check-floors check-tests

check-style: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

check-types: setup
	$(BIN)/mypy

check-floors: setup
	$(BIN)/lint-imports

check-tests: setup
	$(BIN)/pytest -m 'not ray' -n 2 --dist worksteal
	$(BIN)/pytest -m ray -n 2 --dist loadfile

benchmarks: setup
	for name in $(BENCHMARKS); do $(BIN)/python benchmarks/$$name.py --quick || exit 1; done

clean:
	rm -rf $(VENV) $(DEMO) .mypy_cache .ruff_cache .pytest_cache .hypothesis
