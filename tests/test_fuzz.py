"""Three thousand odd, damaged and impossible inputs, seeded: each is repaired, or refused in one clear line, and nothing is lost.

A thousand come through the command and through Python, two thousand through files: format x mode x orientation x notes x name x how the
hole is marked. A normal run takes 200 + 400 of them; PCONV_ALL=1 takes all."""
import io
import os
import warnings
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, ImageOps
from PIL.PngImagePlugin import PngInfo

from calling import pconv
from pconv_course.base.core import InputError
from pconv_course.networks import build_unet
from pconv_course.cli import run_jobs
from pconv_course.inpainting import inpaint, pair_files

ALL = os.environ.get("PCONV_ALL") == "1"
CHUNKS, EACH = 5 if ALL else 1, 200
LOSSLESS = (".png", ".tif", ".bmp", ".webp")
torch.manual_seed(0)
NET = build_unet(dict(depth=2, width=4)).eval(), 16


# Photos: (bytes, ending, the array that a mask has to fit or None)

def encoded(im, fmt, **kw):
    f = io.BytesIO()
    im.save(f, fmt, **kw)
    return f.getvalue()


def plain(rng, h=None, w=None):
    h, w = h or int(rng.integers(1, 50)), w or int(rng.integers(1, 50))
    return Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8))


def deep(rng, channels):
    import cv2
    return cv2.imencode(".png", rng.integers(0, 2**16, (12, 15, channels), dtype=np.uint16))[1].tobytes()


def film(rng, fmt):
    size = rng.integers(4, 20, 2)
    frames = [plain(rng, *map(int, size)) for _ in range(3)]
    return encoded(frames[0], fmt, save_all=True, append_images=frames[1:])


def turned(rng):
    exif = Image.Exif()
    exif[0x0112] = int(rng.integers(0, 12))
    return encoded(plain(rng), "PNG", exif=exif)


def bomb(rng):
    "A PNG whose header claims 60,000 x 60,000 pixels."
    b = bytearray(encoded(plain(rng), "PNG"))
    b[16:24] = (60_000).to_bytes(4, "big")*2
    import zlib
    b[29:33] = zlib.crc32(bytes(b[12:29])).to_bytes(4, "big")
    return bytes(b)


GOOD = dict(
    png=lambda r: (encoded(plain(r), "PNG"), ".png"), jpg=lambda r: (encoded(plain(r), "JPEG"), ".jpg"), webp=lambda r: (encoded(plain(r), "WEBP"), ".webp"),
    bmp=lambda r: (encoded(plain(r), "BMP"), ".bmp"), tif=lambda r: (encoded(plain(r), "TIFF"), ".tif"), lies=lambda r: (encoded(plain(r), "PNG"), ".jpg"),
    lies_too=lambda r: (encoded(plain(r), "JPEG"), ".png"), capital=lambda r: (encoded(plain(r), "JPEG"), ".JPG"),
    grey=lambda r: (encoded(plain(r).convert("L"), "PNG"), ".png"), bits=lambda r: (encoded(plain(r).convert("1"), "PNG"), ".png"),
    la=lambda r: (encoded(plain(r).convert("LA"), "PNG"), ".png"), rgba=lambda r: (encoded(plain(r).convert("RGBA"), "PNG"), ".png"),
    palette=lambda r: (encoded(plain(r).convert("P"), "PNG"), ".png"), gif=lambda r: (encoded(plain(r).convert("P"), "GIF"), ".gif"),
    clear=lambda r: (encoded(plain(r).convert("P"), "PNG", transparency=3), ".png"), cmyk=lambda r: (encoded(plain(r).convert("CMYK"), "JPEG"), ".jpg"),
    cmyk_tif=lambda r: (encoded(plain(r).convert("CMYK"), "TIFF"), ".tif"), deep_grey=lambda r: (deep(r, 1), ".png"), turned=lambda r: (turned(r), ".png"),
    dot=lambda r: (encoded(plain(r, 1, 1), "PNG"), ".png"), row=lambda r: (encoded(plain(r, 1, 10_000), "PNG"), ".png"), column=lambda r: (encoded(plain(r, 10_000, 1), "PNG"), ".png"),
)
BAD = dict(
    zero=lambda r: (b"", ".png"), text=lambda r: (b"not a picture\n", ".jpg"), noise=lambda r: (r.bytes(300), ".png"), magic=lambda r: (b"\x89PNG\r\n\x1a\n" + r.bytes(50), ".png"),
    deep_rgb=lambda r: (deep(r, 3), ".png"), deep_rgba=lambda r: (deep(r, 4), ".png"), film=lambda r: (film(r, "GIF"), ".gif"), film_png=lambda r: (film(r, "PNG"), ".png"),
    pages=lambda r: (film(r, "TIFF"), ".tif"), floats=lambda r: (encoded(Image.fromarray(r.random((8, 9)).astype(np.float32)), "TIFF"), ".tif"), bomb=lambda r: (bomb(r), ".png"),
    missing=lambda r: (None, ".png"), directory=lambda r: ("directory", ".png"),
)


def damaged(rng, data):
    "Cut, or with some bytes changed."
    if rng.random() < 0.5: return data[:int(rng.integers(0, len(data)))]
    b = bytearray(data)
    for _ in range(int(rng.integers(1, 6))): b[int(rng.integers(len(b)))] ^= int(rng.integers(1, 256))
    return bytes(b)


def some_photo(rng):
    kinds = GOOD if rng.random() < 0.85 else BAD
    kind = str(rng.choice(sorted(kinds)))
    data, ending = kinds[kind](rng)
    if isinstance(data, bytes) and data and rng.random() < 0.1: return damaged(rng, data), ending, f"damaged {kind}"
    return data, ending, kind


def shape_of(data):
    "(H,W) as a viewer shows it, or something else that is as good for a photo that can't be read."
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(data)) as im:
            warnings.simplefilter("ignore")
            h, w = im.size[::-1]
            assert h*w < 10**6
            return (w, h) if im.getexif().get(0x0112) in (5, 6, 7, 8) and im.format != "TIFF" else (h, w)
    except Exception: return 9, 11


def some_mask(rng, shape):
    "(array with 255 = hole, kind)"
    kind = str(rng.choice(["boxes"]*16 + ["noise", "empty", "full", "other", "soft"]))
    h, w = shape if kind != "other" else (shape[0] + 1, shape[1])
    a = np.zeros((h, w), np.uint8)
    for _ in range(3):
        y, x = rng.integers(0, h), rng.integers(0, w)
        a[y:y + max(1, h//5), x:x + max(1, min(w//5, 40))] = 255
    if kind == "noise": a = np.where(rng.random((h, w)) < 0.2, 255, 0).astype(np.uint8)
    if kind == "soft": a = rng.integers(0, 256, (h, w), dtype=np.uint8)
    return a*0 if kind == "empty" else a*0 + 255 if kind == "full" else a, kind


def put(path, data):
    if data == "directory": path.mkdir()
    elif data is not None: path.write_bytes(data)
    return path


def snapshot(folder): return {p: p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def said_clearly(line, *paths):
    for p in paths: line = line.replace(str(p), "")  # a name may be as long as the file system allows
    assert line and "\n" not in line and len(line) < 600 and "Traceback" not in line and "fault of ours" not in line and "Error" not in line, line


# Through the command

def command_case(rng, folder, capsys):
    data, ending, kind = some_photo(rng)
    photo = put(folder/f"photo{ending}", data)
    m, mask_kind = some_mask(rng, shape_of(data))
    hole = str(rng.choice(["white"]*10 + ["black"]*5 + ["alpha", "#ff0000", "nonsense"]))
    mask = folder/("mask" + str(rng.choice([".png", ".png", ".jpg", ".gif", ".bmp"])))
    Image.fromarray(255 - m if hole == "black" else m).save(mask)
    if rng.random() < 0.05: put(mask, damaged(rng, mask.read_bytes()))
    what = str(rng.choice(["mask"]*20 + ["none", "itself", "missing"]))
    given = dict(mask=str(mask), none=None, itself=str(photo), missing=str(folder/"nothing.png"))[what]
    (folder/"there.png").write_bytes(b"precious")
    o = str(rng.choice(["out.png"]*9 + ["out.jpg", "out.webp", "out.tif", "out.tif", "new/deep/out.png", "there.png", "there.png", "there.png/x.png", photo.name, "mask.png", "out.xyz", "out", "."]))
    before, overwrite = snapshot(folder), bool(rng.random() < 0.25)
    if overwrite and o == "there.png": before.pop(folder/o)
    try: pconv("inpaint", str(photo), given, o=str(folder/o), hole=None if rng.random() < 0.05 else hole, compare=bool(rng.random() < 0.2), fit=bool(rng.random() < 0.2), overwrite=overwrite, model=NET)
    except SystemExit as e: code = e.code
    else: code = 0
    _, err = capsys.readouterr()
    lines = [o for o in err.splitlines() if ": note: " not in o]
    after = snapshot(folder)
    assert {p: b for p, b in after.items() if p in before} == before, "a file that was there has changed"
    if code == 0:
        new = [p for p in after if p not in before and p.is_file() and not p.stem.endswith("-compare")]
        assert not lines and len(new) == 1
        made = Image.open(new[0])
        made.load()
        if made.mode == "RGB" and made.format == "WEBP": made = made.convert(Image.open(photo).mode)  # WebP leaves out an opaque alpha
        assert tuple(sorted(made.size)) == tuple(sorted(shape_of(data)))
        if what == "mask" and mask.suffix != ".jpg" and mask_kind == "boxes" and new[0].suffix in LOSSLESS and kind in GOOD and kind not in ("turned", "palette", "clear", "gif"):
            was = np.asarray(Image.open(photo))
            if was.shape[:2] == m.shape and hole in ("white", "black") and "damaged" not in kind and mask.suffix in (".png", ".bmp"):
                k = (np.asarray(Image.open(mask).convert("L")) > 127) == (hole == "black")
                assert np.array_equal(np.asarray(made)[k], was[k]), "a known pixel has changed"
        return "repaired", kind
    assert code == 2 and len(lines) == 1 and lines[0].startswith("pconv inpaint: error: "), (code, lines)
    said_clearly(lines[0])
    assert not [p for p in after if p not in before and p.is_file() and after[p] != b"precious"], "debris"
    return "refused", kind


# Through Python

def some_array(rng):
    h, w = (int(o) for o in rng.integers(1, 40, 2))
    kind = str(rng.choice(["uint8", "uint16", "float32", "float64", "float16", "uint8", "float32", "tensor", "tensor", "pil", "pil", "batch", "int64", "bool", "tensor", "half", "pil", "batch", "nan", "range", "channels", "empty", "text"]))
    a = rng.random((h, w, 3))
    if kind.startswith(("uint8", "uint16")): a = (a*255).astype(kind)
    elif kind in ("float16", "float32", "float64", "int64", "bool"): a = a.astype(kind)
    elif kind == "tensor": a = torch.from_numpy(a).permute(2, 0, 1).float()
    elif kind == "half": a = torch.from_numpy(a).permute(2, 0, 1).bfloat16()
    elif kind == "pil": a = Image.fromarray((a*255).astype(np.uint8)).convert(str(rng.choice(["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "HSV", "YCbCr", "F", "I"])))
    elif kind == "batch": a = torch.from_numpy(a).permute(2, 0, 1).float().expand(2, 3, h, w)
    elif kind == "nan": a[int(rng.integers(h)), int(rng.integers(w))] = np.nan
    elif kind == "range": a = a*300
    elif kind == "channels": a = np.zeros((h, w, int(rng.choice([0, 2, 5, 7]))), np.uint8)
    elif kind == "empty": a = np.zeros((0, w, 3), np.uint8)
    elif kind == "text": a = "no such photo.png"
    return a, kind, (h, w)


def python_case(rng):
    a, kind, shape = some_array(rng)
    m, mask_kind = some_mask(rng, shape)
    hole = rng.choice(np.array(["white", "black", "alpha", "#ff0000", None, "x"], object), p=[0.6, 0.28, 0.03, 0.03, 0.03, 0.03])
    m = 255 - m if hole == "black" else m
    form = str(rng.choice(["uint8", "bool", "float", "tensor", "pil", "nan", "none", "cube"], p=[0.33, 0.15, 0.15, 0.15, 0.1, 0.04, 0.04, 0.04]))
    mask = dict(uint8=m, bool=m > 127, float=m/255, tensor=torch.from_numpy(m/255)[None], pil=Image.fromarray(m), nan=np.where(m > 127, np.nan, 0.), none=None, cube=np.zeros((2, *m.shape, 2)))[form]
    copy = a.clone() if isinstance(a, torch.Tensor) else np.array(a).copy() if isinstance(a, np.ndarray) else None
    try: out = inpaint(a, mask, NET, hole=hole)
    except InputError as e:
        said_clearly(str(e))
        return "refused", kind
    assert type(out) is type(a) and (not isinstance(a, (np.ndarray, torch.Tensor)) or out.shape == a.shape and out.dtype == a.dtype)
    if copy is not None:
        same = np.array_equal(np.asarray(a.float()), np.asarray(copy.float())) if isinstance(a, torch.Tensor) else np.array_equal(a, copy, equal_nan=a.dtype.kind == "f")
        assert same, "the input has changed"
        pixels = lambda o: o.float().movedim(-3, -1).numpy() if isinstance(o, torch.Tensor) else o
        known = np.broadcast_to((m < 128) == (hole == "white"), pixels(a).shape[:-1])
        if form not in ("none", "cube") and mask_kind != "soft" and hole in ("white", "black"): assert np.array_equal(pixels(out)[known], pixels(a)[known]), "a known pixel has changed"
    return "repaired", kind


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_every_input_is_repaired_or_refused(chunk, tmp_path, capsys, recwarn):
    counts, kinds = Counter(), Counter()
    for i in range(chunk*EACH, (chunk + 1)*EACH):
        rng, door = np.random.default_rng(i), "command" if i % 5 < 3 else "Python"
        (folder := tmp_path/str(i)).mkdir()
        try: result, kind = command_case(rng, folder, capsys) if door == "command" else python_case(rng)
        except (Exception, SystemExit) as e: raise AssertionError(f"input {i} through {door}: {e}") from e
        counts[f"{door} {result}"] += 1
        kinds[kind, result] += 1
    with capsys.disabled(): print(f"\n{EACH} inputs: {dict(sorted(counts.items()))}")
    assert sum(counts.values()) == EACH and min(counts[f"{d} {r}"] for d in ("command", "Python") for r in ("repaired", "refused")) >= EACH//10, counts


# Through files: every kind on every axis

FORMS = {".png": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"), ".jpg": ("L", "RGB", "CMYK"), ".webp": ("RGB", "RGBA"), ".tif": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"),
         ".bmp": ("1", "L", "P", "RGB"), ".gif": ("P", "L"), ".avif": ("RGB", "RGBA"), ".jp2": ("L", "LA", "RGB", "RGBA"), ".ppm": ("RGB",), ".pgm": ("L", "I;16"), ".tga": ("L", "RGB", "RGBA"),
         ".qoi": ("RGB", "RGBA"), ".pcx": ("L", "P", "RGB"), ".sgi": ("L", "RGB", "RGBA"), ".ico": ("RGBA",), ".dds": ("RGB", "RGBA")}
FOREIGN = {".heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", ".jxl": b"\xff\x0a", ".pdf": b"%PDF-1.7\n", ".svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>"}
NAMES = ("p", "two words", "字"*60, "é"*110, "-dash", "dot.in.name", "a"*240, "it's", "Ünïcode", "100%")
TARGETS = (".png", ".png", ".png", ".tif", ".webp", ".bmp", ".jpg")
NOTES = ("none", "exif", "broken", "profile", "xmp", "text", "tRNS", "all")
MARKS = ("white", "black", "white 1", "black 16", "white rgb", "black lying", "alpha", "alpha grey", "opaque", "colour", "own alpha", "own colour", "itself", "labels")
ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'/>"
HALF = (lambda x, m: torch.full_like(x, 0.5)), 16


def notes_for(rng, ending, mode, notes):
    "What `save` is told: orientation and notes, as far as the format has them."
    kw, has = {}, lambda k: notes in (k, "all")
    if ending in (".png", ".jpg", ".webp", ".tif", ".avif"):
        exif = Image.Exif()
        exif[0x0112], exif[0x010F] = int(rng.integers(0, 10)), "maker"
        if has("exif"): kw["exif"] = exif.tobytes()
        if notes == "broken" and ending != ".avif" and ending != ".tif": kw["exif"] = b"Exif\0\0MM\0*\0\0\0\x08\xff\xff rubbish"
        if has("profile") and mode in ("RGB", "RGBA"): kw["icc_profile"] = ICC
        if has("xmp"): kw |= dict(tiffinfo={700: XMP}) if ending == ".tif" else {} if ending == ".png" else dict(xmp=XMP)
    if ending == ".png":
        kw["pnginfo"] = PngInfo()
        if has("text"): kw["pnginfo"].add_text("Title", "a face")
        if has("xmp"): kw["pnginfo"].add_itxt("XML:com.adobe.xmp", XMP.decode())
        if notes == "tRNS" and mode in ("L", "RGB", "P"): kw["transparency"] = 128 if mode == "L" else (128, 128, 128) if mode == "RGB" else 3
    if ending in (".jpg", ".gif") and has("text"): kw["comment"] = b"a face"
    return kw


def some_file(rng, ending, mode, notes):
    a = plain(rng, int(rng.integers(6, 30)), int(rng.integers(6, 30)))
    if mode == "I;16": im = Image.fromarray(np.asarray(a.convert("L")).astype(np.uint16)*257)
    else: im = a.convert(mode) if mode != "LA" else Image.merge("LA", a.split()[:2])
    if mode == "RGBA": im.putalpha(a.getchannel(0))
    kw = notes_for(rng, ending, mode, notes) | (dict(sizes=[im.size]) if ending == ".ico" else {}) | (dict(quality=95) if ending == ".jpg" else {})
    if ending == ".pgm" and mode == "I;16": return b"P5 %d %d 65535\n" % im.size + np.asarray(im).astype(">u2").tobytes()
    kind = {".jpg": "JPEG", ".tif": "TIFF", ".pgm": "PPM", ".jp2": "JPEG2000"}.get(ending, ending[1:].upper())
    return encoded(im, kind, **kw)


def seen(data):
    "What a viewer shows of a file: an array of colours and opacity, in 16 bits or in inks where it has them. Not by the code under test."
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        im = Image.open(io.BytesIO(data))
        im.load()
        try: im = ImageOps.exif_transpose(im)
        except Exception: pass
        if im.mode.startswith("I"): return np.asarray(im).astype(np.int64)[..., None]
        return np.asarray(im if im.mode == "CMYK" else im.convert("RGBA")).astype(np.int64)


def marked(rng, mark, shape, folder, photo):
    "(mask to give, hole to say, mask upright with 1 = known or None) for one of `MARKS`."
    h, w = shape
    m = np.ones(shape, np.uint8)
    m[h//4:h//4 + 2, w//4:w//4 + 3] = 0
    white, path = np.where(m == 0, 255, 0).astype(np.uint8), folder/"mask.png"
    word, _, how = mark.partition(" ")
    if mark == "itself": return photo, str(rng.choice(["white", "black", "opaque"])), None
    if word == "own": return None, dict(alpha="alpha", colour="#01fe02")[how], None
    a = 255 - white if word == "black" else white
    im = Image.fromarray(a)
    if how == "1": im = im.convert("1")
    if how == "16": im = Image.fromarray(a.astype(np.uint16)*257)
    if how == "rgb": im = im.convert("RGB")
    if mark == "alpha": im = Image.fromarray(np.dstack([rng.integers(0, 256, (h, w, 3), dtype=np.uint8), 255 - white]))
    if mark == "opaque": im = Image.fromarray(np.dstack([rng.integers(0, 256, (h, w, 3), dtype=np.uint8), white]))
    if mark == "colour": im = Image.fromarray(np.where(m[..., None] == 0, np.uint8([255, 0, 0]), np.uint8([40, 60, 80])))
    if mark == "labels": im = Image.fromarray(np.where(m == 0, *[(3, 1), (100, 0), (255, 200)][int(rng.integers(3))]).astype(np.uint8))
    kw = {}
    if how == "grey": im, kw = Image.fromarray(np.where(m == 0, 7, 90).astype(np.uint8)), dict(transparency=7)
    if how == "lying":
        exif = Image.Exif()
        exif[0x0112] = 6
        im, kw = im.transpose(Image.Transpose.ROTATE_90), dict(exif=exif)
    im.save(path, **kw)
    return path, dict(colour="red", labels="white").get(word, word), None if mark == "labels" else m


def file_case(rng, folder, capsys):
    ending = str(rng.choice(sorted(FORMS)*3 + sorted(FOREIGN)))
    mode, notes, mark, target = (str(rng.choice(o)) for o in (FORMS.get(ending, ("none",)), NOTES, MARKS, TARGETS))
    data = FOREIGN[ending] + rng.bytes(40) if ending in FOREIGN else some_file(rng, ending, mode, notes)
    name = str(rng.choice(NAMES))
    called = rng.choice([ending, ending.upper(), ".png" if ending != ".tga" else ending])
    photo = put(folder/f"{name}{called}", data)
    before_view = None if ending in FOREIGN else seen(data)
    given, hole, m = marked(rng, mark, (9, 9) if before_view is None else before_view.shape[:2], folder, photo)
    before, out = snapshot(folder), folder/"out"/f"{name}{target}"
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        codes = run_jobs(pair_files(str(photo), given and str(given), str(out)), model=HALF, hole=hole, grow=0, feather=0)
    err, after = capsys.readouterr().err, snapshot(folder)
    said = " ".join(str(w.message) for w in said if "could not be kept" in str(w.message))
    assert {p: b for p, b in after.items() if p in before} == before, "a file that was there has changed"
    what = f"{ending} {mode} {notes} {mark} {target} {called}"
    if codes:
        assert codes == [2] and len(err.splitlines()) == 1 and not out.exists(), (what, err)
        said_clearly(err.strip(), out, photo, given)
        may = ending in FOREIGN or mark in ("itself", "labels") or mark.startswith("own") or target != ".png" or mode == "CMYK"
        assert may, f"{what}: {err}"
        if ending in FOREIGN and mark not in ("itself", "labels"): assert "damaged" not in err and "not opened here" in err, (what, err)
        return "refused", ending
    assert not err and [p for p in after if p not in before and p.is_file()] == [out] and ending not in FOREIGN and mark not in ("itself", "labels"), (what, err)
    now = seen(after[out])
    assert now.shape == before_view.shape or 1 in (now.shape[2], before_view.shape[2]), what
    if m is not None and target != ".jpg" and now.shape == before_view.shape:
        assert np.array_equal(now[m == 1], before_view[m == 1]), f"{what}: a known pixel has changed"
        if mode in ("L", "RGB"): assert (now[m == 0][:, :3] == 128).all(), f"{what}: the hole is somewhere else"
    info = Image.open(io.BytesIO(after[out])).info
    if ending in (".png", ".jpg", ".webp", ".tif"):
        if notes in ("xmp", "all"): assert info.get("xmp") == XMP or "XMP" in said, what
        if notes in ("profile", "all") and mode in ("RGB", "RGBA"): assert info.get("icc_profile") == ICC or "colour profile" in said, what
        if notes == "text" and ending == ".png": assert info.get("Title") == "a face" or "text notes" in said, what
    return "repaired", ending


@pytest.mark.parametrize("chunk", range(10 if ALL else 2))
def test_every_file_is_repaired_or_refused(chunk, tmp_path, capsys):
    counts, kinds = Counter(), set()
    for i in range(chunk*200, (chunk + 1)*200):
        (folder := tmp_path/str(i)).mkdir()
        try: result, kind = file_case(np.random.default_rng([i, 1]), folder, capsys)
        except (Exception, SystemExit) as e: raise AssertionError(f"file {i}: {type(e).__name__}: {e}") from e
        counts[result] += 1
        kinds.add(kind)
    with capsys.disabled(): print(f"\n200 files: {dict(sorted(counts.items()))}")
    assert min(counts["repaired"], counts["refused"]) >= 20 and kinds == set(FORMS) | set(FOREIGN), counts


def test_the_folder_survives_all_of_them(tmp_path, capsys):
    "Every kind of photo in one folder with one mask each: all are gone through, none is lost, the failures are counted."
    rng, jobs = np.random.default_rng(0), []
    (tmp_path/"out").mkdir()
    for name, make in {**GOOD, **BAD}.items():
        data, ending = make(rng)
        photo = put(tmp_path/f"{name}{ending}", data)
        m, _ = some_mask(np.random.default_rng(1), shape_of(data))
        Image.fromarray(m).save(tmp_path/f"{name}-mask.bmp")
        jobs.append((photo, tmp_path/f"{name}-mask.bmp", tmp_path/"out"/f"{name}.tif", None))
    before = snapshot(tmp_path)
    codes = run_jobs(jobs, model=NET, hole="white")
    out, err = capsys.readouterr()
    done = {p.stem for p in (tmp_path/"out").iterdir()}
    assert set(codes) == {2} and len(done) + len(codes) == len(jobs) and out.count("filled") == len(done)
    assert done >= set(GOOD) - {"dot"} and not done & set(BAD), (sorted(done), err)
    assert err.splitlines()[-1] == f"{len(done)} repaired, {len(codes)} left out" and {p: b for p, b in snapshot(tmp_path).items() if p in before} == before
