"Masks: ratios that land, bits that stay, draws that keep what they should, and files of other people."
import pickle
import subprocess
import sys
import warnings
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from pconv_course.base.core import InputError
from pconv_course.base.pictures import MaskWarning, read_mask, resize_nearest, soft_mask, valid_mask
from pconv_course.masks import (BUCKETS, DIRECTIONS, KINDS, MaskBank, bucket_of, central_mask, half_mask, hole_depth, hole_ratio, line_ellipse_mask,
    load_masks, pixel_range, placements, shift_limits, sparse_mask, stroke_mask, touches_border, brush_paths, whole_numbers)

STROKE = "514ce9ca1b9bda9c08ffd7f6a13820f5b2cecad4fd58bb90af7fdadc4cd4776f"
SMALL = {
    ("stroke", 64): "e1982a7093984904f58d4d86b4d21f16dc0386b026d54d25ee9d49bb6059a11e",
    ("line_ellipse", 64): "829497d25fc5e8600c1cca174367a69142f5e91b4129f273f4f1a7d1b3f8bcf5",
    ("sparse", 64): "bda1f04a28474f2bb8ba3e5d4753d498e1c511fb5b01a69a4e408331bb04ee72",
    ("central", 64): "7bb845a82edf44c74c6ecc97942b18b18be88dd7c23e19f6de1953ff769403f9",
    ("mixed", 200): "c8ad5da215cb7eb7608961724684fa80432b42ee8a195de7407ec850dd030fe3",
}
FUNCTIONS = dict(stroke=stroke_mask, line_ellipse=line_ellipse_mask, sparse=sparse_mask, central=central_mask,
                 blob=lambda *a: central_mask(*a, shape="blob"))


def rng_of(seed): return np.random.Generator(np.random.PCG64(seed))


def white_is_hole(seed=0, size=32): return Image.fromarray(255*(1 - stroke_mask(rng_of(seed), size, (0.1, 0.4))))


# --- generators


@pytest.mark.parametrize("kind", FUNCTIONS)
@pytest.mark.parametrize("size", [16, 64, 101, 256, 1024])
def test_ratio_lands_in_every_bucket(kind, size):
    for seed in range(10 if size < 1024 else 2):
        for lo, hi in BUCKETS:
            m = FUNCTIONS[kind](rng_of(seed), size, (lo, hi))
            assert m.shape == (size, size) and m.dtype == np.uint8 and set(np.unique(m)) == {0, 1}
            assert lo < hole_ratio(m) <= hi


@pytest.mark.parametrize("kind", ["stroke", "line_ellipse", "sparse"])
@pytest.mark.parametrize("ratio", [(0.3, 0.301), (0.0, 0.001), (0.9, 0.95), (999.5/4096, 1000.5/4096)])
def test_narrow_and_extreme_ranges_land(kind, ratio):
    for seed in range(5): assert ratio[0] < hole_ratio(FUNCTIONS[kind](rng_of(seed), 64, ratio)) <= ratio[1]


@pytest.mark.parametrize("size", [16, 32, 128])
@pytest.mark.parametrize("kind", FUNCTIONS)
def test_every_request_ends_with_a_mask_in_range_or_a_reason(kind, size):
    for ratio in ((0.001, 0.002), (0, 1e-4), (0.005, 0.006), (0.3, 0.3005), (0.95, 0.99), (0.985, 0.99), (0.99, 0.999)):
        for seed in range(3):
            try: assert ratio[0] < hole_ratio(FUNCTIONS[kind](rng_of(seed), size, ratio)) <= ratio[1]
            except InputError as e: assert "widen" in str(e) or "smaller" in str(e)


def test_banks_of_small_masks_are_made_at_once():
    assert len(MaskBank.make(300, 32)) == len(MaskBank.make(300, 32, kind="mixed", ratio=(0.01, 0.6))) == 300


def test_targets_are_spread_over_the_range():
    counts = np.bincount([bucket_of(hole_ratio(stroke_mask(rng_of(i), 64))) for i in range(600)], minlength=6)
    assert counts.sum() == 600 and counts.min() > 60


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_masks_look_the_same_at_every_size(kind):
    sizes = (128 if kind == "sparse" else 64, 512)          # a pen is never thinner than a pixel
    small, large = ([FUNCTIONS[kind](rng_of(i), size, (0.1, 0.3)) for i in range(12)] for size in sizes)
    assert np.median([(s == resize_nearest(b, sizes[0])).mean() for s, b in zip(small, large)]) > (0.8 if kind == "sparse" else 0.86)
    depth = [np.median([hole_depth(m).max()/len(m) for m in masks]) for masks in (small, large)]
    assert abs(depth[0] - depth[1]) < 0.03


def test_central_holes_are_central_and_off_the_border():
    for shape in ("rect", "blob"):
        for seed in range(20):
            m = central_mask(rng_of(seed), 128, (0.2, 0.4), shape)
            rows, cols = np.nonzero(m == 0)
            assert abs(rows.mean() - 63.5) < 0.08*128 and abs(cols.mean() - 63.5) < 0.08*128
            assert not touches_border(m, 1)
            n = cv2_components(m)
            assert n == 1


def cv2_components(m):
    import cv2
    return cv2.connectedComponents((m == 0).astype(np.uint8), connectivity=4)[0] - 1


def test_kinds_differ_in_depth_at_the_same_ratio():
    depth = {k: np.median([hole_depth(f(rng_of(i), 128, (0.15, 0.2))).max() for i in range(9)]) for k, f in FUNCTIONS.items()}
    assert depth["sparse"] < depth["stroke"] < depth["central"] and depth["sparse"] < depth["line_ellipse"] < depth["blob"]


@pytest.mark.parametrize("size, ratio", [(0, (0.1, 0.2)), (-64, (0.1, 0.2)), (64.0, (0.1, 0.2)), ("64", (0.1, 0.2)), (5000, (0.1, 0.2)),
                                         (64, (0.2, 0.1)), (64, (0.2, 0.2)), (64, (-0.1, 0.2)), (64, (0.5, 1.0)), (64, (10, 20)),
                                         (64, 0.2), (64, (0.1, 0.2, 0.3)), (16, (0.1, 0.1001)), (64, (float("nan"), 0.2))])
@pytest.mark.parametrize("kind", ["stroke", "central"])
def test_impossible_sizes_and_ranges(kind, size, ratio):
    with pytest.raises(InputError) as e: FUNCTIONS[kind](rng_of(0), size, ratio)
    assert "\n" not in str(e.value) and ";" in str(e.value)


def test_every_number_of_pixels_in_the_range_and_no_other():
    for size, ratio in ((16, (0.1, 0.2)), (20, (0.5, 0.6)), (64, (0.01, 0.1))):
        first, last = pixel_range(size, ratio)
        inside = [n for n in range(size*size + 1) if ratio[0] < n/size**2 <= ratio[1]]
        assert [inside[0], inside[-1]] == [first, last]


def test_buckets_include_their_upper_end_only():
    assert [bucket_of(r) for r in (0.01, 0.0101, 0.1, 0.1001, 0.6, 0.6001, 0)] == [-1, 0, 0, 1, 5, -1, -1]


def test_whole_numbers_are_equally_often_also_below_zero():
    assert np.unique(whole_numbers(np.arange(290)/290, -14, 15), return_counts=True)[1].tolist() == [10]*29
    turns = brush_paths(rng_of(0), 4096, 400, 12, (0.01, 0.02), 12)
    a, b = np.diff(turns[:, 1:-1].astype(float), axis=1)[:, :-1], np.diff(turns[:, 1:-1].astype(float), axis=1)[:, 1:]
    inside = (turns.min((1, 2)) > 100) & (turns.max((1, 2)) < 3996)
    left = ((a[..., 0]*b[..., 1] - a[..., 1]*b[..., 0]) > 0)[inside].mean()
    assert inside.sum() > 100 and abs(left - 0.5) < 0.06


def test_unknown_names():
    with pytest.raises(InputError, match="rect"): central_mask(rng_of(0), shape="star")
    with pytest.raises(InputError, match="line_ellipse"): MaskBank.make(3, kind="lines")
    with pytest.raises(InputError, match="n of 1"): MaskBank.make(0)


# --- the same bits


def test_hashes():
    got = {(k, s): MaskBank.make(40, s, 7, k).sha256 for k, s in SMALL}
    assert got == SMALL


def test_a_fresh_process_makes_the_same_bank():
    code = "import torch; torch.set_num_threads(2); from pconv_course.masks import MaskBank; print(MaskBank.make().sha256)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert out.stdout.strip() == STROKE, out.stderr[-500:]


def test_directions_do_not_hang_on_the_last_digit_of_a_sine():
    a = np.arange(64)*(np.pi/32)
    exact = 4096*np.stack([np.cos(a), np.sin(a)], 1)
    assert np.abs(np.abs(exact) % 1 - 0.5).min() > 1e-3 and np.abs(DIRECTIONS - exact).max() < 0.5


def test_all_points_handed_to_opencv_are_inside(monkeypatch):
    import pconv_course.masks as masks
    seen, draw = [], masks._draw
    def spy(m, points, width):
        seen.append((points.min() >= 0, points.max() < len(m), points.dtype == np.int32, width >= 0))
        draw(m, points, width)
    monkeypatch.setattr(masks, "_draw", spy)
    for size in (64, 200):
        for f in FUNCTIONS.values(): f(rng_of(1), size, (0.7, 0.75))
    assert len(seen) > 100 and np.all(seen)


def test_the_global_numpy_state_is_neither_used_nor_moved():
    np.random.seed(3)
    before = np.random.get_state()[1].copy()
    a = MaskBank.make(4, 64).sha256
    np.random.seed(4)
    assert MaskBank.make(4, 64).sha256 == a
    np.random.seed(3)
    assert (np.random.get_state()[1] == before).all()


# --- measures


def test_ratio_of_one_and_of_many():
    m = np.ones((4, 4), np.uint8)
    m[0] = 0
    assert hole_ratio(m) == 0.25 == hole_ratio(torch.from_numpy(m)[None].float())
    assert hole_ratio(np.stack([m, 1 - m])).tolist() == [0.25, 0.75]
    assert hole_ratio(torch.from_numpy(np.stack([m, 1 - m]))[:, None]).shape == (2,)


def test_border_width_scales_with_the_size():
    for size in (64, 256, 512):
        m = np.ones((size, size), np.uint8)
        w = round(size*50/512)
        m[w, size//2] = 0
        assert not touches_border(m) and touches_border(m, w + 1)
        m[size//2, size - w] = 0
        assert touches_border(m)


def test_depth_is_the_number_of_3x3_layers():
    for seed in range(6):
        m = stroke_mask(rng_of(seed), 64, (0.3, 0.6))
        t, n = torch.from_numpy(m)[None, None].float(), 0
        while not t.all(): t, n = torch.nn.functional.max_pool2d(t, 3, 1, 1), n + 1
        assert n == hole_depth(m).max()
    assert (hole_depth(np.zeros((4, 4))) == -1).all() and (hole_depth(np.ones((4, 4))) == 0).all()


# --- the bank


def test_packing_keeps_every_bit_also_for_odd_sizes():
    masks = [1 - np.eye(5, 7, k, dtype=np.uint8) for k in range(4)]
    bank = MaskBank.from_arrays(masks, names=list("abcd"))
    assert [bank.array(i).tolist() for i in range(4)] == [m.tolist() for m in masks]
    assert bank.size == (5, 7) and bank[0].shape == (1, 5, 7) and bank[0].dtype == torch.float32 and bank.names[3] == "d"


def test_a_bank_begins_like_a_longer_one_and_seeds_differ():
    a, b = MaskBank.make(5, 64, seed=2, kind="mixed"), MaskBank.make(9, 64, seed=2, kind="mixed")
    assert (a.packed == b.packed[:5]).all() and a.sha256 != b.sha256
    assert MaskBank.make(5, 64, seed=3, kind="mixed").sha256 != a.sha256


def test_mixed_holds_every_kind():
    assert len(KINDS["mixed"]) == 8 and {f.func if hasattr(f, "func") else f for f in KINDS["mixed"]} == {
        stroke_mask, line_ellipse_mask, sparse_mask, central_mask}


def test_save_and_load(tmp_path):
    bank = MaskBank.make(6, 64, kind="mixed", ratio=(0.1, 0.3))
    bank.save(tmp_path/"bank.npz")
    again = MaskBank.load(tmp_path/"bank.npz")
    assert again.sha256 == bank.sha256 and again.names == bank.names and again.info["kind"] == "mixed"
    bank.save(tmp_path/"twice.npz")
    assert (tmp_path/"bank.npz").read_bytes() == (tmp_path/"twice.npz").read_bytes()


def spring(): Trap.sprung = True


class Trap:
    "Unpickling it runs code."
    sprung = False
    def __reduce__(self): return spring, ()


@pytest.mark.parametrize("damage", ["missing", "folder", "text", "cut", "bit", "other npz", "pickle"])
def test_a_damaged_bank_is_refused(tmp_path, damage):
    path = tmp_path/"bank.npz"
    bank = MaskBank.make(6, 64)
    if damage == "folder": path.mkdir()
    if damage == "text": path.write_text("no bank")
    if damage == "cut":
        bank.save(path)
        path.write_bytes(path.read_bytes()[:-200])
    if damage == "bit":
        info = bank.sha256
        bank.packed[3, 5] ^= 1
        np.savez(path, packed=bank.packed, shape=np.array(bank.shape), names=np.array(bank.names), info=np.array(f'{{"sha256": "{info}"}}'))
    if damage == "other npz": np.savez(path, a=np.arange(3))
    if damage == "pickle": np.savez(path, packed=np.array([Trap()]), shape=np.array([4, 4]), names=np.array(["a"]), info=np.array("{}"))
    with pytest.raises(InputError) as e: MaskBank.load(path)
    assert "\n" not in str(e.value) and "bank.npz" in str(e.value) and not Trap.sprung


def test_a_full_disk_keeps_the_old_bank(tmp_path, monkeypatch):
    path = tmp_path/"bank.npz"
    MaskBank.make(3, 64).save(path)
    old = path.read_bytes()
    def full(f, **kw):
        f.write(b"half")
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(InputError, match="No space"): MaskBank.make(3, 64, seed=1).save(path)
    assert path.read_bytes() == old and [p.name for p in tmp_path.iterdir()] == ["bank.npz"]


def test_a_bank_goes_to_a_worker_process():
    bank = MaskBank.make(4, 64).to("cpu")
    bank.sample(2)
    assert pickle.loads(pickle.dumps(bank)).sha256 == bank.sha256


@pytest.mark.parametrize("masks, match", [([], "at least one"), ([np.ones((4, 4))], "no hole"), ([np.zeros((4, 4))], "all hole"),
                                          ([np.eye(4), np.eye(5)], "several sizes"), ([np.eye(4)*0.5], "read_mask"),
                                          ([np.full((4, 4), np.nan)], "read_mask"), ([np.ones((3, 4, 4))], "one channel"), ([5], "one channel")])
def test_unusable_masks_make_no_bank(masks, match):
    with pytest.raises(InputError, match=match): MaskBank.from_arrays(masks)


# --- drawing


def test_draws_keep_ratio_and_freedom_of_the_border():
    bank = MaskBank.make(64, 64, kind="mixed")
    g = lambda: torch.Generator().manual_seed(5)
    m, i = bank.sample(400, g()), torch.randint(64, (400,), generator=g())
    assert m.shape == (400, 1, 64, 64) and m.dtype == torch.float32 and m.unique().tolist() == [0, 1]
    np.testing.assert_allclose(hole_ratio(m), bank.ratios[i], rtol=0, atol=0)
    for k, j in enumerate(i):
        if not touches_border(bank.array(j), 1): assert not touches_border(m[k], 1)


def test_the_cpu_generator_decides():
    bank = MaskBank.make(20, 64)
    a, b = (bank.sample(8, torch.Generator().manual_seed(1), device=d) for d in ("cpu", torch.device("cpu")))
    assert torch.equal(a, b) and not torch.equal(a, bank.sample(8, torch.Generator().manual_seed(2)))
    torch.manual_seed(0)
    c = bank.sample(8)
    torch.manual_seed(0)
    assert torch.equal(c, bank.sample(8))


def test_every_shift_of_the_allowed_ones_and_no_other():
    m = np.ones((8, 8), np.uint8)
    m[2:4, 3:7] = 0                                   # 2 up, 4 down, 3 left, 1 right of it
    room = torch.from_numpy(MaskBank.from_arrays([m]).room.numpy())
    assert room.tolist() == [[1, 3, 2, 0]]
    rows, cols = set(), set()
    for x in MaskBank.from_arrays([m]).sample(2000, torch.Generator().manual_seed(0)):
        r, c = np.nonzero(x[0].numpy() == 0)
        rows.add((r.min(), r.max())), cols.add((c.min(), c.max()))
    assert min(r[0] for r in rows) == 1 and max(r[1] for r in rows) == 6 and len(rows) == 5 + 3
    assert len(cols) == len(rows)


def test_eight_symmetries_and_no_more():
    m = np.ones((5, 5), np.uint8)
    m[1:4, 1:4] = [[0, 0, 0], [1, 0, 1], [0, 0, 1]]
    drawn = {tuple(x.flatten().int().tolist()) for x in MaskBank.from_arrays([m]).sample(400, torch.Generator().manual_seed(0))}
    assert drawn == {tuple(np.rot90(a, k).flatten().tolist()) for a in (m, m.T) for k in range(4)}


def test_a_placement_shows_every_pixel_once():
    bank = MaskBank.make(4, 64)
    place = placements(bank.room[[0, 1, 2, 3, 0]], (64, 64), torch.Generator().manual_seed(0))
    assert (place.flatten(1).sort(1).values == torch.arange(64*64)).all()


def test_a_bank_that_is_not_square_is_not_turned():
    m = np.ones((6, 9), np.uint8)
    m[2:4, 3:5] = 0
    drawn = MaskBank.from_arrays([m]).sample(50, torch.Generator().manual_seed(0))
    assert drawn.shape == (50, 1, 6, 9) and set(hole_ratio(drawn)) == {hole_ratio(m)}


def test_unmoved_draws_are_masks_of_the_bank():
    bank = MaskBank.make(10, 64)
    stored = {bank[i].numpy().tobytes() for i in range(10)}
    assert all(m.numpy().tobytes() in stored for m in bank.sample(20, augment=False))


def test_fixed_masks_stay_and_represent_the_bank():
    bank = MaskBank.make(100, 64)
    a = bank.fixed(20, seed=4)
    assert torch.equal(a, bank.fixed(20, seed=4)) and not torch.equal(a, bank.fixed(20, seed=5))
    assert abs(hole_ratio(a).mean() - bank.ratios.mean()) < 0.02
    assert len({m.numpy().tobytes() for m in bank.fixed(100)}) == 100 and bank.fixed(250).shape[0] == 250


# --- other people's masks


def test_three_polarities_of_the_same_mask(tmp_path):
    m = stroke_mask(rng_of(0), 32, (0.1, 0.4))
    Image.fromarray(255*(1 - m)).save(tmp_path/"white.png")
    Image.fromarray(255*m).save(tmp_path/"black.png")
    rgba = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))
    rgba.putalpha(Image.fromarray(255*m))
    rgba.save(tmp_path/"alpha.png")
    for hole in ("white", "black", "alpha"): np.testing.assert_array_equal(read_mask(tmp_path/f"{hole}.png", hole), m)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "I;16", "CMYK"])
def test_picture_modes(tmp_path, mode):
    m = stroke_mask(rng_of(0), 32, (0.1, 0.4))
    im = Image.fromarray((65535*(1 - m.astype(np.uint16)))) if mode == "I;16" else Image.fromarray(255*(1 - m)).convert(mode)
    im.save(tmp_path/("m.tif" if mode == "CMYK" else "m.png"))
    np.testing.assert_array_equal(read_mask(next(tmp_path.iterdir()), "white"), m)


@pytest.mark.parametrize("convert", [lambda m: m.astype(bool), lambda m: m, lambda m: m*255, lambda m: m.astype(np.float32),
                                     torch.from_numpy, lambda m: torch.from_numpy(m)[None].float(), lambda m: m[..., None]])
def test_arrays_and_tensors(convert):
    m = stroke_mask(rng_of(0), 32, (0.1, 0.4))
    np.testing.assert_array_equal(read_mask(convert(m), "black"), m)


def test_the_threshold_makes_half_covered_pixels_known_or_hole():
    row = np.repeat([[0, 0.3, 0.6, 1.0]], [5, 1, 1, 9], 1)
    assert [read_mask(row, "black", threshold=t)[0, 4:8].tolist() for t in (0.2, 0.5, 0.9)] == [[0, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1]]


def test_a_wrong_polarity_is_noticed_and_a_right_one_is_not():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_mask(white_is_hole(), "white")
        load_masks([white_is_hole(i) for i in range(4)], "white")
    with pytest.warns(MaskWarning, match="hole='black'"): read_mask(white_is_hole(), "black")
    with pytest.warns(MaskWarning, match="4 masks") as w: load_masks([white_is_hole(i) for i in range(4)], "black")
    assert len(w) == 1


def test_a_photo_is_no_mask():
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32), np.uint8))
    with pytest.warns(MaskWarning, match="is it a mask"): read_mask(photo, "white")


def test_a_mask_that_is_only_in_the_transparency_is_named():
    im = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    ImageDraw.Draw(im).rectangle((4, 4, 8, 8), fill=(0, 0, 0, 255))
    with pytest.raises(InputError, match="hole='alpha'"): read_mask(im, "white")
    assert hole_ratio(read_mask(im.getchannel("A"), "white")) == 25/256


def test_resize_takes_the_nearest_centre_and_makes_no_new_values():
    m = stroke_mask(rng_of(0), 100, (0.1, 0.4))
    np.testing.assert_array_equal(resize_nearest(m, 100), m)
    assert resize_nearest(np.arange(6)[None], (1, 3)).tolist() == [[1, 3, 5]]
    assert resize_nearest(np.arange(3)[None], (1, 6)).tolist() == [[0, 0, 1, 1, 2, 2]]
    np.testing.assert_array_equal(resize_nearest(resize_nearest(m, 300), 100), m)
    for size in (37, (50, 80), 256):
        r = read_mask(1 - m, "white", size=size)
        assert r.shape == ((size, size) if isinstance(size, int) else size) and set(np.unique(r)) == {0, 1}
        assert abs(hole_ratio(r) - hole_ratio(m)) < 0.03
    for size in (0, -3, (4, 0), (4, 4, 4)):
        with pytest.raises(InputError): read_mask(1 - m, "white", size=size)


def test_folder_zip_and_list_agree(tmp_path):
    src = tmp_path/"masks"
    for name, seed in {"m10.png": 0, "m2.PNG": 1, "a/m1.png": 2, ".hidden.png": 3, "__MACOSX/._m2.png": 4}.items():
        (src/name).parent.mkdir(parents=True, exist_ok=True)
        white_is_hole(seed).save(src/name, "PNG")
    (src/"readme.txt").write_text("x")
    with zipfile.ZipFile(tmp_path/"masks.zip", "w") as z:
        for p in src.rglob("*"): z.write(p, p.relative_to(src))
    a, b = load_masks(src, "white"), load_masks(tmp_path/"masks.zip", "white")
    c = load_masks([src/n for n in a.names], "white")
    assert a.names == b.names == ["a/m1.png", "m2.PNG", "m10.png"]
    assert a.sha256 == b.sha256 == c.sha256 and len(load_masks(src, "white", limit=2)) == 2


def test_grey_pixels_are_counted(tmp_path):
    m = np.full((16, 16), 255, np.uint8)
    m[:4], m[4, :5] = 0, 100
    Image.fromarray(m).save(tmp_path/"a.png")
    Image.fromarray(np.where(m < 200, 0, 255).astype(np.uint8)).save(tmp_path/"b.png")
    info = load_masks(tmp_path, "black").info
    assert (info["grey_pixels"], info["grey_files"]) == (5, 1)


def broken(kind, path):
    "A source of masks at `path` with something wrong."
    png = path/"m.png"
    white_is_hole().save(png)
    if kind == "missing": return path/"nothing"
    if kind == "empty folder": (path/"e").mkdir(); return path/"e"
    if kind == "no pictures": (path/"e").mkdir(); (path/"e"/"x.txt").write_text("x"); return path/"e"
    if kind == "cut": png.write_bytes(png.read_bytes()[:70])
    if kind == "empty file": png.write_bytes(b"")
    if kind == "text": png.write_text("a mask")
    if kind == "bad zip": (path/"z.zip").write_bytes(b"PK\3\4 nothing"); return path/"z.zip"
    if kind == "empty zip": zipfile.ZipFile(path/"z.zip", "w").close(); return path/"z.zip"
    if kind == "cut jpeg in zip":
        white_is_hole(size=64).save(path/"m.jpg")
        with zipfile.ZipFile(path/"z.zip", "w") as z: z.writestr("m.jpg", (path/"m.jpg").read_bytes()[:300])
        return path/"z.zip"
    if kind == "1x1": Image.new("L", (1, 1)).save(png)
    if kind == "20,000 px": Image.new("1", (20_000, 20_000)).save(png)
    if kind == "all hole": Image.new("L", (8, 8), 255).save(png)
    if kind == "all known": Image.new("L", (8, 8), 0).save(png)
    if kind == "two sizes": white_is_hole(size=48).save(path/"n.png")
    if kind == "0 and 1": Image.fromarray(1 - stroke_mask(rng_of(0), 32)).save(png)
    return path


@pytest.mark.parametrize("kind, match", {
    "missing": "check the path", "empty folder": "no picture", "no pictures": "no picture", "cut": "m.png", "empty file": "m.png",
    "text": "m.png", "bad zip": "z.zip", "empty zip": "no picture", "cut jpeg in zip": "m.jpg", "1x1": "polarity", "20,000 px": "too many pixels",
    "all hole": "all hole", "all known": "no hole", "two sizes": "size=", "0 and 1": "multiply it by 255"}.items())
def test_bad_sources_say_what_is_wrong_and_what_to_do(tmp_path, kind, match):
    with pytest.raises(InputError, match=match) as e: load_masks(broken(kind, tmp_path), "white")
    assert "\n" not in str(e.value) and ";" in str(e.value) and len(str(e.value)) < 300


@pytest.mark.parametrize("src, hole, match", [
    ("no/such/file.png", "white", "check the path"), (".", "white", "no picture"), (np.full((4, 4), np.nan), "white", "NaN"),
    (np.full((4, 4), 2.0), "white", "outside"), (np.full((4, 4), -1), "white", "outside"), (np.ones((3, 4, 4)), "white", "one channel"),
    (np.eye(4), "grey", "what marks the hole"), (Image.new("L", (4, 4)), "alpha", "no transparency"), (np.ones(4), "black", "one channel")])
def test_bad_single_masks(src, hole, match):
    with pytest.raises(InputError, match=match): read_mask(src, hole)


def test_the_polarity_must_be_stated():
    with pytest.raises(TypeError, match="hole"): read_mask(np.eye(4))
    with pytest.raises(TypeError, match="hole"): load_masks([np.eye(4)])


def test_a_mask_of_another_size_than_its_image():
    with pytest.raises(InputError, match="size="): valid_mask(1 - np.eye(4), (8, 8))
    assert valid_mask(torch.eye(4)[None], (4, 4)).dtype == np.uint8


def test_soft_values_survive_until_the_threshold():
    np.testing.assert_allclose(soft_mask(np.array([[0, 51, 255]], np.uint8), "white"), [[1, 0.8, 0]])


def test_the_module_needs_neither_fastai_nor_torchvision():
    code = "import sys, pconv_course.masks; print([m for m in ('fastai', 'torchvision', 'fastcore') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120).stdout.strip() == "[]"
    assert Path(sys.modules["pconv_course.masks"].__file__).name == "masks.py"


# the mixture for restored faces

def test_restore_is_mixed_as_it_says():
    "Of twenty masks: seven strokes, seven central holes, two each of lines and ellipses, scribbles and halves."
    names = [o.func.__name__ if hasattr(o, "func") else o.__name__ for o in (getattr(f, "__wrapped__", f) for f in KINDS["restore"])]
    assert Counter(names) == dict(stroke_mask=7, central_mask=7, line_ellipse_mask=2, sparse_mask=2, half_mask=2)
    assert (MaskBank.make(40, 32, kind="restore").packed == MaskBank.make(40, 32, kind="restore", ratio=(0.01, 0.6)).packed).all()


def test_a_ratio_narrows_the_range_of_each_kind_in_restore():
    bank = MaskBank.make(200, 64, kind="restore", ratio=(0.1, 0.55))
    by = {f: [bank.ratios[i] for i in range(200) if getattr(g := KINDS["restore"][i % 20], "__wrapped__", g) is f] for f in (sparse_mask, half_mask, central_mask, stroke_mask)}
    assert all(0.1 < r <= 0.2 for r in by[sparse_mask]) and all(0.4 < r <= 0.55 for r in by[half_mask])
    assert all(0.15 < r <= 0.45 for r in by[central_mask]) and max(by[stroke_mask]) > 0.45
    with pytest.raises(InputError, match="hole ratio"): MaskBank.make(20, 64, kind="restore", ratio=(0.3, 0.5))
    for apart in ((0.01, 0.1), (0.5, 0.6)):
        with pytest.raises(InputError) as e: MaskBank.make(20, 64, kind="restore", ratio=apart)
        assert f"hole ratio {apart} leaves nothing of" in str(e.value) and "\n" not in str(e.value), "the numbers that were given"


def test_a_ratio_on_the_edge_of_a_bucket_is_in_the_lower_one():
    for size in (10, 80, 100, 160):
        for i, (_, hi) in enumerate(BUCKETS):
            m = np.ones(size*size, np.uint8)
            m[:round(hi*size*size)] = 0
            assert bucket_of(hole_ratio(m.reshape(size, size))) == bucket_of(hole_ratio(m.reshape(1, size, size).astype(np.float32))) == i


def test_halves_are_turned_and_flipped_and_stay_halves():
    "Shifted by a part of the picture they would be bands; all four sides come."
    drawn = MaskBank.make(30, 32, kind="half").sample(200, torch.Generator().manual_seed(0))[:, 0]
    sides = torch.stack([(o == 0).all(1) for o in (drawn[:, 0], drawn[:, -1], drawn[:, :, 0], drawn[:, :, -1])], 1)
    assert (sides.sum(1) == 1).all() and sides.sum(0).min() > 20


def test_no_other_kind_has_other_room_than_before():
    bank = MaskBank.make(48, 32, kind="mixed")
    assert (bank.room.numpy() == shift_limits(bank)).all()
