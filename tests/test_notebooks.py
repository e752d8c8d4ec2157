"""Every notebook runs from top to bottom in a process of its own, as one test each."""
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parent.parent
NBS = sorted(p for p in (TOP / "nbs").glob("*.ipynb") if not p.name.startswith("_"))

pytestmark = pytest.mark.dev


def test_there_are_notebooks():
    "A run that found nothing to run must not pass."
    assert "index.ipynb" in [p.name for p in NBS] and len(NBS) > 9, f"only {len(NBS)} notebooks found under nbs/"


@pytest.mark.parametrize("nb", NBS, ids=lambda p: p.stem)
def test_notebook_runs(nb):
    "nbdev_test says exactly `Success.`; it also exits with 0 when it ran nothing, so its exit code is not enough."
    cmd = [sys.executable, "-c", "from nbdev.test import nbdev_test; nbdev_test()", "--path", str(nb), "--n_workers", "0"]
    run = subprocess.run(cmd, cwd=TOP, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0 and run.stdout.strip().splitlines()[-1:] == ["Success."], run.stdout[-4000:] + run.stderr[-4000:]
