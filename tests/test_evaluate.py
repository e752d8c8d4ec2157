"""Evaluation: fills, metrics and measures on pictures whose faults are known, pairs, intervals, restarts, the command."""
import json
import math
import shutil
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from calling import pconv
from pconv_course import artifacts
from pconv_course import cli
from pconv_course import evaluation
from pconv_course import intervals
from pconv_course import masks as masks_module
from pconv_course import metrics
from pconv_course import pairs as pairs_module
from pconv_course.base.core import InputError
from pconv_course.base.show import compose, to_array
from pconv_course.data import DrawnFaces
from pconv_course.metrics import hole_l1_error, psnr, ssim
from pconv_course.base.pictures import MaskWarning
from pconv_course.masks import BUCKETS, MaskBank, central_mask, hole_ratio, sparse_mask, stroke_mask
from pconv_course.unet import PConvUNet

torch.set_num_threads(1)
FILLS = [metrics.mean_fill, metrics.telea_fill, metrics.ns_fill, metrics.biharmonic_fill, pytest.param(metrics.patchmatch_fill, marks=pytest.mark.dev)]


def faces(n, size=48, seed=3): return torch.stack([DrawnFaces(n, size, seed=seed)[i] for i in range(n)])
def masks(n, size=48, kind="mixed", seed=0): return MaskBank.make(n, size, seed, kind, (0.1, 0.6)).fixed(n)
def hwc(x): return x.permute(1, 2, 0).double().numpy()


@pytest.fixture(scope="module")
def pairs(): return pairs_module.open_pairs(size=32, limit=20)


@pytest.fixture
def pictures(tmp_path):
    "A folder of faces and one of masks (white = hole), 24 each, of the same names."
    for d in ("faces", "masks"): (tmp_path/d).mkdir()
    for i, (g, m) in enumerate(zip(faces(24, 32), masks(24, 32))):
        Image.fromarray(to_array(g)).save(tmp_path/f"faces/{i}.png")
        Image.fromarray(255 - to_array(m)).save(tmp_path/f"masks/{i}.png")
    return tmp_path


# Fills

@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("kind", ["sparse", "central", "stroke"])
def test_fills_keep_known_pixels_and_ignore_the_hole(fill, kind):
    gt, m = faces(3), MaskBank.make(3, 48, 1, kind).fixed(3)
    out = fill(gt, m)
    assert out.shape == gt.shape and out.dtype == gt.dtype and torch.equal(compose(gt, out, m), out)
    for junk in (torch.rand_like(gt), torch.full_like(gt, math.nan), torch.full_like(gt, math.inf)):
        assert torch.equal(fill(compose(gt, junk, m), m), out)


@pytest.mark.parametrize("fill", FILLS)
def test_fills_with_one_mask_for_all_and_with_no_known_pixel(fill):
    gt, m = faces(2), masks(1)
    assert torch.equal(fill(gt, m), fill(gt, m.expand(2, -1, -1, -1)))
    assert fill(gt, m*0).isfinite().all()


def test_mean_fill_is_the_mean():
    gt, m = faces(1), masks(1)
    known = gt[0][:, m[0, 0] > .5]
    torch.testing.assert_close(metrics.mean_fill(gt, m)[0][:, m[0, 0] < .5][:, 0], known.mean(1))


def test_patchmatch_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "patchmatch", None)
    with pytest.raises(InputError, match="pip install pypatchmatch"): metrics.patchmatch_fill(faces(1), masks(1))
    with pytest.raises(InputError, match="pip install pypatchmatch"): evaluation.baseline("patchmatch")


@pytest.mark.dev
def test_every_baseline_on_a_ramp():
    "Each keeps what is known; the rim's fills find the ramp, one colour and a stranger's face don't; PatchMatch copies a step of it."
    ramp, m = torch.linspace(.2, .8, 32).expand(1, 3, 32, 32).contiguous(), torch.ones(1, 1, 32, 32)
    m[..., 12:20, 12:20] = 0
    pairs = pairs_module.open_pairs(size=32, limit=2)
    out = {k: evaluation.baseline(k, pairs).fill(ramp*m, m, [0]) for k in evaluation.BASELINES if k != "truth"}
    err = {k: ((o - ramp).abs()*(1 - m)).sum().item()/(3*64) for k, o in out.items()}
    assert err["biharmonic"] < .002 and err["patchmatch"] < .012 and err["ns"] < err["telea"] < .03 < err["mean"] < .05 < err["average"]
    again = evaluation.baseline("patchmatch").fill(ramp*m, m, [0])
    assert torch.equal(again, out["patchmatch"]) and evaluation.baseline("patchmatch").info["version"]


def test_the_average_of_given_faces():
    own = DrawnFaces(5, 32, 3)
    k = evaluation.baseline("average", faces=own)
    torch.testing.assert_close(k.fill(torch.zeros(1, 3, 32, 32), None, [0])[0], torch.stack([own[i] for i in range(5)]).mean(0))
    assert k.info == dict(kind="average", faces=5, set="drawn")


# Metrics

def test_the_average_of_photographs_is_that_of_others_among_them(pictures, tmp_path):
    "Not the mean of drawn faces, and nobody who is judged is in it; where all are judged, there is nothing to average."
    where = dict(faces=pictures/"faces", masks=pictures/"masks", hole="white", valid="20-23", size=32)
    p = pairs_module.open_pairs(**where, limit=4)
    with pytest.raises(InputError, match="mean of others"): evaluation.baseline("average", p)
    others = pairs_module.other_faces(pictures/"faces", p.faces, 32)
    everyone = pairs_module.open_faces(pictures/"faces", 32)
    assert sorted(others.ids) == sorted(i for i in everyone.ids if i not in {p.faces.ids[k] for k in range(len(p.faces))})
    mean = evaluation.baseline("average", p, others).fill(*p.batch([0]), [0])[0]
    torch.testing.assert_close(mean, torch.stack([*others]).mean(0), atol=1e-6, rtol=0)
    pconv("evaluate", baseline=["average"], out=str(tmp_path/"s.json"), lpips="none", limit=4, **{k: str(v) if k != "size" else v for k, v in where.items()})
    made = json.loads((tmp_path/"s.json").read_text())["methods"]["average"]
    assert made["sha256"] == evaluation.average_of(others).sha256 and made["faces"] == len(others)
    with pytest.raises(InputError, match="nobody is left"): pairs_module.other_faces(pictures/"faces", everyone, 32)


def test_score_agrees_with_the_metrics_of_training():
    gt, m = faces(4), masks(4)
    out = gt + 0.1*torch.randn(gt.shape, generator=torch.Generator().manual_seed(0))
    s = metrics.score(gt, out, m)
    torch.testing.assert_close(s["ssim"], ssim(out, gt, m).item(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(s["l1_hole"], hole_l1_error(out, gt, m).item(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(s["psnr"], psnr(out, gt, m).item(), rtol=1e-5, atol=1e-4)


def test_score_sees_the_hole_only():
    gt, m = faces(2), masks(2, kind="sparse")
    assert metrics.score(gt, compose(torch.rand_like(gt), gt, m), m)["psnr"] == 100
    each = metrics.score_each(gt, gt*0, m)
    expect = torch.tensor([10*math.log10(1/hole_ratio(k)) for k in m], dtype=torch.float64)
    torch.testing.assert_close(each["psnr"] - each["psnr_hole"], expect, rtol=0, atol=1e-9)
    torch.testing.assert_close(each["l1"], 100*each["l1_hole"]*torch.tensor([hole_ratio(k) for k in m], dtype=torch.float64), rtol=0, atol=1e-9)
    with pytest.raises(InputError, match="nothing to score"): metrics.score(gt, gt, torch.ones_like(m))


@pytest.mark.parametrize("size", [32, 65])
def test_metrics_agree_with_torchmetrics_and_scikit_image(size):
    g = torch.Generator().manual_seed(size)
    gt, out = torch.rand(3, 3, size, size, generator=g), torch.rand(3, 3, size, size, generator=g)
    for o in (out, 0.9*gt + 0.1*out):
        each = metrics.score_each(gt, o, torch.zeros(3, 1, size, size))
        for i in range(3): assert abs(each["psnr"][i] - peak_signal_noise_ratio(o[i], gt[i], data_range=1.)) < 1e-4
    skimage = pytest.importorskip("skimage.metrics")
    how = dict(channel_axis=-1, data_range=1., gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
    full = structural_similarity_index_measure(out, gt, data_range=1., reduction="none", return_full_image=True)[1]
    for i in range(3):
        assert abs(metrics.score_each(gt, out, torch.zeros(3, 1, size, size))["ssim"][i] - full[i].mean()) < 1e-4
        assert abs(full[i, :, 5:-5, 5:-5].mean() - skimage.structural_similarity(hwc(gt[i]), hwc(out[i]), **how)) < 1e-4


def test_identity_and_known_shift():
    gt, m = faces(2)*0.5, masks(2)
    for one in (metrics.score_each(gt, gt, m), metrics.score_each(gt, torch.where(m > .5, torch.nan, gt), m)):
        assert {k: v.tolist() for k, v in one.items() if k != "ssim"} == dict(l1=[0, 0], l1_hole=[0, 0], psnr=[100, 100], psnr_hole=[100, 100])
        torch.testing.assert_close(one["ssim"], torch.ones(2).double(), rtol=0, atol=1e-6)
    shifted = metrics.score_each(gt, gt + 0.25, m)
    torch.testing.assert_close(shifted["l1_hole"], torch.full((2,), .25).double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(shifted["psnr_hole"], torch.full((2,), -20*math.log10(.25)).double(), rtol=0, atol=1e-4)


def test_what_is_scored_is_what_a_file_holds(tmp_path):
    x = torch.rand(3, 20, 20, generator=torch.Generator().manual_seed(0))*1.4 - 0.2
    x[0, 0, :3] = torch.tensor([math.nan, math.inf, -math.inf])
    Image.fromarray(to_array(metrics.as_saved(x))).save(tmp_path/"x.png")
    back = torch.from_numpy(np.array(Image.open(tmp_path/"x.png"))).permute(2, 0, 1).float().div(255)
    assert torch.equal(metrics.as_saved(x), back) and back[0, 0, :3].tolist() == [0, 1, 0]


# Colour

SHARMA = """50 2.6772 -79.7751 50 0 -82.7485 2.0425; 50 3.1571 -77.2803 50 0 -82.7485 2.8615; 50 2.8361 -74.0200 50 0 -82.7485 3.4412
50 -1.3802 -84.2814 50 0 -82.7485 1; 50 -1.1848 -84.8006 50 0 -82.7485 1; 50 -0.9009 -85.5211 50 0 -82.7485 1
50 0 0 50 -1 2 2.3669; 50 -1 2 50 0 0 2.3669; 50 2.49 -0.001 50 -2.49 0.0009 7.1792; 50 2.49 -0.001 50 -2.49 0.0010 7.1792
50 2.49 -0.001 50 -2.49 0.0011 7.2195; 50 2.49 -0.001 50 -2.49 0.0012 7.2195; 50 -0.001 2.49 50 0.0009 -2.49 4.8045
50 -0.001 2.49 50 0.0010 -2.49 4.8045; 50 -0.001 2.49 50 0.0011 -2.49 4.7461; 50 2.5 0 50 0 -2.5 4.3065; 50 2.5 0 73 25 -18 27.1492
50 2.5 0 61 -5 29 22.8977; 50 2.5 0 56 -27 -3 31.9030; 50 2.5 0 58 24 15 19.4535; 50 2.5 0 50 3.1736 0.5854 1; 50 2.5 0 50 3.2972 0 1
50 2.5 0 50 1.8634 0.5757 1; 50 2.5 0 50 3.2592 0.3350 1; 60.2574 -34.0099 36.2677 60.4626 -34.1751 39.4387 1.2644
63.0109 -31.0961 -5.8663 62.8187 -29.7946 -4.0864 1.2630; 61.2901 3.7196 -5.3901 61.4292 2.2480 -4.9620 1.8731
35.0831 -44.1164 3.7933 35.0232 -40.0716 1.5901 1.8645; 22.7233 20.0904 -46.6940 23.0331 14.9730 -42.5619 2.0373
36.4612 47.8580 18.3852 36.2715 50.5065 21.2231 1.4146; 90.8027 -2.0831 1.4410 91.1528 -1.6435 0.0447 1.4441
90.9257 -0.5406 -0.9208 88.6381 -0.8985 -0.7239 1.5381; 6.7747 -0.2908 -2.4247 5.8714 -0.0985 -2.2286 0.6377
2.0776 0.0795 -1.1350 0.9033 -0.0636 -0.5514 0.9082"""


def test_ciede2000_on_the_published_pairs():
    rows = np.array([[float(o) for o in line.split()] for line in SHARMA.replace("\n", ";").split(";")])
    assert rows.shape == (34, 7)
    np.testing.assert_allclose(artifacts.ciede2000(rows[:, :3], rows[:, 3:6]), rows[:, 6], atol=5.1e-5)
    np.testing.assert_allclose(artifacts.ciede2000(rows[:, 3:6], rows[:, :3]), rows[:, 6], atol=5.1e-5)


def test_lab_of_the_corners_of_the_colour_cube():
    "By the CIE's formulas (values of Lindbloom's calculator, D65): black, white, grey, the primaries."
    rgb = np.array([[0, 0, 0], [1, 1, 1], [.5, .5, .5], [1, 0, 0], [0, 1, 0], [0, 0, 1]], float)
    expect = [[0, 0, 0], [100, 0, 0], [53.389, 0, 0], [53.241, 80.092, 67.203], [87.735, -86.183, 83.179], [32.297, 79.188, -107.860]]
    np.testing.assert_allclose(artifacts.lab(rgb), expect, atol=.02)
    assert artifacts.lab(rgb.astype(np.float32)).dtype == np.float64


# Measures on constructed pictures

HOLES = dict(blob=central_mask(np.random.default_rng(5), 96, shape="blob"), rect=central_mask(np.random.default_rng(6), 96, shape="rect"),
             stroke=stroke_mask(np.random.default_rng(3), 96, (0.2, 0.4)), sparse=sparse_mask(np.random.default_rng(3), 96))


def cases(): return [(name, i, hwc(f), m == 0) for i, f in enumerate(faces(6, 96, seed=11)) for name, m in HOLES.items()]
def put(gt, hole, fill): return np.where(hole[..., None], np.clip(fill, 0, 1), gt)


def test_a_seam_is_found_and_a_clean_picture_has_none():
    clean = [artifacts.seam(gt, hole) for _, _, gt, hole in cases()]
    darker = [artifacts.seam(put(gt, hole, gt*0.6), hole) for _, _, gt, hole in cases()]
    assert 0.85 < np.mean(clean) < 1.3 and max(clean) < 3
    assert min(d/c for d, c in zip(darker, clean)) > 1.5 and np.mean(darker) > 3
    depth = lambda hole: np.clip(masks_module.hole_depth(~hole)/40, 0, 1)[..., None]
    fading = [artifacts.seam(put(gt, hole, gt + 0.2*depth(hole)), hole) for _, _, gt, hole in cases()]
    assert max(abs(f - c) for f, c in zip(fading, clean)) < 0.5


def test_seam_where_there_is_nothing_to_compare():
    flat, hole = np.full((20, 20, 3), .5), np.zeros((20, 20), bool)
    assert math.isnan(artifacts.seam(flat, hole)) and math.isnan(artifacts.seam(flat, ~hole))
    hole[5:9, 5:9] = True
    assert artifacts.seam(flat, hole) == 1


def test_a_tint_is_found_and_wrong_details_are_none():
    for _, _, gt, hole in cases():
        assert artifacts.colour_mismatch(gt, gt, hole) == (0, 0)
        mismatch, tint = artifacts.colour_mismatch(gt, put(gt, hole, gt + [-.1, .1, -.1]), hole)
        assert mismatch > 5 and tint > 5
        shuffled = gt.copy()
        shuffled[hole] = np.random.default_rng(0).permutation(gt[hole])
        mismatch, tint = artifacts.colour_mismatch(gt, shuffled, hole)
        assert tint < 1e-9 and mismatch > 2
        assert artifacts.colour_mismatch(gt, np.where(hole[..., None], gt, 0), hole) == (0, 0)


def test_specks_are_found_where_they_were_put():
    rng = np.random.default_rng(1)
    for name, _, gt, hole in cases():
        at = rng.permutation(np.flatnonzero(hole))[:20]
        comp = cv_blur(gt)
        assert artifacts.specks(comp, hole) == 0
        comp.reshape(-1, 3)[at] = np.eye(3)[rng.integers(3, size=len(at))]
        comp.reshape(-1, 3)[rng.permutation(np.flatnonzero(~hole))[:20]] = (1, 0, 0)  # outside, where nobody looks
        found = np.flatnonzero(artifacts.speck_map(comp, hole))
        assert len(np.intersect1d(found, at)) >= 18 and len(np.setdiff1d(found, at)) <= 2, name
        assert math.isclose(artifacts.specks(comp, hole), 100*len(found)/hole.sum())
        assert not (artifacts.speck_map(comp, hole) & ~hole).any()


def cv_blur(gt):
    import cv2
    return cv2.GaussianBlur(gt, (0, 0), 4)


def test_natural_pictures_have_few_specks():
    assert np.mean([artifacts.specks(gt, hole) for _, _, gt, hole in cases()]) < 1.5


def test_symmetry_of_mirrors_noise_and_flat():
    right = np.zeros((96, 96), bool)
    right[:, 48:] = True
    for f in faces(4, 96, seed=5):
        gt = hwc(f)
        mirrored, rng = put(gt, right, gt[:, ::-1]), np.random.default_rng(0)
        assert math.isclose(artifacts.symmetry(mirrored, right), 1) and artifacts.symmetry(gt, right) < 0.999
        assert artifacts.symmetry(put(gt, right, mirrored*0.5), right) > 0.97
        assert abs(artifacts.symmetry(put(gt, right, rng.random(gt.shape)), right)) < 0.1
        assert artifacts.symmetry(put(gt, right, gt*0 + .3), right) == 0
    both = np.zeros((96, 96), bool)
    both[30:60, 20:76] = True
    assert math.isclose(artifacts.symmetry(mirrored, both), 1)
    assert math.isnan(artifacts.symmetry(gt, np.eye(96, dtype=bool) & (np.arange(96) < 9)))


def test_depth_profile_without_a_known_pixel_is_the_deepest_class():
    profile = artifacts.depth_profile(np.zeros((8, 8, 3)), np.ones((8, 8, 3)), np.ones((8, 8), bool))
    assert profile[-1] == 1 and all(map(math.isnan, profile[:-1]))


def test_depth_profile_is_the_error_by_distance():
    for _, _, gt, hole in cases():
        steps = masks_module.hole_depth(~hole)
        profile = artifacts.depth_profile(gt*0, np.repeat(steps[..., None]/100., 3, 2), hole)
        for got, lo, hi in zip(profile, (0, *artifacts.DEPTHS), (*artifacts.DEPTHS, 10**6)):
            inside = steps[(steps > lo) & (steps <= hi)]
            assert math.isclose(got, inside.mean()/100) if len(inside) else math.isnan(got)
    assert len(artifacts.DEPTH_COLUMNS) == len(artifacts.DEPTHS) + 1


def test_density_profile_is_the_error_by_the_share_of_hole_around():
    for name, _, gt, hole in cases():
        side, dense = 25, np.zeros(hole.shape)
        for y, x in zip(*hole.nonzero()):
            window = hole[max(y - side//2, 0):y + side//2 + 1, max(x - side//2, 0):x + side//2 + 1]
            dense[y, x] = 100*window.mean()
        np.testing.assert_allclose(artifacts.hole_density(hole)[hole], dense[hole], atol=1e-9)
        profile = artifacts.density_profile(gt*0, np.repeat(dense[..., None]/100, 3, 2), hole)
        for got, lo, hi in zip(profile, (0, *artifacts.DENSITIES), (*artifacts.DENSITIES, 100)):
            inside = dense[hole & (dense.round(6) > lo) & (dense.round(6) <= hi)]
            assert math.isclose(got, inside.mean()/100) if len(inside) else math.isnan(got)
        if name == "rect": assert math.isnan(profile[0]) and profile[4] > 0.8  # a block is dense everywhere
    assert len(artifacts.DENSITY_COLUMNS) == len(artifacts.DENSITIES) + 1


def test_density_tells_a_crowd_of_lines_from_a_line():
    hole = np.zeros((96, 96), bool)
    hole[:, 20], hole[:, 60:90:2] = True, True
    worse_in_the_crowd = np.where((np.arange(96) > 50)[None, :, None], 0.4, 0.1)*np.ones((96, 96, 3))
    profile = artifacts.density_profile(worse_in_the_crowd*0, worse_in_the_crowd, hole)
    assert math.isclose(profile[0], 0.1) and math.isclose(profile[2], 0.4) and np.isnan(profile[3:]).all()
    depth = artifacts.depth_profile(worse_in_the_crowd*0, worse_in_the_crowd, hole)
    assert 0.1 < depth[0] < 0.4 and np.isnan(depth[1:]).all()  # every pixel is at depth 1


def test_specks_by_density_add_up_and_are_where_they_were_put():
    for _, _, gt, hole in cases():
        comp, dense = gt*0 + .5, artifacts.hole_density(hole)
        comp[hole & (dense > 60) & (np.indices(hole.shape).sum(0) % 5 == 0)] = (1, 0, 0)
        profile = artifacts.speck_profile(comp, hole)
        n = [(hole & (dense.round(6) > lo) & (dense.round(6) <= hi)).sum() for lo, hi in zip((0, *artifacts.DENSITIES), (*artifacts.DENSITIES, 100))]
        assert math.isclose(np.nansum(np.nan_to_num(profile)*n)/hole.sum(), artifacts.specks(comp, hole), abs_tol=1e-9)
        assert all(p == 0 or math.isnan(p) for p in profile[:3]) and (math.isnan(profile[4]) or profile[4] > 5)
    assert len(artifacts.SPECK_COLUMNS) == len(artifacts.DENSITY_COLUMNS)


def spot(y, x, s, size=96): return np.exp(-((np.mgrid[:size, :size] - np.array([y, x])[:, None, None])**2).sum(0)/(2*s**2))[..., None]


def test_a_blob_is_found_where_specks_and_tint_see_nothing():
    rng = np.random.default_rng(2)
    for name, _, gt, hole in cases():
        assert artifacts.blobs(gt, gt, hole) == 0 and artifacts.blobs(gt, np.where(hole[..., None], gt, 0), hole) == 0
        if name not in ("blob", "rect"): continue
        base = gt*.5 + .25  # away from the ends of the range, so that nothing is clipped
        y, x = np.argwhere(hole).mean(0)
        blob = put(base, hole, base + spot(y - 8, x - 8, 6)*[-.15, .1, -.15] + spot(y + 8, x + 8, 6)*[.15, -.1, .15])
        tint, grain = put(base, hole, base + [-.05, .03, -.05]), put(base, hole, base + rng.choice([-1, 1], hole.shape)[..., None]*[.15, -.1, .15])
        found = {k: artifacts.blobs(base, v, hole) for k, v in dict(blob=blob, tint=tint, grain=grain).items()}
        assert found["blob"] > 3 and found["tint"] < found["blob"]/5 and found["grain"] < found["blob"]/2, (name, found)
        assert artifacts.specks(blob, hole) <= artifacts.specks(base, hole) + 1 and artifacts.colour_mismatch(base, blob, hole)[1] < 4
        assert math.isclose(artifacts.blobs(base, base + (blob - base)/2, hole), found["blob"]/2, rel_tol=0.2)


def test_detail_of_the_truth_of_blur_and_of_other_places():
    for _, i, gt, hole in cases():
        assert math.isclose(artifacts.detail(gt, gt, hole), 1) and math.isclose(artifacts.detail(gt, gt*0.9, hole), 1, abs_tol=0.02)
        assert artifacts.detail(gt, gt*0 + .5, hole) == 0 and artifacts.detail(gt, 1 - gt, hole) < -.8
        assert artifacts.detail(gt, np.where(hole[..., None], gt, 0), hole) == 1 or math.isclose(artifacts.detail(gt, np.where(hole[..., None], gt, 0), hole), 1)
        blurred = artifacts.detail(gt, cv_blur(gt), hole)
        shuffled = gt.copy()
        shuffled[hole] = np.random.default_rng(i).permutation(gt[hole])
        assert abs(artifacts.detail(gt, shuffled, hole)) < 0.15 and artifacts.detail(gt, shuffled, hole) < blurred < 0.95
    assert math.isnan(artifacts.detail(gt*0 + .3, gt, hole)) and math.isnan(artifacts.detail(gt, gt, np.eye(96, dtype=bool) & (np.arange(96) < 9)))


def test_texture_profile_sorts_by_the_truth():
    gt, hole = np.full((40, 40, 3), .5), np.ones((40, 40), bool)
    gt[:, 20:] += .45*np.where(np.indices((40, 20)).sum(0) % 2, -1, 1)[..., None]
    comp = gt + np.where((np.arange(40) < 20)[None, :, None], .01, .04)
    profile = artifacts.texture_profile(gt, comp, hole)
    assert math.isclose(profile[0], .01) and np.isnan(profile[1:3]).all() and .03 < profile[3] <= .04
    assert artifacts.texture(gt)[:, :18].max() < 1e-6 and np.allclose(artifacts.texture(gt)[5:35, 25:35], 45, atol=0.1)


def test_records_of_before_the_profiles_are_still_shown(pairs, tmp_path):
    r = evaluation.evaluate([evaluation.baseline(k, pairs) for k in ("telea", "mean", "truth")], pairs, tmp_path/"s.json", progress=False)
    new = ("blobs", "detail", "texture", "seam_off", "specks_over", *artifacts.DENSITY_COLUMNS, *artifacts.SPECK_COLUMNS, *artifacts.TEXTURE_COLUMNS)
    assert all(set(o["methods"]["mean"]) & set(artifacts.PROFILES) for o in r["rows"] if o["border"] == "any")
    assert not any(set(o[k]["mean"]) & set(artifacts.PROFILES) for o in r["rows"] if o["border"] != "any" for k in ("methods", "against"))
    old = json.loads(json.dumps(r))
    for o in old["rows"]:
        for v in (*o["methods"].values(), *o["against"].values()):
            for k in new: v.pop(k, None)
    for k in ("blobs", "detail"): del old["columns"][k]
    assert "blobs" in evaluation.report(r) and "blobs" not in evaluation.report(old) and len(evaluation.report(old)) > 500
    evaluation.record_figure(old)


def test_a_csv_of_other_columns_is_refused(pairs, tmp_path):
    (tmp_path/"s.csv").write_text(",".join((*evaluation.KEYS, *metrics.METRICS, "lpips")) + "\n")
    with pytest.raises(InputError, match="is not a table of this command; choose another --out"):
        evaluation.evaluate([evaluation.baseline("telea")], pairs, tmp_path/"s.json", progress=False)


def test_measure_has_every_column_and_sees_the_hole_only():
    gt, m = faces(1, 64)[0], torch.from_numpy(stroke_mask(np.random.default_rng(3), 64)).float()[None]
    clean = artifacts.measure(gt, gt, m)
    assert set(clean) == {*artifacts.MEASURES, *artifacts.PROFILES, "true_texture"} and clean["colour"] == clean["tint"] == clean["depth_1"] == 0
    assert {*metrics.METRICS, *clean, "lpips"} - {"true_texture"} == set(artifacts.COLUMNS)
    assert clean["seam_off"] == clean["specks_over"] == 0 and clean["texture"] == clean["true_texture"] > 0


def test_distance_from_the_truth_of_seam_and_specks():
    "A fill with fewer specks than the truth has none beyond it; a smoother seam than the truth's is off by as much as a rougher one."
    gt, m = torch.full((3, 40, 40), .5), torch.ones(1, 40, 40)
    m[:, 10:30, 10:30] = 0
    gt[:, 20, 20], dots = torch.tensor([1., 0, 0]), torch.full((3, 40, 40), .5)
    dots[:, 15:26:5, 20] = torch.tensor([1., 0, 0])[:, None]
    plain = artifacts.measure(gt, torch.full_like(gt, .5), m)
    assert plain["specks"] == plain["specks_over"] == 0 and math.isclose(artifacts.measure(gt, dots, m)["specks_over"], 100*2/400)
    edge = compose(gt[None], torch.full((1, 3, 40, 40), .7), m[None])[0]
    for a, b in ((gt, edge), (edge, gt)):
        assert math.isclose(artifacts.measure(a, b, m)["seam_off"], abs(artifacts.seam(hwc(edge), m[0].numpy() < .5) - artifacts.seam(hwc(gt), m[0].numpy() < .5)), rel_tol=1e-6)


# Statistics

def test_paired_is_about_the_same_pictures():
    a = torch.tensor([10., 20, 30])
    assert intervals.paired(a + 1, a) == (1., 0.) and intervals.paired(a[:1], a[:1])[1] == math.inf


def test_bucket_table_covers_every_mask_once():
    gt, m = faces(24), masks(24, kind="stroke")
    fills = dict(mean=metrics.mean_fill(gt, m), telea=metrics.telea_fill(gt, m))
    rows, whole = intervals.bucket_table(gt, m, fills), intervals.score_row(gt, m, fills)
    assert sum(r["n"] for r in rows) == 24
    for k in fills:
        for q in metrics.METRICS: assert math.isclose(sum(r["n"]*r["methods"][k][q] for r in rows)/24, whole["methods"][k][q], abs_tol=1e-4)


def test_the_interval_holds_the_truth_as_often_as_it_says():
    "200 experiments of 12 pictures with 5 rows each, whose pictures differ: the clustered interval covers, the naive one doesn't."
    rng, hits = np.random.default_rng(0), np.zeros(2)
    for k in range(200):
        values, groups = (rng.normal(size=(12, 1)) + 0.3*rng.normal(size=(12, 5))).reshape(-1, 1), np.repeat(np.arange(12), 5)
        for j, g in enumerate((groups, np.arange(60))):
            _, lo, hi = intervals.bootstrap(values, g, seed=k, draws=300)[0]
            hits[j] += lo <= 0 <= hi
    assert 0.86 < hits[0]/200 < 0.99 and hits[1]/200 < 0.75


def test_bootstrap_of_missing_values_and_single_pictures():
    values = np.array([[1., np.nan], [3., 5.], [5., np.nan]])
    out = intervals.bootstrap(values, ["a", "b", "c"])
    assert out[:, 0].tolist() == [3, 5] and out[1].tolist() == [5, 5, 5] and out[0, 1] < 3 < out[0, 2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one = intervals.bootstrap(values[:1], ["a"])
    assert one[0, 0] == 1 and np.isnan(one[:, 1:]).all() and np.isnan(one[1, 0])
    assert np.array_equal(intervals.bootstrap(values, list("abc"), 7), intervals.bootstrap(values, list("abc"), 7), equal_nan=True)


# Pairs

def alarms(draw, *groups, n=400):
    "How often `interval` tells a difference that isn't there."
    rng = np.random.default_rng(0)
    return np.mean([intervals.holds(intervals.interval(draw(rng), *groups)) != intervals.OPEN for _ in range(n)])


@pytest.mark.parametrize("n", [3, 5, 9, 29, 30, 100])
def test_the_rule_cries_wolf_in_one_world_of_twenty(n): assert .02 < alarms(lambda rng: rng.normal(size=n)) < .09


@pytest.mark.parametrize("repeat", ["both", *(pytest.param(o, marks=pytest.mark.slow) for o in ("faces", "masks", "few faces"))])
def test_the_rule_keeps_its_rate_when_things_repeat(repeat):
    "Effects of faces, of masks, or of both; counting pairs one by one would tell several times as often."
    faces, masks = (5 if repeat == "few faces" else 60), 80
    f, m = np.arange(240) % faces, np.random.default_rng(1).permutation(np.arange(240) % masks)
    draw = lambda rng: (repeat != "masks")*rng.normal(size=faces)[f] + (repeat in ("masks", "both"))*rng.normal(size=masks)[m] + .5*rng.normal(size=240)
    assert .02 < alarms(draw, f, m) < .09 and alarms(draw) > .12


def test_interval_by_hand():
    mean, low, high = intervals.interval([1., 2, 3])
    assert mean == 2 and math.isclose(high - 2, 4.302653/math.sqrt(3), rel_tol=1e-6) and math.isclose(2 - low, high - 2)
    assert intervals.interval([1.]) == [1, None, None] and intervals.interval([1., math.nan, 3]) == intervals.interval([1., 3])
    v = np.random.default_rng(0).normal(size=(40, 2))
    np.testing.assert_array_equal(intervals.interval(v, range(40)), intervals.bootstrap(v, range(40)))
    np.testing.assert_array_equal(intervals.interval(v, range(40), range(40)), intervals.bootstrap(v, range(40)))  # masks that don't repeat add nothing
    few = intervals.interval(v, np.arange(40)//4)
    c = v.reshape(10, 4, 2).mean(1)
    np.testing.assert_allclose(few[:, 2] - few[:, 0], 2.262157*c.std(0, ddof=1)/math.sqrt(10), rtol=1e-6)


def test_a_ratio_of_sums():
    "Texture over the truth's: the ratio of the two means, whatever single pictures say; its interval holds it as often as it should."
    rng, inside = np.random.default_rng(0), 0
    for _ in range(200):
        true = rng.uniform(.1, 5, 60)
        fill = .5*true + rng.normal(size=60)*.3
        mean, low, high = intervals.interval(fill, over=true[:, None])
        assert math.isclose(mean, fill.sum()/true.sum())
        inside += low < .5 < high
    assert .88 < inside/200 < .985


def test_over_seeds_and_whole_tables():
    assert intervals.over_seeds([]) is None and intervals.over_seeds([None, 2.]) == [2, None, None] and intervals.over_seeds([2., 2.])[1] is None
    assert [intervals.holds(intervals.over_seeds(d)) for d in ([1., 1.1, 1.2], [-1, -1.1, -1.2], [1, 2, 4])] == [intervals.HOLDS, intervals.FAILS, intervals.OPEN]
    assert math.isclose(intervals.p_value([1., 2, 3]), .0741799, rel_tol=1e-4) and intervals.p_value([0., 0, 0]) == 1 and math.isnan(intervals.p_value([1.]))
    assert intervals.fdr([.01, .02, .03, .9]).tolist() == [True, True, True, False] and not intervals.fdr([.02, .9, .9]).any() and intervals.fdr([[.001, np.nan]]).tolist() == [[True, False]]
    rng = np.random.default_rng(0)
    false = [intervals.fdr([intervals.p_value(rng.normal(size=5)) for _ in range(30)]).any() for _ in range(60)]
    assert np.mean(false) < .15


def test_lists_are_beginnings_of_longer_lists():
    strata = np.random.default_rng(0).integers(5, size=60)
    for n in (1, 7, 60, 150):
        assert pairs_module.pair_up(13, n).tolist() == pairs_module.pair_up(13, 200)[:n].tolist()
        assert pairs_module.mask_order(strata, n).tolist() == pairs_module.mask_order(strata, 200)[:n].tolist()
    assert sorted(pairs_module.pair_up(13, 13)) == list(range(13)) and sorted(pairs_module.mask_order(strata, 60)) == list(range(60))
    assert pairs_module.pair_up(13, 13).tolist() != pairs_module.pair_up(13, 13, 1).tolist() and pairs_module.mask_order(strata, 60).tolist() != pairs_module.mask_order(strata, 60, 1).tolist()
    for n in range(1, 61):
        for s in range(5): assert abs((strata[pairs_module.mask_order(strata, n)] == s).sum() - n*(strata == s).mean()) < 2


def test_pairs_are_the_same_again_and_depend_on_every_pixel(pictures):
    where = dict(faces=pictures/"faces", masks=pictures/"masks", hole="white", size=32)
    a = pairs_module.open_pairs(**where)
    assert len(a) == 24 and a.sha256 == pairs_module.open_pairs(**where).sha256 and a.keys[:5] == pairs_module.open_pairs(**where, limit=5).keys
    assert len({a.sha256, pairs_module.open_pairs(**where, seed=1).sha256, pairs_module.open_pairs(**where, limit=23).sha256, pairs_module.open_pairs(**where | dict(size=33)).sha256}) == 4
    with pytest.warns(MaskWarning): assert pairs_module.open_pairs(**where | dict(hole="black")).sha256 != a.sha256
    gt, m = a.batch([3, 8])
    assert torch.equal(m[1], a.bank[a.mask_at[8]]) and torch.equal(gt[0], a.faces[a.face_at[3]])
    im = np.array(Image.open(pictures/"faces/7.png"))
    im[0, 0, 0] ^= 1
    Image.fromarray(im).save(pictures/"faces/7.png")
    assert pairs_module.open_pairs(**where).sha256 != a.sha256


def test_which_faces(pictures):
    where = dict(masks="mixed", size=32)
    assert pairs_module.open_pairs(pictures/"faces", **where, limit=3).info["faces"]["which"] == "all"
    ids = {int(pairs_module.stem(p.faces.ids[i])) for p in [pairs_module.open_pairs(pictures/"faces", **where, valid="20-23", limit=9)] for i in p.face_at}
    assert ids == {20, 21, 22, 23}
    with pytest.raises(InputError, match="what marks the hole"): pairs_module.open_pairs("drawn", pictures/"masks", size=32)
    MaskBank.make(3, 48).save(pictures/"bank.npz")
    with pytest.raises(InputError, match="give --size 48"): pairs_module.open_pairs("drawn", pictures/"bank.npz", size=32)
    assert len(pairs_module.open_pairs("drawn", pictures/"bank.npz", size=48, limit=7)) == 7


def test_pairs_by_name(pictures):
    p = pairs_module.open_pairs(pictures/"faces", pictures/"masks", "white", size=32, by_name=True)
    assert [pairs_module.stem(p.faces.ids[i]) for i in p.face_at] == [str(i) for i in range(24)] == [pairs_module.stem(p.bank.names[i]) for i in p.mask_at]
    for folder, name in (("faces", "anna.{}.png"), ("masks", "anna.{}.png")):
        (pictures/f"dots/{folder}").mkdir(parents=True)
        for i, f in enumerate(sorted((pictures/folder).iterdir())[:3]): shutil.copy(f, pictures/f"dots/{folder}"/name.format(i))
    p = pairs_module.open_pairs(pictures/"dots/faces", pictures/"dots/masks", "white", size=32, by_name=True)
    assert [p.faces.ids[i] for i in p.face_at] == ["anna.0", "anna.1", "anna.2"] == [pairs_module.stem(p.bank.names[i]) for i in p.mask_at]
    for f in (pictures/"masks").iterdir(): f.rename(f.with_name("m" + f.name))
    with pytest.raises(InputError, match="share a name"): pairs_module.open_pairs(pictures/"faces", pictures/"masks", "white", size=32, by_name=True)


def test_parts_hold_every_pair_once():
    ratios, border = [0.005, 0.05, 0.1, 0.15, 0.59, 0.7], [0, 1, 0, 1, 0, 1]
    parts = {(name, touch): at.tolist() for name, touch, at in evaluation.parts_of(ratios, border)}
    assert all(parts["all", "any"]) and parts["all", "with"] == [bool(b) for b in border]
    assert parts["other", "any"] == [True, False, False, False, False, True] and parts["0.01 to 0.1", "any"] == [False, True, True, False, False, False]
    assert np.sum([at for (name, touch), at in parts.items() if touch == "any" and name != "all"], 0).tolist() == [1]*6
    assert parts["0.1 to 0.2", "without"] == [False]*6


# Results

def method(name="half", value=0.5, seen=None):
    def fill(inp, m, numbers):
        if seen is not None: seen.append((list(numbers), float(inp[m.expand_as(inp) < .5].abs().max())))
        return torch.full_like(inp, value)
    return evaluation.Method(name, name, fill, f"hash of {value}")


def test_record_has_the_plain_means_and_no_path(pairs, tmp_path):
    r = evaluation.evaluate([evaluation.baseline(k, pairs) for k in ("telea", "mean", "truth")], pairs, tmp_path/"s.json", progress=False)
    gt, m = pairs.batch(range(20))
    row, each = evaluation.row_of(r), {k: metrics.score_each(gt, metrics.as_saved(f(gt, m)), m) for k, f in dict(telea=metrics.telea_fill, mean=metrics.mean_fill).items()}
    for k in each:
        for q in metrics.METRICS: assert math.isclose(row["methods"][k][q][0], each[k][q].mean(), rel_tol=2e-5)
    assert math.isclose(row["against"]["mean"]["psnr"][0], intervals.paired(each["mean"]["psnr"], each["telea"]["psnr"])[0], rel_tol=1e-4)
    assert all(v[1] is None or v[1] <= v[0] <= v[2] for s in row["methods"].values() for v in s.values())
    assert row["methods"]["truth"]["psnr"] == [100, 100, 100] and r["against"] == "telea" and r["pairs_sha256"] == pairs.sha256
    assert json.loads((tmp_path/"s.json").read_text()) == r and str(tmp_path) not in (tmp_path/"s.json").read_text()
    assert sum(o["n"] for o in r["rows"] if o["border"] == "any" and o["part"] != "all") == 20
    assert all(evaluation.row_of(r, o["part"])["n"] == sum(q["n"] for q in r["rows"] if q["part"] == o["part"] and q["border"] != "any") for o in r["rows"])
    assert {p.name for p in tmp_path.iterdir()} == {"s.json", "s.csv", "s.md", "s.png"}
    assert len((tmp_path/"s.json").read_text().splitlines()) < 4000


def test_tables_are_complete(pairs, tmp_path):
    r = evaluation.evaluate([evaluation.baseline(k) for k in ("telea", "mean")], pairs, tmp_path/"s.json", progress=False, notes=["LPIPS not measured: because"])
    text, md = evaluation.report(r), (tmp_path/"s.md").read_text()
    assert "LPIPS not measured: because" in text and "LPIPS not measured: because" in md and pairs.sha256[:12] in text
    for lo, hi in BUCKETS: assert (f"{lo:g} to {hi:g}" in text) == (evaluation.row_of(r, f"{lo:g} to {hi:g}") is not None)
    assert len({len(o) for o in evaluation.bucket_rows(r)}) == 1 and "mean colour − Telea" in evaluation.bucket_rows(r)[0]
    assert sum(o.startswith("| ---") for o in md.splitlines()) == 5 and "hole ratio" in text


def test_methods_never_see_the_hole_and_few_pictures_at_once(pairs, tmp_path):
    seen = []
    evaluation.evaluate([method(seen=seen)], pairs, tmp_path/"s.json", progress=False)
    assert sorted(i for n, _ in seen for i in n) == list(range(20)) and all(v == 0 and len(n) <= 16 for n, v in seen)
    big, seen = pairs_module.open_pairs(size=512, limit=5), []
    evaluation.run_methods([method(seen=seen)], big, evaluation.Results(tmp_path/"big.csv"), progress=False)
    assert max(len(n) for n, _ in seen) == 4


def test_nan_is_counted_and_scored_as_black(pairs, tmp_path):
    r = evaluation.evaluate([method("nan", math.nan), method("black", 0.)], pairs, tmp_path/"s.json", progress=False)
    rows = evaluation.row_of(r)["methods"]
    assert rows["nan"] == rows["black"] and r["methods"]["black"]["broken_values"] == 0
    assert r["methods"]["nan"]["broken_values"] == 3*sum((pairs.batch([i])[1] == 0).sum().item() for i in range(20))
    assert "NaN or infinite" in evaluation.report(r)


def test_again_computes_nothing_and_another_network_everything(pairs, tmp_path):
    seen = []
    first = evaluation.evaluate([method(seen=seen)], pairs, tmp_path/"s.json", progress=False)
    n = len(seen)
    again = evaluation.evaluate([method(seen=seen)], pairs, tmp_path/"s.json", progress=False)
    assert len(seen) == n and again["rows"] == first["rows"]
    other = evaluation.evaluate([method(value=0.2, seen=seen)], pairs, tmp_path/"s.json", progress=False)
    assert len(seen) == 2*n and other["rows"] != first["rows"]
    more = evaluation.evaluate([evaluation.baseline("telea")], pairs, tmp_path/"s.json", progress=False)
    assert list(more["methods"]) == ["half", "telea"] and evaluation.row_of(more)["methods"]["half"] == evaluation.row_of(other)["methods"]["half"]


def test_longer_list_goes_on_from_a_shorter_one(pairs, tmp_path):
    seen = []
    evaluation.evaluate([method(seen=seen)], pairs_module.open_pairs(size=32, limit=12), tmp_path/"s.json", progress=False)
    r = evaluation.evaluate([method(seen=seen)], pairs, tmp_path/"s.json", progress=False)
    assert sorted(i for n, _ in seen for i in n) == list(range(20)) and evaluation.row_of(r)["n"] == 20
    shorter = evaluation.evaluate([method(seen=seen)], pairs_module.open_pairs(size=32, limit=12), tmp_path/"s.json", progress=False)
    assert sum(len(n) for n, _ in seen) == 20 and evaluation.row_of(shorter)["n"] == 12


def test_other_pairs_are_never_mixed_in(pairs, tmp_path):
    evaluation.evaluate([method()], pairs, tmp_path/"a.json", progress=False)
    other = pairs_module.open_pairs(size=32, limit=20, seed=1)
    with pytest.raises(InputError, match="other pairs"): evaluation.evaluate([method()], other, tmp_path/"a.json", progress=False)
    evaluation.evaluate([method("b")], other, tmp_path/"b.json", progress=False)
    with pytest.raises(InputError, match="other pairs"): evaluation.join_records([tmp_path/"a.json", tmp_path/"b.json"], tmp_path/"c.json")
    with pytest.raises(InputError, match="same name"): evaluation.evaluate([method(), method()], pairs, tmp_path/"d.json", progress=False)
    with pytest.raises(InputError, match="other pairs"): evaluation.evaluate([method("another")], other, tmp_path/"a.json", progress=False)
    (tmp_path/"run.json").write_text('{"finished": true}')
    with pytest.raises(InputError, match="no record of an evaluation"): evaluation.evaluate([method()], pairs, tmp_path/"run.json", progress=False)
    with pytest.raises(InputError, match="no record of an evaluation"): evaluation.join_records([tmp_path/"run.json"], tmp_path/"c.json")
    assert (tmp_path/"run.json").read_text() == '{"finished": true}' and not (tmp_path/"run.md").exists() and not (tmp_path/"c.csv").exists()
    (tmp_path/"e.csv").write_text("face,psnr\nme,3\n")
    with pytest.raises(InputError, match="choose another --out"): evaluation.evaluate([method()], pairs, tmp_path/"e.json", progress=False)
    assert (tmp_path/"e.csv").read_text() == "face,psnr\nme,3\n"


@pytest.mark.parametrize("suffix", [".md", ".png"])
def test_a_file_of_somebody_else_beside_out_stays(pairs, tmp_path, suffix):
    "Notes called thesis.md are not replaced by the tables of thesis.json; those of an evaluation are."
    (tmp_path/"thesis").with_suffix(suffix).write_bytes(b"all my work")
    with pytest.raises(InputError, match=f"thesis{suffix} would be replaced") as e: evaluation.evaluate([evaluation.baseline("mean", pairs)], pairs, tmp_path/"thesis.json", progress=False)
    assert "\n" not in str(e.value) and [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [(f"thesis{suffix}", b"all my work")]
    evaluation.evaluate([evaluation.baseline("mean", pairs)], pairs, tmp_path/"part.json", progress=False)
    with pytest.raises(InputError, match="would be replaced"): evaluation.join_records([tmp_path/"part.json"], tmp_path/"thesis.json")
    for _ in range(2): evaluation.evaluate([evaluation.baseline("mean", pairs)], pairs, tmp_path/"part.json", progress=False)


def test_what_can_not_be_evaluated_is_said_before_anything_is_filled(pairs, tmp_path):
    seen = []
    for out, words in (("s", "should end in .json"), ("theirs.json", "no record of an evaluation")):
        (tmp_path/"theirs.json").write_text("{}")
        with pytest.raises(InputError, match=words): evaluation.evaluate([method(seen=seen)], pairs, tmp_path/out, progress=False)
    with pytest.raises(InputError, match="two pairs or more"): evaluation.evaluate([method(seen=seen)], pairs_module.open_pairs(size=32, limit=1), tmp_path/"s.json", inception=print)
    assert not seen and not (tmp_path/"theirs.csv").exists()
    for how, words in ((dict(valid="0-3"), "chosen by the seed"), (dict(hole="white"), "leave that out")):
        with pytest.raises(InputError, match=words): pairs_module.open_pairs(size=32, limit=2, **how)


def test_a_join_leaves_the_scores_of_a_stopped_evaluation_of_other_pairs(pairs, tmp_path):
    evaluation.evaluate([method("a", .3)], pairs, tmp_path/"a.json", progress=False)
    evaluation.evaluate([method("a", .3)], pairs_module.open_pairs(size=32, limit=20, seed=1), tmp_path/"j.json", progress=False)
    (tmp_path/"j.json").unlink()
    before = (tmp_path/"j.csv").read_bytes()
    with pytest.raises(InputError, match="other pairs"): evaluation.join_records([tmp_path/"a.json"], tmp_path/"j.json")
    assert (tmp_path/"j.csv").read_bytes() == before


def test_a_slip_in_against_is_found_before_anything_is_filled(pairs, tmp_path):
    seen = []
    with pytest.raises(InputError, match="no method 'telae'"): evaluation.evaluate([method(seen=seen)], pairs, tmp_path/"a.json", against="telae", progress=False)
    assert not seen


def test_two_networks_of_one_name_are_not_joined(pairs, tmp_path):
    evaluation.evaluate([method("a", .3)], pairs, tmp_path/"a.json", progress=False)
    evaluation.evaluate([method("a", .6)], pairs, tmp_path/"b.json", progress=False)
    with pytest.raises(InputError, match="two methods are called 'a'"): evaluation.join_records([tmp_path/"a.json", tmp_path/"b.json"], tmp_path/"ab.json")


def test_join_is_the_evaluation_of_both(pairs, tmp_path):
    a, b = method("a", .3), method("b", .6)
    for k in (a, b): evaluation.evaluate([k], pairs, tmp_path/f"{k.name}.json", progress=False)
    both = evaluation.evaluate([a, b], pairs, tmp_path/"both.json", against="b", progress=False)
    joined = evaluation.join_records([tmp_path/"a.json", tmp_path/"b.json"], tmp_path/"ab.json", against="b")
    assert joined["rows"] == both["rows"] and joined["methods"] == both["methods"]
    with pytest.raises(InputError, match="no method 'c'"): evaluation.join_records([tmp_path/"a.json"], tmp_path/"x.json", against="c")
    (tmp_path/"a.csv").write_text((tmp_path/"a.csv").read_text().rsplit("\n", 2)[0] + "\n")
    with pytest.raises(InputError, match="lacks rows of a"): evaluation.join_records([tmp_path/"a.json", tmp_path/"b.json"], tmp_path/"ab.json")


def test_a_join_that_fails_writes_nothing(pairs, tmp_path):
    other = pairs_module.open_pairs(size=32, limit=20, seed=1)
    for k, p in (("a", pairs), ("b", pairs), ("c", other)): evaluation.evaluate([method(k)], p, tmp_path/f"{k}.json", progress=False)
    (tmp_path/"b.csv").unlink()
    was = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(InputError, match="b.csv is not beside b.json"): evaluation.join_records([tmp_path/"a.json", tmp_path/"b.json"], tmp_path/"ab.json")
    with pytest.raises(InputError, match="evaluation of other pairs; choose another --out"): evaluation.join_records([tmp_path/"a.json"], tmp_path/"c.json")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == was


KILLED = """
import os, sys, torch
torch.set_num_threads(1)
from pconv_course import evaluation as E
from pconv_course.pairs import open_pairs
def stop(done, total):
    if done == 16: os.kill(os.getpid(), 9)
E.evaluate([E.baseline("telea"), E.baseline("mean")], open_pairs(size=32, limit=20), sys.argv[1], progress=stop)
"""


def test_killed_and_gone_on_is_the_same(pairs, tmp_path):
    out = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path/"s.json")], capture_output=True, text=True, timeout=300)
    assert out.returncode == -9 and not (tmp_path/"s.json").exists(), out.stderr
    text = (tmp_path/"s.csv").read_text()
    assert text.count("\n") == 17
    (tmp_path/"s.csv").write_text(text + "telea,abc,16,1e")  # torn in the middle of a line
    count = []
    r = evaluation.evaluate([evaluation.baseline("telea"), evaluation.baseline("mean")], pairs, tmp_path/"s.json", progress=lambda done, total: count.append(done))
    assert count == [20, 36, 40]
    whole = evaluation.evaluate([evaluation.baseline("telea"), evaluation.baseline("mean")], pairs, tmp_path/"t.json", progress=False)
    assert r["rows"] == whole["rows"] and sorted((tmp_path/"s.csv").read_text().splitlines()) == sorted((tmp_path/"t.csv").read_text().splitlines())


def test_a_torn_line_is_dropped_even_when_it_looks_whole(tmp_path):
    "A number that lost its last digits is still a number: only a line that ends counts. Each added line is on the disk."
    row = evaluation.csv_line(dict(method="a", pair=1, psnr=20., lpips=0.123))
    evaluation.Results(tmp_path/"t.csv").add([evaluation.csv_line(dict(method="a", pair=0, psnr=10.))])
    (tmp_path/"t.csv").write_text((tmp_path/"t.csv").read_text() + row[:-1])
    again = evaluation.Results(tmp_path/"t.csv")
    assert again.row("a", 0)["psnr"] == "10" and again.row("a", 1) is None and (tmp_path/"t.csv").read_text().endswith("\n")


def test_full_disk_is_one_line(pairs, tmp_path, monkeypatch):
    results = evaluation.Results(tmp_path/"t.csv")
    monkeypatch.setattr(evaluation.os, "fsync", lambda f: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"): results.add([evaluation.csv_line(dict(method="a", pair=0))])
    with pytest.raises(InputError, match="No space left.*free some space"): evaluation.evaluate([method()], pairs, tmp_path/"s.json", progress=False)


# Networks and other people's pictures

@pytest.fixture
def run(tmp_path):
    "A folder with the weights of a tiny network, as training writes it."
    torch.manual_seed(0)
    model = PConvUNet(depth=3, width=4)
    config = dict(model=model.config, recipe=dict(size=32))
    (tmp_path/"tiny").mkdir()
    save_file(model.state_dict(), tmp_path/"tiny/model.safetensors", dict(config=json.dumps(config)))
    return tmp_path/"tiny", model.eval()


def test_network_is_the_network(run, pairs):
    folder, model = run
    k = evaluation.network(folder)
    gt, m = pairs.batch([0, 1])
    with torch.no_grad(): expect = model(gt*m, m)
    torch.testing.assert_close(k.fill(gt*m, m, [0, 1]), expect, rtol=1e-4, atol=1e-5)
    assert k.name == "tiny" == evaluation.network(folder/"model.safetensors").name and evaluation.network(folder, "x").name == "x"
    assert k.sha256 == evaluation.network(folder/"model.safetensors").sha256 != evaluation.model_method(PConvUNet(depth=3, width=4)).sha256
    with pytest.raises(InputError, match="no such file"): evaluation.network(folder/"nothing")


def test_outputs_by_number_and_by_face(pairs, pictures):
    evaluation.save_pairs(pairs, pictures/"p")
    gt, m = pairs.batch(range(20))
    truth, blacked = evaluation.outputs(pictures/"p/images", pairs), evaluation.outputs(pictures/"p/inputs", pairs, "black")
    assert torch.equal(truth.fill(gt*m, m, range(20)), gt) and torch.equal(blacked.fill(gt*m, m, [3]), (gt*m)[3:4])
    back = pairs_module.open_pairs(pictures/"p/images", pictures/"p/masks", "white", size=32, by_name=True)
    assert back.sha256 == pairs.sha256, "the questions that were saved are the same questions"
    named = pairs_module.open_pairs(pictures/"faces", pictures/"masks", "white", size=32, by_name=True)
    assert torch.equal(evaluation.outputs(pictures/"faces", named).fill(*named.batch([5]), [5]), named.batch([5])[0])
    (pictures/"p/images/00007.png").unlink()
    with pytest.raises(InputError, match="no picture '00007'"): evaluation.outputs(pictures/"p/images", pairs)
    big = pairs_module.open_pairs(pictures/"faces", pictures/"masks", "white", size=48, by_name=True)
    with pytest.raises(InputError, match="give --size 32"): evaluation.outputs(pictures/"faces", big)


@pytest.mark.parametrize("by", ["pair", "face"])
def test_outputs_whose_names_are_numbers_of_pairs_and_faces(pictures, by):
    "Faces called 00000 and so on, and answers of the same names: the known pixels tell which of both is meant; one of another size is named."
    for i in range(24): (pictures/f"faces/{i}.png").rename(pictures/f"faces/{i:05d}.png")
    p = pairs_module.open_pairs(pictures/"faces", pictures/"masks", "white", valid="all", size=32, limit=24)
    evaluation.save_pairs(p, pictures/"p")
    given = evaluation.outputs(pictures/("p/images" if by == "pair" else "faces"), p)
    assert p.face_at != sorted(p.face_at) and torch.equal(given.fill(*p.batch([3, 5]), [3, 5]), p.batch([3, 5])[0])
    for i in range(24):
        (pictures/f"deep/{i % 2}").mkdir(parents=True, exist_ok=True)
        shutil.copy(pictures/("p/images" if by == "pair" else "faces")/f"{i:05d}.png", pictures/f"deep/{i % 2}")
    assert evaluation.outputs(pictures/"deep", p).sha256 == given.sha256, "in folders, too"
    Image.new("RGB", (48, 48)).save(pictures/"p/images/00009.png")
    with pytest.raises(InputError, match="images: 00009 is of 48x48 px, the pairs are of 32"): evaluation.outputs(pictures/"p/images", p)


# LPIPS, FID, KID

@pytest.fixture
def no_weights(tmp_path, monkeypatch):
    monkeypatch.delenv("PCONV_LPIPS", raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))


@pytest.fixture(scope="module")
def alexnet():
    "Random weights of AlexNet's features by torchvision's names."
    from torchvision.models import alexnet
    torch.manual_seed(0)
    return {k: v.clone() for k, v in alexnet(weights=None).state_dict().items() if k.startswith("features")}


def test_without_weights_one_line_says_so(no_weights, pairs, tmp_path, monkeypatch):
    f, why = metrics.open_lpips("alex")
    assert f is None and "LPIPS not measured: alexnet-owt-7be5be79.pth" in why and "\n" not in why and "PCONV_LPIPS" in why
    assert metrics.open_lpips("none") == (None, None)
    monkeypatch.setenv("PCONV_LPIPS", str(tmp_path/"nowhere.pth"))
    f, why = metrics.open_lpips("alex")
    assert f is None and f"PCONV_LPIPS names {tmp_path/'nowhere.pth'}" in why and "\n" not in why
    with pytest.raises(InputError, match="choose from alex"): metrics.open_lpips("resnet")
    f, why = evaluation.open_inception()
    assert f is None and why.startswith("FID and KID not measured")
    monkeypatch.setitem(sys.modules, "torch_fidelity", type(sys)("torch_fidelity"))
    sys.modules["torch_fidelity"].__spec__ = sys.__spec__
    assert "inception" in evaluation.open_inception()[1]


def test_weights_from_a_file_the_environment_and_torchs_folder(no_weights, alexnet, tmp_path, monkeypatch):
    a, b = faces(2, 64), faces(2, 64, seed=9)
    far = metrics.lpips_of(metrics.lpips_net(alexnet))(a, b)
    save_file(alexnet, tmp_path/"alex.safetensors")
    torch.testing.assert_close(metrics.open_lpips(tmp_path/"alex.safetensors")[0](a, b), far)
    monkeypatch.setenv("PCONV_LPIPS", str(tmp_path/"alex.safetensors"))
    torch.testing.assert_close(metrics.open_lpips()[0](a, b), far)
    monkeypatch.delenv("PCONV_LPIPS")
    (tmp_path/"checkpoints").mkdir()
    torch.save(alexnet, tmp_path/"checkpoints"/"alexnet-owt-7be5be79.pth")
    torch.testing.assert_close(metrics.open_lpips()[0](a, b), far)
    save_file(dict(w=torch.zeros(2)), tmp_path/"other.safetensors")
    with pytest.raises(InputError, match="not torchvision's AlexNet"): metrics.open_lpips(tmp_path/"other.safetensors")
    with pytest.raises(InputError, match="32 px"): metrics.lpips_of(metrics.lpips_net(None))(faces(1, 16), faces(1, 16))
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *a, **k: (_ for _ in ()).throw(OSError("no route to host")))
    with pytest.raises(InputError, match="can't be fetched .no route to host.; fetch https.*and give the file"): metrics.open_lpips("download")


@pytest.mark.dev
def test_lpips_is_that_of_its_authors(alexnet):
    "PyPI's lpips with the same features, in all its five layers; the channel weights come with each of the packages."
    theirs = pytest.importorskip("lpips")
    net = theirs.LPIPS(net="alex", pnet_rand=True, verbose=False)
    mine = {k: v for k, v in alexnet.items()}
    slices = [net.net.slice1, net.net.slice2, net.net.slice3, net.net.slice4, net.net.slice5]
    with torch.no_grad():
        for s, i in zip(slices, (0, 3, 6, 8, 10)):
            conv = next(o for o in s if isinstance(o, torch.nn.Conv2d))
            conv.weight.copy_(mine[f"features.{i}.weight"]), conv.bias.copy_(mine[f"features.{i}.bias"])
        gt, m = faces(4, 96), masks(4, 96)
        for comp in (metrics.mean_fill(gt, m), metrics.telea_fill(gt, m), 1 - gt):
            torch.testing.assert_close(metrics.lpips_of(metrics.lpips_net(alexnet))(comp, gt), net(comp, gt, normalize=True).reshape(-1), rtol=1e-4, atol=1e-6)


def test_lpips_of_random_weights_goes_through(pairs, tmp_path):
    "torchmetrics' own network with random weights: 0 for the truth, more for worse, stored per picture; added later it is computed later."
    torch.manual_seed(0)
    net = metrics.lpips_net(None)
    lpips, pairs = metrics.lpips_of(net), pairs_module.open_pairs(size=64, limit=6)
    methods = [evaluation.baseline(k, pairs) for k in ("truth", "telea", "mean")]
    evaluation.evaluate(methods, pairs, tmp_path/"s.json", progress=False)
    count = []
    r = evaluation.evaluate(methods, pairs, tmp_path/"s.json", lpips=lpips, progress=lambda done, total: count.append(done))
    values = {k: v["lpips"][0] for k, v in evaluation.row_of(r)["methods"].items()}
    assert values["truth"] == 0 < values["telea"] and values["mean"] > 0 and count[-1] == 18
    gt, m = pairs.batch([2])
    assert math.isclose(float(evaluation.Results(tmp_path/"s.csv").row("telea", 2)["lpips"]), lpips(metrics.as_saved(metrics.telea_fill(gt, m)), gt).item(), rel_tol=1e-3)
    assert "LPIPS" in evaluation.report(r)
    comp = metrics.as_saved(metrics.telea_fill(gt, m))
    torch.testing.assert_close(lpips(comp, gt), net(2*comp - 1, 2*gt - 1).reshape(-1), rtol=1e-5, atol=1e-8)  # it wants -1..1


class Quarters(torch.nn.Module):
    num_features = 12
    def forward(self, x):
        assert x.dtype == torch.uint8
        return torch.nn.functional.adaptive_avg_pool2d(x.float()/255, 2).flatten(1)


def test_fid_and_kid_with_a_stand_in(pairs, tmp_path):
    methods = [evaluation.baseline(k, pairs) for k in ("truth", "mean")]
    r = evaluation.evaluate(methods, pairs, tmp_path/"s.json", inception=Quarters(), progress=False)
    d = r["distances"]
    assert abs(d["truth"]["fid"]) < 1e-4 < d["mean"]["fid"] and d["mean"]["n"] == 20
    again = [evaluation.set_distances(methods[1], pairs, Quarters(), seed) for seed in (0, 0, 1)]
    assert d["mean"] == again[0] == again[1] and again[1]["kid"] != again[2]["kid"]  # whose subsets are drawn
    gt, m = pairs.batch(range(20))
    a, b = (Quarters()(o.mul(255).round().byte()).double().numpy() for o in (gt, metrics.as_saved(metrics.mean_fill(gt, m))))
    ca, cb = np.cov(a.T), np.cov(b.T)
    expect = ((a.mean(0) - b.mean(0))**2).sum() + np.trace(ca + cb) - 2*np.sqrt(np.linalg.eigvals(ca @ cb).astype(complex)).real.sum()
    assert abs(d["mean"]["fid"] - expect) < 1e-3
    assert "over 20 pairs" in evaluation.report(r)
    other = evaluation.Method("mean", "another", methods[0].fill, sha256="ff"*32)
    assert set(evaluation.evaluate([other], pairs, tmp_path/"s.json", progress=False)["distances"]) == {"truth"}, "not those of the mean"


# The command

def test_command_scores_adds_and_joins(run, pictures, capsys):
    folder, _ = run
    where = dict(faces=str(pictures/"faces"), masks=str(pictures/"masks"), hole="white", valid="8-23", limit=10)
    pconv("evaluate", model=[f"ours={folder}"], baseline=["telea,ns", "truth"], out=str(pictures/"s.json"), **where)
    text = capsys.readouterr().out
    assert "10 pairs of" in text and "at 32 px" in text and "ours − Telea" in text and "[" in text
    pconv("evaluate", baseline=["mean"], size=32, out=str(pictures/"m.json"), **where)
    pconv("evaluate", join=[str(pictures/"s.json"), str(pictures/"m.json")], out=str(pictures/"all.json"))
    r = json.loads((pictures/"all.json").read_text())
    assert list(r["methods"]) == ["telea", "ns", "truth", "ours", "mean"] and r["settings"]["faces"]["which"] == "held out: 8-23"
    assert r["methods"]["ours"]["config"]["recipe"]["size"] == 32


@pytest.mark.parametrize("args, word", [
    (dict(), "nothing to evaluate"), (dict(baseline=["photoshop"]), "choose from mean"), (dict(baseline=["telea"], out="x.csv"), "end in .json"),
    (dict(baseline=["telea"], size=3), "16 to 4096"), (dict(baseline=["telea"], limit=0), "1 to 1e+07"), (dict(baseline=["telea"], seed=-1), "--seed"),
    (dict(model=["nowhere"]), "no such file"), (dict(baseline=["telea"], faces="nowhere"), "does not exist"),
    (dict(baseline=["telea"], masks="nowhere", hole="white"), "does not exist"), (dict(baseline=["telea"], masks="strokes"), "a kind: stroke"), (dict(baseline=["telea"], hole="purple"), "white, black, alpha or opaque"), (dict(baseline=["telea"], lpips="x"), "choose from alex"),
    (dict(outputs=["nowhere"]), "does not exist")])
def test_command_refuses_in_one_line(args, word, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as e: pconv("evaluate", **dict(limit=2, size=32) | args)
    err = capsys.readouterr().err
    assert e.value.code == 2 and word in err and err.count("\n") == 1 and err.startswith("pconv evaluate: error: ")


def test_masks_may_be_a_list():
    known = np.full((32, 32), 255, np.uint8)
    known[:8] = 0
    pairs = pairs_module.open_pairs("drawn", [known], "black", size=32, limit=2)
    assert len(pairs) == 2 and pairs.ratios == [.25, .25] and pairs.info["masks"]["name"] == "given"


def test_a_dot_in_a_name_is_not_an_ending(run, tmp_path):
    "Runs lr0.1 and lr0.01 are two methods."
    for name in ("lr0.1", "lr0.01"): shutil.copytree(run[0], tmp_path/name)
    assert [evaluation.network(tmp_path/k).name for k in ("lr0.1", "lr0.01", "lr0.1/model.safetensors")] == ["lr0.1", "lr0.01", "lr0.1"]


def test_default_size_is_the_networks():
    k = evaluation.Method("a", "a", None, "", dict(config=dict(recipe=dict(size=128))))
    assert [cli.default_size(n, f) for n, f in (([k], "x.zip"), ([], "drawn"), ([], "x.zip"))] == [128, 64, 256]


def test_two_pictures_of_one_name_are_not_taken_for_one():
    "By name, and as the finished pictures of a folder: `{stem: index}` kept the last of them in silence."
    assert pairs_module.same_names(["a/1", "a/2"], ["2.png", "1.png"]) == ([0, 1], [1, 0])
    for ids, names in ((["a/1", "b/1"], ["1.png"]), (["1"], ["a/1.png", "b/1.png"])):
        with pytest.raises(InputError, match=r"two (faces|masks) are called '1' \(a/1.*, b/1.*\); give each name once"): pairs_module.same_names(ids, names)
    assert pairs_module.same_names(["a/1", "b/1", "2"], ["2.png"]) == ([2], [0])
