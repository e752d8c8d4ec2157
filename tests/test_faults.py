"""Bad input through the real commands: one line of error, exit code 2, no traceback, nothing overwritten or lost."""
import contextlib
import errno
import os
import resource
import signal
import struct
import subprocess
import sys
import time
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pconv_course import masks
from pconv_course.commands import pconv_data, pconv_demo, pconv_train
from pconv_course.core import InputError, atomic_path, read_json, sha256_of, to_array, write_json
from pconv_course.data import DrawnFaces, FaceFiles
from pconv_course.learner import inpaint_batch
from pconv_course.train import PRESETS, Phase, load_model, recipe_with, train
from pconv_course.unet import PConvUNet

torch.set_num_threads(1)
TINY = recipe_with(PRESETS["demo"], size=32, depth=3, width=4, n_faces=40, n_masks=10, bs=8, phases=(Phase(1e-3),))


def tree(folder): return {str(p.relative_to(folder)): sha256_of(p) if p.is_file() else None for p in sorted(folder.rglob("*"))}


def one_fault(capsys, command, *args, code=2, **kwargs):
    "Run a command in this process; it must end with `code` and one line, which is returned without the name of the command."
    capsys.readouterr()
    with pytest.raises(SystemExit) as e: command(*args, **kwargs)
    err = capsys.readouterr().err
    assert e.value.code == code and "Traceback" not in err, err
    lines = [o for o in err.splitlines() if not o.startswith("training ")]  # the line that announces a run
    assert len(lines) == 1 and len(lines[0]) < 600 and lines[0].startswith(f"{command.__name__}: "), err
    return lines[0].removeprefix(f"{command.__name__}: ").removeprefix("error: ")


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
COMMANDS = dict(data=lambda c, src, out: one_fault(c, pconv_data, "prepare", src, out, size=32),
                train=lambda c, src, out: one_fault(c, pconv_train, "demo", src, out, size=32, minutes=1.),
                demo=lambda c, src, out: one_fault(c, pconv_demo, out, src, 1.))


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
    assert pconv_data("prepare", str(src), str(tmp_path/"out"), size=32) is None
    report = read_json(tmp_path/"out"/"quarantine.json")
    assert len(report) == 1 and "bad.png" in str(report) and read_json(tmp_path/"out"/"manifest.json")["count"] == 20
    assert "bad" in one_fault(capsys, pconv_train, "demo", str(src), str(tmp_path/"run"), size=32, minutes=1.)


OPTIONS = [(pconv_data, dict(action="prepare", src="{good}", dst="{out}", size=0)), (pconv_data, dict(action="prepare", src="{good}", dst="{out}", size=-64)),
           (pconv_data, dict(action="prepare", src="{good}", dst="{out}", size=15)), (pconv_data, dict(action="prepare", src="{good}", dst="{out}", size=10**6)),
           (pconv_data, dict(action="prepare", src="{good}", dst="{out}", valid="2")), (pconv_data, dict(action="prepare", src="{good}", dst="{out}", valid="nan")),
           (pconv_data, dict(action="prepare", src="{good}", dst="{out}", valid="900-999")), (pconv_data, dict(action="prepare", src="{good}", dst="{out}", workers=0)),
           (pconv_data, dict(action="destroy", src="{good}", dst="{out}")),
           (pconv_train, dict(size=0)), (pconv_train, dict(minutes=-1.)), (pconv_train, dict(minutes=float("nan"))), (pconv_train, dict(minutes=0.)),
           (pconv_train, dict(bs=0)), (pconv_train, dict(seed=-1)), (pconv_train, dict(preset="huge")), (pconv_train, dict(device="toaster")),
           (pconv_train, dict(features="nowhere.pth")), (pconv_train, dict(valid="much")), (pconv_train, dict(resume=True)), (pconv_train, dict(resume=True, size=32)),
           (pconv_demo, dict(minutes=float("nan"))), (pconv_demo, dict(minutes=-1.)), (pconv_demo, dict(seed=-1))]


@pytest.mark.parametrize("command,options", OPTIONS, ids=lambda o: getattr(o, "__name__", None) or "-".join(f"{k}={v}" for k, v in o.items() if "{" not in str(v)))
def test_impossible_option(command, options, tmp_path, good, capsys):
    "Refused before anything is made."
    options = {k: v.format(good=good, out=tmp_path/"out") if isinstance(v, str) else v for k, v in options.items()}
    if command is not pconv_data: options["out"] = str(tmp_path/"out")
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
    line = one_fault(capsys, pconv_train, "demo", "drawn", str(run_folder), minutes=1.)
    assert tree(run_folder) == before and "resume" in line


def test_resume_with_other_faces(run_folder, good, capsys):
    before = tree(run_folder)
    line = one_fault(capsys, pconv_train, "demo", str(good), str(run_folder), resume=True)
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
    import pconv_course.train as module
    class Fill(Callback):
        def after_batch(self):
            if self.training and self.iter == 2: monkeypatch.setattr(os, "fsync", full)
    def full(*args): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    real = module.train
    with monkeypatch.context() as m:
        m.setattr(module, "train", lambda recipe, *a, **k: real(TINY, *a, **k, cbs=[Fill()]))
        line = one_fault(capsys, pconv_train, out=str(tmp_path/"run"))
    monkeypatch.undo()
    assert "No space left" in line and "checkpoint" in line
    load_model(tmp_path/"run")
    assert pconv_train(out=str(tmp_path/"run"), resume=True) is None


def test_file_size_limit_of_the_system(tmp_path):
    "The real thing, in a process that may write 2,000 bytes per file: the old file stays whole."
    write_json(tmp_path/"a.json", [1])
    code = f"""
import resource, signal
from pconv_course.commands import clean_exit
from pconv_course.core import write_json
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
with clean_exit("cmd"): write_json({str(tmp_path/"a.json")!r}, list(range(10000)))
"""
    r = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (r.returncode, r.stdout, r.stderr.count("\n")) == (2, "", 1) and "File too large" in r.stderr, r.stderr
    assert read_json(tmp_path/"a.json") == [1] and len(list(tmp_path.iterdir())) == 1


def test_ctrl_c_in_a_real_process(tmp_path):
    "SIGINT during training: code 130, one line with a command, and that command works."
    script = tmp_path/"pconv_train"
    script.write_text("import sys\nfrom pconv_course.commands import pconv_train\nif __name__ == '__main__': sys.exit(pconv_train())\n")
    args = [sys.executable, str(script), "--out", "run", "--size", "32"]
    p = subprocess.Popen([*args, "--minutes", "5"], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                         env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        end = time.monotonic() + 90
        while not (tmp_path/"run"/"checkpoint.safetensors").exists() and time.monotonic() < end: time.sleep(0.2)
        time.sleep(1)
        p.send_signal(signal.SIGINT)
        err = p.communicate(timeout=60)[1]
    finally: p.kill()
    lines = [o for o in err.splitlines() if o.startswith("pconv_train: ")]
    assert p.returncode == 130 and len(lines) == 1 and "Traceback" not in err and "pconv_train --resume --out run" in lines[0], err
    assert load_model(tmp_path/"run")[1]["position"]["step"] >= 0


def known(*shape): return np.ones(shape, np.uint8)


MASKS = [("all known", known(8, 8)*0, "no hole"), ("all hole", known(8, 8)*255, "all hole"), ("not finite", known(8, 8)*np.nan, "values outside"),
         ("three channels", known(3, 5, 7), "shape"), ("negative", known(8, 8)*-1., "values outside")]


@pytest.mark.parametrize("what,array,says", MASKS, ids=[o[0] for o in MASKS])
def test_unusable_mask(what, array, says):
    with pytest.raises(InputError, match=says) as e: masks.read_mask(array, hole="white")
    assert "\n" not in str(e.value) and ";" in str(e.value)


def test_mask_of_another_size_grey_or_inverted():
    m = known(32, 32)
    m[8:20, 8:20] = 0
    with pytest.raises(InputError, match=r"32\D+32"): masks.valid_mask(m, (16, 16))
    assert masks.read_mask(255*(1 - m), hole="white", size=16).shape == (16, 16)
    grey = (255*(1 - m)).astype(np.uint8)
    grey[8, 8:20] = 90
    assert masks.load_masks([grey], hole="white").info["grey_pixels"] == 12
    with pytest.warns(masks.MaskWarning, match="hole covers"): masks.read_mask(255*(1 - m), hole="black")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        masks.read_mask(255*(1 - m), hole="white")
    with pytest.raises(InputError, match="hole="): masks.read_mask(m, hole="yes")


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
