"""Bad input through the real commands: one line of error, exit code 2, no traceback, nothing overwritten or lost."""
import contextlib
import errno
import json
import os
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
import warnings
import zipfile
import zlib
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from calling import MODULE, pconv
from forking import forks
from PIL import Image
from safetensors.torch import load_file
from torch.testing import assert_close

from pconv_course.base import pictures
from pconv_course import masks
from pconv_course.base.core import InputError, atomic_path, read_json, sha256_of, write_json
from pconv_course.base.show import to_array
from pconv_course.data import DrawnFaces, FaceFiles
from pconv_course.learner import inpaint_batch
from pconv_course.base.core import alone_in
from pconv_course.runs.checkpoint import latest_checkpoint
from pconv_course.recipe import PRESETS, Phase, recipe_with
from pconv_course.runs.train import train
from pconv_course.weights import load_model
from pconv_course.unet import PConvUNet

torch.set_num_threads(1)
TINY = recipe_with(PRESETS["demo"], size=32, depth=3, width=4, n_faces=40, n_masks=10, bs=8, phases=(Phase(1e-3),))


def tree(folder): return {str(p.relative_to(folder)): sha256_of(p) if p.is_file() else None for p in sorted(folder.rglob("*"))}


def one_fault(capsys, command, *args, code=2, **kwargs):
    "Run a command in this process; it must end with `code` and one line, which is returned without the name of the command."
    capsys.readouterr()
    with pytest.raises(SystemExit) as e: pconv(command, *args, **kwargs)
    err = capsys.readouterr().err
    assert e.value.code == code and "Traceback" not in err, err
    lines = [o for o in err.splitlines() if not o.startswith("training ")]  # the line that announces a run
    assert len(lines) == 1 and len(lines[0]) < 600 and lines[0].startswith(f"pconv {command}: "), err
    return lines[0].removeprefix(f"pconv {command}: ").removeprefix("error: ")


def png_of(width, height):
    "A valid PNG of any size in a few bytes: grey, all zero."
    part = lambda name, data: struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    packer, body = zlib.compressobj(1), b""
    for _ in range(height): body += packer.compress(bytes(1 + width//8))
    return (b"\x89PNG\r\n\x1a\n" + part(b"IHDR", struct.pack(">IIBBBBB", width//8*8, height, 1, 0, 0, 0, 0))
            + part(b"IDAT", body + packer.flush()) + part(b"IEND", b""))


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    "A folder with twenty faces."
    folder = tmp_path_factory.mktemp("good")
    for i in range(20): Image.fromarray(to_array(DrawnFaces(20, 48)[i])).save(folder/f"{i:03d}.jpg", quality=95)
    return folder


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    "A finished run."
    folder = tmp_path_factory.mktemp("run")/"r"
    train(TINY, out=folder, progress=False)
    return folder


def missing(d, good): return d/"nowhere"
def empty_folder(d, good): (d/"src").mkdir(); return d/"src"
def nothing_useful(d, good): (d/"src").mkdir(); (d/"src"/"notes.txt").write_text("hello"); return d/"src"
def text_file(d, good): (d/"faces.txt").write_text("hello"); return d/"faces.txt"
def one_photo(d, good): (d/"me.jpg").write_bytes((good/"000.jpg").read_bytes()); return d/"me.jpg"
def fake_zip(d, good): (d/"faces.zip").write_bytes(b"this is not a zip file" * 50); return d/"faces.zip"
def empty_file(d, good): (d/"faces.zip").write_bytes(b""); return d/"faces.zip"
def empty_zip(d, good): zipfile.ZipFile(d/"faces.zip", "w").close(); return d/"faces.zip"
def below_a_file(d, good): (d/"file").write_text("x"); return d/"file"/"faces"


def cut_zip(d, good):
    "A zip whose central directory is missing its second half, as after an interrupted download."
    with zipfile.ZipFile(d/"faces.zip", "w") as z:
        for p in good.iterdir(): z.write(p, p.name)
    whole = (d/"faces.zip").read_bytes()
    (d/"faces.zip").write_bytes(whole[:whole.index(b"PK\x01\x02") + 200])
    return d/"faces.zip"


def text_zip(d, good):
    with zipfile.ZipFile(d/"faces.zip", "w") as z: z.writestr("notes.txt", "hello")
    return d/"faces.zip"


def only_broken(d, good):
    (d/"src").mkdir()
    for i in range(12): (d/"src"/f"{i}.jpg").write_bytes((good/"000.jpg").read_bytes()[:300])
    return d/"src"


def only_dots(d, good):
    (d/"src").mkdir()
    for i in range(12): Image.new("RGB", (1, 1)).save(d/"src"/f"{i}.png")
    return d/"src"


def only_giants(d, good):
    (d/"src").mkdir()
    giant = png_of(20000, 20000)
    for i in range(12): (d/"src"/f"{i}.png").write_bytes(giant)
    return d/"src"


SOURCES = [missing, empty_folder, nothing_useful, text_file, one_photo, fake_zip, empty_file, empty_zip, below_a_file, cut_zip, text_zip,
           only_broken, only_dots, only_giants]
COMMANDS = dict(data=lambda c, src, out: one_fault(c, "data", "prepare", src, out, size=32),
                train=lambda c, src, out: one_fault(c, "train", "demo", src, out, size=32, minutes=1.),
                demo=lambda c, src, out: one_fault(c, "demo", out, src, 1.))


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("source", SOURCES)
def test_unusable_source(source, command, tmp_path, good, capsys):
    "No command can use it; what is there stays as it is, and no run or report is left that looks finished."
    src = source(tmp_path, good)
    before = tree(tmp_path)
    line = COMMANDS[command](capsys, str(src), str(tmp_path/"out"))
    after = tree(tmp_path)
    assert {k: after[k] for k in before} == before
    assert not [k for k in after if Path(k).name in ("manifest.json", "report.html", "model.safetensors")]
    assert ";" in line or "check the path" in line or source in (only_broken, only_dots, only_giants), f"says not what to do: {line}"


def test_unreadable_folder(tmp_path, good, capsys, monkeypatch):
    "Permissions don't bind root, so the refusal of the operating system is simulated."
    (tmp_path/"src").mkdir()
    def refuse(*args): raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(tmp_path/"src"))
    for f in ("listdir", "scandir"): monkeypatch.setattr(os, f, refuse)
    for command in COMMANDS.values():
        line = command(capsys, str(tmp_path/"src"), str(tmp_path/"out"))
        assert "Permission denied" in line and not (tmp_path/"out").exists()


@pytest.mark.parametrize("spoil", ["cut", "dot", "giant", "text", "empty", "thin"])
def test_one_bad_picture_among_good_ones(spoil, tmp_path, good, capsys):
    "prepare sets it aside and goes on; training names it."
    src = tmp_path/"src"
    src.mkdir()
    for p in good.iterdir(): (src/p.name).write_bytes(p.read_bytes())
    Image.new("RGB", (1, 1)).save(tmp_path/"dot.png")
    bad = dict(cut=(good/"000.jpg").read_bytes()[:600], dot=(tmp_path/"dot.png").read_bytes(), giant=png_of(20000, 20000), text=b"hello", empty=b"",
               thin=png_of(20000, 8))[spoil]
    (src/"bad.png").write_bytes(bad)
    assert pconv("data", "prepare", str(src), str(tmp_path/"out"), size=32) is None
    report = read_json(tmp_path/"out"/"quarantine.json")
    assert len(report) == 1 and "bad.png" in str(report) and read_json(tmp_path/"out"/"manifest.json")["count"] == 20
    assert "bad" in one_fault(capsys, "train", "demo", str(src), str(tmp_path/"run"), size=32, minutes=1.)


OPTIONS = [("data", dict(action="prepare", src="{good}", dst="{out}", size=0)), ("data", dict(action="prepare", src="{good}", dst="{out}", size=-64)),
           ("data", dict(action="prepare", src="{good}", dst="{out}", size=15)), ("data", dict(action="prepare", src="{good}", dst="{out}", size=10**6)),
           ("data", dict(action="prepare", src="{good}", dst="{out}", valid="2")), ("data", dict(action="prepare", src="{good}", dst="{out}", valid="nan")),
           ("data", dict(action="prepare", src="{good}", dst="{out}", valid="900-999")), ("data", dict(action="prepare", src="{good}", dst="{out}", workers=0)),
           ("data", dict(action="destroy", src="{good}", dst="{out}")),
           ("train", dict(size=0)), ("train", dict(minutes=-1.)), ("train", dict(minutes=float("nan"))), ("train", dict(minutes=0.)),
           ("train", dict(bs=0)), ("train", dict(seed=-1)), ("train", dict(preset="huge")), ("train", dict(device="toaster")),
           ("train", dict(features="nowhere.pth")), ("train", dict(valid="much")), ("train", dict(resume=True)), ("train", dict(resume=True, size=32)),
           ("train", dict(resume=True, precision="bf16")), ("train", dict(precision="fp8")), ("train", dict(accumulate=0)), ("train", dict(accumulate=3)),
           ("train", dict(start="nowhere")), ("train", dict(workers=-1)), ("train", dict(dry_run=True, data="nowhere")),
           ("demo", dict(minutes=float("nan"))), ("demo", dict(minutes=-1.)), ("demo", dict(seed=-1))]


@pytest.mark.parametrize("command,options", OPTIONS, ids=lambda o: o if isinstance(o, str) else "-".join(f"{k}={v}" for k, v in o.items() if "{" not in str(v)))
def test_impossible_option(command, options, tmp_path, good, capsys):
    "Refused before anything is made."
    options = {k: v.format(good=good, out=tmp_path/"out") if isinstance(v, str) else v for k, v in options.items()}
    if command != "data": options["out"] = str(tmp_path/"out")
    one_fault(capsys, command, **options)
    assert not (tmp_path/"out").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_existing_folder_is_not_touched(command, tmp_path, good, capsys):
    (tmp_path/"out").mkdir()
    (tmp_path/"out"/"holiday.jpg").write_bytes(b"precious")
    before = tree(tmp_path)
    line = COMMANDS[command](capsys, str(good), str(tmp_path/"out"))
    assert tree(tmp_path) == before and "choose" in line


def test_existing_run_is_not_overwritten(run_folder, capsys):
    before = tree(run_folder)
    line = one_fault(capsys, "train", "demo", "drawn", str(run_folder), minutes=1.)
    assert tree(run_folder) == before and "resume" in line


def test_resume_with_other_faces(run_folder, good, capsys):
    before = tree(run_folder)
    line = one_fault(capsys, "train", None, str(good), str(run_folder), resume=True)
    assert tree(run_folder) == before and "other faces" in line


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("place", ["file/below", "file", "/proc/pconv/run"])
def test_no_place_to_write(command, place, tmp_path, good, capsys):
    "A path below a file, a file, a folder that nobody can make: also root can't write there."
    (tmp_path/"file").write_text("precious")
    COMMANDS[command](capsys, str(good), str(tmp_path/place))
    assert (tmp_path/"file").read_text() == "precious" and [p.name for p in tmp_path.iterdir()] == ["file"]


@contextlib.contextmanager
def full_disk(monkeypatch):
    "From now on nothing reaches the disk."
    def full(*args): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with monkeypatch.context() as m:
        m.setattr(os, "fsync", full)
        yield


@pytest.mark.parametrize("command", COMMANDS)
def test_full_disk_from_the_start(command, tmp_path, good, capsys, monkeypatch):
    with full_disk(monkeypatch): line = COMMANDS[command](capsys, str(good), str(tmp_path/"out"))
    assert "No space left" in line and not [p for p in tmp_path.rglob(".*")]


def test_disk_fills_up_while_training(tmp_path, capsys, monkeypatch):
    "The last good checkpoint stays, and the run can be resumed when there is room again."
    from fastai.callback.core import Callback
    import pconv_course.runs.train as module
    class Fill(Callback):
        def after_batch(self):
            if self.training and self.iter == 2: monkeypatch.setattr(os, "fsync", full)
    def full(*args): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    real = module.train
    with monkeypatch.context() as m:
        m.setattr(module, "train", lambda recipe, *a, **k: real(TINY, *a, **k, cbs=[Fill()]))
        line = one_fault(capsys, "train", out=str(tmp_path/"run"))
    monkeypatch.undo()
    assert "No space left" in line and "checkpoint" in line
    load_model(tmp_path/"run")
    assert pconv("train", out=str(tmp_path/"run"), resume=True) is None


def test_file_size_limit_of_the_system(tmp_path):
    "The real thing, in a process that may write 2,000 bytes per file: the old file stays whole."
    write_json(tmp_path/"a.json", [1])
    code = f"""
import resource, signal
from pconv_course.base.core import clean_exit
from pconv_course.base.core import write_json
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
with clean_exit("cmd"): write_json({str(tmp_path/"a.json")!r}, list(range(10000)))
"""
    r = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (r.returncode, r.stdout, r.stderr.count("\n")) == (2, "", 1) and "File too large" in r.stderr, r.stderr
    assert read_json(tmp_path/"a.json") == [1] and len(list(tmp_path.iterdir())) == 1


def test_ctrl_c_in_a_real_process(tmp_path):
    "SIGINT during training: code 130, one line with a command, and that command works."
    args = [*MODULE, "train", "--out", "run", "--size", "32"]
    p = subprocess.Popen([*args, "--minutes", "5"], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                         env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        end = time.monotonic() + 90
        while not (tmp_path/"run"/"checkpoint.safetensors").exists() and time.monotonic() < end: time.sleep(0.2)
        time.sleep(1)
        p.send_signal(signal.SIGINT)
        err = p.communicate(timeout=60)[1]
    finally: p.kill()
    lines = [o for o in err.splitlines() if o.startswith("pconv train: ")]
    assert p.returncode == 130 and len(lines) == 1 and "Traceback" not in err and "pconv train --resume --out run" in lines[0], err
    assert load_model(tmp_path/"run")[1]["position"]["step"] >= 0


def known(*shape): return np.ones(shape, np.uint8)


MASKS = [("all known", known(8, 8)*0, "no hole"), ("all hole", known(8, 8)*255, "all hole"), ("not finite", known(8, 8)*np.nan, "values outside"),
         ("three channels", known(3, 5, 7), "shape"), ("negative", known(8, 8)*-1., "values outside")]


@pytest.mark.parametrize("what,array,says", MASKS, ids=[o[0] for o in MASKS])
def test_unusable_mask(what, array, says):
    with pytest.raises(InputError, match=says) as e: pictures.read_mask(array, hole="white")
    assert "\n" not in str(e.value) and ";" in str(e.value)


def test_mask_of_another_size_grey_or_inverted():
    m = known(32, 32)
    m[8:20, 8:20] = 0
    with pytest.raises(InputError, match=r"32\D+32"): pictures.valid_mask(m, (16, 16))
    assert pictures.read_mask(255*(1 - m), hole="white", size=16).shape == (16, 16)
    grey = (255*(1 - m)).astype(np.uint8)
    grey[8, 8:20] = 90
    assert masks.load_masks([grey], hole="white").info["grey_pixels"] == 12
    with pytest.warns(pictures.MaskWarning, match="hole covers"): pictures.read_mask(255*(1 - m), hole="black")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pictures.read_mask(255*(1 - m), hole="white")
    with pytest.raises(InputError, match="hole="): pictures.read_mask(m, hole="yes")


def test_nan_pixels():
    "Under the hole they don't matter; among the known ones they are refused, not spread."
    torch.manual_seed(0)
    model, gt, m = PConvUNet(depth=2, width=4), torch.rand(1, 3, 16, 16), torch.ones(1, 1, 16, 16)
    m[..., 4:8, 4:8] = 0
    out, comp = inpaint_batch(model, torch.where(m > .5, gt, torch.nan), m)
    assert out.isfinite().all() and comp.isfinite().all()
    gt[..., 0, 0] = torch.nan
    with pytest.raises(InputError, match="(?i)nan") as e: inpaint_batch(model, gt, m)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("damage", ["cut", "garbage", "empty", "missing"])
def test_damaged_weights(damage, run_folder, tmp_path):
    data = (run_folder/"model.safetensors").read_bytes()
    if damage != "missing": (tmp_path/"model.safetensors").write_bytes(dict(cut=data[:len(data)//2], garbage=b"x"*500, empty=b"")[damage])
    with pytest.raises(InputError) as e: load_model(tmp_path)
    assert "\n" not in str(e.value)


def test_atomic_path_leaves_no_debris(tmp_path):
    (tmp_path/"a").write_text("old")
    for e in (OSError(errno.EROFS, "Read-only file system"), KeyboardInterrupt(), ValueError()):
        with pytest.raises((InputError, KeyboardInterrupt, ValueError)), atomic_path(tmp_path/"a") as p:
            p.write_text("new")
            raise e
    assert (tmp_path/"a").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_faces_of_a_source_are_counted(good):
    "The good source of these tests is good."
    assert len(FaceFiles(good, 32)) == 20 and resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


# runs that survive: everything that is random is in this recipe, both phases, averaged weights, a cosine, and batches in two pieces

HARD = replace(TINY, n_faces=45, valid=0.2, bs=6, min_steps=1, flip=True, masks="mixed", warmup=3, ema=0.9, accumulate=2,
               phases=(Phase(3e-3, epochs=2, schedule="cosine"), Phase(6e-4, epochs=1, freeze_bn=True)))


def job(out, resume=False, **more): return dict(recipe=None if resume else asdict(HARD), out=str(out), log_every=2, save_minutes=0, **more)


def go_on(out, **more): return job(out, resume=(Path(out)/"recipe.json").exists(), **more)


def one(job, **how):
    "Exit code, and the one line that a child printed (or nothing)."
    code, text = forks().run(job, **how)[0]
    assert text.count("\n") == (code > 0), text
    return code, text


def same_run(a, b):
    "Bit for bit the same weights, averages, optimiser, generators and position; the same log but for the times."
    for name in ("model", "checkpoint"): assert_close(*(load_file(Path(o)/f"{name}.safetensors") for o in (a, b)), rtol=0, atol=0)
    logs = [[{k: v for k, v in json.loads(o).items() if k not in ("seconds", "images_per_s")} for o in (Path(r)/"log.jsonl").read_text().splitlines()] for r in (a, b)]
    assert logs[0] == logs[1] and read_json(Path(a)/"result.json")["finished"] and read_json(Path(b)/"result.json")["finished"]


@pytest.fixture(scope="module")
def unharmed(tmp_path_factory):
    "A run that nothing happened to, and how long it took."
    out = tmp_path_factory.mktemp("unharmed")/"run"
    forks()
    began = time.monotonic()
    assert one(job(out)) == (0, "")
    return out, time.monotonic() - began


def test_killed_ten_times_at_random(unharmed, tmp_path):
    "kill -9 at seeded random times, each time resumed, as often as it takes: ten kills, and every run that ends is the unharmed one."
    rng, kills, runs, long = random.Random(0), 0, 0, False
    while kills < 10 or long:
        out = tmp_path/f"run{runs}"
        long = kills < 10
        [(code, text)] = forks().run(go_on(out), kill=[(0, "SIGKILL", rng.uniform(0.2, 0.7)*unharmed[1])] if long else [])
        kills += code == -9
        if code == 0:
            same_run(unharmed[0], out)
            runs, long = runs + 1, kills < 10
        else: assert code == -9, text
    assert kills == 10 and runs >= 1


DEATHS = [("replace", 1), ("replace", 3), ("replace", 4), ("fsync", 3), ("fsync", 7), ("log", 1)]


def test_killed_while_it_writes(unharmed, tmp_path):
    "Between any two calls that make files appear: model, configuration, checkpoint; and in the middle of a line of the log."
    out = tmp_path/"run"
    for at, (place, count) in enumerate(DEATHS, 2):
        code, text = forks().run(go_on(out, at=at, do=["die_at", place, count]))[0]
        assert code == -9 and text.count("\n") == text.count("going on from the one before"), text
    assert forks().run(go_on(out))[0][0] == 0
    same_run(unharmed[0], out)


def test_killed_before_the_first_checkpoint(unharmed, tmp_path):
    assert one(job(tmp_path/"run", at=0, do=["SIGKILL"])) == (-9, "")
    for p in (tmp_path/"run").glob("checkpoint*"): p.unlink()
    assert one(go_on(tmp_path/"run")) == (0, "")
    same_run(unharmed[0], tmp_path/"run")


@pytest.mark.parametrize("damage", ["cut", "number", "header", "gone"])
def test_damaged_checkpoint(unharmed, tmp_path, damage, capfd):
    "The hash finds it, the one before is used, with a remark, and the end is the same."
    out, path = tmp_path/"run", tmp_path/"run"/"checkpoint.safetensors"
    assert one(job(out, at=9, do=["SIGKILL"])) == (-9, "")
    b = bytearray(path.read_bytes())
    if damage == "number": b[-1000] ^= 16
    if damage == "header": b[200] ^= 1
    path.unlink() if damage == "gone" else path.write_bytes(b[:len(b)//2] if damage == "cut" else b)
    code, text = forks().run(go_on(out))[0]
    assert code == 0 and text.count("\n") == 1 and "going on from the one before" in text
    same_run(unharmed[0], out)


def test_disk_that_is_really_full(unharmed, tmp_path):
    "The system refuses a file in the middle of its writing, model, log or checkpoint; with room again the run ends as if nothing had been."
    out = tmp_path/"run"
    sizes = sorted((unharmed[0]/n).stat().st_size for n in ("model.safetensors", "checkpoint.safetensors"))
    for at, limit in ((4, sizes[0] - 1000), (6, sizes[1] - 1000)):
        code, line = one(go_on(out, at=at, do=["no_space", limit]))
        assert code == 2 and "File too large" in line and "is intact" in line
    assert latest_checkpoint(out)[0]["position"]["step"] == 6 and not list(out.rglob(".*"))
    assert one(go_on(out)) == (0, "")
    same_run(unharmed[0], out)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
def test_folder_of_somebody_else(unharmed, tmp_path):
    "A user who may read the run but not write: refused in one line, nothing changed."
    out = tmp_path/"run"
    shutil.copytree(unharmed[0], out)
    for p in (tmp_path, *tmp_path.parents): p.stat().st_uid == 0 and p != Path("/") and str(p).startswith("/tmp/") and p.chmod(0o755)
    before = tree(tmp_path)
    for o in (job(tmp_path/"new", user=65534), go_on(out, user=65534)):
        code, line = one(o)
        assert code == 2 and "Permission denied" in line and tree(tmp_path) == before


def test_faces_that_disappear(tmp_path):
    "The folder of faces is unmounted in the first epoch: a line that says so; it comes back, the run goes on, the end is the same."
    faces = tmp_path/"faces"
    faces.mkdir()
    for i in range(45): Image.fromarray(to_array(DrawnFaces(45, 32)[i])).save(faces/f"{i:02}.png")
    shutil.copytree(faces, tmp_path/"backup")
    assert one(job(tmp_path/"whole", data=str(faces))) == (0, "")
    code, line = one(job(tmp_path/"run", data=str(faces), at=2, do=["remove", str(faces)]))
    assert code == 2 and "faces" in line and "is intact" in line and "pconv train --resume" in line
    shutil.copytree(tmp_path/"backup", faces)
    assert one(go_on(tmp_path/"run", data=str(faces))) == (0, "")
    same_run(tmp_path/"whole", tmp_path/"run")


def test_files_of_the_run_that_disappear(unharmed, tmp_path):
    "Somebody tidies up while it trains: what is needed is made again."
    out = tmp_path/"run"
    names = ("checkpoint.safetensors", "checkpoint.previous.safetensors", "model.safetensors", "config.json")
    assert one(job(out, at=8, do=["remove", *(str(out/n) for n in names), str(out/"strips")])) == (0, "")
    same_run(unharmed[0], out)
    assert {p.name for p in unharmed[0].iterdir()} == {p.name for p in out.iterdir()}


def test_two_in_one_folder(unharmed, tmp_path):
    "The second is refused, new or resumed, and changes nothing; when the first is killed, its lock is nobody's."
    out, flag = tmp_path/"run", tmp_path/"flag"
    first = job(out, at=8, do=["wait"], wait_for=None)
    second = dict(go_on(unharmed[0]), out=str(out), wait_for=str(out/"strips"/"epoch_001.png"), then=str(flag))
    (held, text), (code, line) = forks().run(first, second, kill=[(0, "SIGKILL", str(flag))])
    assert (held, text, code) == (-9, "", 2)
    assert line.count("\n") == 1 and "in use by another process (number " in line
    assert (out/"lock").exists()
    code, text = forks().run(go_on(out))[0]  # the kill may have come between the two renames of a checkpoint
    assert code == 0 and text.count("\n") == text.count("going on from the one before"), text
    assert not (out/"lock").exists()
    same_run(unharmed[0], out)


def test_unfinished_files_are_cleared_away(unharmed, tmp_path):
    "What a killed process was writing has a name that begins with a dot; the next one in the folder removes it, and nothing else."
    shutil.copytree(unharmed[0], tmp_path/"run")
    mine = [".eslint-settings.json", ".mine", ".my-notebook.md"]
    for name in (".model-ab120f9d.safetensors", "strips/.epoch_001-ab120f9d.png", *mine): (tmp_path/"run"/name).touch()
    with alone_in(tmp_path/"run"): pass
    assert sorted(p.name for p in (tmp_path/"run").rglob(".*")) == mine and len(list((tmp_path/"run"/"strips").iterdir())) == 3


def test_lock(tmp_path):
    with alone_in(tmp_path/"a"):
        with pytest.raises(InputError, match="in use"), alone_in(tmp_path/"a"): pass
        assert (tmp_path/"a"/"lock").read_text() == str(os.getpid())
        with alone_in(tmp_path/"b"): pass
    with alone_in(tmp_path/"a"): pass
    assert not list(tmp_path.rglob("lock"))


def test_mixed_precision_and_its_scaler_survive(tmp_path):
    "fp16 with its loss scaler, stopped and resumed: the same bits, the scale included."
    half = dict(recipe=asdict(replace(HARD, precision="fp16", phases=(Phase(1e-3, epochs=1),))))
    assert one(job(tmp_path/"whole") | half) == (0, "")
    assert one(job(tmp_path/"run", at=3, do=["SIGTERM"]) | half)[0] == 130
    assert one(go_on(tmp_path/"run")) == (0, "")
    same_run(tmp_path/"whole", tmp_path/"run")
    scaler = latest_checkpoint(tmp_path/"run")[0]["scaler"]
    assert scaler["scale"] > 0 and scaler["_growth_tracker"] > 0
