"""Everything the widget does, without a browser; what a browser does with it is in tests/browser."""
import io
import json
import os
import re
import signal
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

pytest.importorskip("anywidget", reason="needs the extra 'app'")
import torch
from PIL import Image

from calling import pconv
from pconv_course.tools import widget
from pconv_course.base.core import InputError
from pconv_course.networks import build_unet
from pconv_course.tools.widget import (DEEDS, RANDOM, STATIC, HoleCanvas, History, InpaintWidget, State, app, from_png, hole_from_png, hole_png,
    photo_from_bytes, png, random_hole, view_of, write_app)


def red(image, known):
    "A `fill` that shows which pixels it was given as hole."
    return Image.fromarray(np.where(known[..., None] > 0, np.asarray(image.convert("RGB")), (255, 0, 0)).astype(np.uint8))


def photo(h=60, w=90): return np.random.default_rng(0).integers(0, 200, (h, w, 3), dtype=np.uint8)


@pytest.fixture
def w(): return InpaintWidget(photo(), fill=red)


def scratch(w, rows=slice(20, 25), columns=slice(10, 70)):
    hole = np.zeros_like(w.hole)
    hole[rows, columns] = True
    return hole


def press(w, name): w.controls[name].click()
def alert(w): return re.search('role="alert"[^>]*>([^<]*)<', w.controls["status"].value)


def test_draw_fill_undo_redo_by_the_buttons(w):
    before, hole = np.asarray(w.image).copy(), scratch(w)
    w.do("draw", hole_png(hole))
    assert (w.hole == hole).all() and not w.controls["run"].disabled
    press(w, "run")
    after = np.asarray(w.image)
    assert ((after != before).any(2) == hole).all() and not w.hole.any()
    assert w.canvas.before == png(view_of(Image.fromarray(before))) and from_png(w.canvas.picture).tobytes() == after.tobytes()
    press(w, "undo")
    assert (np.asarray(w.image) == before).all() and (w.hole == hole).all(), "a result is undone, the hole comes back"
    assert w.canvas.before == b"" and w.controls["split"].disabled
    press(w, "redo")
    assert (np.asarray(w.image) == after).all() and w.controls["redo"].disabled and not w.controls["split"].disabled


def test_messages_of_the_canvas_arrive(w):
    "What JavaScript sends: a dict and buffers, as memoryviews."
    hole = scratch(w)
    w.canvas._handle_custom_msg(dict(do="draw"), [memoryview(hole_png(hole))])
    assert (w.hole == hole).all()
    for deed in ("run", "undo", "clear", "stroke", "toggle", "thicker", "thinner"): w.canvas._handle_custom_msg(dict(do=deed), [])
    assert w.hole.any() and w.controls["erase"].value is True and not alert(w)


def test_every_key_of_the_page_is_a_deed_and_every_trait_exists():
    js = (STATIC/"widget.js").read_text(encoding="utf-8")
    keys = re.search(r"const KEYS = {(.*?)}", js)[1]
    deeds = re.findall(r': "(\w+)"', keys) + re.findall(r'do: "(\w+)"', js)
    assert len(deeds) >= 8 and set(deeds) <= set(DEEDS)
    traits = set(re.findall(r'model\.get\("(\w+)"\)', js)) | set(re.findall(r"change:(\w+)", js))
    assert len(traits) >= 9 and traits <= set(HoleCanvas().keys), traits - set(HoleCanvas().keys)


def test_the_javascript_fetches_nothing_and_stays_short():
    js, css = ((STATIC/f"widget.{e}").read_text(encoding="utf-8") for e in ("js", "css"))
    assert not re.search(r"https?:|import\s|import\(", js) and "url(" not in css
    assert sum(bool(o.strip()) and not o.startswith("//") for o in js.splitlines()) <= 100


def test_version_grows_when_there_is_something_to_show_but_not_while_drawing(w):
    v = w.canvas.version
    w.do("draw", hole_png(scratch(w)))
    assert w.canvas.version == v, "a redraw would wipe out the next stroke"
    w.do("undo")
    assert w.canvas.version == v + 1 and not hole_from_png(w.canvas.hole, w.hole.shape).any()


def test_a_new_view_finds_what_is_there(w):
    w.do("draw", hole_png(scratch(w)))
    assert (hole_from_png(w.canvas.hole, w.hole.shape) == scratch(w)).all() and w.canvas.label.endswith(f"{scratch(w).mean():.0%} of it hole")
    w.do("stroke")
    assert (hole_from_png(w.canvas.hole, w.hole.shape) == w.hole).all() and w.canvas.size == [90, 60]


@pytest.mark.parametrize("kind", RANDOM)
def test_random_holes_add_to_what_is_drawn(w, kind):
    w.do("draw", hole_png(scratch(w)))
    press(w, kind)
    assert (w.hole >= scratch(w)).all() and w.hole.sum() > scratch(w).sum() and w.hole.mean() < .6


def test_random_holes_repeat_with_the_seed_and_fit_any_shape():
    a, b = (InpaintWidget(photo(40, 200), fill=red, seed=3) for _ in range(2))
    a.do("central"), b.do("central")
    assert (a.hole == b.hole).all() and a.hole.shape == (40, 200)
    for shape in [(1, 1), (3, 500), (700, 20)]: assert random_hole("stroke", shape, np.random.default_rng(0)).shape == shape
    with pytest.raises(InputError, match="no random hole 'round'"): random_hole("round", (9, 9), np.random.default_rng(0))


def test_history_forgets_what_was_undone_and_is_bounded():
    h = History(State("a", b"", 0), most=3)
    for i in range(1, 6): h.push(hole=i)
    assert [s.hole for s in h.states] == [3, 4, 5] and h.at == 2 and not h.can_redo
    h.move(-9)
    assert h.now.hole == 3 and not h.can_undo and h.can_redo
    h.push(hole=9)
    assert [s.hole for s in h.states] == [3, 9]


def test_large_photos_are_shown_small_and_filled_whole():
    w = InpaintWidget(photo(300, 500), fill=red, longest=100)
    assert w.canvas.size == [100, 60] and w.hole.shape == (60, 100)
    hole = scratch(w)
    w.do("draw", hole_png(hole)), w.do("run")
    changed = (np.asarray(w.image) != photo(300, 500)).any(2)
    assert w.image.size == (500, 300) and (changed == hole.repeat(5, 0).repeat(5, 1)).all()


def test_errors_are_shown_and_nothing_is_lost(w):
    press(w, "run")
    assert "no hole yet" in alert(w)[1]
    w.do("draw", hole_png(scratch(w)))
    state = w.history.now
    for deed, args, word in [("draw", [hole_png(np.ones((5, 5), bool))], "draw again"), ("draw", [b"junk"], "not a picture"), ("draw", [], "draw"),
                             ("load", [b"junk"], "not a picture"), ("load", ["/no/such.png"], "no photo"), ("close", [], "nothing that this widget does"),
                             ("__init__", [], "nothing that"), (None, [], "nothing that"), (["x"], [], "nothing that")]:
        w.do(deed, *args)
        assert alert(w) and word in alert(w)[1] and "\n" not in alert(w)[1], (deed, w.controls["status"].value)
        assert w.history.now is state and not w.canvas.busy
    w.do("undo")
    assert not alert(w), "the next deed that works clears the error"


def test_a_failing_network_is_reported_and_the_canvas_is_free_again(w):
    def broken(image, known): raise RuntimeError("<b>no\nmemory</b>")
    w.fill = broken
    w.do("draw", hole_png(scratch(w))), w.do("run")
    assert "&lt;b&gt;" in w.controls["status"].value or "memory" in alert(w)[1]
    assert "<b>" not in w.controls["status"].value and not w.canvas.busy and w.hole.any()


def test_the_canvas_is_busy_while_the_network_works(w):
    seen = []
    def fill(image, known):
        seen.append(w.canvas.busy)
        return red(image, known)
    w.fill = fill
    w.do("draw", hole_png(scratch(w))), w.do("run")
    assert seen == [True] and not w.canvas.busy


def test_preview_shows_the_filled_picture_and_enters_no_history(w):
    w.controls["live"].value = True
    w.do("draw", hole_png(scratch(w)))
    shown = np.asarray(from_png(w.canvas.picture).convert("RGB"))
    assert (shown[scratch(w)] == (255, 0, 0)).all() and len(w.history.states) == 2 and w.canvas.tint < .5
    assert (np.asarray(w.image) == photo()).all()
    for back, there in (("undo", False), ("redo", True), ("clear", False), ("stroke", True)):
        w.do(back)
        assert (np.asarray(from_png(w.canvas.picture).convert("RGB"))[w.hole] == (255, 0, 0)).all() and w.hole.any() == there
        assert there or (np.asarray(from_png(w.canvas.picture)) == photo()).all()
    w.do("draw", hole_png(np.zeros_like(w.hole)))
    assert (np.asarray(from_png(w.canvas.picture)) == photo()).all(), "all of it was erased"
    w.controls["live"].value = False
    assert (np.asarray(from_png(w.canvas.picture)) == photo()).all() and w.canvas.tint > .5


def test_deeds_that_change_nothing_on_the_canvas_redraw_nothing(w):
    v = w.canvas.version
    for deed in ("thinner", "thicker", "toggle", "download"): w.do(deed)
    assert w.canvas.version == v, "a redraw would wipe out a stroke that is being drawn"


def test_fill_twice_and_a_hole_over_all(w):
    w.do("draw", hole_png(scratch(w)))
    press(w, "run"), w.do("run")
    assert not alert(w) and "Undo brings it back" in w.controls["status"].value, "the second click of a double one"
    w.do("draw", hole_png(np.ones_like(w.hole)))
    w.do("run")
    assert "leave something known" in alert(w)[1]


def test_views_and_downloads_of_photos_with_alpha_and_inks():
    clear = np.dstack([photo(), np.zeros((60, 90), np.uint8)])
    assert (np.asarray(view_of(Image.fromarray(clear))) == 255).all(), "what is transparent is shown as white"
    inks = Image.fromarray(photo()).convert("CMYK")
    inks.info["icc_profile"] = b"of inks"
    made = photo_from_bytes(inks)
    assert made.mode == "RGB" and "icc_profile" not in made.info


def test_a_slow_preview_switches_itself_off(w, monkeypatch):
    clock = iter(range(0, 1000, 5))
    monkeypatch.setattr(widget.time, "perf_counter", lambda: next(clock))
    w.controls["live"].value = True
    w.do("draw", hole_png(scratch(w)))
    assert not w.controls["live"].value and "5.0 s" in w.controls["status"].value and not alert(w)
    assert (np.asarray(from_png(w.canvas.picture)) == photo()).all()


def test_brush_erase_and_download(w):
    w.controls["brush"].value = 11
    assert w.canvas.brush == 11
    w.do("thicker")
    thick = w.canvas.brush
    w.do("thinner")
    assert thick > 11 > w.canvas.brush - 3 and w.controls["brush"].value == w.canvas.brush
    for _ in range(40): w.do("thinner")
    assert w.canvas.brush == 1
    for _ in range(40): w.do("thicker")
    assert w.canvas.brush == w.controls["brush"].max
    w.controls["erase"].value = True
    assert w.canvas.erase
    sent = []
    w.canvas.send = lambda message, buffers: sent.append((message, buffers))
    press(w, "download")
    assert sent[0][0] == dict(save="repaired.png") and (np.asarray(Image.open(io.BytesIO(sent[0][1][0]))) == photo()).all()


def test_another_photo_by_upload(w):
    w.do("draw", hole_png(scratch(w)))
    w.controls["photo"].set_trait("value", (dict(name="a.png", type="image/png", size=1, last_modified=datetime.now(timezone.utc), content=memoryview(png(photo(30, 40)))),))
    assert w.image.size == (40, 30) and w.canvas.size == [40, 30] and not w.hole.any() and w.controls["undo"].disabled
    assert (w.controls["brush"].max, w.canvas.brush) == (10, 2), "up to a quarter of the picture, and a twenty-fifth to begin with, 2 px at least"
    w.do("draw", hole_png(scratch(w, columns=slice(10, 30))))
    w.controls["photo"].set_trait("value", (dict(name="a.png", type="image/png", size=1, last_modified=datetime.now(timezone.utc), content=memoryview(png(photo(30, 40)))),))
    assert not w.hole.any(), "the same file again begins anew"


def test_kinds_of_photos(tmp_path):
    Image.fromarray(photo()).save(tmp_path/"a.png")
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(photo()).save(tmp_path/"turned.jpg", exif=exif)
    for source, size in [(tmp_path/"a.png", (90, 60)), (str(tmp_path/"turned.jpg"), (60, 90)), (Image.fromarray(photo()), (90, 60)),
                         (photo(), (90, 60)), (photo()[..., 0], (90, 60)), (png(photo()), (90, 60)), (None, (256, 256))]:
        assert photo_from_bytes(source).size == size
    for mode, want in dict(P="RGB", CMYK="RGB", L="L", LA="LA", RGBA="RGBA").items():
        assert photo_from_bytes(Image.fromarray(photo()).convert(mode)).mode == want
    for bad in (photo()/255, Image.fromarray(np.zeros((9, 9), np.uint16)), Image.fromarray(np.zeros((9, 9), np.float32))):
        with pytest.raises(InputError): photo_from_bytes(bad)
    with pytest.raises(InputError): InpaintWidget(b"junk")


def test_names_and_help_for_screen_readers(w):
    assert "90 by 60 pixels" in w.canvas.label and all(k in w.canvas.help for k in ("Arrow", "space", "Enter", "undo"))
    w.do("draw", hole_png(np.ones_like(w.hole)))
    w.do("undo"), w.do("redo")
    assert "100%" in w.canvas.label
    for name, c in w.controls.items():
        if name != "status": assert c.description, f"{name} has no label"
    w.say("all <well>")
    assert 'role="status"' in w.controls["status"].value and "&lt;well&gt;" in w.controls["status"].value


def test_two_widgets_share_nothing():
    a, b = InpaintWidget(photo(), fill=red), InpaintWidget(photo(), fill=red)
    a.do("draw", hole_png(scratch(a))), a.do("run")
    assert not b.hole.any() and (np.asarray(b.image) == photo()).all() and b.controls["undo"].disabled


def test_filling_by_inpaint_with_a_network():
    "The function behind it is `inpaint`: known pixels stay, the network is opened once."
    torch.manual_seed(0)
    w = InpaintWidget(photo(64, 64), model=(build_unet(dict(depth=3, width=4)).eval(), 64))
    hole = scratch(w)
    w.do("draw", hole_png(hole)), w.do("run")
    assert not alert(w), w.controls["status"].value
    changed, net = (np.asarray(w.image) != photo(64, 64)).any(2), w.net
    assert (changed <= hole).all() and changed[hole].mean() > .9
    w.do("undo"), w.do("run")
    assert w.net is net


def test_app_opens_what_the_environment_names(tmp_path, monkeypatch):
    Image.fromarray(photo(33, 44)).save(tmp_path/"a.png")
    monkeypatch.setenv("PCONV_PHOTO", str(tmp_path/"a.png"))
    monkeypatch.setenv("PCONV_MODEL", "")
    cells = json.loads(write_app(tmp_path).read_text(encoding="utf-8"))["cells"]
    assert len(cells) == 1
    scope = {}
    exec(cells[0]["source"].replace("\napp()", "\nresult = app()"), scope)
    assert isinstance(scope["result"], InpaintWidget) and scope["result"].image.size == (44, 33) and scope["result"].model is None
    monkeypatch.delenv("PCONV_PHOTO")
    assert app().image.size == (256, 256)


def test_the_command_says_in_one_line_what_is_wrong(tmp_path, capsys, monkeypatch):
    (tmp_path/"bad.png").write_bytes(b"junk")
    served = []
    monkeypatch.setattr(widget, "serve", lambda *a: served.append(a))
    monkeypatch.setitem(sys.modules, "voila", ModuleType("voila"))
    for wrong, word in [(dict(photo=str(tmp_path/"none.png")), "no such file"), (dict(photo=str(tmp_path/"bad.png")), "not a picture"),
                        (dict(model=str(tmp_path/"none")), "weights in the package: drawn, faces"), (dict(port=0), "--port"), (dict(port=65536), "--port")]:
        with pytest.raises(SystemExit) as e: pconv("app", **wrong)
        err = capsys.readouterr().err
        assert e.value.code == 2 and word in err and len(err.splitlines()) == 1 and not served, err
    monkeypatch.setitem(sys.modules, "voila", None)
    with pytest.raises(SystemExit) as e: pconv("app")
    err = capsys.readouterr().err
    assert e.value.code == 2 and "voila is missing; install it: pip install 'pconv_course[app]'" in err and err.count("\n") == 1 and not served
    with pytest.raises(ImportError, match="voila is missing"): widget.open_app()


def test_the_command_hands_photo_and_model_over(tmp_path, monkeypatch):
    Image.fromarray(photo()).save(tmp_path/"a.png")
    monkeypatch.setitem(sys.modules, "voila", ModuleType("voila"))
    monkeypatch.setattr(widget, "serve", lambda path, port, no_browser, env: seen.append((path.name, path.is_file(), port, no_browser, env)))
    monkeypatch.chdir(tmp_path)
    seen = []
    assert pconv("app", photo="a.png", port=1234, no_browser=True) is None
    name, there, port, no_browser, env = seen[0]
    assert (name, there, port, no_browser) == ("pconv_app.ipynb", True, 1234, True)
    assert Path(env["PCONV_PHOTO"]) == tmp_path/"a.png" and env["PCONV_MODEL"] == "" and env["PATH"] == os.environ["PATH"]
    pconv("app", model="drawn", no_browser=True)
    assert seen[1][-1]["PCONV_MODEL"] == "drawn"  # weights of the package go by their name
    (tmp_path/"drawn").mkdir()
    pconv("app", model="drawn", no_browser=True)
    assert seen[2][-1]["PCONV_MODEL"] == "drawn"
    (tmp_path/"drawn"/"model.safetensors").touch()
    pconv("app", model="drawn", no_browser=True)
    assert seen[3][-1]["PCONV_MODEL"] == str(tmp_path/"drawn")  # unless a run is called so


def serve_with(folder, voila):
    "A process that serves with a module `voila` of this text in place of the real one."
    (folder/"voila").mkdir()
    (folder/"voila"/"__init__.py").write_text("")
    (folder/"voila"/"__main__.py").write_text(voila)
    listen = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # a background job may have been told to ignore it
    code = f"{listen}; import os, sys; from pconv_course.tools.widget import serve; serve('a.ipynb', 5, True, dict(os.environ, PYTHONPATH=os.getcwd()))"
    return subprocess.Popen([sys.executable, "-c", code], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_voila_that_fails_is_one_line(tmp_path):
    out, err = serve_with(tmp_path, "raise SystemExit(3)").communicate(timeout=60)
    assert err.splitlines()[-1].endswith("voila ended with exit code 3; is port 5 taken? give another --port")


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("stubborn", [False, True])
def test_a_signal_ends_voila_too(tmp_path, stop, stubborn):
    "Also one that reaches our process only, and also a voila that does not listen."
    process = serve_with(tmp_path, f"""
import os, signal, time
if {stubborn}: signal.signal(signal.SIGINT, signal.SIG_IGN)
try:
    print(os.getpid(), flush=True)
    time.sleep(60)
except KeyboardInterrupt: print("tidied up", flush=True)
""")
    child = int(process.stdout.readline())
    process.send_signal(stop)
    out, err = process.communicate(timeout=30)
    assert process.returncode == {signal.SIGTERM: 143, signal.SIGINT: -signal.SIGINT}[stop], err
    assert out.strip() == ("" if stubborn else "tidied up")
    with pytest.raises(ProcessLookupError): os.kill(child, 0)


def test_the_package_ships_its_javascript():
    assert {p.name for p in STATIC.iterdir()} >= {"widget.js", "widget.css"}
    code = "from pconv_course.tools.widget import STATIC; print((STATIC/'widget.js').is_file())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/").stdout.strip() == "True"
