"""What people's files and habits break: formats, orientation, transparency, notes, names, pipes, rights. The smallest input of each kind."""
import io
import os
import stat
import subprocess
import sys
import threading
import warnings
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, ImageOps
from PIL.PngImagePlugin import PngInfo

from calling import pconv
from pconv_course import inpainting
from pconv_course.base import core, photos, pictures
from pconv_course.base.core import InputError, alone_in, atomic_path, read_json
from pconv_course.base.faces import draw_face
from pconv_course.cli import run_jobs
from pconv_course.data import face_dls
from pconv_course.inpainting import inpaint, inpaint_file, pair_files
from pconv_course.masks import load_masks
from pconv_course.pairs import open_masks
from pconv_course.runs.checkpoint import save_checkpoint
from pconv_course.tools import ffhq
from pconv_course.tools.prepare import prepare

GREY = (lambda x, m: torch.full_like(x, 0.5)), 16  # a "network" whose answer is known
XMP = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'/>"
BROKEN_EXIF = b"Exif\0\0MM\0*\0\0\0\x08\xff\xff rubbish"
FOREIGN = dict(heic=b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40), jxl=b"\xff\x0a" + bytes(40), pdf=b"%PDF-1.7\n" + bytes(40),
               svg=b"<?xml version='1.0'?>\n<svg xmlns='http://www.w3.org/2000/svg'/>")


def noise(h=24, w=36, c=3, seed=0): return np.random.default_rng(seed).integers(0, 256, (h, w, c) if c > 1 else (h, w), dtype=np.uint8)


def mask(h=24, w=36):
    m = np.ones((h, w), np.uint8)
    m[2:7, 3:12] = 0
    return m


def side(o=6):
    exif = Image.Exif()
    exif[0x0112] = o
    return exif


def save(path, im, **kw):
    (im if isinstance(im, Image.Image) else Image.fromarray(im)).save(path, **kw)
    return path


def mask_file(path, m=None): return save(path, 255*(mask() if m is None else m))


def shown(path): return np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))


def fill(photo, m, out, hole="black", **kw): return inpaint_file(photo, m, out, GREY, hole, feather=0, **kw)


# F3: which side is up

@pytest.mark.parametrize("source,target", [(s, t) for s in (".webp", ".jpg", ".png", ".tif", ".avif") for t in (".jpg", ".webp", ".bmp", ".png", ".tif")])
def test_orientation_survives_every_change_of_format(source, target, tmp_path):
    a = np.asarray(Image.fromarray(noise(3, 4)).resize((36, 24), Image.BICUBIC))
    save(tmp_path/f"p{source}", a, exif=side().tobytes(), quality=100, **({} if source in (".png", ".tif") else dict(subsampling=0) if source == ".jpg" else {}))
    m = mask(36, 24)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fill(tmp_path/f"p{source}", mask_file(tmp_path/"m.png", m), tmp_path/f"o{target}")
    want, got = shown(tmp_path/f"p{source}").astype(int), shown(tmp_path/f"o{target}").astype(int)
    assert got.shape == want.shape == (36, 24, 3) and np.abs(got - want)[m == 1].mean() < (8 if target == ".jpg" else 1)
    assert np.abs(got[m == 0] - 128).mean() < 12


def test_bmp_has_no_place_for_the_note_so_its_pixels_are_turned(tmp_path):
    for o in range(1, 9):
        save(tmp_path/"p.png", noise(), exif=side(o))
        m = mask(*shown(tmp_path/"p.png").shape[:2])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fill(tmp_path/"p.png", mask_file(tmp_path/"m.png", m), tmp_path/"o.bmp", overwrite=True)
        assert np.array_equal(np.asarray(Image.open(tmp_path/"o.bmp"))[m == 1], shown(tmp_path/"p.png")[m == 1])


@pytest.mark.parametrize("target", [".png", ".jpg", ".webp", ".tif", ".bmp"])
def test_malformed_exif_stops_nothing(target, tmp_path):
    save(tmp_path/"p.jpg", noise(), exif=BROKEN_EXIF)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fill(tmp_path/"p.jpg", mask_file(tmp_path/"m.png"), tmp_path/f"o{target}")
    assert Image.open(tmp_path/f"o{target}").size == (36, 24)


def test_faces_of_every_format_are_upright(tmp_path):
    for ending in (".webp", ".jpg", ".png", ".tif", ".avif"):
        save(tmp_path/f"p{ending}", Image.fromarray(draw_face(3, 48)).crop((0, 0, 48, 32)), exif=side().tobytes())
        assert pictures.read_face(tmp_path/f"p{ending}").size == (32, 48)


# F4: a photo as its own mask

@pytest.mark.parametrize("hole", ["white", "black"])
def test_a_photo_is_not_its_own_mask(hole, tmp_path, capsys):
    photo = save(tmp_path/"p.png", noise())
    (tmp_path/"twin.png").write_bytes(photo.read_bytes())
    for m in (photo, tmp_path/"twin.png"):
        with pytest.raises(InputError, match="its own mask; .*colour"): fill(photo, m, tmp_path/"o.png", hole)
    grey = noise(c=1)
    with pytest.raises(InputError, match="its own mask"): inpaint(grey, grey, GREY, hole=hole)
    (tmp_path/"d").mkdir()
    for n in "ab": save(tmp_path/"d"/f"{n}.png", noise(seed=ord(n)))
    assert run_jobs(pair_files(tmp_path/"d", tmp_path/"d", tmp_path/"out"), model=GREY, hole=hole) == [2, 2] and not (tmp_path/"out").exists()
    assert capsys.readouterr().err.count("its own mask") == 2


def test_marked_on_the_photo_is_another_matter(tmp_path):
    a = np.where(mask()[..., None] > 0, noise()//2, np.uint8([255, 0, 0]))
    photo = save(tmp_path/"p.png", a)
    fill(photo, photo, tmp_path/"one.png", "#ff0000", grow=0), fill(photo, None, tmp_path/"two.png", "#ff0000", grow=0)
    assert (tmp_path/"one.png").read_bytes() == (tmp_path/"two.png").read_bytes()


# F5: kinds of files, and folders that account for each of them

KINDS = dict(avif={}, jp2=dict(irreversible=False), ppm={}, png={}, jpg={}, jpe={}, jfif={}, webp=dict(lossless=True), gif={}, bmp={}, dib={}, tif={}, pcx={}, sgi={}, tga={}, qoi={}, ico={}, dds={})


def full_house(folder):
    "One picture of each kind, four files that are named as not opened, two that are no pictures, one hidden."
    folder.mkdir()
    for ending, kw in KINDS.items(): save(folder/f"{ending}.{ending}", noise(32, 32), format="JPEG" if ending in ("jpe", "jfif") else None, **kw)
    for ending, data in FOREIGN.items(): (folder/f"{ending}.{ending}").write_bytes(data)
    (folder/"notes.txt").write_text("x"), (folder/"Thumbs.db").write_bytes(b"x"), (folder/".DS_Store").write_bytes(b"x")
    return folder


def test_a_folder_of_photos_accounts_for_every_file(tmp_path, capsys):
    src = full_house(tmp_path/"src")
    with pytest.warns(UserWarning, match="3 of 25 files .* are no pictures"): jobs = pair_files(src, mask_file(tmp_path/"m.png", mask(32, 32)), tmp_path/"out")
    codes = run_jobs(jobs, model=GREY, hole="black", feather=0)
    out, err = capsys.readouterr()
    assert len(jobs) == len(KINDS) + len(FOREIGN) and out.count("filled") == len(KINDS) and codes == [2]*4, err
    for kind in ("HEIC", "JPEG XL", "PDF", "SVG"): assert kind in err
    assert {p.stem for p in (tmp_path/"out").iterdir()} == set(KINDS)
    for p in (tmp_path/"out").iterdir():
        was, now = Image.open(next(src.glob(f"{p.stem}.*"))), Image.open(p)
        if p.suffix not in (".jpg", ".jpeg"): assert np.array_equal(np.asarray(was.convert("RGB"))[mask(32, 32) == 1], np.asarray(now.convert("RGB"))[mask(32, 32) == 1]), p


def test_prepare_accounts_for_every_file(tmp_path):
    src = full_house(tmp_path/"src")
    made = prepare(src, tmp_path/"out", size=32, progress=False)
    aside = read_json(tmp_path/"out"/"quarantine.json")
    assert made["count"] == len(KINDS) and made["quarantined"] == len(aside) == 4 and made["no_pictures"] == 3
    assert made["count"] + made["quarantined"] + made["no_pictures"] == sum(1 for p in src.iterdir())
    assert "pillow-heif" in str(aside) and not [a for a in aside if "damaged" in a["reason"]]
    again = (tmp_path/"out"/"manifest.json").read_bytes()
    prepare(src, tmp_path/"out", size=32, progress=False)
    assert (tmp_path/"out"/"manifest.json").read_bytes() == again


def test_the_commands_say_how_many_files_were_no_pictures(tmp_path, capsys):
    src = full_house(tmp_path/"src")
    pconv("data", "prepare", str(src), str(tmp_path/"out"), size=32)
    assert capsys.readouterr().out.endswith("out; 4 set aside, see quarantine.json; 3 are no pictures\n")
    (src := tmp_path/"masks").mkdir()
    (mask_file(src/"0.png", mask(32, 32)), (src/"readme.txt").write_text("x"))
    pconv("data", "masks", str(src), str(tmp_path/"bank"), size=32, hole="black")
    assert capsys.readouterr().out.endswith("; 1 is no picture\n") and read_json(tmp_path/"bank"/"manifest.json")["no_pictures"] == 1


def test_training_says_which_files_it_leaves_out(tmp_path, capsys):
    (src := tmp_path/"src").mkdir()
    for i in range(12): save(src/f"{i}.png", noise(32, 32, seed=i))
    (src/"x.heic").write_bytes(FOREIGN["heic"])
    with pytest.warns(UserWarning, match="1 files of .* are left out: x.heic is .*HEIC.*pillow-heif"): assert len(face_dls(src, 32, bs=4, num_workers=0, device="cpu").train_ds) > 9
    pconv("train", data=str(src), out=str(tmp_path/"run"), size=32, bs=4, dry_run=True)
    assert capsys.readouterr().err.count("x.heic is a file of the kind HEIC") == 1


def test_a_folder_and_a_zip_of_masks_account_for_every_file(tmp_path):
    src, said = tmp_path/"src", []
    src.mkdir()
    endings = ("png", "jpg", "webp", "gif", "bmp", "tif", "ppm", "pgm", "jp2", "tga", "pcx")
    for i, e in enumerate(endings*2): save(src/f"{i}.{e}", Image.fromarray(255*mask(32, 32)).convert("P" if e == "gif" else "L"))
    (src/"x.heic").write_bytes(FOREIGN["heic"]), (src/"readme.txt").write_text("x")
    with pytest.warns(pictures.MaskWarning, match="x.heic is .*HEIC.*pillow-heif"): bank = load_masks(src, "black")
    assert len(bank) == 22 and (bank.info["not_opened"], bank.info["no_pictures"]) == (1, 1) and all(np.array_equal(bank.array(i), mask(32, 32)) for i in range(22))
    made = ffhq.irregular_masks(src, tmp_path/"bank", 32, "black", said.append)
    assert made["count"] == 22 and len(made["quarantine"]) == 1 and "22 masks" in said[0] and "1 set aside" in said[0]
    assert open_masks(tmp_path/"bank", None, 32).sha256 == made["sha256"]
    outside = ffhq.irregular_masks(src, tmp_path/"turned", 32, "white", said.append)["outside"]
    assert (f"{outside} are outside of all buckets" in said[1]) == (outside > 0) and made["outside"] != outside


def test_nothing_but_pictures_that_are_not_opened(tmp_path):
    (tmp_path/"a.heic").write_bytes(FOREIGN["heic"])
    for f in (pictures.list_pictures, lambda s: load_masks(s, "white"), lambda s: pair_files(s, None, tmp_path/"out"), lambda s: prepare(s, tmp_path/"out")):
        with pytest.raises(InputError, match="a.heic is .*HEIC.*pip install pillow-heif"): f(tmp_path)


# F6: two sources, one result

def test_no_two_photos_give_one_result(tmp_path, capsys):
    (tmp_path/"src").mkdir()
    for n in ("a.png", "a.gif", "a.ppm", "b.jpg", "a-gif.png"): save(tmp_path/"src"/n, noise(seed=len(n) + ord(n[-1])))
    assert run_jobs(pair_files(tmp_path/"src", mask_file(tmp_path/"m.png"), tmp_path/"out"), model=GREY, hole="black", overwrite=True) == []
    assert len(list((tmp_path/"out").iterdir())) == 5
    for n in ("a.png", "a-gif.png"): assert np.array_equal(np.asarray(Image.open(tmp_path/"out"/n))[mask() == 1], np.asarray(Image.open(tmp_path/"src"/n))[mask() == 1])


def test_no_comparison_replaces_a_result(tmp_path, capsys):
    (tmp_path/"src").mkdir()
    for n in ("a.png", "a-compare.png"): save(tmp_path/"src"/n, noise(seed=len(n)))
    assert run_jobs(pair_files(tmp_path/"src", mask_file(tmp_path/"m.png"), tmp_path/"out"), model=GREY, hole="black", overwrite=True, compare=True) == []
    assert len(list((tmp_path/"out").iterdir())) == 4


# F7: names

LONG = ["字"*82 + ".png", "x"*251 + ".png", "é"*125 + ".png", "a"*251 + ".gif"]


@pytest.mark.parametrize("name", LONG, ids=lambda n: n[:2])
def test_names_up_to_the_limit_of_the_file_system(name, tmp_path, capsys):
    (tmp_path/"src").mkdir()
    save(tmp_path/"src"/name, noise(32, 32))
    save(tmp_path/"src"/"other.png", noise(32, 32, seed=1))
    assert run_jobs(pair_files(tmp_path/"src", mask_file(tmp_path/"m.png", mask(32, 32)), tmp_path/"out"), model=GREY, hole="black", compare=True) == []
    assert len(list((tmp_path/"out").iterdir())) == 4
    assert prepare(tmp_path/"src", tmp_path/"made", size=32, progress=False, valid=["other"])["count"] == 2
    with pytest.raises(InputError, match="shorter"): fill(tmp_path/"src"/"other.png", tmp_path/"m.png", tmp_path/("n"*300 + ".png"))


def test_one_name_that_cannot_be_written_stops_no_folder(tmp_path, monkeypatch):
    (tmp_path/"src").mkdir()
    for n in ("good.png", "bad.png", "also.png"): save(tmp_path/"src"/n, noise(32, 32))
    real = os.open
    def picky(path, *a, **k):
        if "bad" in str(path) and "src" not in str(path): raise OSError(36, "File name too long")
        return real(path, *a, **k)
    monkeypatch.setattr(os, "open", picky)
    import tempfile
    if not hasattr(core, "fit_name"): monkeypatch.setattr(tempfile, "_os", os)
    assert prepare(tmp_path/"src", tmp_path/"out", size=32, progress=False, valid=.5)["count"] == 2
    assert "shorter name" in str(read_json(tmp_path/"out"/"quarantine.json"))


# F8 and F9: transparency

def test_strokes_on_a_transparent_layer(tmp_path):
    layer = np.dstack([np.zeros((24, 36, 3), np.uint8), 255*(1 - mask())])
    save(tmp_path/"layer.png", layer)
    assert np.array_equal(pictures.read_mask(tmp_path/"layer.png", "opaque"), mask())
    a = noise()
    out = inpaint(a, tmp_path/"layer.png", GREY, hole="opaque", feather=0)
    assert (out[mask() == 0] == 128).all() and np.array_equal(out[mask() == 1], a[mask() == 1])
    with pytest.raises(InputError, match="hole='opaque' if what is painted is the hole"): pictures.read_mask(tmp_path/"layer.png", "white")
    with pytest.raises(InputError, match="give that layer as the mask"): inpaint(layer, None, GREY, hole="opaque")


@pytest.mark.parametrize("hole", ["alpha", "opaque"])
def test_an_array_has_no_transparency(hole):
    "Taken as 1 = known it would repair all but what was painted."
    for m in (mask(), 255*mask(), mask().astype(bool), torch.from_numpy(mask())):
        with pytest.raises(InputError, match="the mask is an array without transparency; state hole="): inpaint(noise(), m, GREY, hole=hole)


def test_a_transparent_hole_of_a_photo_that_is_its_own_mask_becomes_opaque(tmp_path):
    save(tmp_path/"p.png", np.dstack([noise(), 255*mask()]))
    (tmp_path/"copy.png").write_bytes((tmp_path/"p.png").read_bytes())
    for m in (None, "p.png", "copy.png"):
        inpaint_file(tmp_path/"p.png", m and tmp_path/m, tmp_path/"out.png", GREY, "alpha", overwrite=True, feather=0)
        assert (np.asarray(Image.open(tmp_path/"out.png"))[mask() == 0] == (128, 128, 128, 255)).all()
    photo = Image.open(tmp_path/"p.png")
    assert (np.asarray(inpaint([photo], [photo], GREY, hole="alpha")[0])[..., 3] == 255).all()


def test_options_that_can_not_be_meant():
    for how, words in (dict(bs=0), "bs=0"), (dict(feather=-1), "feather=-1"), (dict(context=float("nan")), "context=nan"), (dict(grow=-1), "grow=-1"), (dict(grow=2.5), "grow=2.5"), (dict(tolerance=-1), "tolerance=-1"), (dict(tolerance=None), "tolerance=None"):
        with pytest.raises(InputError, match=words): inpaint(noise(), mask(), GREY, hole="black", **how)
    for size in (8, 64.5, "64"):
        with pytest.raises(InputError, match=f"can't work at {size} px"): inpaint(noise(), mask(), GREY[0], hole="black", size=size)
    with pytest.raises(InputError, match="an image of shape"): inpaint(np.zeros((0, 8, 8, 3), np.uint8), mask(), GREY, hole="black")


def test_a_mask_at_home_is_not_replaced(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    save(tmp_path/"p.png", noise()), save(tmp_path/"m.png", 255*mask())
    with pytest.raises(InputError, match="is the photo or the mask itself"): inpaint_file("~/p.png", "~/m.png", "~/m.png", GREY, "black", overwrite=True)


def test_results_may_go_where_photos_and_masks_are(tmp_path):
    "A folder above the photos is none that hides them."
    for d in ("photos", "masks"): (tmp_path/d).mkdir()
    save(tmp_path/"photos/a.png", noise()), save(tmp_path/"masks/a.png", 255*mask())
    for out in (tmp_path, tmp_path/"photos"/".."): assert [j[3] for j in pair_files(tmp_path/"photos", tmp_path/"masks", out)] == [None]
    assert [j[1] for j in pair_files(tmp_path/"photos"/"a.png", tmp_path/"masks", f"{tmp_path}/")] == [tmp_path/"masks/a.png"]


def test_names_with_figures_of_other_scripts(): assert sorted(["1²3.png", "10.png", "9.png"], key=pictures.natural) == ["1²3.png", "9.png", "10.png"]


def test_a_picture_of_floats(tmp_path):
    "From 0 to 1 it is what it is as an array; of other values nobody knows their white."
    a = np.linspace(0, 1, 24*24, dtype=np.float32).reshape(24, 24)
    Image.fromarray(a).save(tmp_path/"a.tif")
    assert np.abs(np.asarray(pictures.read_face(tmp_path/"a.tif", 24))[..., 0] - 255*a).max() <= 1
    Image.fromarray(200*a).save(tmp_path/"b.tif")
    with pytest.raises(InputError, match="b.tif.*values go from 0 to 200"): pictures.read_face(tmp_path/"b.tif", 24)


@pytest.mark.parametrize("mode,key", [("RGB", (7, 8, 9)), ("L", 7), ("1", 0), ("P", 3)])
def test_one_transparent_colour(mode, key, tmp_path):
    a = noise()
    a[:5] = key if mode == "RGB" else 7
    im = Image.fromarray(a).convert(mode) if mode != "P" else Image.fromarray(a).quantize(16)
    if mode == "L": im.paste(7, (0, 0, 36, 5))
    if mode == "1": im.paste(0, (0, 0, 36, 5))
    save(tmp_path/"p.png", im, transparency=key)
    was = Image.open(tmp_path/"p.png")
    clear = np.asarray(was.convert("L" if mode == "1" else mode).convert("RGBA")) if mode != "1" else np.dstack([np.asarray(im.convert("RGB")), 255*np.asarray(im, np.uint8)])
    assert (clear[:5, :, 3] == 0).all() or mode == "P"
    if mode != "P":
        fill(tmp_path/"p.png", None, tmp_path/"own.png", "alpha")
        assert (np.asarray(Image.open(tmp_path/"own.png").convert("RGBA"))[..., 3] == 255).all()
    fill(tmp_path/"p.png", mask_file(tmp_path/"m.png"), tmp_path/"o.png")
    now = np.asarray(Image.open(tmp_path/"o.png").convert("RGBA"))
    assert np.array_equal(now[mask() == 1], clear[mask() == 1]), "colours and transparency of known pixels"
    if mode == "L":  # the network's grey is the transparent value: a fill must not become a hole
        save(tmp_path/"q.png", Image.fromarray(np.where(mask() == 0, 128, noise(c=1)//3)), transparency=128)
        fill(tmp_path/"q.png", None, tmp_path/"q-fixed.png", "alpha")
        assert (np.asarray(Image.open(tmp_path/"q-fixed.png").convert("RGBA"))[..., 3] == 255).all()
    m = pictures.read_mask(tmp_path/"p.png", "alpha")
    assert np.array_equal(m, clear[..., 3] >= 128)
    assert (np.asarray(pictures.read_face(tmp_path/"p.png"))[clear[..., 3] == 0] == 255).all()


# F13: the widget opens what the command opens

def test_the_widget_opens_photos_as_the_command_does(tmp_path):
    widget = pytest.importorskip("pconv_course.tools.widget")
    import cv2
    save(tmp_path/"odd.jpg", noise(), exif=BROKEN_EXIF)
    assert widget.photo_from_bytes(tmp_path/"odd.jpg").size == (36, 24)
    cv2.imwrite(str(tmp_path/"deep.png"), noise().astype(np.uint16)*257)
    Image.fromarray(noise()).save(tmp_path/"pages.tif", save_all=True, append_images=[Image.fromarray(noise(seed=1))])
    for name, word in (("deep.png", "16 bits"), ("pages.tif", "2 pictures")):
        for source in (tmp_path/name, (tmp_path/name).read_bytes()):
            with pytest.raises(InputError, match=word): widget.photo_from_bytes(source)
    save(tmp_path/"clear.png", noise(), transparency=(1, 2, 3))
    assert widget.photo_from_bytes(tmp_path/"clear.png").mode == "RGBA"
    save(tmp_path/"turned.webp", noise(), exif=side().tobytes())
    assert widget.photo_from_bytes(tmp_path/"turned.webp").size == (24, 36)


# F14: streams

@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
@pytest.mark.parametrize("which", ["photo", "mask", "both"])
def test_a_named_pipe_is_read_once(which, tmp_path):
    data = dict(photo=save(tmp_path/"p.jpg", noise(), quality=90).read_bytes(), mask=mask_file(tmp_path/"m.png").read_bytes())
    pipes = ("photo", "mask") if which == "both" else (which,)
    paths = dict(photo=tmp_path/"p.jpg", mask=tmp_path/"m.png")
    for n in pipes:
        os.mkfifo(tmp_path/n)
        paths[n] = tmp_path/n
        threading.Thread(target=lambda n=n: (tmp_path/n).write_bytes(data[n]), daemon=True).start()
    done = threading.Thread(target=lambda: fill(paths["photo"], paths["mask"], tmp_path/"o.jpg"), daemon=True)
    done.start(), done.join(30)
    assert not done.is_alive() and Image.open(tmp_path/"o.jpg").quantization == Image.open(tmp_path/"p.jpg").quantization


@pytest.mark.skipif(not os.path.exists("/dev/stdin"), reason="no /dev/stdin")
def test_standard_input(tmp_path):
    code = ("import torch; from pconv_course.inpainting import inpaint_file; "
            "inpaint_file('/dev/stdin', 'm.png', 'o.png', ((lambda x, m: torch.full_like(x, .5)), 16), 'black')")
    mask_file(tmp_path/"m.png")
    p = subprocess.run([sys.executable, "-c", code], input=save(tmp_path/"p.png", noise()).read_bytes(), capture_output=True, cwd=tmp_path, timeout=120)
    assert p.returncode == 0 and np.array_equal(np.asarray(Image.open(tmp_path/"o.png"))[mask() == 1], noise()[mask() == 1]), p.stderr[-500:]


# F15: rights

def mode_of(p): return oct(stat.S_IMODE(p.stat().st_mode))


@pytest.mark.parametrize("umask,want", [(0o022, "0o644"), (0o077, "0o600"), (0o002, "0o664")])
def test_results_get_what_the_umask_gives(umask, want, tmp_path):
    was = os.umask(umask)
    try: fill(save(tmp_path/"p.png", noise()), mask_file(tmp_path/"m.png"), tmp_path/"new"/"o.png", compare=True)
    finally: os.umask(was)
    assert {mode_of(p) for p in (tmp_path/"new").iterdir()} == {want}


def test_what_is_replaced_keeps_its_rights(tmp_path):
    (tmp_path/"o.png").write_bytes(b"private"), (tmp_path/"o.png").chmod(0o600)
    fill(save(tmp_path/"p.png", noise()), mask_file(tmp_path/"m.png"), tmp_path/"o.png", overwrite=True)
    assert mode_of(tmp_path/"o.png") == "0o600"
    with atomic_path(tmp_path/"o.png") as tmp: assert mode_of(tmp) == "0o600", "also while it is being written"


@pytest.mark.parametrize("umask,want", [(0o022, "0o644"), (0o077, "0o600"), (0o002, "0o664")])
def test_weights_and_checkpoints_too(umask, want, tmp_path):
    "safetensors puts a file of its own, for its owner alone, in the place of the one that it is told."
    was = os.umask(umask)
    try:
        for _ in range(2): save_checkpoint(tmp_path/"checkpoint.safetensors", dict(a=torch.zeros(3)))
        assert {mode_of(p) for p in tmp_path.iterdir()} == {want}
        (tmp_path/"checkpoint.safetensors").chmod(0o640)
        for _ in range(2): save_checkpoint(tmp_path/"checkpoint.safetensors", dict(a=torch.zeros(3)))
        assert {mode_of(p) for p in tmp_path.iterdir()} == {"0o640"}
    finally: os.umask(was)


def test_what_safetensors_left_behind_is_swept(tmp_path):
    for name in (".tmpAb12Cd", ".tmp", ".tmpfolders", "x.tmpAb12Cd"): (tmp_path/name).write_bytes(b"half")
    with alone_in(tmp_path): pass
    assert {p.name for p in tmp_path.iterdir()} == {".tmp", ".tmpfolders", "x.tmpAb12Cd"}


# F16: masks lie on their side, too

@pytest.mark.parametrize("ending", [".png", ".jpg", ".webp", ".tif"])
def test_files_of_masks_are_upright(ending, tmp_path):
    lying = Image.fromarray(255*mask()).convert("RGB").transpose(Image.Transpose.ROTATE_90)
    save(tmp_path/f"m{ending}", lying, exif=side().tobytes(), quality=100)
    assert np.array_equal(pictures.read_mask(tmp_path/f"m{ending}", "black"), mask())
    assert np.array_equal(load_masks([tmp_path/f"m{ending}"], "black").array(0), mask())
    with zipfile.ZipFile(tmp_path/"z.zip", "w") as z: z.write(tmp_path/f"m{ending}", f"m{ending}")
    assert np.array_equal(load_masks(tmp_path/"z.zip", "black").array(0), mask())


# F17: messages

@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("ending", ["own", ".png"])
def test_what_is_not_opened_is_called_by_its_name(kind, ending, tmp_path):
    path = tmp_path/f"p{'.' + kind if ending == 'own' else ending}"
    path.write_bytes(FOREIGN[kind])
    word = dict(heic="HEIC.*pip install pillow-heif", jxl="JPEG XL.*pip install pillow-jxl-plugin", pdf="PDF.*PNG", svg="SVG.*PNG")[kind]
    for f in (lambda: inpaint(path, mask(), GREY, hole="black"), lambda: pictures.read_mask(path, "white"), lambda: pictures.read_face(path)):
        with pytest.raises(InputError, match=word) as e: f()
        assert "damaged" not in str(e.value) and "\n" not in str(e.value)


def test_a_folder_that_is_not_there_yet(tmp_path):
    photo = save(tmp_path/"p.gif", noise())
    (_, _, out, _), = pair_files(str(photo), str(mask_file(tmp_path/"m.png")), f"{tmp_path}/newdir/")
    assert out == tmp_path/"newdir"/"p.png"
    with pytest.raises(InputError, match="with / for a folder"): fill(photo, tmp_path/"m.png", tmp_path/"newdir")


@pytest.mark.parametrize("mode,ending", [("CMYK", ".png"), ("CMYK", ".webp"), ("RGBA", ".jpg"), ("L", ".webp"), ("RGBA", ".bmp")])
def test_the_endings_that_a_message_names_can_be_written(mode, ending, tmp_path):
    save(tmp_path/"p.tif", Image.fromarray(noise()).convert(mode))
    with pytest.raises(InputError, match="end its name with") as e: fill(tmp_path/"p.tif", mask_file(tmp_path/"m.png"), tmp_path/f"o{ending}")
    named = str(e.value).split("end its name with ")[1].split(" or ")
    assert ending not in named
    for n in named: fill(tmp_path/"p.tif", tmp_path/"m.png", tmp_path/f"{n[1:]}{n}")


@pytest.mark.parametrize("a,factor", [((mask()*255).astype(np.uint16), 257), (mask().astype(np.uint16), 65535), (mask(), 255)], ids=["16 bits, 255", "16 bits, 1", "8 bits, 1"])
def test_the_factor_of_a_dark_mask_is_right(a, factor, tmp_path):
    save(tmp_path/"m.png", a)
    with pytest.raises(InputError, match=f"multiply it by {factor}\\b"): pictures.read_mask(tmp_path/"m.png", "white")
    assert np.array_equal(pictures.read_mask(Image.fromarray(a*a.dtype.type(factor)), "black"), mask())
    if a.dtype == np.uint16: assert np.array_equal(pictures.read_mask((a > 0)*np.uint16(65535), "black"), mask())


def test_labels_are_no_mask(tmp_path):
    labels = np.uint8([[0, 1, 2, 3]]*4)
    save(tmp_path/"m.png", labels)
    for src in (labels, tmp_path/"m.png"):
        for hole in ("white", "black"):
            with pytest.raises(InputError, match=r"if these are labels, make a mask of one: 255\*\(labels == 3\)"): pictures.read_mask(src, hole)
    assert hole_of(255*(labels == 3)) == 0.25


@pytest.mark.parametrize("low,high,middle", [(0, 100, 20), (200, 255, 89), (30, 120, 29)], ids=str)
def test_values_on_one_side_are_not_called_a_wrong_polarity(low, high, middle, tmp_path):
    "Labels of 0 and 100: 'no hole, check the polarity' for white and 'all hole, check the polarity' for black sent people round in circles."
    a = np.where(mask() == 0, high, low).astype(np.uint8)
    layer = Image.fromarray(np.dstack([noise(), a]))
    for hole, src in (("white", save(tmp_path/"m.png", a)), ("black", tmp_path/"m.png"), ("white", a), ("alpha", layer), ("opaque", layer)):
        word = "white" if hole in ("white", "black") else "opaque"
        with pytest.raises(InputError, match=rf"goes from {100*low/255:.0f} % to {100*high/255:.0f} % {word} only; .*all above {middle} % fully {word}"): pictures.read_mask(src, hole)
    with pytest.raises(InputError, match="% white only"): load_masks([a], "white")
    assert np.array_equal(pictures.read_mask(255*(a > middle*2.55).astype(np.uint8), "white"), mask())


def hole_of(a): return 1 - pictures.read_mask(a.astype(np.uint8), "white").mean()


def test_any_byte_order(tmp_path):
    a = (noise()*np.uint16(257)).astype(">u2")
    out = inpaint(a, mask(), GREY, hole="black", feather=0)
    assert out.dtype == a.dtype and np.array_equal(out[mask() == 1], a[mask() == 1]) and (out[mask() == 0] == 32768).all()
    assert inpaint((a/65535.).astype(">f4"), mask(), GREY, hole="black").dtype == np.dtype(">f4")


# F18: notes

def with_notes(path):
    text = PngInfo()
    text.add_text("Title", "a face"), text.add_itxt("Autor", "Jürgen", "de", "Autor")
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    if path.suffix == ".png": text.add_itxt("XML:com.adobe.xmp", XMP.decode())
    kw = dict(pnginfo=text) if path.suffix == ".png" else dict(tiffinfo={700: XMP}) if path.suffix == ".tif" else dict(xmp=XMP)
    return save(path, noise(), icc_profile=icc, **kw), icc


def xmp_of(path):
    with Image.open(path) as im: return im.info.get("xmp") or im.info.get("XML:com.adobe.xmp", "").encode()


@pytest.mark.parametrize("source,target", [(s, t) for s in (".png", ".jpg", ".webp", ".tif") for t in (".png", ".jpg", ".webp", ".tif", ".bmp")])
def test_xmp_and_profile_are_kept_or_said_to_be_lost(source, target, tmp_path):
    photo, icc = with_notes(tmp_path/f"p{source}")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        fill(photo, mask_file(tmp_path/"m.png"), tmp_path/f"o{target}")
    said = " ".join(str(w.message) for w in said if "could not be kept" in str(w.message))
    with Image.open(tmp_path/f"o{target}") as out:
        assert xmp_of(tmp_path/f"o{target}") == XMP if target != ".bmp" else "XMP" in said
        assert out.info.get("icc_profile") == icc if target != ".bmp" else "colour profile" in said
        if source == ".png": assert out.text["Title"] == "a face" and out.text["Autor"] == "Jürgen" if target == ".png" else "text notes" in said
    assert bool(said) == (target == ".bmp" or source == ".png" and target != ".png")


def test_a_note_that_is_too_long_costs_only_itself(tmp_path):
    text = PngInfo()
    text.add_itxt("XML:com.adobe.xmp", "<x>" + "y"*70_000 + "</x>")
    save(tmp_path/"p.png", noise(), pnginfo=text, exif=side())
    with pytest.warns(UserWarning, match="XMP of the photo could not be kept in JPEG"): fill(tmp_path/"p.png", mask_file(tmp_path/"m.png", mask(36, 24)), tmp_path/"o.jpg")
    assert Image.open(tmp_path/"o.jpg").getexif()[0x0112] == 6


# F19: numpy's masked arrays

def test_masked_arrays(tmp_path):
    a = noise()
    whole, torn = np.ma.array(a, mask=False), np.ma.array(a, mask=np.repeat(mask()[..., None] == 0, 3, 2))
    want = inpaint(a, mask(), GREY, hole="black", feather=0)
    assert np.array_equal(inpaint(whole, np.ma.array(mask(), mask=False), GREY, hole="black", feather=0), want)
    with pytest.raises(InputError, match="masked array; pass its data.*getmaskarray"): inpaint(torn, mask(), GREY, hole="black")
    with pytest.raises(InputError, match="masked array"): inpaint(a, np.ma.array(mask(), mask=mask() == 0), GREY, hole="black")
    assert np.array_equal(inpaint(torn.data, np.ma.getmaskarray(torn).any(2), GREY, hole="white", feather=0), want)


# More than 8 bits per colour

def test_no_format_loses_bits_in_silence(tmp_path):
    import cv2
    deep = noise(32, 32).astype(np.uint16)*257
    (tmp_path/"p.ppm").write_bytes(b"P6 32 32 65535\n" + deep.astype(">u2").tobytes())
    names = ["p.ppm"] + [n for n in ("p.png", "p.tif", "p.jp2") if cv2.imwrite(str(tmp_path/n), deep)]
    for n in names:
        with pytest.raises(InputError, match="16 bits"): inpaint(tmp_path/n, mask(32, 32), GREY, hole="black")
        assert pictures.read_face(tmp_path/n).mode == "RGB"
    (tmp_path/"p.pgm").write_bytes(b"P5 32 32 65535\n" + deep[..., 0].astype(">u2").tobytes())
    fill(tmp_path/"p.pgm", mask_file(tmp_path/"m.png", mask(32, 32)), tmp_path/"o.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path/"o.png"))[mask(32, 32) == 1], deep[..., 0][mask(32, 32) == 1])


def test_there_is_one_writer_and_it_changes_nothing(tmp_path):
    im = Image.fromarray(noise())
    im.info["Title"] = "x"
    before = dict(im.info)
    photos.save_photo(im, tmp_path/"o.png")
    assert im.info == before and photos.write_photo(im, io.BytesIO(), "PNG") == set() and inpainting.save_photo is photos.save_photo


@pytest.mark.parametrize("xmp", [None, b"<x:xmpmeta/>"], ids=["no XMP", "XMP"])
@pytest.mark.parametrize("exif", [False, True], ids=["no EXIF", "EXIF"])
def test_a_tiff_keeps_its_turn_and_all_its_notes_together(exif, xmp):
    "XMP used to take the place of EXIF, and the picture lay on its side."
    im, tags = Image.fromarray(np.zeros((48, 64, 3), np.uint8)), Image.Exif()
    tags[0x0112], tags[315] = 6, "Ada"
    if exif: im.info["exif"] = tags.tobytes()
    if xmp: im.info["xmp"] = xmp
    assert not photos.write_photo(im, file := io.BytesIO(), "TIFF")
    back = pictures.open_image(file)
    assert pictures.upright(back).size == ((48, 64) if exif else (64, 48)) and back.info.get("xmp") == xmp
    assert back.getexif().get(315) == ("Ada" if exif else None)
