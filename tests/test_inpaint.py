"""Any photo, any hole: known pixels are not touched, every hole is filled, nothing is lost, and what can't be done is said."""
import contextlib
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from safetensors.torch import save_file

from calling import MODULE, pconv
from pconv_course.base import photos
from pconv_course.base import show
from pconv_course import inpainting
from pconv_course.lab import clocks
from pconv_course.lab import experiments
from pconv_course import windows
from pconv_course.base.core import InputError, read_json
from pconv_course.networks import build_unet
from pconv_course.base.photos import colour_mask
from pconv_course.inpainting import inpaint
from pconv_course.weights import load_model, weights_hash
from pconv_course.windows import Window, plan_windows, repair
from pconv_course.base.pictures import MaskWarning
from pconv_course.masks import stroke_mask

GREY = lambda x, m: torch.full_like(x, 0.5)  # a "network" whose answer is known


@pytest.fixture(scope="module")
def tiny():
    "A seeded network of some thousand weights and its size."
    torch.manual_seed(0)
    return build_unet(dict(depth=3, width=4)).eval(), 16


def picture(seed, *shape, dtype=np.uint8):
    a = np.random.default_rng(seed).random(shape or (40, 50, 3))
    return (a*np.iinfo(dtype).max).astype(dtype) if np.issubdtype(dtype, np.integer) else a.astype(dtype)


def holes(seed, h=40, w=50):
    "Mask with a few rectangles and specks, 1 = known."
    rng, m = np.random.default_rng(seed), np.ones((h, w), np.uint8)
    for _ in range(4):
        y, x = rng.integers(0, h), rng.integers(0, w)
        m[y:y + rng.integers(1, h//3 + 2), x:x + rng.integers(1, w//3 + 2)] = 0
    m[0, 0], m[-1, -1] = 1, 0
    return m


# Windows

@pytest.mark.parametrize("seed", range(12))
def test_every_hole_is_filled_and_nothing_else(seed):
    "With a network that says 0.5 and no feather, the hole is exactly 0.5, whatever sizes, shapes, contexts and dtypes."
    rng = np.random.default_rng(seed)
    h, w, size = int(rng.integers(1, 150)), int(rng.integers(2, 150)), int(rng.choice([16, 24, 64]))
    m = holes(seed, h, w) if seed % 3 else (rng.random((h, w)) < 0.6).astype(np.uint8)
    m[0, 0], m[-1, -1] = 1, 0
    dtype = (np.uint8, np.uint16, np.float32)[seed % 3]
    a = picture(seed, h, w, 1 + 2*(seed % 2), dtype=dtype)
    b, half = a.copy(), {np.uint8: 128, np.uint16: 32768, np.float32: 0.5}[dtype]
    repair([b], [m], GREY, size, context=float(rng.choice([1.2, 4, 50])), feather=0)
    assert np.array_equal(b[m == 1], a[m == 1]) and b.dtype == a.dtype
    assert (b[m == 0] == half).all()


def test_a_hole_larger_than_2048_cells_and_thousands_of_parts():
    "The plan works on cells and on a grid there; the result is the same: all filled."
    rng = np.random.default_rng(0)
    for m in ((rng.random((60, 5000)) < 0.97).astype(np.uint8), (rng.random((300, 300)) < 0.9).astype(np.uint8)):
        a = picture(1, *m.shape, 1)
        b = a.copy()
        n = repair([b], [m], GREY, 64, feather=0)
        assert n < 4*m.size/32**2 + 64 and (b[m == 0] == 128).all() and np.array_equal(b[m == 1], a[m == 1])


def test_plan_thin_holes_at_full_scale_thick_ones_scaled():
    m = np.ones((300, 300), np.uint8)
    m[10:13, :] = 0
    m[100:160, 100:160] = 0
    plan = plan_windows(m, 32, context=4)
    scales = [w.scale for w in plan.windows]
    assert sorted(set(scales)) == [1, 8] and scales[0] == 8 and scales.count(8) == 1, "60 px * 4 / 32 = 7.5"
    assert plan.sides[11, 5] == 32 and plan.sides[120, 120] == 256 and plan.sides[0, 0] == 0
    big = plan.windows[0]
    assert big.y <= 100 and big.y + 8*32 >= 160 and 0 <= big.y and big.y + 256 <= 300, "inside the photo, around the hole"
    for w in plan.windows[1:]: assert w.box[2] - w.box[0] <= 16 and w.box[3] - w.box[1] <= 16


def test_nearby_holes_share_a_window():
    m = np.ones((200, 200), np.uint8)
    for i in range(10): m[20 + 2*i, 30 + 2*i] = 0
    m[150, 150] = 0
    assert len(plan_windows(m, 64).windows) == 2


def test_read_window_is_the_mean_of_the_known():
    "Against a loop, with NaN in the hole and a window that leans over two edges."
    a, m = picture(0, 30, 30, 3, dtype=np.float32), holes(2, 30, 30)
    a[m == 0] = np.nan
    x, k = windows.read_window(a, m, Window(-4, 10, 3, 8, (0, 10, 5, 20)))
    for i in range(8):
        for j in range(8):
            cell = [(y, z) for y in range(-4 + 3*i, -1 + 3*i) for z in range(10 + 3*j, 13 + 3*j) if 0 <= y < 30 and 0 <= z < 30 and m[y, z]]
            assert k[i, j] == (len(cell) >= 4.5)
            if k[i, j]: np.testing.assert_allclose(x[i, j], np.mean([a[c] for c in cell], 0), rtol=1e-5)


@pytest.mark.parametrize("h, w, size, scale, px", [(88, 70, 64, 1, 88), (127, 127, 64, 1, 127), (64, 50, 64, 1, 64), (40, 30, 64, 1, 64),
                                                   (200, 150, 64, 3, 67), (256, 256, 64, 4, 64)])
def test_a_large_hole_shows_the_network_a_photo_that_fills_its_square(h, w, size, scale, px):
    "Of a photo larger than the network, the longer side spans all pixels of it, by whatever factor; a smaller one isn't enlarged."
    m, seen = np.ones((h, w), np.uint8), []
    m[h//4:-h//4, w//4:-w//4] = 0
    plan = plan_windows(m, size)
    assert [(o.scale, o.size) for o in plan.windows] == [(scale, px)] and plan.sides.max() == scale*px
    a = picture(0, h, w, 3)
    repair([a], [m], lambda x, k: seen.append(k) or torch.full_like(x, .5), size)
    rows, across = (int((seen[0][0, 0].amax(d) > 0).sum()) for d in (1, 0))
    assert seen[0].shape[-2:] == (size, size) and abs(rows - min(h, size)) <= 1 and abs(across - w*rows/h) <= 2


def test_read_window_by_a_factor_that_is_not_whole():
    "Areas by hand: 3 pixels become 2, each of one and a half; shares of one half are known."
    a, m = np.float32([[.2, .4, .8]]*3)[..., None], np.ones((3, 3), np.uint8)
    x, k = windows.read_window(a, m, Window(0, 0, 1, 3, (0, 0, 3, 3)), 2)
    np.testing.assert_allclose(x[..., 0], [[(.2 + .2)/1.5, (.2 + .8)/1.5]]*2, rtol=1e-6)
    m[:, 0] = 0
    a[:, 0] = np.nan
    x, k = windows.read_window(a, m, Window(0, 0, 1, 3, (0, 0, 3, 3)), 2)
    assert k.tolist() == [[0, 1], [0, 1]] and x[0, 0, 0] == 0, "a third of the left pixel is known"
    np.testing.assert_allclose(x[:, 1, 0], [1/1.5]*2, rtol=1e-6)


def test_a_network_that_copies_gives_the_photo_back_whatever_the_factor():
    "A smooth photo goes through a network that returns what the photo would be at its size: enlarged again it is the photo."
    for h in (70, 88, 100, 127, 150, 200):
        yy, xx = np.mgrid[:h, :h]/np.float32(h)
        photo, m = np.stack([yy, xx, (yy + xx)/2], -1), np.ones((h, h), np.uint8)
        m[h//3:-h//3, h//3:-h//3] = 0
        y, x = np.mgrid[:64, :64]/np.float32(64) + np.float32(.5/64)
        net = lambda *_: torch.from_numpy(np.stack([y, x, (y + x)/2]))[None]
        a = np.where(m[..., None] > 0, photo, np.nan)
        repair([a], [m], net, 64)
        assert np.abs(a - photo).max() < .02, f"{h} px: off by {np.abs(a - photo).max():.3f}"


def test_windows_blend_inside_a_long_hole():
    "Every window gives another grey; along the scratch it changes in small steps, without a jump."
    calls = iter(range(1000))
    net = lambda x, m: torch.stack([torch.full_like(o, (next(calls)*7 % 10)/10) for o in x])
    m = np.ones((40, 400), np.uint8)
    m[18:21] = 0
    a = np.zeros((40, 400, 3), np.float32)
    repair([a], [m], net, 64, feather=0)
    steps = np.abs(np.diff(a[19, :, 0]))
    assert a[19].max() - a[19].min() > 0.5 and steps.max() < 0.1


def test_border_is_matched():
    "A network that is off by a constant, and one that is all grey on a slope: the seam shrinks; a width of 0 changes nothing."
    yy, xx = np.mgrid[:64, :64]/np.float32(64)
    photo, m = (0.3 + 0.4*xx)[..., None].repeat(3, 2), np.ones((64, 64), np.uint8)
    m[20:44, 20:44] = 0
    seams = {}
    for feather in (0, 4):
        a = np.where(m[..., None] > 0, photo, np.nan)
        repair([a], [m], GREY, 64, feather=feather)
        seams[feather] = windows.border_step(a, m)
        assert np.isfinite(a).all()
    assert seams[4] < 0.3*seams[0] and seams[0] > 0.05
    out = windows.match_border(photo - 0.1, photo, np.ones((64, 64)), 4)
    np.testing.assert_allclose(out[8:-8, 8:-8], photo[8:-8, 8:-8], atol=1e-5)
    assert np.array_equal(windows.match_border(photo, photo*0, m, 0), photo)


def test_fill_leaves_the_network_as_it_was_and_sees_no_hole(tiny):
    net = build_unet(dict(depth=2, width=4)).train()
    x, m = torch.rand(2, 3, 16, 16), torch.ones(2, 1, 16, 16)
    m[..., 4:9, 4:9] = 0
    before = {k: v.clone() for k, v in net.state_dict().items()}
    one, two = windows.fill(net, torch.where(m > 0, x, torch.nan), m), windows.fill(net, torch.where(m > 0, x, 7.), m)
    assert net.training and torch.equal(one, two) and one.min() >= 0 and one.max() <= 1
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert (windows.fill(lambda x, m: x, torch.where(m > 0, x, torch.nan), m)[m.expand_as(x) == 0] == 0).all(), "no network sees what is in the hole"
    with pytest.raises(InputError, match="NaN"): windows.fill(lambda x, m: x*torch.nan, x, m)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_gpu_gives_the_same_picture(tiny):
    a, m = picture(0), holes(0)
    here, there = inpaint(a, m, tiny, hole="black"), inpaint(a, m, tiny, hole="black", device="cuda")
    tiny[0].cpu()
    assert np.abs(here.astype(int) - there).max() <= 1


# Kinds of pictures

@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB", "RGBA", "CMYK", "I;16", "P"])
def test_pil_modes_come_back(tiny, mode):
    m = holes(3)
    im = Image.fromarray(picture(1, 40, 50, dtype=np.uint16)) if mode == "I;16" else Image.fromarray(picture(1)).convert(mode)
    out = inpaint(im, m, tiny, hole="black")
    same = im.convert("RGB") if mode == "P" else im
    assert out.mode == same.mode and out.size == im.size
    assert np.array_equal(np.asarray(out)[m == 1], np.asarray(same)[m == 1])
    assert mode == "1" or not np.array_equal(np.asarray(out)[m == 0], np.asarray(same)[m == 0])
    if mode in ("LA", "RGBA"): assert np.array_equal(np.asarray(out)[..., -1], np.asarray(im)[..., -1]), "alpha is kept in the hole, too"


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float16, np.float32, np.float64, torch.uint8, torch.float32, torch.float64, torch.bfloat16])
def test_arrays_and_tensors_come_back(tiny, kind):
    m = holes(4)
    a = picture(2, dtype=kind if isinstance(kind, type) else np.float64)
    if isinstance(kind, torch.dtype): a = torch.from_numpy(a).permute(2, 0, 1)*(1 if kind.is_floating_point else 255)
    a = a.to(kind) if isinstance(kind, torch.dtype) else a
    kept = a.clone() if isinstance(a, torch.Tensor) else a.copy()
    out = inpaint(a, m, tiny, hole="black")
    assert type(out) is type(a) and out.dtype == a.dtype and out.shape == a.shape
    as_np = lambda o: (o.double().permute(1, 2, 0).numpy() if isinstance(o, torch.Tensor) else o)
    assert np.array_equal(as_np(a), as_np(kept)), "the input is not changed"
    assert np.array_equal(as_np(out)[m == 1], as_np(a)[m == 1]) and not np.array_equal(as_np(out)[m == 0], as_np(a)[m == 0])


def test_shapes_of_arrays(tiny):
    m = holes(5)
    for shape in ((40, 50), (40, 50, 1), (40, 50, 2), (40, 50, 3), (40, 50, 4)):
        a = picture(3, *shape)
        out = inpaint(a, m, tiny, hole="black")
        assert out.shape == shape and np.array_equal(out[m == 1], a[m == 1])
    for shape in ((40, 50), (1, 40, 50), (3, 40, 50), (4, 40, 50)):
        a = torch.rand(shape)
        assert inpaint(a, m, tiny, hole="black").shape == shape
    for bad in (np.zeros((40, 50, 5), np.uint8), np.zeros(40, np.uint8), np.zeros((0, 5, 3), np.uint8), np.zeros((4, 5, 3), bool), np.zeros((4, 5, 3), np.int64), "", 3, None, []):
        if isinstance(bad, list): assert inpaint(bad, m, tiny, hole="black") == []
        else:
            with pytest.raises(InputError): inpaint(bad, m, tiny, hole="black")


def test_batches_and_lists_equal_singles(tiny):
    a, m = torch.rand(3, 3, 30, 34), torch.from_numpy(np.stack([holes(i, 30, 34) for i in range(3)]))
    singles = [inpaint(a[i], m[i], tiny, hole="black") for i in range(3)]
    for masks in (m, m[:, None], m[:, None].float()):
        torch.testing.assert_close(inpaint(a, masks, tiny, hole="black"), torch.stack(singles), rtol=0, atol=1e-6)
    torch.testing.assert_close(inpaint(list(a), list(m), tiny, hole="black"), singles, rtol=0, atol=1e-6)
    one = inpaint(a, m[0], tiny, hole="black")
    assert torch.equal(one[2][:, m[0] > 0], a[2][:, m[0] > 0]) and one.shape == a.shape
    out = inpaint(a.permute(0, 2, 3, 1).numpy(), m.numpy(), tiny, hole="black")
    torch.testing.assert_close(torch.from_numpy(out).permute(0, 3, 1, 2), torch.stack(singles), rtol=0, atol=1e-6)
    with pytest.raises(InputError, match="3 images and 2 masks"): inpaint(list(a), list(m)[:2], tiny, hole="black")


def test_floats_must_be_numbers_from_0_to_1_where_known(tiny):
    m, a = holes(6), picture(4, dtype=np.float32)
    want = inpaint(a, m, tiny, hole="black")
    for junk in (np.nan, np.inf, -5., 300.):
        b = a.copy()
        b[m == 0] = junk
        assert np.array_equal(inpaint(b, m, tiny, hole="black"), want), "what lies in the hole does not matter"
    for junk, word in ((np.nan, "NaN"), (np.inf, "NaN or infinite"), (7., "0 to 1"), (-1., "0 to 1")):
        b = a.copy()
        b[tuple(np.argwhere(m)[9])] = junk
        with pytest.raises(InputError, match=word): inpaint(b, m, tiny, hole="black")


# Which pixels are the hole

def test_polarities_say_the_same(tiny, tmp_path):
    a, m = picture(5), holes(7)
    want = inpaint(a, m, tiny, hole="black")
    Image.fromarray(255*m).save(tmp_path/"m.png")
    rgba = np.dstack([a, 255*m])
    red = np.where(m[..., None] > 0, a//2, np.uint8([255, 0, 0]))
    others = [inpaint(a, 1 - m, tiny, hole="white"), inpaint(a, m.astype(bool), tiny, hole="black"), inpaint(a, torch.from_numpy(m)[None], tiny, hole="black"),
              inpaint(a, tmp_path/"m.png", tiny, hole="black"), inpaint(a, str(tmp_path/"m.png"), tiny, hole="black"),
              inpaint(a, Image.fromarray(rgba), tiny, hole="alpha"), inpaint(a, red, tiny, hole="#ff0000", grow=0), inpaint(a, red, tiny, hole=(255, 0, 0), grow=0)]
    for other in others: assert np.array_equal(other, want)
    out = inpaint(rgba, None, tiny, hole="alpha")
    assert np.array_equal(out[..., :3], want) and (out[..., 3] == 255).all(), "a transparent hole becomes opaque"
    own = inpaint(red, None, tiny, hole="red", grow=0)
    assert np.array_equal(own[m == 1], (a//2)[m == 1])


def test_polarity_must_be_said():
    im = Image.fromarray(np.uint8([[255, 0, 0, 0]]))
    with pytest.raises(InputError, match=r"25\.0% of this mask is white, 75\.0% black"): inpaint(np.zeros((1, 4, 3), np.uint8), im, GREY)
    for bad in ("whitish", "grey?", "", 5, (1, 2), "#12"):
        with pytest.raises(InputError, match="say what marks the hole"): inpaint(np.zeros((1, 4, 3), np.uint8), im, GREY, hole=bad)
    with pytest.warns(MaskWarning, match="75%"): inpaint(np.zeros((1, 4, 3), np.uint8), im, GREY, hole="black")


def test_masks_of_another_size(tiny):
    a, m = picture(6), holes(8)
    with pytest.raises(InputError, match="25x20 px and the photo 50x40"): inpaint(a, m[::2, ::2], tiny, hole="black")
    out = inpaint(a, m[::2, ::2], tiny, hole="black", fit=True)
    stretched = m[::2, ::2].repeat(2, 0).repeat(2, 1)
    assert np.array_equal(out[stretched == 1], a[stretched == 1]) and (out[stretched == 0] != a[stretched == 0]).any()
    grown = inpaint(a, m, tiny, hole="black", grow=2)
    wide = photos.grow_hole(m, 2)
    assert wide.sum() < m.sum() and np.array_equal(grown[wide == 1], a[wide == 1]) and (grown[(wide == 0) & (m == 1)] != a[(wide == 0) & (m == 1)]).any()


@pytest.mark.parametrize("size", [(4, 5), (40, 50), (120, 150)])
def test_a_stretched_hole_grows_by_the_pixels_of_the_photo(size):
    m = np.zeros((*size, 3), np.uint8)
    h, w = size
    m[h//2:h//2 + h//4, 2*w//5:3*w//5] = 255
    hole = lambda grow: photos.read_pair(picture(6), Image.fromarray(m), "white", fit=True, grow=grow)[1] == 0
    assert hole(0).sum() == 100 and np.array_equal(hole(2), photos.grow_hole((~hole(0)).astype(np.uint8), 2) == 0)


def test_holes_that_are_everything_say_what_to_do():
    a = picture(6)
    red = np.full_like(a, (255, 0, 0))
    with pytest.raises(InputError, match="all of the photo counts as painted in #ff0000; lower the tolerance of 80"): inpaint(red, None, GREY, hole="#ff0000")
    for alpha, words in ((255, "no pixel of the photo is transparent; give a mask"), (0, "every pixel")):
        with pytest.raises(InputError, match=words): inpaint(Image.fromarray(np.dstack([a, np.full(a.shape[:2], alpha, np.uint8)])), None, GREY, hole="alpha")


def test_colour_with_soft_edges():
    "What a soft red brush and JPEG tinted is found, what is merely reddish is not."
    a = np.full((40, 60, 3), (150, 110, 90), np.uint8)
    a[5:10, 5:10] = (160, 70, 80)
    a[20:23, :40] = (255, 0, 0)
    a[19], a[23] = (202, 55, 45), (202, 55, 45)
    m = colour_mask(a, (255, 0, 0))
    assert not m[18:25, 5:35].any() and m[5:10, 5:10].all() and m[:15].all()
    with pytest.raises(InputError, match="#00ff00"): colour_mask(a, (0, 255, 0))


# Files

def test_orientation_exif_and_profile_are_kept(tiny, tmp_path):
    "In all eight orientations the mask is laid on what a viewer shows, and the stored picture keeps its place and its tag."
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for o in range(1, 9):
        exif = Image.Exif()
        exif[0x0112], exif[0x010F] = o, "maker"
        im = Image.fromarray(picture(o, 24, 36, 3))
        im.save(tmp_path/"p.png", exif=exif, icc_profile=icc, dpi=(300, 300))
        from PIL import ImageOps
        seen = ImageOps.exif_transpose(Image.open(tmp_path/"p.png"))
        m = np.ones(seen.size[::-1], np.uint8)
        m[2:7, 3:12] = 0
        Image.fromarray(255*m).save(tmp_path/"m.png")
        inpainting.inpaint_file(tmp_path/"p.png", tmp_path/"m.png", tmp_path/"o.png", (GREY, 16), "black", overwrite=True, feather=0)
        out = Image.open(tmp_path/"o.png")
        assert out.size == im.size and out.getexif()[0x0112] == o and out.getexif()[0x010F] == "maker"
        assert out.info["icc_profile"] == icc and round(out.info["dpi"][0]) == 300
        shown = np.asarray(ImageOps.exif_transpose(out))
        assert (shown[m == 0] == 128).all() and np.array_equal(shown[m == 1], np.asarray(seen)[m == 1])
        loaded = Image.open(tmp_path/"p.png")
        stored = np.ones((24, 36), np.uint8)
        stored[5:9, 20:30] = 0
        again = np.asarray(inpaint(loaded, stored, (GREY, 16), hole="black", feather=0))
        assert (again[stored == 0] == 128).all() and np.array_equal(again[stored == 1], np.asarray(im)[stored == 1])


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_formats_keep_exif(tiny, tmp_path, suffix):
    exif = Image.Exif()
    exif[0x010F], exif[0x9003] = "maker", "2026:01:01 00:00:00"
    Image.fromarray(picture(1)).save(tmp_path/f"p{suffix}", exif=exif, lossless=True)
    m = holes(1)
    Image.fromarray(255*m).save(tmp_path/"m.png")
    inpainting.inpaint_file(tmp_path/f"p{suffix}", tmp_path/"m.png", tmp_path/f"o{suffix}", tiny, "black")
    out = Image.open(tmp_path/f"o{suffix}")
    assert out.getexif().get(0x010F) == "maker"
    if suffix != ".jpg": assert np.array_equal(np.asarray(out)[m == 1], np.asarray(Image.open(tmp_path/f"p{suffix}"))[m == 1])


def test_jpeg_is_written_with_its_own_table(tiny, tmp_path):
    a = np.asarray(Image.fromarray(picture(1, 8, 8, 3)).resize((160, 120), Image.BICUBIC))
    Image.fromarray(a).save(tmp_path/"p.jpg", quality=60)
    m = np.ones((120, 160), np.uint8)
    m[40:50, 40:50] = 0
    Image.fromarray(255*m).save(tmp_path/"m.png")
    inpainting.inpaint_file(tmp_path/"p.jpg", tmp_path/"m.png", tmp_path/"o.jpg", tiny, "black")
    before, after = Image.open(tmp_path/"p.jpg"), Image.open(tmp_path/"o.jpg")
    assert before.quantization == after.quantization
    assert (np.abs(np.asarray(before).astype(int) - np.asarray(after))[80:, 80:] > 2).mean() < 0.02


def test_what_cannot_be_read_whole_is_refused(tmp_path):
    import cv2
    Image.fromarray(picture(1)).save(tmp_path/"a.png")
    m = Image.fromarray(255*holes(1))
    (tmp_path/"cut.png").write_bytes((tmp_path/"a.png").read_bytes()[:200])
    (tmp_path/"zero.png").write_bytes(b"")
    (tmp_path/"text.jpg").write_text("no")
    cv2.imwrite(str(tmp_path/"deep.png"), picture(1, 40, 50, 3, dtype=np.uint16))
    frames = [Image.fromarray(picture(i)) for i in range(3)]
    frames[0].save(tmp_path/"film.gif", save_all=True, append_images=frames[1:])
    for name, word in (("cut.png", "can't be read"), ("zero.png", "can't be read"), ("text.jpg", "not a picture"), ("deep.png", "16 bits"), ("film.gif", "3 pictures"), ("none.png", "there is no photo"), ("", "can't be read")):
        with pytest.raises(InputError, match=word) as e: inpaint(tmp_path/name, m, GREY, hole="black")
        assert "\n" not in str(e.value)
    with pytest.raises(InputError, match="several pictures"): inpaint(Image.open(tmp_path/"film.gif"), m, GREY, hole="black")
    with pytest.raises(InputError, match="there is no mask"): inpaint(picture(1), tmp_path/"none.png", GREY, hole="black")


# Models

def test_models_of_every_kind(tiny, tmp_path, monkeypatch):
    net, size = tiny
    config = dict(model=net.config, recipe=dict(size=size))
    save_file({k: v.contiguous() for k, v in net.state_dict().items()}, tmp_path/"model.safetensors", metadata=dict(config=json.dumps(config)))
    a, m = picture(7), holes(9)
    want = inpaint(a, m, tiny, hole="black")
    opened = []
    monkeypatch.setattr(inpainting, "load_pretrained", lambda device, say: opened.append(device) or (net, config))
    inpainting._load.cache_clear()
    for _ in range(2): assert np.array_equal(inpaint(a, m, hole="black"), want)
    assert len(opened) == 1, "the weights of the package are read once"
    for model in (tmp_path, str(tmp_path), tmp_path/"model.safetensors", (net, config), net, None):
        assert np.array_equal(inpaint(a, m, model, hole="black"), want)
    assert not np.array_equal(inpaint(a, m, net, hole="black", size=32), want)
    (tmp_path/"bad.safetensors").write_bytes(b"\x80\x04pickle")
    for bad in (tmp_path/"none", tmp_path/"bad.safetensors", 7, (net, 3)):
        with pytest.raises(InputError): inpaint(a, m, bad, hole="black")
    inpainting._load.cache_clear()


@pytest.mark.parametrize("args", [("", "m.png", "o.png"), ("p.png", "", "o.png"), ("p.png", "m.png", "")])
def test_an_empty_path_is_no_folder(args):
    "What an unset variable of a shell leaves behind; it meant every picture below the current folder."
    with pytest.raises(InputError, match="empty path"): inpainting.pair_files(*args)


def test_progress_is_reported(tiny):
    said = []
    inpaint(picture(8), holes(10), tiny, hole="black", bs=2, progress=lambda done, total: said.append((done, total)))
    assert said[-1][0] == said[-1][1] == said[0][1] and [d for d, _ in said] == sorted({d for d, _ in said}) and len(said) > 1


# The command

@pytest.fixture
def folder(tmp_path, tiny):
    "A run folder, three photos, two masks."
    net, size = tiny
    for d in ("run", "photos", "masks"): (tmp_path/d).mkdir()
    save_file({k: v.contiguous() for k, v in net.state_dict().items()}, tmp_path/"run"/"model.safetensors",
              metadata=dict(config=json.dumps(dict(model=net.config, recipe=dict(size=size)))))
    for name in "abc": Image.fromarray(picture(ord(name))).save(tmp_path/"photos"/f"{name}.png")
    for name in "ab": Image.fromarray(255*holes(ord(name))).save(tmp_path/"masks"/f"{name}.jpg", quality=100)
    return tmp_path


def call(capsys, folder, *args, **kwargs):
    "Exit code, stdout, stderr of the command called in this process."
    try: pconv("inpaint", *map(str, args), model=str(folder/"run"), **{k: str(v) if isinstance(v, Path) else v for k, v in kwargs.items()})
    except SystemExit as e: code = e.code
    else: code = 0
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize("hole", ["black", "white"])
def test_the_mask_of_a_comparison_is_white_where_known(folder, capsys, hole):
    m = holes(ord("a"))
    Image.fromarray(255*(m if hole == "black" else 1 - m).astype(np.uint8)).save(folder/"mask.png")
    assert call(capsys, folder, folder/"photos"/"a.png", folder/"mask.png", o=folder/"out.png", hole=hole, compare=True)[0] == 0
    strip = np.asarray(Image.open(folder/"out-compare.png"))
    before, mask, after = (strip[:, k:k + 50] for k in (0, 58, 116))
    assert np.array_equal(mask, np.repeat(255*m[..., None], 3, 2)) and (before[m == 0] == np.rint(255*np.array(show.HOLE))).all()
    assert np.array_equal(before[m == 1], picture(ord("a"))[m == 1]) and np.array_equal(after[m == 1], before[m == 1])


def test_command_with_folders(folder, capsys):
    code, out, err = call(capsys, folder, folder/"photos", folder/"masks", o=folder/"out", hole="black", compare=True)
    assert code == 2 and out.count("filled") == 2 and err.splitlines()[-1] == "2 repaired, 1 left out" and "c.png: no masks of this name" in err
    assert sorted(p.name for p in (folder/"out").iterdir()) == ["a-compare.png", "a.png", "b-compare.png", "b.png"]
    strip = np.asarray(Image.open(folder/"out"/"a-compare.png"))
    assert strip.shape == (40, 3*50 + 16, 3) and np.array_equal(strip[:, -50:], np.asarray(Image.open(folder/"out"/"a.png")))
    m = holes(ord("a"))
    assert np.array_equal(np.asarray(Image.open(folder/"out"/"a.png"))[m == 1], picture(ord("a"))[m == 1])
    assert (strip[:, :50][m == 0] == np.rint(255*np.array(show.HOLE))).all() and np.array_equal(strip[:, 58:108, 0], 255*m)
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    code, out, err = call(capsys, folder, folder/"photos", folder/"masks", o=folder/"out", hole="black")
    assert code == 2 and err.count("is there already") == 2 and before == {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert call(capsys, folder, folder/"photos", folder/"masks"/"a.jpg", o=folder/"photos"/"fixed", hole="black")[0] == 0, "one mask for all"
    code, out, err = call(capsys, folder, folder/"photos", folder/"masks"/"a.jpg", o=folder/"photos"/"fixed", hole="black", overwrite=True)
    assert code == 0 and out.count("filled") == 3, "results in a folder among the photos are not taken for photos"


def test_command_never_loses_the_photo(folder, capsys):
    photo, mask = folder/"photos"/"a.png", folder/"masks"/"a.jpg"
    os.link(photo, folder/"twin.png")
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    for o in (photo, folder/"masks"/".."/"photos"/"a.png", folder/"twin.png", mask, folder/"photos"):
        code, out, err = call(capsys, folder, photo, mask, o=o, hole="black", overwrite=True)
        assert code == 2 and err.count("\n") == 1 and "itself" in err
    code, out, err = call(capsys, folder, folder/"photos", mask, o=folder/"photos", hole="black", overwrite=True)
    assert code == 2 and err.count("itself") == 3
    for kwargs, word in ((dict(o=folder/"x.xyz"), "kind of file"), (dict(o=folder/"x.png", hole=None), "say what marks"), (dict(o=folder/"x.png", grow=-1), "--grow"),
                         (dict(o=folder/"x.png", context=float("nan")), "--context"), (dict(), "-o"), (dict(o=folder/"no"/"way.png", hole="#00ff00"), "#00ff00")):
        code, out, err = call(capsys, folder, photo, mask, **dict(dict(hole="black"), **kwargs))
        assert code == 2 and err.count("\n") == 1 and word in err, (kwargs, err)
    assert before == {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_command_in_a_shell(folder):
    "As a shell sees it: -o, the optional MASK, a colour on the photo, help, exit codes."
    a = picture(1, 60, 60, 3)//2
    a[20:24] = (255, 0, 0)
    Image.fromarray(a).save(folder/"red.png")
    run = lambda *args: subprocess.run([*MODULE, "inpaint", *args], cwd=folder, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    r = run("red.png", "-o", "fixed.png", "--hole", "#ff0000", "--model", "run", "--compare")
    assert (r.returncode, r.stderr) == (0, "") and (folder/"fixed-compare.png").is_file()
    k = colour_mask(a, (255, 0, 0))
    assert np.array_equal(np.asarray(Image.open(folder/"fixed.png"))[k == 1], a[k == 1]) and not (np.asarray(Image.open(folder/"fixed.png"))[21] == (255, 0, 0)).all()
    r = run("--help")
    assert r.returncode == 0 and all(o in r.stdout for o in ("-o O", "--hole", "--model", "--compare", "--overwrite", "[mask]"))


@pytest.mark.slow
def test_huge_photos_stay_within_memory(tmp_path, folder):
    """8,000 x 8,000 px with scratches and a large hole, from file to PIL image, below 2 GB in a process of its own.

    The peak is VmHWM: ru_maxrss of a child begins with what its parent, here pytest, had."""
    if not os.path.exists("/proc/self/status"): pytest.skip("the peak memory is read from Linux's /proc")
    big = np.full((8000, 8000, 3), 90, np.uint8)
    Image.fromarray(big).save(tmp_path/"big.png", compress_level=1)
    m = np.full((8000, 8000), 255, np.uint8)
    m[1000:1012, :4000], m[5000:6500, 3000:4500] = 0, 0
    Image.fromarray(m).save(tmp_path/"m.png", compress_level=1)
    code = ("import numpy as np\nfrom pconv_course.inpainting import inpaint, open_model\nmodel = open_model('run')\n"
            "out = inpaint('big.png', 'm.png', model, hole='black', size=256)\n"
            "print(out.size[0], (np.asarray(out.crop((0, 0, 8000, 500))) == 90).all(), int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])//1024)")
    r = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert r.returncode == 0, r.stderr
    width, known, peak = r.stdout.split()
    assert (width, known) == ("8000", "True") and int(peak) < 2000, r.stdout


# Records

def test_bench_goes_on_where_it_was_stopped(folder, tiny, monkeypatch):
    "Every engine, size and share once; rows of an engine that is not measured stay; after Ctrl-C only the rest is measured; other weights begin anew."
    called = []
    def case(px, hole, model, repeats, threads, engine):
        if (px, engine) == (512, stop): raise KeyboardInterrupt
        called.append((engine, px, hole, model, repeats))
        return dict(engine=engine, px=px, hole=hole, seconds=1., peak_mib=9)
    monkeypatch.setattr(clocks, "bench_case", case)
    monkeypatch.setattr(clocks, "onnx_file", lambda model, engines: contextlib.nullcontext("net.onnx"))
    out, how = folder/"speed.json", dict(sizes=(256, 512, 8000), holes=(0.05,))
    out.write_text(json.dumps(dict(weights_sha256=weights_hash(load_model(folder/"run")[0]), rows=[dict(engine="other", px=1), dict(engine="torch", px=2)])))
    stop = "onnxruntime"
    with pytest.raises(KeyboardInterrupt): clocks.bench_inpaint(out, folder/"run", **how)
    assert [c[:2] for c in called] == [("torch", 256), ("torch", 512), ("torch", 8000), ("onnxruntime", 256)] and len(read_json(out)["rows"]) == 2
    stop = None
    rows = clocks.bench_inpaint(out, folder/"run", **how)["rows"]
    assert [c[:2] for c in called[4:]] == [("onnxruntime", 512)], "what was measured is not measured again, and 8,000 px are not taken whole"
    assert [r["engine"] for r in rows] == ["torch"]*3 + ["onnxruntime"]*2 + ["other"] and read_json(out)["rows"] == rows and not Path(f"{out}.part").exists()
    assert [c[3:] for c in called] == [(folder/"run", 3)]*2 + [(folder/"run", 1)] + [("net.onnx", 3)]*2
    rows = clocks.bench_inpaint(out, folder/"run", engines=("torch",), **how)["rows"]
    assert [r["engine"] for r in rows] == ["torch"]*3 + ["onnxruntime"]*2 + ["other"] and len(called) == 8
    Path(f"{out}.part").write_text(json.dumps(dict(config=dict(model="another"), rows=rows)))
    clocks.bench_inpaint(out, folder/"run", **how)
    assert len(called) == 13
    out.write_text(json.dumps(dict(weights_sha256="another", rows=[dict(engine="other", px=1)])))
    assert {r["engine"] for r in clocks.bench_inpaint(out, folder/"run", engines=("torch",), **how)["rows"]} == {"torch"}, "no rows of other weights"


@pytest.mark.slow
def test_a_case_of_the_bench(folder, tmp_path):
    "Each engine in a process of its own: its peak is not its parent's; too little memory is a row."
    onnx, _ = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    graph = ('<ir_version: 8, opset_import: ["": 18]> g (uint8[n,h,w,c] image, uint8[n,h,w] mask) => (uint8[n,h,w,c] out) { out = Identity(image) }')
    onnx.save(onnx.parser.parse_model(graph), tmp_path/"same.onnx")
    row = clocks.bench_case(64, 0.2, tmp_path/"same.onnx", 2, 1, "onnxruntime")
    assert (row["engine"], row["px"], row["hole"], row["threads"], row["windows"], row["size"]) == ("onnxruntime", 64, 0.2, 1, 1, 64) and row["seconds"] > 0
    if os.path.exists("/proc/self/status"):
        own = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])/1024
        assert row["start_mib"] <= row["peak_mib"] < 0.8*own, "this process has torch, that one has not"
    row = clocks.bench_case(64, 0.2, folder/"run", 1, 1)
    assert row["engine"] == "torch" and row["windows"] >= 1 and row["size"] == 16
    row = clocks.bench_case(64, 0.2, folder/"run", 1, 1, limit=2**28)
    assert row == dict(engine="torch", px=64, hole=0.2, threads=1, failed="needs more than the 0.2 GiB of memory that were free")
    with pytest.raises(InputError, match="case of 64 px failed"): clocks.bench_case(64, 0.2, tmp_path/"none.onnx", 1, 1, "onnxruntime")


def test_table_of_the_bench():
    rows = [dict(engine="torch", px=256, hole=0.05, windows=1200, seconds=1.234, peak_mib=1700), dict(engine="torch", px=512, hole=0.4, windows=2, seconds=2., peak_mib=9),
            dict(engine="onnxruntime", px=256, hole=0.05, windows=1, seconds=0.5, peak_mib=8), dict(engine="onnxruntime", px=4000, hole=0.05, failed="needs more")]
    assert clocks.speed_rows(rows) == [["px", "hole", "windows", "torch, s", "onnxruntime, s", "torch, MiB", "onnxruntime, MiB"],
                                    [256, "5%", "1,200", "1.23", "0.50", "1,700", "8"], [512, "40%", "2", "2.00", "", "9", ""],
                                    [4000, "5%", "", "", "too large", "", "too large"]]


def test_compare_writes_numbers_only(folder, tiny):
    for d in ("images", "masks", "results"): (folder/"set"/d).mkdir(parents=True)
    a, m = picture(1, 64, 64, 3), stroke_mask(np.random.default_rng(0), 64, (0.2, 0.3))
    for d, x in (("images", a), ("masks", 255*m), ("results", np.where(m[..., None] > 0, a, 128).astype(np.uint8))): Image.fromarray(x).save(folder/"set"/d/"1.png")
    record = experiments.compare_others(folder/"set", folder/"compare.json", tiny)
    assert record["rows"][0]["set"] == "set" and abs(record["rows"][0]["theirs"]["hole_l1"] - np.abs(a[m == 0]/255. - 128/255).mean()) < 1e-6
    assert str(folder) not in (folder/"compare.json").read_text()
    Image.fromarray(255*(1 - m)).save(folder/"set"/"masks"/"1.png")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(InputError, match="polarity"): experiments.compare_others(folder/"set", folder/"compare.json", tiny)
    with pytest.raises(InputError, match="no cases"): experiments.compare_others(folder/"run", folder/"compare.json", tiny)


def test_recorded_results_are_there():
    "The tables of the chapter: every size and both shares of hole, torch; both sets of others."
    results = Path(__file__).resolve().parent.parent/"nbs"/"results"
    rows = read_json(results/"inpaint_speed.json")["rows"]
    assert {(r["px"], r["hole"]) for r in rows if r["engine"] == "torch"} >= {(px, h) for px in (256, 512, 1024, 4000) for h in (0.05, 0.4)}
    assert all(r["peak_mib"] < 2000 for r in rows if r["engine"] == "torch")
    assert {len([r for r in read_json(results/"compare.json")["rows"] if r["set"] == s]) for s in read_json(results/"compare.json")["means"]} == {6, 9}
