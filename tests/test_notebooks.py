"""Every notebook runs from top to bottom in a process of its own, as one test each."""
import json
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parent.parent
NBS = sorted(p for p in (TOP / "nbs").rglob("*.ipynb") if not p.name.startswith((".", "_")))

pytestmark = pytest.mark.dev


def test_there_are_notebooks():
    "A run that found nothing to run must not pass."
    assert "index.ipynb" in [p.name for p in NBS] and len(NBS) > 9, f"only {len(NBS)} notebooks found under nbs/"


def run_alone(nb):
    "Output of `nbdev_test` on one notebook. It also exits with 0 when it ran nothing, so its exit code is not enough."
    cmd = [str(Path(sys.executable).parent / "nbdev_test"), "--path", str(nb), "--n_workers", "0"]
    out = subprocess.run(cmd, cwd=TOP, capture_output=True, text=True, timeout=300)
    return out.returncode == 0 and out.stdout.strip().splitlines()[-1:] == ["Success."], out.stdout[-4000:] + out.stderr[-4000:]


@pytest.mark.parametrize("nb", NBS, ids=lambda p: p.relative_to(TOP / "nbs").with_suffix("").as_posix())
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
