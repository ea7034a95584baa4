# Two commands: `make report` runs the series and writes reports/, `make check` tests everything.
PYTHON ?= python3
# Extra words for pip when it installs torch, for example an index of CPU-only wheels.
TORCH_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt
# How long OpenMP's threads wait in a loop. By default, one busy process beside ours makes all this
# about ten times slower (see Troubleshooting in README.md).
GOMP_SPINCOUNT ?= 5000
export GOMP_SPINCOUNT
# Two processes of one thread each: most tests can't use a second core.
PAIR := OMP_NUM_THREADS=1 $(BIN)/pytest -n 2
TORCH := $(shell grep '^torch==' constraints.txt)

.PHONY: help setup report site check gpu-check notebooks stamp readme colab colab-bundle bench lab \
  clean
.DEFAULT_GOAL := help

help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.run ## make .venv with what running needs
report: $(VENV)/.run ## fetch the models and data, run every notebook, write reports/index.html
	@$(BIN)/llmnb fetch
	@$(BIN)/llmnb run --all

check: $(VENV)/.test ## ruff, pytest, and every notebook compared with its stored outputs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/check-jsonschema -q --builtin-schema vendor.github-workflows .github/workflows/*.yml
	@$(BIN)/llmnb fetch
	$(PAIR) --dist worksteal
	LLMNB_PROFILE=smoke $(PAIR) -q --dist loadscope --nbval-lax --nbval-cell-timeout=300 notebooks/

gpu-check: $(VENV)/.test ## run every notebook on a pretended CUDA device, which refuses what CUDA does
	@$(BIN)/llmnb fetch
	$(BIN)/python .ci/gpu_check.py reports/pretended

notebooks: $(VENV)/.test ## run the notebooks on the cpu profile and store their outputs, normalized
	$(BIN)/python .ci/notebooks.py
	$(BIN)/ruff format -q notebooks/

site: report ## write site/: index and reports of the runs in reports/, to be published as they are
	@$(BIN)/python .ci/site.py reports site

stamp: ## point badges and set-up cells at the git remote's repository, or at REPOSITORY=owner/name
	$(PYTHON) .ci/stamp.py $(REPOSITORY)

readme: $(VENV)/.run ## write the README's numbers from benchmarks/results and the runs in reports/
	$(BIN)/python .ci/readme.py reports

colab: $(VENV)/.test ## run every notebook with Colab's versions, from the wheel, in an empty folder
	$(BIN)/python .ci/colab.py

colab-bundle: $(VENV)/.run ## write dist/llmnb-colab.zip: the wheel and the notebooks, to upload to Colab
	@$(BIN)/python .ci/bundle.py

# instructions.py trains for hours: run it by hand, it goes on where it was.
bench: $(VENV)/.test ## run the benchmarks (but for instructions.py), write reports/benchmarks/*.json
	@mkdir -p reports/benchmarks
	@for script in $(filter-out %/instructions.py,$(wildcard benchmarks/[a-z]*.py)); do \
	  $(BIN)/python $$script --json reports/benchmarks/$$(basename $$script .py).json || exit 1; done

lab: $(VENV)/.lab ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab notebooks

clean: ## remove .venv and reports; the cache of models stays
	rm -rf $(VENV) reports/runs reports/index.html reports/benchmarks reports/pretended

# torch goes first and alone, so that its source can be chosen (TORCH_ARGS).
$(VENV)/.run: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV): a minute or two, the first time"
	@$(PIP) $(TORCH_ARGS) '$(TORCH)'
	@$(PIP) -e .
	@touch $@

$(VENV)/.test: $(VENV)/.run
	@$(PIP) -e '.[test]'
	@touch $@

$(VENV)/.lab: $(VENV)/.run
	@$(PIP) -e '.[lab]'
	@touch $@
