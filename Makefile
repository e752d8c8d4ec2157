# make install  the library and its command into .venv, nothing else
# make demo   train a small inpainter on drawn faces and write runs/demo/report.html    (ARGS="--minutes 2" passes options on)
# make test   every check but the slow ones and those in a browser
# make test-all  the same with what takes minutes: a compiler for C++, 3,000 inputs instead of 600
# make bench  speed and memory beside plain convolutions     (ARGS="--peers DIR" adds other people's networks)
# make experiments  every table of the experiments, tiny      (ARGS="--scale full --data FOLDER_OR_ZIP", TRIALS="--data FOLDER_OR_ZIP")
# make test-browser  the drawing widget and the site's demo in a real browser
# make nbs    run every notebook, store its outputs, export, clean
# make readme  README.md from nbs/index.ipynb
# make docs   the site (quarto and npm needed); make demo-site  its live demo alone (npm)
# make clean  remove what was built
PYTHON ?= python3
BIN := .venv/bin
JOBS ?= 2
ARGS ?=
export PYTHONUNBUFFERED = 1
export GOMP_SPINCOUNT ?= 10000

.PHONY: install demo test test-all test-browser bench experiments nbs readme docs demo-site clean help
.DELETE_ON_ERROR:

install: .venv/installed-runtime

demo: .venv/installed-runtime
	$(BIN)/pconv demo $(ARGS)

# One notebook is one test, each in a process of its own; one thread per process, so that two run side by side.
test: .venv/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal --durations 12 --ignore tests/browser -m "not slow" tests $(ARGS)

test-all: .venv/installed-dev
	PCONV_ALL=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal --durations 12 --ignore tests/browser tests $(ARGS)

# In voila, JupyterLab and Notebook 7; the site's demo needs npm. PCONV_SHOTS=FOLDER keeps screenshots.
test-browser: .venv/installed-browser
	@test -n "$$PCONV_CHROMIUM" || command -v chromium chromium-browser google-chrome >/dev/null || \
	  { echo "no Chromium: apt install chromium, or set PCONV_CHROMIUM to the program"; exit 2; }
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/browser --durations 5 $(ARGS)

# Alone on the machine, please: every other process is in the numbers.
bench: .venv/installed-runtime
	$(BIN)/pconv lab bench $(ARGS)

# The networks, evaluations, ablations, trials and the race behind the experiments; stopped, the same command goes on.
TRIALS ?= --images 128 --seeds 1
experiments: .venv/installed-dev
	$(BIN)/pconv lab experiments --scale tiny $(ARGS)
	for plan in terms networks larger; do $(BIN)/pconv lab trials --plan $$plan --out runs/experiments/trials $(TRIALS) || exit 1; done
	$(BIN)/pconv lab bench --quick --out runs/experiments/speed-quick.json

# Run every notebook, store its outputs, export, clean; then README.md from nbs/index.ipynb.
nbs: .venv/installed-dev
	$(BIN)/nbdev_export
	for nb in nbs/[0-9]*.ipynb nbs/*/*.ipynb nbs/cli*.ipynb nbs/summary.ipynb nbs/index.ipynb; do \
	  echo $$nb && PYTHONWARNINGS=ignore $(BIN)/jupyter nbconvert --log-level WARN --to notebook --execute --inplace --ExecutePreprocessor.store_widget_state=False $$nb || exit 1; done
	$(BIN)/nbdev_clean
	$(MAKE) readme

readme: .venv/installed-dev
	$(BIN)/python tests/readme.py

# Needs quarto and npm on the PATH. After a clone README.md may be the older file, and nbdev would write it anew in a form of its own.
docs: .venv/installed-dev
	@touch README.md
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/nbdev_docs

# The live demo alone, into _docs/demo; needs npm, not quarto. To look at it: python -m http.server -d _docs, then /demo/.
demo-site: .venv/installed-dev
	$(BIN)/python nbs/demo/build.py

clean:
	rm -rf _docs _proc build dist *.egg-info .pytest_cache .hypothesis .ruff_cache

help:
	@sed -n 's/^# make/make/p' Makefile

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed, $(PYTHON) is older or missing: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	@$(PYTHON) -m venv .venv || { echo "python3 -m venv failed; on Debian and Ubuntu: apt install python3-venv"; rm -rf .venv; exit 2; }

# The dev install holds the runtime too: whoever ran `make test` first need not install again for `make demo`.
.venv/installed-runtime: settings.ini setup.py | .venv/bin/python
	@echo "Installing PyTorch, fastai and the rest into .venv: about 6 GB, a few minutes the first time."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

.venv/installed-dev: settings.ini setup.py | .venv/bin/python
	@echo "Installing the development set into .venv: about 6 GB, a few minutes the first time."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@ .venv/installed-runtime

.venv/installed-browser: .venv/installed-dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,browser]'
	@touch $@
