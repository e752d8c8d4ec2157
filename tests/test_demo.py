"""The demo: fills, scores, sentences, and the whole command on a few tiny steps."""
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from markupsafe import escape

from pconv_course.tools import demo
from pconv_course.base.core import alone_in, InputError, read_json
from pconv_course.base.show import compose
from pconv_course.data import DrawnFaces
from pconv_course.metrics import METRICS
from pconv_course.masks import hole_ratio
from pconv_course.tools.pack import pack_weights
from pconv_course.recipe import PRESETS, Phase
from pconv_course.weights import load_model

torch.set_num_threads(1)
TINY = replace(PRESETS["demo"], n_faces=60, n_masks=20, width=4, depth=3, size=32, bs=8, phases=(Phase(1e-3),))


def faces(n, size=48): return torch.stack([DrawnFaces(n, size, seed=3)[i] for i in range(n)])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "A finished tiny demo: its folder and what it returned."
    folder = tmp_path_factory.mktemp("runs")/"demo"
    return folder, demo.demo(folder, minutes=None, n_test=9, recipe=TINY, progress=False)


def test_case_masks_are_the_same_again_and_of_their_kind():
    for case in demo.CASES:
        a = demo.case_masks(case, 6, 64, 1)
        assert torch.equal(a, demo.case_masks(case, 6, 64, 1)) and not torch.equal(a, demo.case_masks(case, 6, 64, 2))
        assert a.shape == (6, 1, 64, 64) and ((a == 0) | (a == 1)).all()
    assert demo.case_masks("large_central", 6, 64)[:, :, 30:34, 30:34].sum() == 0


def test_everything_is_written(made):
    folder, record = made
    names = {"sparse.png", "large_central.png", "comparison.png", "portrait.png", "loss_curve.png", "loss_curve.svg", "metrics.json",
             "model.safetensors", "config.json", "report.html", "log.csv", "recipe.json"}
    assert names <= {p.name for p in folder.iterdir()} and not [p for p in folder.iterdir() if p.name.startswith(".")]
    for name in names: assert (folder/name).stat().st_size > 100
    assert read_json(folder/"metrics.json") == record and record["held_out"] == len(range(record["cases"]["sparse"]["n"]))


def test_record_is_complete(made):
    folder, record = made
    assert set(record["cases"]) == set(demo.CASES) and set(record["portrait"]["psnr_hole"]) >= {"telea", "ours"}
    for row in record["cases"].values():
        assert set(row["methods"]) == set(demo.METHODS) and row["n"] > 1 and row["verdict"]
        assert all(set(s) == set(METRICS) and all(map(math.isfinite, s.values())) for s in row["methods"].values())
    assert {k: v["what"].split()[-1] for k, v in record["metrics"].items()} == dict(psnr="picture", psnr_hole="hole", l1_hole="hole", ssim="picture")
    assert 0 < record["restored_seconds"] < 60, "within the first minute"
    assert folder.with_name("demo-restored.png").stat().st_mtime_ns < (folder/"log.jsonl").stat().st_mtime_ns, "before any training"
    assert record["provenance"]["packages"]["torch"] and record["training"]["images"] > 0 and record["training"]["data"]["name"] == "drawn"


def test_report_stands_alone(made):
    folder, record = made
    page = (folder/"report.html").read_text(encoding="utf-8")
    assert not re.findall(r'https?:|//[a-z]|<script|<link|@import|url\(', re.sub(r'base64,[^"]*', "", page))
    assert all(s.startswith("data:image/png;base64,") for s in re.findall(r'src="([^"]*)', page)) and page.count("<img") == 6
    assert all(len(a) > 10 for a in re.findall(r'alt="([^"]*)"', page)) and page.count("alt=") == 6
    assert "prefers-color-scheme:dark" in page and f"{record['training']['images']:,} pictures" in page
    for o in (page, (folder/"metrics.json").read_text()): assert str(folder.parent) not in o and str(Path.home()) + "/" not in o
    for row in record["cases"].values(): assert str(escape(row["verdict"][1:])) in page


def test_report_escapes_names(made):
    folder, record = made
    evil = {**record, "run": "<b>run", "training": {**record["training"], "data": dict(name="<script>x", train=1)}}
    page = demo.report_page(evil, {c: b"" for c in (*demo.CASES, "portrait")}, b"")
    assert "<script" not in page and "<b>run" not in page and "&lt;script&gt;x" in page


def test_case_table_marks_the_best(made):
    lines = demo.case_table(made[1]["cases"]).splitlines()
    assert len(lines) == 1 + 3*3 and max(map(len, lines)) <= 120 and "\n".join(lines).count("*") >= 12


def test_again_is_the_same_and_the_earlier_run_is_kept(made, capsys):
    "Trained by epochs, the demo is reproducible on one machine; the second run makes room for itself."
    folder, record = made
    again = demo.demo(folder.parent/"x"/".."/"demo", minutes=None, n_test=9, recipe=TINY)
    assert "kept as demo-1" in capsys.readouterr().out and again["run"] == "demo" and again["cases"] == record["cases"]
    assert read_json(folder.with_name("demo-1")/"metrics.json") == record
    assert folder.with_name("demo-1-restored.png").is_file() and folder.with_name("demo-restored.png").is_file(), "its picture goes along"
    with pytest.raises(InputError, match="give 1 or more"): demo.held_out(TINY, "drawn", 0)
    assert not demo.fresh_folder(folder.with_name("new"))
    with alone_in(folder), pytest.raises(InputError, match="in use"): demo.fresh_folder(folder)
    assert folder.is_dir()


def test_own_faces_folder(tmp_path):
    from PIL import Image
    from pconv_course.base.show import to_array
    (tmp_path/"faces").mkdir()
    for i, g in enumerate(faces(24)): Image.fromarray(to_array(g)).save(tmp_path/"faces"/f"me{i}.png")
    record = demo.demo(tmp_path/"demo", data=str(tmp_path/"faces"), minutes=None, recipe=TINY, progress=False)
    assert record["training"]["data"]["name"] == "faces" and record["training"]["data"]["train"] + record["training"]["data"]["valid"] == 24
    assert "faces of faces" in (tmp_path/"demo"/"report.html").read_text()


def test_photograph_by_shipped_weights_or_one_line(made, tmp_path, monkeypatch):
    "With a network given, or packed in the folder of the weights, the photograph is repaired by it; without, one line says so."
    folder, record = made
    assert record["portrait"]["shipped"] == (demo.shipped() is not None)
    assert (escape(demo.NONE_SHIPS) in (folder/"report.html").read_text()) != record["portrait"]["shipped"]
    assert demo.shipped(tmp_path) is None
    model, config = load_model(folder)
    pack_weights([folder], tmp_path, "faces")
    net, packed = demo.shipped(tmp_path)
    seen, png = demo.judge_portrait(dict(ours=(model, 32), shipped=(net, packed)))
    assert seen["shipped"] and set(seen["psnr_hole"]) == {"telea", "ours", "shipped"} and png.startswith(b"\x89PNG")
    assert abs(seen["psnr_hole"]["ours"] - seen["psnr_hole"]["shipped"]) < 0.1, "the same network, in 16 bits"
    assert str(escape(demo.NONE_SHIPS)) not in demo.report_page(record | dict(portrait=seen), dict.fromkeys(demo.CASES, b"") | dict(portrait=png), b"")
    (tmp_path/"faces.safetensors").write_bytes(b"damaged")
    with pytest.raises(InputError, match="not the file that was packed"): demo.shipped(tmp_path)


def test_photograph_keeps_its_known_pixels(made):
    photo, m = demo.portrait()
    assert photo.shape == (3, 256, 256) and m.shape == (1, 256, 256) and 0.15 < hole_ratio(m) <= 0.25
    for out in demo.portrait_fills(photo, m, dict(ours=(load_model(made[0])[0], 32))).values():
        assert torch.equal(compose(photo, out, m), out) and not torch.equal(out, photo) and out.isfinite().all()


def test_without_weights_the_demo_says_so(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("pconv_course.weights.weights_dir", lambda: tmp_path)
    record = demo.demo(tmp_path/"demo", minutes=None, n_test=4, recipe=TINY)
    assert capsys.readouterr().out.count(demo.NONE_SHIPS) == 1 and not record["portrait"]["shipped"] and record["restored_seconds"] is None
    assert escape(demo.NONE_SHIPS) in (tmp_path/"demo/report.html").read_text()
