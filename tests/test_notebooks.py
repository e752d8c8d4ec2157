"""Every notebook runs from top to bottom in a process of its own, as one test each."""
import json
import multiprocessing
import os
import sys
import tempfile
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parent.parent
NBS = sorted(p for p in (TOP / "nbs").rglob("*.ipynb") if not p.name.startswith((".", "_")))

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["fastai.vision.all", "matplotlib.pyplot", "nbdev.test", "pandas", "torchmetrics", "torchvision"])

pytestmark = pytest.mark.dev


def test_there_are_notebooks():
    "A run that found nothing to run must not pass."
    assert "index.ipynb" in [p.name for p in NBS] and len(NBS) > 9, f"only {len(NBS)} notebooks found under nbs/"


def run_cells(nb, text):
    "In a process of its own: run the cells of the notebook `nb` as `nbdev_test` does; what it prints goes into the file `text`."
    os.chdir(TOP)
    with open(text, "w", encoding="utf-8") as f:
        for fd in (1, 2): os.dup2(f.fileno(), fd)
        from nbdev.config import get_config
        from nbdev.test import test_nb
        ok, _ = test_nb(nb, skip_flags=get_config().tst_flags.split(), basepath=TOP)
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(0 if ok else 1)


def run_alone(nb):
    "Did the notebook run, and what was printed. Its process is forked from one that has imported what others wrote, since an import costs seconds."
    with tempfile.NamedTemporaryFile("r", encoding="utf-8") as text:
        process = FORKS.Process(target=run_cells, args=(nb, text.name))
        process.start()
        process.join(300)
        late = process.is_alive()
        if late: process.kill()
        return process.exitcode == 0 and not late, text.read()[-8000:]


def place(nb): return nb.relative_to(TOP / "nbs").with_suffix("").as_posix()


# Each takes more than half a minute and shows what the tests of its module check; `make test-all` runs them.
LONG = ("lab/ablations", "lab/bench", "lab/charts", "lab/clocks", "lab/trials")


@pytest.mark.parametrize("nb", [pytest.param(p, id=place(p), marks=[pytest.mark.slow] if place(p) in LONG else []) for p in NBS])
def test_notebook_runs(nb):
    ok, text = run_alone(nb)
    assert ok, text


def test_a_broken_notebook_is_noticed(tmp_path):
    "The check above can fail: one wrong assertion in a copy is enough."
    cells = [dict(cell_type="code", id="a", metadata={}, source="assert 1 + 1 == 3", outputs=[], execution_count=None)]
    nb = tmp_path / "broken.ipynb"
    nb.write_text(json.dumps(dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=5)), encoding="utf-8")
    ok, text = run_alone(nb)
    assert not ok and "assert 1 + 1 == 3" in text
