"""Faces: drawn ones, files from anywhere, prepare under bad conditions, DataLoaders that repeat themselves."""
import csv
import io
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pconv_course.base.pixels import FaceWarning
from pconv_course.base import core
from pconv_course.base import faces as faces_module
from pconv_course.base import traits
from pconv_course import data
from pconv_course.lab import clocks
from pconv_course.base.core import alone_in, InputError, read_json, sha256_of
from pconv_course.base.faces import draw_face
from pconv_course.base.pictures import face_ids, list_pictures, read_face
from pconv_course.base.traits import face_traits
from pconv_course.data import FaceDL, FaceFiles, DrawnFaces, face_dls, split_ids
from pconv_course.tools.prepare import face_version, prepare

ONE_LINE = r"\A[^\n]{10,400}\Z"
FINGERPRINT = "fd32288d22080e425c3c40469ba02349041642d09fa1fb40ab70e9747959da43"


def one_line(e): return isinstance(e.value, InputError) and "\n" not in str(e.value) and len(str(e.value)) < 500


def write(path, img, **kw):
    path.parent.mkdir(parents=True, exist_ok=True)
    (img if isinstance(img, Image.Image) else Image.fromarray(img)).save(path, **kw)
    return path


def tree(folder): return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def album(tmp_path):
    "Twelve drawn photographs of 40 to 62 px in two folders, and one broken file."
    for i in range(12): write(tmp_path / "src" / ("ab"[i % 2]) / f"{i:03d}.jpg", draw_face(i, 40 + 2*i), quality=90)
    (tmp_path / "src" / "a" / "broken.jpg").write_bytes(b"\xff\xd8\xff" + b"nothing")
    return tmp_path / "src"


# Drawn faces

def fingerprint(): return sha256_of(b"".join(draw_face(s, size).tobytes() for s in range(20) for size in (32, 64)))


def test_same_bits_everywhere():
    "The forty pictures of the lesson, bit for bit; the stored hash was equal with OpenCV 4.10 and 5.0."
    assert fingerprint() == FINGERPRINT


@pytest.mark.slow
def test_same_bits_in_another_process_and_with_other_threads():
    code = "import cv2, sys; cv2.setNumThreads(int(sys.argv[1])); sys.path.insert(0, sys.argv[2]); import test_data; print(test_data.fingerprint())"
    out = [subprocess.run([sys.executable, "-W", "ignore", "-c", code, n, str(Path(__file__).parent)], capture_output=True, text=True, check=True).stdout.split()[-1]
           for n in ("1", "4")]
    assert out[0] == out[1] == fingerprint()


@pytest.mark.parametrize("size", [16, 17, 31, 48, 63, 64, 65, 100, 128, 200, 512])
def test_every_size(size):
    a = draw_face(5, size)
    assert a.shape == (size, size, 3) and a.dtype == np.uint8 and a.std() > 20
    small = np.asarray(Image.fromarray(draw_face(5, 256)).resize((16, 16), Image.Resampling.BOX), float)
    assert np.abs(np.asarray(Image.fromarray(a).resize((16, 16), Image.Resampling.BOX), float) - small).mean() < 6


def test_every_trait_paints_and_shows():
    "Each style, hat, beard, kind of glasses and clothes gives a picture of its own."
    base = dict(style="short", hat="none", beard="none", glasses="none", wear="crew", fem=False)
    options = dict(style=sorted({s for d in traits.STYLES for s in d}), hat=["none", *faces_module.HATS], wear=list(faces_module.DROPS),
                   beard=["none", "stubble", "full", "goatee", "moustache"], glasses=["none", "round", "square", "sun"])
    for trait, values in options.items():
        seen = {draw_face(3, 64, **{**base, trait: v}).tobytes() for v in values}
        assert len(seen) == len(values), trait
    assert set(faces_module.LOCKS) >= {n for names in faces_module.LAYERS.values() for n in names}


@pytest.mark.slow
def test_all_faces_are_different_people():
    a = np.stack([draw_face(s, 32) for s in range(200)]).astype(float)
    d = np.abs(a[:, None] - a[None]).mean((2, 3, 4)) + 1e9*np.eye(200)
    assert d.min() > 4
    assert len({face_traits(s).style for s in range(300)}) > 12


def test_painting_draws_no_random_number():
    "Leaving out a part changes nothing that the other parts do."
    with_hat, without = (draw_face(8, 64, hat=h)[40:] for h in ("beanie", "none"))
    assert (with_hat[-8:] == without[-8:]).all()
    state = np.random.get_state()[1].copy()
    torch_state = torch.get_rng_state()
    draw_face(8)
    assert (np.random.get_state()[1] == state).all() and torch.equal(torch.get_rng_state(), torch_state)


@pytest.mark.parametrize("size", [0, -1, 15, 4097, 64.5, "x", None, float("nan"), float("inf")])
def test_impossible_sizes(size, album):
    for f in (lambda: draw_face(0, size), lambda: DrawnFaces(3, size), lambda: face_dls(size=size), lambda: prepare(album, album.parent / "o", size=size),
              *([lambda: FaceFiles(album, size)] if size not in (None, 0) else [])):
        with pytest.raises(InputError) as e: f()
        assert one_line(e)
    assert not (album.parent / "o").exists()


def test_drawn_faces_dataset():
    a, b = DrawnFaces(20, 32, seed=1), DrawnFaces(20, 32, seed=2)
    assert len(a) == 20 and a[0].shape == (3, 32, 32) and a[0].dtype == torch.float32 and 0 <= a[0].min() and a[0].max() <= 1
    assert torch.equal(a[-1], a[19]) and len({a[i].numpy().tobytes() for i in range(20)} | {b[i].numpy().tobytes() for i in range(20)}) == 40
    part = a.subset(a.ids[5:8])
    assert part.ids == a.ids[5:8] and torch.equal(part[0], a[5]) and len(part.new_empty()) == 0
    again = pickle.loads(pickle.dumps(a))
    assert torch.equal(again[3], a[3]) and not pickle.loads(pickle.dumps(a)).kept
    with pytest.raises(IndexError): a[20]


# One file

MODES = dict(L=("png", "jpg", "webp"), RGB=("png", "jpg", "webp"), RGBA=("png", "webp"), LA=("png",), P=("png",), CMYK=("jpg",), **{"1": ("png",), "I;16": ("png",)})


@pytest.mark.parametrize("mode,suffix", [(m, s) for m, ss in MODES.items() for s in ss])
def test_every_mode_becomes_rgb(mode, suffix, tmp_path):
    grey = Image.fromarray(draw_face(1, 64)).convert("L")
    img = Image.fromarray(np.asarray(grey).astype(np.uint16)*257) if mode == "I;16" else (grey if mode in ("L", "LA", "1", "I;16") else Image.fromarray(draw_face(1, 64)))
    want = np.asarray(img.convert("1").convert("RGB") if mode == "1" else grey.convert("RGB") if mode in ("L", "LA", "I;16") else img, float)
    path = write(tmp_path / f"x.{suffix}", img if mode == "I;16" else img.quantize(256) if mode == "P" else img.convert(mode), **({} if suffix == "png" else dict(quality=95)))
    got = read_face(path, 64)
    assert got.mode == "RGB" and got.size == (64, 64)
    assert np.abs(np.asarray(got, float) - want).mean() < (12 if mode == "P" else 4)


def test_transparency_is_white_also_in_palettes_and_tRNS(tmp_path):
    img = Image.new("RGBA", (32, 32), (10, 200, 10, 0))
    img.paste((200, 10, 10, 255), (0, 0, 16, 32))
    for name, im, kw in (("rgba", img, {}), ("p", img.convert("RGB").quantize(4), dict(transparency=None)),):
        if name == "p": kw = dict(transparency=im.getpixel((20, 5)))
        a = np.asarray(read_face(write(tmp_path / f"{name}.png", im, **kw)))
        assert a[5, 20].tolist() == [255, 255, 255] and a[5, 5, 0] > 180 and a[5, 5, 1] < 40
    rgb = np.full((32, 32, 3), 7, np.uint8)
    a = np.asarray(read_face(write(tmp_path / "trns.png", rgb, transparency=(7, 7, 7))))
    assert (a == 255).all()


@pytest.mark.parametrize("code", range(1, 9))
@pytest.mark.parametrize("shape", [(64, 64), (48, 80), (81, 50)])
def test_exif_orientation(code, shape, tmp_path):
    "Upright whatever the tag says: equal to Pillow's own transposition of the whole picture, then cropped."
    from PIL import ImageOps
    img = Image.fromarray(draw_face(2, 96)).resize(shape)
    exif = Image.Exif()
    exif[274] = code
    path = write(tmp_path / "x.png", img, exif=exif)
    want = ImageOps.exif_transpose(Image.open(path))
    assert np.array_equal(read_face(path), want)
    got, k = np.asarray(read_face(path, 32), float), min(want.size)
    box = ((want.size[0] - k)/2, (want.size[1] - k)/2, (want.size[0] + k)/2, (want.size[1] + k)/2)
    assert np.abs(got - np.asarray(want.resize((32, 32), Image.Resampling.LANCZOS, box=box), float)).max() <= 1


def test_damaged_exif_is_no_reason(tmp_path):
    path = write(tmp_path / "x.jpg", draw_face(2, 64), exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff rubbish")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert read_face(path, 32).size == (32, 32)


def test_large_jpeg_shrinks_while_decoding(tmp_path):
    "20,000 px on a side: 1.2 GB decoded, a few MB by the way JPEG offers."
    strip = Image.new("RGB", (20000, 4000), (200, 120, 90))
    path = write(tmp_path / "huge.jpg", strip, quality=30)
    start = time.time()
    assert np.abs(np.asarray(read_face(path, 64), int) - (200, 120, 90)).max() < 8 and time.time() - start < 20
    write(tmp_path / "progressive.jpg", Image.new("L", (16000, 7000)), progressive=True, quality=10)
    with pytest.raises(InputError, match="fill the memory"): read_face(tmp_path / "progressive.jpg", 64)


def png_header(w, h):
    import struct
    import zlib
    chunk = lambda kind, d: struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">2I5B", w, h, 8, 2, 0, 0, 0)) + chunk(b"IDAT", zlib.compress(b"\0"))


@pytest.mark.parametrize("content,why", [(b"", "empty"), (b"hello world", "not a picture"), (png_header(20000, 20000), "memory"), (png_header(1, 1), "1x1"),
                                         (png_header(64, 64), "truncated|broken|decoder"), (b"GIF89a" + bytes(99), "not a picture")])
def test_unusable_files(content, why, tmp_path):
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(InputError, match=why) as e: read_face(tmp_path / "x.png", 32)
    assert one_line(e) and "x.png" in str(e.value)
    with pytest.raises(InputError): read_face(tmp_path / "missing.png", 32)
    with pytest.raises(InputError): read_face(tmp_path, 32)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["JPEG", "PNG", "WEBP"]), st.floats(0, 1), st.integers(0, 255), st.booleans())
def test_damaged_bytes_are_read_or_refused(kind, where, byte, cut):
    "Whatever a damaged file holds: a picture, or one clear line; never another error."
    f = io.BytesIO()
    Image.fromarray(draw_face(4, 48)).save(f, kind)
    b = bytearray(f.getvalue())
    at = int(where*(len(b) - 1))
    b = b[:at] if cut else b[:at] + bytes([byte]) + b[at + 1:]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try: assert read_face(io.BytesIO(bytes(b)), 32).size == (32, 32)
        except InputError as e: assert "\n" not in str(e)


# Folders and zips

def test_folder_and_zip_agree(album):
    (album / "a" / ".hidden.jpg").write_bytes(b"x")
    (album / ".git").mkdir()
    (album / ".git" / "x.jpg").write_bytes(b"x")
    (album / "a" / "notes.txt").write_text("x")
    z = album.parent / "src.zip"
    with zipfile.ZipFile(z, "w") as f:
        for p in sorted(album.rglob("*")): f.write(p, "top/" + p.relative_to(album).as_posix())
        f.writestr("__MACOSX/top/a/._000.jpg", b"x")
    a, b = FaceFiles(album, 32), FaceFiles(z, 32)
    assert a.ids == b.ids and len(a) == 13 and a.ids[0] == "a/000"
    for i in range(12):
        if "broken" not in a.ids[i]: assert torch.equal(a[i], b[i])
    assert torch.equal(pickle.loads(pickle.dumps(b))[1], b[1])
    assert a.pixels(0) is a.pixels(0), "the second epoch must cost nothing"


def test_bad_sources(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.zip").write_text("no zip")
    zipfile.ZipFile(tmp_path / "empty.zip", "w").close()
    with zipfile.ZipFile(tmp_path / "cut.zip", "w") as z: z.writestr("x.jpg", os.urandom(999))
    (tmp_path / "cut.zip").write_bytes((tmp_path / "cut.zip").read_bytes()[:500])
    for src in ("missing", "empty", "text.zip", "empty.zip", "cut.zip"):
        for f in (lambda s: FaceFiles(s, 32), lambda s: face_dls(s, 32), list_pictures, lambda s: prepare(s, tmp_path / "out")):
            with pytest.raises(InputError) as e: f(tmp_path / src)
            assert one_line(e), e.value
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read and write everything")
def test_unreadable_and_unwritable_for_real(album):
    album.chmod(0)
    with pytest.raises(InputError): FaceFiles(album)
    album.chmod(0o755)
    (locked := album.parent / "locked").mkdir(mode=0o555)
    with pytest.raises(InputError) as e: prepare(album, locked / "out")
    assert one_line(e)


def test_no_permission(album, monkeypatch):
    def denied(*a, **k): raise PermissionError(13, "Permission denied")
    monkeypatch.setattr(os, "listdir", denied)
    with pytest.raises(InputError, match="Permission denied") as e: FaceFiles(album)
    assert one_line(e)
    monkeypatch.undo()
    monkeypatch.setattr(Path, "mkdir", denied)
    with pytest.raises(InputError, match="Permission denied") as e: prepare(album, album.parent / "out")
    assert one_line(e)


NAME = st.text(st.sampled_from("aAbBé/\\.: *?_-0\u202e\n"), min_size=1, max_size=12)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.builds(lambda n, s: n + s, NAME, st.sampled_from([".jpg", ".PNG", ".webp"])), min_size=1, max_size=12, unique=True))
def test_ids_are_unique_and_harmless(names):
    ids = face_ids(names)
    assert len({i.casefold() for i in ids}) == len(names)
    root = Path("/somewhere/faces")
    for i in ids:
        assert root in Path(os.path.normpath(root / f"{i}.jpg")).parents and not re_bad(i)
    assert face_ids(names) == ids


def test_ids_of_a_large_collection_take_no_time():
    start = time.process_time()
    assert len(set(face_ids([f"{i % 500}.{s}" for i in range(25000) for s in ("jpg", "png")]))) == 50000
    assert len(set(face_ids([f"ffhq/{i:05d}.png" for i in range(52000)]))) == 52000
    assert time.process_time() - start < 15


def re_bad(i): return any(c in i for c in '<>:"|?*\\\n') or any(part in ("", ".", "..") for part in i.split("/")[:-1])


def test_zip_slip_is_harmless(tmp_path):
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as z:
        for n in ("../../evil.png", "/abs/evil.png", "C:\\evil.png", "ok/../../x.png"):
            f = io.BytesIO()
            Image.fromarray(draw_face(len(n), 32)).save(f, "PNG")
            z.writestr(n, f.getvalue())
    m = prepare(tmp_path / "evil.zip", tmp_path / "deep" / "deeper" / "out", size=32, valid=.3)
    assert m["count"] == 4
    outside = [p for p in tmp_path.rglob("*") if p.is_file() and (tmp_path / "deep" / "deeper" / "out") not in p.parents]
    assert [p.name for p in outside] == ["evil.zip"] and not Path("/abs").exists()


def test_zip_that_claims_too_much(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "z.zip", "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("a.png", bytes(10**6))
        z.writestr("b.png", b"x")
    faces = FaceFiles(tmp_path / "z.zip", 32)
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda *a: pytest.fail("it was unpacked"))
    faces.unzipped().getinfo("a.png").file_size = 10**9
    with pytest.raises(InputError, match="larger than 300 MB"): faces[0]


# Split

@settings(max_examples=60, deadline=None)
@given(st.sets(st.text("abc01/", min_size=1, max_size=6), min_size=2, max_size=60), st.floats(.05, .9), st.integers(0, 5))
def test_split_is_a_stable_partition(ids, fraction, seed):
    ids = sorted(ids)
    try: train, valid = split_ids(ids, fraction, seed)
    except InputError: return
    assert sorted(train + valid) == ids and train and valid and split_ids(ids, str(fraction), seed) == (train, valid)
    more = ids + ["new/x", "new/y"]
    if len(valid) > 1: assert set(valid) <= set(split_ids(more, fraction, seed)[1])


def test_split_by_number_and_list():
    ids = [f"{i:05d}" for i in range(0, 1000, 7)]
    train, valid = split_ids(ids, "800-898")
    assert all(800 <= int(i) <= 898 for i in valid) and not any(800 <= int(i) <= 898 for i in train)
    assert split_ids(ids, "0-6, 994-999")[1] == ["00000", "00994"]
    assert split_ids(ids, ids[3:5])[1] == ids[3:5]
    for none in (.1, [], "0-9"):
        with pytest.raises(InputError, match="no faces"): split_ids([], none)
    for bad in ("1-2", "-5", "a-b", [], ["nobody"], ids, 0, 1, -1, float("nan"), object(), "0-99999"):
        with pytest.raises(InputError) as e: split_ids(ids, bad)
        assert one_line(e)
    share = len(split_ids([str(i) for i in range(20000)], .1)[1])/20000
    assert abs(share - .1) < .01


# Preparing

def test_prepare(album):
    out, calls = album.parent / "out", []
    m = prepare(album, out, size=32, valid=.25, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(i + 1, 13) for i in range(13)]
    assert (m["count"], m["quarantined"], m["size"]) == (12, 1, 32) and m == read_json(out / "manifest.json")
    assert sorted(m["train"] + m["valid"]) == sorted(i for i in FaceFiles(album).ids if "broken" not in i)
    assert m["original_sizes"] == {f"{s}x{s}": 1 for s in range(40, 63, 2)}
    assert read_json(out / "quarantine.json")[0]["source"] == "a/broken.jpg"
    rows = list(csv.DictReader((out / "faces.csv").open(encoding="utf-8")))
    assert [r["sha256"] for r in rows] == [sha256_of(out / "faces" / f"{r['id']}.jpg") for r in rows]
    assert m["sha256"] == sha256_of("".join(f"{r['id']} {r['sha256']}\n" for r in rows).encode())
    assert sorted(p.name for p in out.iterdir()) == ["faces", "faces.csv", "manifest.json", "quarantine.json", "settings.json"]
    text = "".join(p.read_text(encoding="utf-8") for p in out.glob("*.*"))
    assert str(album.parent) not in text, "no path of this machine in what is shared"
    faces = FaceFiles(out, 32)
    assert len(faces) == 12 and faces.split == (m["train"], m["valid"])
    assert np.abs(np.asarray(faces[0].permute(1, 2, 0)*255) - np.asarray(read_face(album / "a" / "000.jpg", 32), float)).mean() < 4


def test_prepare_again_changes_nothing_and_adds_what_is_new(album):
    out = album.parent / "out"
    prepare(album, out, size=32)
    before, stamps = tree(out), {p: p.stat().st_mtime_ns for p in (out / "faces").rglob("*.jpg")}
    prepare(album, out, size=32)
    assert tree(out) == before and all(p.stat().st_mtime_ns == t for p, t in stamps.items())
    write(album / "c" / "new.png", draw_face(99, 64))
    write(album / "a" / "000.jpg", draw_face(98, 64), quality=90)
    m = prepare(album, out, size=32)
    assert m["count"] == 13
    prepare(album, album.parent / "fresh", size=32)
    assert tree(out) == tree(album.parent / "fresh")


def test_finished_faces_are_not_replaced_by_those_of_another_source(album):
    "Another folder of the same name is refused, and nothing is touched; what is held out stays so without being said again, and may be split anew."
    out, twin = album.parent / "out", album.parent / "elsewhere" / album.name
    prepare(album, out, size=32)
    before = tree(out)
    for i in range(3): write(twin / "a" / f"{i:03d}.jpg", draw_face(200 + i, 64))
    with pytest.raises(InputError, match="was made with versions=1; repeat") as e: prepare(album, out, size=32, versions=3)
    assert one_line(e) and tree(out) == before
    with pytest.raises(InputError, match="nothing was changed, choose a new folder") as e: prepare(twin, out, size=32)
    assert one_line(e) and tree(out) == before
    halves = prepare(album, out, size=32, valid=.5)
    assert len(halves["valid"]) > 4 and prepare(album, out, size=32) == halves


@pytest.mark.skipif(sys.platform == "darwin", reason="such names can't be made there")
def test_a_name_that_is_not_utf8_is_set_aside(album):
    os.rename(album / "a" / "000.jpg", os.fsencode(album) + b"/a/caf\xe9.jpg")
    made = prepare(album, album.parent / "out", size=32)
    assert made["count"] == 11 and dict(source="a/caf\\udce9.jpg", reason="its name is not UTF-8; rename it") in read_json(album.parent / "out" / "quarantine.json")


def test_versions_of_training_faces_only(album):
    plain = prepare(album, album.parent / "plain", size=32, valid=.25)
    m = prepare(album, album.parent / "out", size=32, valid=.25, versions=4)
    assert m["valid"] == plain["valid"] and m["versions"] == 4 and m["original_sizes"] == plain["original_sizes"] and m["quarantined"] == 1
    assert set(m["train"]) == {*plain["train"], *(f"version-{v}/{i}" for i in plain["train"] for v in (1, 2, 3))}
    for i in plain["train"] + plain["valid"]: assert (album.parent / "out" / "faces" / f"{i}.jpg").read_bytes() == (album.parent / "plain" / "faces" / f"{i}.jpg").read_bytes()
    faces = FaceFiles(album.parent / "out", 32)
    same = [torch.stack([x for i, x in zip(faces.ids, faces) if i.endswith(who)]) for who in plain["train"]]
    for who in same: assert min((a - b).abs().mean().item() for k, a in enumerate(who) for b in who[:k]) > .01, "each is another picture"
    assert prepare(album, album.parent / "again", size=32, valid=.25, versions=4, workers=1) == m and tree(album.parent / "again") == tree(album.parent / "out")


def test_a_version_turns_and_enlarges_no_further_than_it_says():
    size, dots = 96, [(30, 40), (66, 40), (48, 70)]
    for seed in range(40):
        found = []
        for x, y in dots:
            a = np.zeros((size, size, 3), np.uint8)
            a[y - 2:y + 3, x - 2:x + 3] = 255
            v = np.asarray(face_version(Image.fromarray(a), seed), float).sum(-1)
            found.append(np.array([(v*np.arange(size)).sum(), (v*np.arange(size)[:, None]).sum()])/v.sum())
        d, was = found[1] - found[0], np.array(dots[1]) - dots[0]
        assert 1 - .02 < np.hypot(*d)/np.hypot(*was) < 1.25 + .02 and abs(np.degrees(np.arctan2(d[1], d[0]))) < 8.5
        middle = (np.mean(found, 0) - 47.5)
        assert np.abs(middle).max() < size/20 + 1.25*np.hypot(*(np.mean(dots, 0) - 47.5)) + .5
    assert len({np.asarray(face_version(Image.fromarray(draw_face(1, 32)), s)).tobytes() for s in range(20)}) == 20


def test_two_cannot_prepare_the_same_folder(album):
    out = album.parent / "out"
    prepare(album, out, size=32)
    before = tree(out)
    with alone_in(out), pytest.raises(InputError, match="in use") as e: prepare(album, out, size=32)
    assert one_line(e) and tree(out) == before


def test_versions_must_be_named_apart(album):
    for bad in (0, -1, 101, 2.5, "many"):
        with pytest.raises(InputError, match="versions=") as e: prepare(album, album.parent / "o", size=32, versions=bad)
        assert one_line(e) and not (album.parent / "o").exists()
    (album / "a").rename(album / "version-1")
    shutil.copytree(album / "version-1", album / "x", ignore=shutil.ignore_patterns("broken.jpg"))
    (album / "b").rename(album / "y")
    for p in (album / "x").iterdir(): p.rename(album / p.name)
    with pytest.raises(InputError, match="rename it") as e: prepare(album, album.parent / "o", size=32, versions=3)
    assert one_line(e)
    assert prepare(album, album.parent / "o", size=32)["count"] > 12, "alone it is a folder like any other"


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_parallel_equals_sequential(album, workers, suffix):
    prepare(album, album.parent / "one", size=32, workers=workers, suffix=suffix)
    prepare(album, album.parent / "two", size=32, suffix=suffix)
    assert tree(album.parent / "one") == tree(album.parent / "two")


KILLED = """
import sys, time
from pconv_course.tools import prepare as tool
slow = tool.prepare_one
def prepare_one(*a):
    time.sleep(.05)
    return slow(*a)
tool.prepare_one = prepare_one
tool.prepare(sys.argv[1], sys.argv[2], size=32, workers=2, progress=lambda done, total: print(done, flush=True))
"""


@pytest.mark.parametrize("at", [1, 5, 11])
def test_kill_dash_nine(album, at):
    "Killed without warning in another process, then repeated: every byte as if nothing had happened."
    out, straight = album.parent / "out", album.parent / "straight"
    run = subprocess.Popen([sys.executable, "-W", "ignore", "-c", KILLED, album, out], stdout=subprocess.PIPE, text=True)
    for line in run.stdout:
        if int(line) == at: break
    run.send_signal(signal.SIGKILL)
    run.wait()
    run.stdout.close()
    assert (out / "faces.csv.part").exists() and not (out / "manifest.json").exists()
    with pytest.raises(InputError, match="not finished"): face_dls(out, 32)
    (out / "faces" / "a" / ".002-abcd1234.jpg").parent.mkdir(parents=True, exist_ok=True)
    (out / "faces" / "a" / ".002-abcd1234.jpg").write_bytes(b"half")
    with (out / "faces.csv.part").open("a") as f: f.write('a/010,"a/0')
    done = []
    prepare(album, out, size=32, progress=lambda d, total: done.append(d))
    assert len(done) < 13, "finished faces must not be made again"
    prepare(album, straight, size=32)
    assert tree(out) == tree(straight)


def test_a_face_lost_after_the_row_is_made_again(album):
    out = album.parent / "out"
    prepare(album, out, size=32)
    before = tree(out)
    (out / "faces/a/000.jpg").unlink()
    (out / "faces/a/002.jpg").write_bytes(b"")
    prepare(album, out, size=32)
    assert tree(out) == before


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), PermissionError(13, "Permission denied")])
def test_full_disk(album, monkeypatch, error):
    "Writing fails after the fifth face: one line, what is done stays, and the same command goes on from there."
    out, real, left = album.parent / "out", os.fsync, [6]
    def fsync(fd):
        left[0] -= 1
        if left[0] <= 0: raise error
        return real(fd)
    monkeypatch.setattr(core.os, "fsync", fsync)
    with pytest.raises(InputError, match=error.strerror) as e: prepare(album, out, size=32, workers=1)
    assert one_line(e)
    kept = [p for p in (out / "faces").rglob("*.jpg") if not p.name.startswith(".")]
    assert 0 < len(kept) < 6 and not [p for p in out.rglob(".*")]
    monkeypatch.undo()
    prepare(album, out, size=32)
    prepare(album, album.parent / "straight", size=32)
    assert tree(out) == tree(album.parent / "straight")


def test_journal_cannot_be_written(album, monkeypatch):
    real = Path.open
    def full(self, mode="r", *a, **k):
        if "a" in mode: raise OSError(28, "No space left on device")
        return real(self, mode, *a, **k)
    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(InputError, match="No space") as e: prepare(album, album.parent / "out", size=32)
    assert one_line(e)


def test_folders_that_are_not_ours(album):
    for name, content in (("notes", "thesis.txt"), ("other", "settings.json"), ("list", "settings.json"), ("page", "manifest.json")):
        d = album.parent / name
        d.mkdir()
        (d / content).write_text({"notes": "all my work", "other": '{"editor": "vim"}', "list": "[1]", "page": "[1]"}[name])
        with pytest.raises(InputError, match="not ours") as e: prepare(album, d, size=32)
        assert one_line(e) and [p.name for p in d.iterdir()] == [content]
    (album.parent / "file").write_text("x")
    with pytest.raises(InputError): prepare(album, album.parent / "file", size=32)
    for inside in (album, album / "out", album / "a" / "out"):
        with pytest.raises(InputError, match="inside"): prepare(album, inside, size=32)
    (album.parent / "empty").mkdir()
    (album.parent / "empty" / ".DS_Store").write_bytes(b"x")
    assert prepare(album, album.parent / "empty", size=32)["count"] == 12
    for change in (dict(size=48), dict(size=32, suffix=".png")):
        with pytest.raises(InputError, match="was made with") as e: prepare(album, album.parent / "empty", **change)
        assert one_line(e)


def test_nothing_usable(tmp_path):
    for i in range(3): (tmp_path / f"{i}.jpg").parent.mkdir(exist_ok=True), (tmp_path / f"{i}.jpg").write_bytes(b"?")
    with pytest.raises(InputError, match="none of the 3"): prepare(tmp_path, tmp_path.parent / "none_out", size=32)
    assert len(read_json(tmp_path.parent / "none_out" / "quarantine.json")) == 3


def test_interrupt_leaves_no_thread(album):
    import threading
    def stop(done, total): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): prepare(album, album.parent / "out", size=32, progress=stop)
    assert threading.active_count() < 5


# DataLoaders

def batches(dl): return torch.cat([b[0] for b in dl])


@pytest.mark.parametrize("workers", [0, 2])
def test_batches(album, workers):
    prepare(album, album.parent / "out", size=32)
    dls = face_dls(album.parent / "out", size=32, bs=4, num_workers=workers, device="cpu", valid=.3)
    b = dls.one_batch()
    assert type(b) is tuple and len(b) == 1 and type(b[0]) is torch.Tensor and b[0].shape == (4, 3, 32, 32) and b[0].dtype == torch.float32
    assert dls.n_inp == 1 and dls.train.epoch == 0
    assert len(batches(dls.valid)) == len(dls.valid_ds) and len(batches(dls.train)) == len(dls.train)*4
    assert dls.train.epoch == 1


def test_workers_see_the_same_batches():
    zero, two = (face_dls(n=30, size=16, bs=4, num_workers=w, device="cpu", flip=True) for w in (0, 2))
    for epoch in range(2): assert torch.equal(batches(zero.train), batches(two.train)), epoch


def test_order_is_a_function_of_seed_and_epoch():
    def epochs(seed, start=0, n=3, noise=False):
        dl = FaceDL(DrawnFaces(24, 16), bs=8, shuffle=True, flip=True, seed=seed)
        out = []
        for e in range(start, n):
            dl.set_epoch(e)
            if noise: torch.rand(3), np.random.rand(), dl.one_batch()
            out.append(batches(dl))
        return out
    a = epochs(0)
    assert all(torch.equal(x, y) for x, y in zip(a, epochs(0, noise=True))) and torch.equal(a[2], epochs(0, start=2)[0])
    assert not torch.equal(a[0], a[1]) and not torch.equal(a[0], epochs(1)[0])
    free = FaceDL(DrawnFaces(24, 16), bs=8, shuffle=True, flip=True, seed=0)
    assert all(torch.equal(x, batches(free)) for x in a), "without set_epoch the epochs count themselves"


def test_skip_goes_on_in_the_middle():
    dl = FaceDL(DrawnFaces(24, 16), bs=5, shuffle=True, flip=True, seed=3)
    whole = [b[0] for b in dl]
    dl.set_epoch(0, skip=2)
    rest = [b[0] for b in dl]
    assert len(whole) == 5 and len(rest) == 3 and all(torch.equal(a, b) for a, b in zip(whole[2:], rest))
    assert (dl.epoch, dl.skip) == (1, 0)


def test_flips_half_and_only_in_training():
    dl = FaceDL(DrawnFaces(200, 16), bs=200, flip=True)
    plain = torch.stack(list(dl.dataset))
    flipped = (batches(dl) != plain).flatten(1).any(1)
    assert .35 < flipped.float().mean() < .65 and torch.equal(batches(dl)[0].flip(-1) if dl.coins[0] else batches(dl)[0], plain[0]) is not None
    dls = face_dls(n=40, size=16, bs=40, device="cpu", flip=True)
    assert torch.equal(batches(dls.valid), torch.stack(list(dls.valid_ds)))


def test_small_and_impossible_sets(album):
    dls = face_dls(n=3, size=16, bs=16, device="cpu", valid=.4)
    assert len(batches(dls.train)) == len(dls.train_ds), "fewer faces than a batch still train"
    for bad in (dict(n=1), dict(n=0), dict(bs=0), dict(valid="7000-8000"), dict(src="nowhere"), dict(src=album, size=0)):
        with pytest.raises(InputError) as e: face_dls(**{**dict(device="cpu", size=16), **bad})
        assert one_line(e)


def test_n_takes_a_sample_not_the_beginning(tmp_path):
    for i in range(40): write(tmp_path / f"{i:03d}.png", np.full((16, 16, 3), i, np.uint8))
    dls = face_dls(tmp_path, 16, bs=2, n=10, device="cpu", valid=.3)
    ids = sorted(dls.train_ds.ids + dls.valid_ds.ids)
    assert len(ids) == 10 and int(ids[-1]) > 20 and not {i for i in dls.train_ds.ids} & set(dls.valid_ds.ids)
    fewer = face_dls(tmp_path, 16, bs=2, n=8, device="cpu", valid=.3)
    assert set(fewer.train_ds.ids + fewer.valid_ds.ids) < set(ids)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_file_is_one_line_even_from_a_worker(album, workers):
    dls = face_dls(album, 32, bs=4, num_workers=workers, device="cpu", valid=["a/000"])
    dls.train.drop_last = False
    with pytest.raises(InputError, match="broken.jpg") as e: batches(dls.train)
    assert one_line(e) and str(e.value).startswith("cannot use a/broken.jpg")


def test_fastai_trains_exports_and_shows(tmp_path):
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from fastai.callback.progress import ProgressCallback  # noqa: F401 (it brings no_bar and no_logging)
    from fastai.callback.core import Callback
    from fastai.learner import Learner

    class Target(Callback):
        def before_batch(self): self.learn.yb = self.xb
    dls = face_dls(n=24, size=16, bs=4, device="cpu")
    learn = Learner(dls, torch.nn.Conv2d(3, 3, 3, padding=1), loss_func=torch.nn.functional.mse_loss, path=tmp_path, cbs=Target())
    with learn.no_bar(), learn.no_logging(): learn.fit(2, 1e-2)
    assert learn.recorder.values[1][0] < learn.recorder.values[0][0] and dls.train.epoch == 2
    learn.remove_cb(Target)
    learn.export("x.pkl")
    dls.show_batch(max_n=3)
    assert len(plt.gcf().axes) == 3 and plt.gcf().axes[0].images[0].get_array().shape == (16, 16, 3)
    plt.close("all")
    pickle.loads(pickle.dumps(dls.train))
    copy = dls.train.new(shuffle=False)
    assert (copy.seed, copy.epoch) == (dls.train.seed, dls.train.epoch) and len(batches(copy)) == 20


def test_prepared_split_is_used(album):
    m = prepare(album, album.parent / "out", size=32, valid=.4)
    dls = face_dls(album.parent / "out", 32, bs=2, device="cpu")
    assert sorted(dls.valid_ds.ids) == m["valid"] and sorted(dls.train_ds.ids) == m["train"]
    assert json.loads((album.parent / "out" / "manifest.json").read_text(encoding="utf-8"))["split"] == "0.4"


# The cache of decoded faces

@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    "No test touches the user's cache folder."
    home = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("PCONV_CACHE", str(home))
    return home


@pytest.fixture
def ready(album):
    "Twelve prepared faces of 32 px."
    prepare(album, album.parent / "ready", size=32, valid=.25)
    return album.parent / "ready"


def same(a, b):
    "Two DataLoaders give the same batches, bit for bit, in two epochs and in validation."
    return all(len(x) == len(y) > 0 and all(torch.equal(p[0], q[0]) and p[0].dtype == torch.float32 and p[0].is_contiguous() for p, q in zip(x, y))
               for _ in range(2) for x, y in ((list(a.train), list(b.train)), (list(a.valid), list(b.valid))))


def loaders(src, cache, **kw): return face_dls(src, 32, bs=3, device="cpu", flip=True, cache=cache, **kw)


@pytest.mark.parametrize("workers", [0, 2])
def test_cached_batches_are_the_same_bits(ready, workers):
    cached, plain = loaders(ready, None, num_workers=workers), loaders(ready, False)
    assert cached.train_ds.cache and cached.valid_ds.cache.path.parent == ready / "cache" and plain.train_ds.cache is None
    for p in (ready / "faces").rglob("*.jpg"):
        if workers == 0: p.rename(p.with_suffix(".gone"))  # the cache needs the files no more
    if workers == 0:
        a = [b[0] for b in cached.train]
        for p in (ready / "faces").rglob("*.gone"): p.rename(p.with_suffix(".jpg"))
        cached.train.set_epoch(0)
        assert all(torch.equal(x, y[0]) for x, y in zip(a, loaders(ready, False).train))
    assert same(cached, plain) and not cached.train_ds.kept
    assert same(loaders(ready, None), loaders(ready, False)), "a cache that is found works as one that was just made"


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_any_source_can_be_cached(album, own_cache, kind):
    (album / "a" / "broken.jpg").unlink()
    src = album
    if kind == "zip":
        src = album.parent / "album.zip"
        with zipfile.ZipFile(src, "w") as z:
            for p in sorted(album.rglob("*.jpg")): z.write(p, p.relative_to(album).as_posix())
    assert loaders(src, None).train_ds.cache is None, "what fits into memory needs no file"
    assert not list(own_cache.iterdir())
    cached = loaders(src, True)
    assert cached.train_ds.cache.path.parent == own_cache and same(cached, loaders(src, False))
    assert loaders(src, None).train_ds.cache, "a cache that is there is used"
    assert not [p for p in album.rglob("*") if p.suffix not in ("", ".jpg")], "nothing is written into other people's folders"
    n = len(list(own_cache.glob("*.npy")))
    assert face_dls(src, 24, bs=2, device="cpu", num_workers=1).train_ds.cache and len(list(own_cache.glob("*.npy"))) == n + 1
    assert face_dls(src, 28, bs=2, n=3, valid=.4, device="cpu", num_workers=1).train_ds.cache is None, "a small sample is no reason to decode all"


def test_what_exceeds_memory_is_cached(album, monkeypatch):
    monkeypatch.setattr(data.Faces, "fits_memory", lambda self: False)
    (album / "a" / "broken.jpg").unlink()
    assert loaders(album, None).train_ds.cache and loaders(album, False).train_ds.cache is None


def test_a_stale_cache_is_noticed(album, ready, own_cache):
    first = loaders(ready, None).train_ds.cache.path
    time.sleep(.02)
    write(album / "a" / "000.jpg", draw_face(98, 64), quality=90)
    prepare(album, ready, size=32, valid=.25)
    second = loaders(ready, None)
    assert second.train_ds.cache.path != first and not first.exists() and same(second, loaders(ready, False))
    (album / "a" / "broken.jpg").unlink()
    one = loaders(album, True).train_ds.cache.path
    stat = (album / "a" / "000.jpg").stat()
    os.utime(album / "a" / "000.jpg", ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**6))
    two = loaders(album, True).train_ds.cache.path
    assert one != two and [p for p in own_cache.glob("*.npy")] == [two]


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b[:200], lambda b: b"", lambda b: b"not numpy" + b, lambda b: b + b"x"])
def test_a_damaged_cache_is_made_again(ready, damage):
    path = loaders(ready, None).train_ds.cache.path
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert same(loaders(ready, None), loaders(ready, False)) and path.read_bytes() == whole


def test_cut_short_while_open(ready):
    dls = loaders(ready, None)
    with dls.train_ds.cache.path.open("rb+") as f: f.truncate(4000)
    assert same(dls, loaders(ready, False))


def test_a_broken_file_is_the_same_error_with_and_without_cache(album):
    for cache in (True, False):
        dls = loaders(album, cache, valid=["a/000"])
        dls.train.drop_last = False
        with pytest.raises(InputError, match="broken.jpg") as e: batches(dls.train)
        assert one_line(e)
    assert loaders(album, True, valid=["a/000"]).train_ds.cache.there.sum() == 12


@pytest.mark.parametrize("how", ["full", "fills", "read-only", "file"])
def test_without_room_it_decodes(ready, monkeypatch, how):
    "A full disk, before or while writing, a read-only folder: one warning of one line, the same batches, nothing left behind."
    if how == "full": monkeypatch.setattr(core.shutil, "disk_usage", lambda p: type("U", (), dict(free=10**6)))
    if how == "fills":
        def full(fd): raise OSError(28, "No space left on device")
        monkeypatch.setattr(core.os, "fsync", full)
    if how == "read-only":
        real = Path.mkdir
        def mkdir(self, *a, **k):
            if self.name == "cache": raise OSError(30, "Read-only file system", str(self))
            return real(self, *a, **k)
        monkeypatch.setattr(Path, "mkdir", mkdir)
    if how == "file": (ready / "cache").write_text("x")
    with pytest.warns(FaceWarning) as w: dls = loaders(ready, None)
    text = str(w[0].message)
    assert len(w) == 1 and "\n" not in text and "Errno" not in text and {"full": "0.0 GB free", "fills": "No space", "read-only": "Read-only", "file": "cache"}[how] in text
    assert dls.train_ds.cache is None and not [p for p in ready.rglob("*.npy")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(dls, loaders(ready, False))


BUILDER = """
import sys, time
from pconv_course import data
real = data.FaceFiles.read
def read(self, item):
    time.sleep(.03)
    return real(self, item)
data.FaceFiles.read = read
print("start", flush=True)
cache = data.pixel_cache(data.FaceFiles(sys.argv[1], 32), progress=lambda done, total: print(done, flush=True))
print(data.sha256_of(cache.path), flush=True)
"""


def builder(src): return subprocess.Popen([sys.executable, "-W", "ignore", "-c", BUILDER, str(src)], stdout=subprocess.PIPE, text=True)


def test_two_processes_at_once_build_one_cache(ready):
    runs = [builder(ready) for _ in range(2)]
    out = [r.communicate(timeout=400)[0].split() for r in runs]
    assert out[0][-1] == out[1][-1] and len(out[0][-1]) == 64
    assert sorted(len(o) for o in out) == [2, 14], "one decoded twelve faces, the other waited"
    assert len(list((ready / "cache").glob("*.npy"))) == 1 and same(loaders(ready, None), loaders(ready, False))


def test_killed_while_building(ready):
    run = builder(ready)
    for line in run.stdout:
        if line.strip() == "5": break
    run.send_signal(signal.SIGKILL)
    run.wait()
    run.stdout.close()
    left = [p for p in (ready / "cache").iterdir() if p.suffix == ".npy"]
    assert len(left) == 1 and left[0].name.startswith("."), "half a cache has another name"
    assert same(loaders(ready, None), loaders(ready, False)) and not left[0].exists()


def test_interrupted_while_building(ready):
    def stop(done, total):
        if done == 3: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): data.pixel_cache(FaceFiles(ready, 32), progress=stop)
    assert not list((ready / "cache").glob("*.npy")) and not list((ready / "cache").glob(".*.npy"))


def test_cache_travels_to_other_processes_and_with_its_folder(ready):
    faces = data.with_cache(FaceFiles(ready, 32))
    x = faces[3]
    again = pickle.loads(pickle.dumps(faces))
    assert again.cache.file is None and torch.equal(again[3], x)
    if hasattr(os, "fork"):
        assert len(pickle.dumps(faces.cache)) < 1500
    ready.rename(ready.parent / "moved")
    before = {p: p.stat().st_mtime_ns for p in (ready.parent / "moved" / "cache").glob("*.npy")}
    moved = data.with_cache(FaceFiles(ready.parent / "moved", 32))
    assert {moved.cache.path: moved.cache.path.stat().st_mtime_ns} == before and torch.equal(moved[3], x)


def test_numpy_opens_the_cache(ready):
    faces = data.with_cache(FaceFiles(ready, 32))
    a = np.load(faces.cache.path, mmap_mode="r")
    assert a.shape == (12, 3, 32, 32) and a.dtype == np.uint8 and np.array_equal(a[5], faces.pixels(5).numpy())


def test_a_gpu_gets_bytes(ready):
    "A batch is uint8 when it has been moved to its device (here one without memory), and float32 after that."
    seen = []
    spy = lambda x: (seen.append((x.dtype, x.device.type)), x)[1]
    dl = FaceDL(loaders(ready, None).train_ds, bs=3, device=torch.device("meta"), after_batch=[spy, data.to_unit])
    (gt,) = next(iter(dl))
    assert seen[0] == (torch.uint8, "meta") and (gt.dtype, gt.device.type) == (torch.float32, "meta")


@pytest.mark.slow
def test_memory_does_not_grow_with_the_set(tmp_path):
    "Twice as many faces, the same memory: reading keeps nothing (a map of the file, or keeping faces, would take 59 MB more)."
    for i in range(600): write(tmp_path / "src" / f"{i:04d}.jpg", np.full((256, 256, 3), i % 251, np.uint8), quality=50)
    prepare(tmp_path / "src", tmp_path / "out", size=256)
    code = ("import sys; from pconv_course import data; from pconv_course.lab import clocks\nf = data.with_cache(data.FaceFiles(sys.argv[1], 256))\n"
            "clocks.profile_epoch(f, 12, 120); print(*[clocks.profile_epoch(f, 12, n)[1] for n in (300, 600)])")
    out = subprocess.run([sys.executable, "-W", "ignore", "-c", code, str(tmp_path / "out")], capture_output=True, text=True, check=True).stdout.split()
    if out[0] == "None": pytest.skip("only Linux tells how much memory a process takes")
    assert float(out[1]) < 45


@pytest.mark.parametrize("n", [0, -1])
def test_so_few_faces_are_none(album, n):
    with pytest.raises(InputError, match="none") as e: face_dls(album, size=32, n=n)
    assert one_line(e)


def test_ids_can_be_chosen(album):
    (album / "a" / "broken.jpg").unlink()
    pick = lambda names: [f"{100 + i}" if i % 2 else None for i in range(len(names))]
    faces = FaceFiles(album, 32, ids=pick)
    assert faces.ids == ["101", "103", "105", "107", "109", "111"] and torch.equal(faces[0], FaceFiles(album, 32)[1])
    m = prepare(album, album.parent / "o", size=32, ids=pick, valid="100-103")
    assert m["valid"] == ["101", "103"] and m["count"] == 6
    with pytest.raises(InputError, match="none of the 12") as e: FaceFiles(album, 32, ids=lambda names: [None]*len(names))
    assert one_line(e)


def test_loader_profile(ready):
    rows = clocks.loader_profile(ready, 32, bs=3, n=12, rounds=1)
    assert [r["step"] for r in rows if r["source"] == "cache"] == ["read", "flip", "collate", "to float", "loop", "whole"]
    assert all(r["us"] >= 0 for r in rows) and {r["source"] for r in rows} == {"cache", "map", "decoding"}
