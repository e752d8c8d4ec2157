"""The demo: fills, scores, sentences, and the whole command on a few tiny steps."""
import html
import itertools
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pconv_course import demo as D
from pconv_course.core import InputError, compose, read_json
from pconv_course.data import DrawnFaces
from pconv_course.learner import hole_l1_error, psnr, ssim
from pconv_course.masks import hole_ratio
from pconv_course.train import PRESETS, Phase

torch.set_num_threads(1)
TINY = replace(PRESETS["demo"], n_faces=60, n_masks=20, width=4, depth=3, size=32, bs=8, phases=(Phase(1e-3),))


def faces(n, size=48): return torch.stack([DrawnFaces(n, size, seed=3)[i] for i in range(n)])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "A finished tiny demo: its folder and what it returned."
    folder = tmp_path_factory.mktemp("runs")/"demo"
    return folder, D.demo(folder, minutes=None, n_test=9, recipe=TINY, progress=False)


@pytest.mark.parametrize("fill", [D.mean_fill, D.telea_fill])
@pytest.mark.parametrize("case", D.CASES)
def test_fills_keep_known_pixels_and_ignore_the_hole(fill, case):
    gt, m = faces(3), D.case_masks(case, 3, 48)
    out = fill(gt, m)
    assert out.shape == gt.shape and out.dtype == gt.dtype and torch.equal(compose(gt, out, m), out)
    for junk in (torch.rand_like(gt), torch.full_like(gt, math.nan), torch.full_like(gt, math.inf)):
        assert torch.equal(fill(compose(gt, junk, m), m), out)


def test_fills_with_one_mask_for_all_and_with_no_known_pixel():
    gt, m = faces(2), D.case_masks("comparison", 1, 48)
    for fill in (D.mean_fill, D.telea_fill):
        assert torch.equal(fill(gt, m), fill(gt, m.expand(2, -1, -1, -1)))
        assert fill(gt, m*0).isfinite().all()


def test_mean_fill_is_the_mean():
    gt, m = faces(1), D.case_masks("large_central", 1, 48)
    known = gt[0][:, m[0, 0] > .5]
    torch.testing.assert_close(D.mean_fill(gt, m)[0][:, m[0, 0] < .5][:, 0], known.mean(1))


def test_score_agrees_with_the_metrics_of_training():
    gt, m = faces(4), D.case_masks("comparison", 4, 48)
    out = gt + 0.1*torch.randn(gt.shape, generator=torch.Generator().manual_seed(0))
    s = D.score(gt, out, m)
    torch.testing.assert_close(s["ssim"], ssim(out, gt, m).item(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(s["l1_hole"], hole_l1_error(out, gt, m).item(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(s["psnr"], psnr(out, gt, m).item(), rtol=1e-5, atol=1e-4)


def test_score_sees_the_hole_only():
    gt, m = faces(2), D.case_masks("sparse", 2, 48)
    assert D.score(gt, compose(torch.rand_like(gt), gt, m), m)["psnr"] == 100
    each = D.score_each(gt, gt*0, m)
    expect = torch.tensor([10*math.log10(1/hole_ratio(k)) for k in m], dtype=torch.float64)
    torch.testing.assert_close(each["psnr"] - each["psnr_hole"], expect, rtol=0, atol=1e-9)
    with pytest.raises(InputError, match="nothing to score"): D.score(gt, gt, torch.ones_like(m))


def test_paired_is_about_the_same_pictures():
    a = torch.tensor([10., 20, 30])
    assert D.paired(a + 1, a) == (1., 0.)
    assert D.paired(a[:1], a[:1])[1] == math.inf


def test_bucket_table_covers_every_mask_once():
    gt, m = faces(24), D.case_masks("comparison", 24, 48)
    fills = dict(mean=D.mean_fill(gt, m), telea=D.telea_fill(gt, m))
    rows, whole = D.bucket_table(gt, m, fills), D.evaluate(gt, m, fills)
    assert sum(r["n"] for r in rows) == 24
    for k, q in itertools.product(fills, D.METRICS):
        assert math.isclose(sum(r["n"]*r["methods"][k][q] for r in rows)/24, whole["methods"][k][q], abs_tol=1e-4)


def test_case_masks_are_the_same_again_and_of_their_kind():
    for case in D.CASES:
        a = D.case_masks(case, 6, 64, 1)
        assert torch.equal(a, D.case_masks(case, 6, 64, 1)) and not torch.equal(a, D.case_masks(case, 6, 64, 2))
        assert a.shape == (6, 1, 64, 64) and ((a == 0) | (a == 1)).all()
    assert D.case_masks("large_central", 6, 64)[:, :, 30:34, 30:34].sum() == 0


def test_everything_is_written(made):
    folder, record = made
    names = {"sparse.png", "large_central.png", "comparison.png", "loss_curve.png", "loss_curve.svg", "metrics.json",
             "model.safetensors", "config.json", "report.html", "log.csv", "recipe.json"}
    assert names <= {p.name for p in folder.iterdir()} and not [p for p in folder.iterdir() if p.name.startswith(".")]
    for name in names: assert (folder/name).stat().st_size > 100
    assert read_json(folder/"metrics.json") == record and record["held_out"] == len(range(record["cases"]["sparse"]["n"]))


def test_record_is_complete(made):
    _, record = made
    assert set(record["cases"]) == set(D.CASES)
    for row in record["cases"].values():
        assert set(row["methods"]) == set(D.METHODS) and row["n"] > 1 and row["verdict"]
        assert all(set(s) == set(D.METRICS) and all(map(math.isfinite, s.values())) for s in row["methods"].values())
    assert {k: v["what"].split()[-1] for k, v in record["metrics"].items()} == dict(psnr="picture", psnr_hole="hole", l1_hole="hole", ssim="picture")
    assert record["provenance"]["packages"]["torch"] and record["training"]["images"] > 0 and record["training"]["data"]["name"] == "drawn"


def test_report_stands_alone(made):
    folder, record = made
    page = (folder/"report.html").read_text(encoding="utf-8")
    assert not re.findall(r'https?:|//[a-z]|<script|<link|@import|url\(', re.sub(r'base64,[^"]*', "", page))
    assert all(s.startswith("data:image/png;base64,") for s in re.findall(r'src="([^"]*)', page)) and page.count("<img") == 4
    assert all(len(a) > 10 for a in re.findall(r'alt="([^"]*)"', page)) and page.count("alt=") == 4
    assert "prefers-color-scheme:dark" in page and f"{record['training']['images']:,} pictures" in page
    for o in (page, (folder/"metrics.json").read_text()): assert str(folder.parent) not in o and str(Path.home()) + "/" not in o
    for row in record["cases"].values(): assert html.escape(row["verdict"][1:]) in page


def test_report_escapes_names(made):
    folder, record = made
    evil = {**record, "run": "<b>run", "training": {**record["training"], "data": dict(name="<script>x", train=1)}}
    page = D.report_page(evil, {c: b"" for c in D.CASES}, b"")
    assert "<script" not in page and "<b>run" not in page and "&lt;script&gt;x" in page


def test_text_table_marks_the_best(made):
    lines = D.text_table(made[1]["cases"]).splitlines()
    assert len(lines) == 1 + 3*3 and max(map(len, lines)) <= 120 and "\n".join(lines).count("*") >= 12


def test_again_is_the_same_and_the_earlier_run_is_kept(made, capsys):
    "Trained by epochs, the demo is reproducible on one machine; the second run makes room for itself."
    folder, record = made
    again = D.demo(folder.parent/"x"/".."/"demo", minutes=None, n_test=9, recipe=TINY)
    assert "kept as demo-1" in capsys.readouterr().out and again["run"] == "demo" and again["cases"] == record["cases"]
    assert read_json(folder.with_name("demo-1")/"metrics.json") == record
    assert not D.fresh_folder(folder.with_name("new"))


def test_own_faces_folder(tmp_path):
    from PIL import Image
    from pconv_course.core import to_array
    (tmp_path/"faces").mkdir()
    for i, g in enumerate(faces(24)): Image.fromarray(to_array(g)).save(tmp_path/"faces"/f"me{i}.png")
    record = D.demo(tmp_path/"demo", data=str(tmp_path/"faces"), minutes=None, recipe=TINY, progress=False)
    assert record["training"]["data"]["name"] == "faces" and record["training"]["data"]["train"] + record["training"]["data"]["valid"] == 24
    assert "faces of faces" in (tmp_path/"demo"/"report.html").read_text()


def test_score_run_pairs_masks_with_faces(made, tmp_path):
    from PIL import Image
    from pconv_course.core import to_array
    for i, m in enumerate(D.case_masks("comparison", 7, 64)): Image.fromarray(255 - to_array(m)[..., 0]).save(tmp_path/f"{i}.png")
    record = D.score_run(made[0], "drawn", tmp_path, valid=0.1, limit=5, out=tmp_path/"r.json")
    assert record["all"]["n"] == record["masks"]["n"] == 5 and record["size"] == 32 and read_json(tmp_path/"r.json") == record
    assert str(tmp_path) not in (tmp_path/"r.json").read_text()
    assert record == {**D.score_run(made[0], "drawn", tmp_path, valid=0.1, limit=5), "provenance": record["provenance"]}
    assert D.pair_up(3, 8).bincount().tolist() in ([3, 3, 2], [3, 2, 3], [2, 3, 3])
