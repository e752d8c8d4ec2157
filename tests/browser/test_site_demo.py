"""The live demo of the site in a real browser, on a desktop and on a phone; and its JavaScript against `inpaint` of the package."""
import base64
import functools
import importlib.util
import io
import json
import shutil
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

TOP = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("demo_build", TOP/"nbs"/"demo"/"build.py")
demo_build = importlib.util.module_from_spec(spec)
spec.loader.exec_module(demo_build)
ours = demo_build.ours                                             # a function of the package, wherever it lives
SCREENS = dict(desktop=dict(viewport=dict(width=1280, height=900)),
               phone=dict(viewport=dict(width=390, height=844), device_scale_factor=2, is_mobile=True, has_touch=True))


class Files(SimpleHTTPRequestHandler):
    "A file server that can be switched off, and that writes down what it is asked for."
    extensions_map = {**SimpleHTTPRequestHandler.extensions_map, ".mjs": "text/javascript", ".js": "text/javascript", ".wasm": "application/wasm"}
    def log_message(self, *args): pass
    def do_GET(self):
        self.server.asked.append(self.path)
        if self.server.off: self.close_connection = True            # as if there were no connection: nothing comes back
        else: super().do_GET()


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    "The demo, built and served."
    if not shutil.which("npm") and not (demo_build.KEPT/"npm"/"lock").is_file(): pytest.skip("no npm; install Node.js")
    folder = tmp_path_factory.mktemp("site")
    demo_build.build(folder/"demo")
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Files, directory=str(folder)))
    server.asked, server.off, server.folder = [], False, folder/"demo"
    server.url = f"http://127.0.0.1:{server.server_port}/demo/"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown(), server.server_close()


class Demo:
    "The page as a person has it."
    def __init__(self, page): self.page = page
    def __getattr__(self, name): return getattr(self.page, name)
    def button(self, name): return self.page.get_by_role("button", name=name, exact=True)
    def status(self): return self.page.get_by_role("status").inner_text()
    def error(self): return self.page.locator("#error").inner_text()

    def pixels(self):
        "The photo as it is now, in full: uint8 (H,W,3)."
        w, h, data = self.page.evaluate("""async () => { const { now } = await import('./demo.js'), p = now().pixels;
          const { blobOf, whole } = await import('./photo.js'), b = new Uint8Array(await (await blobOf(whole(p))).arrayBuffer());
          let s = ''; for (let i = 0; i < b.length; i += 30000) s += String.fromCharCode(...b.subarray(i, i + 30000));
          return [p.width, p.height, btoa(s)]; }""")
        a = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))[..., :3]
        assert a.shape == (h, w, 3)
        return a

    def hole(self):
        "What is drawn, at the size of the view: bool (H,W)."
        data = self.page.evaluate("document.querySelector('.pconv-stage canvas').toDataURL()")
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(data.split(",")[1]))))[..., 3] > 0

    def stroke(self, start, end):
        "With the mouse; in parts of the picture's size. It counts once the page has it."
        canvas, before = self.page.locator(".pconv-stage canvas"), self.share()
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()
        at = lambda p: (box["x"] + p[0]*box["width"], box["y"] + p[1]*box["height"])
        self.page.mouse.move(*at(start))
        self.page.mouse.down()
        self.page.mouse.move(*at(end), steps=8)
        self.page.mouse.up()
        self.until(lambda: self.share() != before, "the stroke has arrived")

    def share(self): return self.page.evaluate("async () => (await import('./demo.js')).now().share")

    def until(self, condition, why):
        for _ in range(300):
            if condition(): return
            self.page.wait_for_timeout(50)
        raise AssertionError(why)

    def clear(self):
        self.button("Clear hole").click()
        self.until(lambda: not self.share(), "the hole is gone")

    def fill(self):
        self.button("Fill the hole").click()
        self.page.wait_for_function("/filled in/.test(document.getElementById('status').textContent) || document.getElementById('error').textContent")
        assert not self.error(), self.error()

    def give(self, data, name="photo.png", kind="image/png", size=None):
        "A file as by the button that chooses one; wait until the page shows its size, such as '40 × 30 px', or an error."
        self.page.locator("#file").set_input_files(dict(name=name, mimeType=kind, buffer=data))
        self.until(lambda: self.error() if size is None else self.page.locator("#size").inner_text() == size, f"{name} is neither opened nor refused")


def png(a):
    buffer = io.BytesIO()
    Image.fromarray(a).save(buffer, "PNG")
    return buffer.getvalue()


def face(side, seed=0):
    "A drawn face, uint8 (side,side,3), with a little grain, so that no two pixels are alike by chance."
    a = np.asarray(Image.fromarray(ours("draw_face")(seed, 256)).resize((side, side), Image.BICUBIC)).astype(int)
    return (a + np.random.default_rng(seed).integers(-6, 7, a.shape)).clip(0, 255).astype(np.uint8)


@pytest.fixture
def visit(chromium, site):
    "Open the demo on a screen of its own: fresh caches, nothing stored."
    contexts = []
    def make(screen="desktop", **kw):
        context = chromium.new_context(**SCREENS[screen], **kw)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(90_000)
        page.errors, page.hosts = [], set()
        page.on("pageerror", lambda e: page.errors.append(str(e)))
        page.on("console", lambda m: page.errors.append(m.text) if m.type == "error" else None)
        page.on("request", lambda r: page.hosts.add(urlsplit(r.url.removeprefix("blob:")).hostname))
        page.goto(site.url)
        page.wait_for_selector("body.ready")
        return Demo(page)
    yield make
    for c in contexts: c.close()


# -- against Python
# (height, width, kind of hole): from one window of a small photo to windows of several scales, cut parts and many specks
PAIRS = [(64, 64, "central"), (64, 97, "strokes"), (100, 80, "half"), (128, 128, "specks"), (150, 333, "strokes"), (200, 200, "all but a corner"),
         (255, 257, "central"), (256, 256, "strokes"), (257, 300, "line"), (300, 220, "specks"), (352, 352, "strokes"), (400, 640, "two scales"),
         (512, 512, "central"), (600, 450, "two scales"), (640, 300, "half"), (777, 1000, "line"), (900, 1200, "central"), (1024, 768, "two scales"),
         (1500, 1100, "half"), (1500, 1500, "two scales")]

def hole_of(kind, h, w, rng):
    "Bool (H,W), True = hole."
    y, x = np.mgrid[:h, :w]
    disc = lambda cy, cx, r: (y - cy*h)**2 + (x - cx*w)**2 < (r*min(h, w))**2
    if kind == "central": return disc(.5, .5, .25)
    if kind == "half": return x < w//2
    if kind == "all but a corner": return (y > h//3) | (x > w//3)
    if kind == "line": return np.abs(y*w - x*h + h*w//9) < 5*np.hypot(h, w)
    if kind == "specks": return sum(disc(*rng.random(2), .02) for _ in range(12)) > 0
    if kind == "two scales": return disc(.4, .4, .18) | disc(.8, .8, .02) | (np.abs(x - int(.75*w)) < 3) & (y < h//5)
    return ours("resize_nearest")(ours("stroke_mask")(rng, 128, (.05, .2)), (h, w)) == 0


def scene(h, w, seed):
    "A drawn face cut to h x w."
    side = max(h, w)
    return np.ascontiguousarray(face(side, seed)[(side - h)//2:(side - h)//2 + h, (side - w)//2:(side - w)//2 + w])


def onnx_net(site):
    "The very file that the page loads, as a network for `inpaint`."
    import torch
    session = ours("open_onnx")(str(site.folder/"model.onnx"), 1)
    return lambda x, m: torch.from_numpy(session.run(None, dict(x=x.numpy(), m=m.numpy()))[0])


IN_PAGE = """async ([photo, mask]) => {
  const { engine } = await import('./demo.js'), { open, whole, blobOf } = await import('./photo.js');
  const file = async s => new File([await (await fetch('data:image/png;base64,' + s)).blob()], 'a.png');
  const { pixels } = await open(await file(photo)), hole = Uint8Array.from((await open(await file(mask))).pixels.data.filter((_, i) => i%4 === 0), v => v < 128);
  await engine.load(await (await fetch('assets.json')).json(), false);
  const { image, windows } = await engine.fill(pixels, hole), b = new Uint8Array(await (await blobOf(whole(image))).arrayBuffer());
  let s = ''; for (let i = 0; i < b.length; i += 30000) s += String.fromCharCode(...b.subarray(i, i + 30000));
  return [windows, btoa(s)]; }"""


def test_the_page_fills_as_python_does(visit, site, record_property):
    "The same pixels in and the same network file: no pixel further off than two grey levels, and the same number of windows."
    demo, net, size, worst = visit(), onnx_net(site), json.loads((site.folder/"assets.json").read_text())["size"], []
    for i, (h, w, kind) in enumerate(PAIRS):
        photo, hole, windows = scene(h, w, i), hole_of(kind, h, w, np.random.default_rng(i)), []
        want = ours("inpaint")(photo, np.where(hole, 0, 255).astype(np.uint8), (net, size), hole="black", progress=lambda n, total: windows.append(total))
        took, data = demo.evaluate(IN_PAGE, [base64.b64encode(png(a)).decode() for a in (photo, np.where(hole, 0, 255).astype(np.uint8).repeat(3).reshape(h, w, 3))])
        got = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))[..., :3].astype(int)
        off = np.abs(got - want)
        assert np.array_equal(got[~hole], photo[~hole]) and (want[hole] != photo[hole]).any()
        assert took == windows[-1], f"{h} x {w}, {kind}: {took} windows, Python takes {windows[-1]}"
        worst.append(int(off.max()))
        assert worst[-1] <= 2, f"{h} x {w}, {kind}: off by {worst[-1]}, {(off > 2).any(2).sum()} pixels"
    record_property("worst", worst)
    print("largest differences, grey levels:", worst)


MASKS = dict(thousands=lambda y, x: (y%17 < 2) & (x%19 < 2), large=lambda y, x: (y > 300) & (y < 1900) & (x > 200) & (x < 2500),
             rings=lambda y, x: np.abs(np.hypot(y - 900, x - 1200) % 130 - 60) < 8, edges=lambda y, x: (y < 5) | (x < 90) | (np.abs(y - x) < 3))


@pytest.mark.parametrize("kind", MASKS)
def test_the_windows_are_those_of_python(visit, kind):
    "Beyond 2,048 px holes are looked at in cells, and thousands of parts are cut on one grid."
    y, x = np.mgrid[:1940, :2611]
    hole = MASKS[kind](y, x)
    plan = ours("plan_windows")((~hole).astype(np.uint8), 256)
    want = [[w.y, w.x, w.scale, w.size, *w.box] for w in plan.windows]
    got = visit().evaluate("""async ([packed, w, h]) => { const { planWindows } = await import('./windows.js'), bits = Uint8Array.from(atob(packed), c => c.charCodeAt(0));
      const hole = Uint8Array.from({ length: w*h }, (_, i) => bits[i >> 3] >> (7 - i%8) & 1);
      return planWindows(hole, w, h, 256).windows.map(o => [o.y, o.x, o.scale, o.size, ...o.box]); }""", [base64.b64encode(np.packbits(hole).tobytes()).decode(), 2611, 1940])
    assert got == want


# -- what a person does
@pytest.mark.parametrize("screen", SCREENS)
def test_draw_fill_and_undo(visit, site, shot, screen):
    site.asked.clear()
    demo = visit(screen)
    assert demo.share() > .01 and demo.button("Fill the hole").is_enabled(), "the page opens with the portrait and a few scratches on it"
    assert not [f for f in site.asked if ".wasm" in f or ".onnx" in f or ".mjs" in f], "nothing large before the click"
    demo.clear()
    shot(demo.page, f"demo-{screen}-open")
    photo = demo.pixels()
    demo.stroke((.25, .3), (.7, .65))
    hole = demo.hole()
    assert photo.shape == (256, 256, 3) and .01 < hole.mean() < .1 and hole[77, 64] and hole[166, 179], "the stroke lies where the mouse was"
    demo.fill()
    assert demo.evaluate("document.activeElement.id") == "split", "the focus is not lost"
    shot(demo.page, f"demo-{screen}-filled")
    filled = demo.pixels()
    changed = (filled != photo).any(2)
    assert (changed <= hole).all() and changed[hole].mean() > .9, "pixels change inside of the hole and nowhere else"
    assert f"{hole.sum():,} pixels filled" in demo.status() and not demo.hole().any()
    demo.button("Undo").click()
    demo.until(lambda: np.array_equal(demo.hole(), hole), "undo brings the hole back")
    assert np.array_equal(demo.pixels(), photo), "and the photo"
    demo.button("Redo").click()
    demo.until(lambda: not demo.hole().any(), "redo takes the hole away")
    assert np.array_equal(demo.pixels(), filled)
    assert demo.hosts <= {"127.0.0.1", None, ""} and not demo.errors, (demo.hosts, demo.errors)
    assert {urlsplit(f).path for f in site.asked} >= {"/demo/model.onnx", "/demo/ort-wasm-simd-threaded.wasm"} and not [f for f in site.asked if "asyncify" in f]


def test_strokes_erase_and_brush(visit):
    demo = visit()
    demo.clear()
    demo.stroke((.1, .2), (.5, .2))
    one = demo.hole()
    demo.page.locator("#brush").fill("60")
    demo.stroke((.1, .7), (.5, .7))
    two = demo.hole()
    assert (two >= one).all() and two[148:].sum() > 1.8*one.sum() and demo.page.locator("#px").inner_text() == "60 px"
    demo.page.get_by_role("checkbox", name="Erase").check()
    demo.stroke((.3, .1), (.3, .9))
    assert demo.hole().sum() < two.sum() and not demo.hole()[51, 77]
    for _ in range(2): demo.button("Undo").click()
    demo.until(lambda: np.array_equal(demo.hole(), one), "stroke by stroke back")


def test_keyboard_only(visit, shot):
    demo = visit()
    page = demo.page
    demo.clear()
    photo = demo.pixels()
    for _ in range(20):
        page.keyboard.press("Shift+Tab")
        if page.evaluate("document.activeElement.tagName") == "CANVAS": break
    else: raise AssertionError("Tab does not reach the canvas")
    for key in ["Home"] + ["ArrowLeft"]*4 + [" "] + ["ArrowRight"]*8 + [" "]: page.keyboard.press(key)
    demo.until(demo.share, "the stroke has arrived")
    assert "cursor at 160, 128" in page.locator(".pconv-say").inner_text(), "the position is said"
    hole = demo.hole()
    assert hole[128, 96:160].all() and not hole[:116].any()
    shot(page, "demo-keyboard")
    page.keyboard.press("Enter")
    page.wait_for_function("/filled in/.test(document.getElementById('status').textContent)")
    assert page.evaluate("document.activeElement.tagName") == "CANVAS", "the focus stays"
    assert "0% of it hole" in page.locator(".pconv-stage canvas").get_attribute("aria-label")
    page.keyboard.press("z")
    demo.until(lambda: np.array_equal(demo.hole(), hole), "z undoes the filling")
    assert np.array_equal(demo.pixels(), photo)
    page.keyboard.press("Delete")
    demo.until(lambda: not demo.share(), "Delete clears")
    page.keyboard.press("Enter")
    demo.until(lambda: "no hole yet" in demo.error(), "what is wrong is said")


def test_a_finger_draws(visit):
    demo = visit("phone")
    demo.clear()
    demo.page.locator("#stage").scroll_into_view_if_needed()
    box, cdp = demo.page.locator(".pconv-stage canvas").bounding_box(), demo.page.context.new_cdp_session(demo.page)
    point = lambda u, v: [dict(x=box["x"] + u*box["width"], y=box["y"] + v*box["height"])]
    cdp.send("Input.dispatchTouchEvent", dict(type="touchStart", touchPoints=point(.2, .2)))
    for t in np.linspace(.2, .6, 6): cdp.send("Input.dispatchTouchEvent", dict(type="touchMove", touchPoints=point(float(t), .2)))
    cdp.send("Input.dispatchTouchEvent", dict(type="touchEnd", touchPoints=[]))
    demo.until(demo.share, "the stroke has arrived")
    assert demo.hole()[51, 55:149].all()


def test_before_after_and_download(visit):
    demo = visit()
    photo = demo.pixels()
    assert demo.page.locator("#split").is_disabled()
    demo.fill()
    clip = lambda: demo.page.locator(".pconv-before").evaluate("e => e.style.clipPath")
    assert clip() == "inset(0px 100% 0px 0px)", "after a fill the result is shown"
    demo.page.locator("#split").focus()
    for _ in range(30): demo.page.keyboard.press("ArrowRight")
    assert clip() == "inset(0px 70% 0px 0px)", "the slider uncovers the photo before"
    with demo.page.expect_download() as wait: demo.button("Download PNG").click()
    assert wait.value.suggested_filename == "portrait-filled.png"
    saved = np.asarray(Image.open(wait.value.path()).convert("RGB"))
    assert np.array_equal(saved, demo.pixels()) and (saved != photo).any()


def test_offline_after_the_first_fill(visit, site):
    demo = visit()
    demo.fill()
    demo.page.evaluate("navigator.serviceWorker.ready.then(r => r.active.state)")
    site.off = True
    try:
        demo.page.reload()
        demo.page.wait_for_selector("body.ready")
        site.asked.clear()
        demo.fill()
    finally: site.off = False


def test_no_connection_is_one_line(visit, site):
    demo = visit()
    site.off = True
    try:
        demo.button("Fill the hole").click()
        demo.until(demo.error, "it is said")
    finally: site.off = False
    assert "connection" in demo.error() and demo.share() and demo.button("Fill the hole").is_enabled()
    demo.fill()


def test_stop(visit):
    "What takes long can be stopped; the hole stays, and the next fill works."
    demo = visit()
    demo.give(png(face(900)), size="900 × 900 px")
    demo.page.locator("#brush").fill("3")
    for v in np.linspace(.05, .95, 8): demo.stroke((.05, v), (.95, v))
    share = demo.share()
    demo.button("Fill the hole").click()
    demo.page.wait_for_function("/window [2-9] of/.test(document.getElementById('doing').textContent)")
    demo.button("Stop").click()
    demo.until(lambda: "Stopped" in demo.status(), "it is said")
    assert demo.share() == share and demo.button("Fill the hole").is_enabled() and not demo.error()
    demo.clear()
    demo.stroke((.4, .5), (.6, .5))
    demo.fill()


def test_a_graphics_card_that_fails_is_no_harm(visit):
    "The program for WebGPU in a browser without it: the processor does the work and the page says so."
    demo = visit()
    assert demo.page.locator("#card").is_hidden(), "not offered where there is none"
    demo.evaluate("document.getElementById('gpu').checked = true")
    demo.fill()
    assert "processor did it" in demo.status() and "by the graphics card" not in demo.status()


# -- photos of all kinds
def jpeg(a, **kw):
    buffer = io.BytesIO()
    Image.fromarray(a).save(buffer, "JPEG", **kw)
    return buffer.getvalue()


@pytest.mark.parametrize("name,data,word", [("IMG_1.HEIC", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(300), "HEIC"), ("cat.png", b"no picture at all", "can't be opened"),
                                            ("half.png", png(face(64))[:900], "can't be opened"), ("empty.jpg", b"", "can't be opened"), ("a.pdf", b"%PDF-1.4", "can't be opened")])
def test_what_is_no_picture_is_one_line(visit, shot, name, data, word):
    demo = visit()
    before = demo.hole()
    demo.give(data, name, "image/heic" if "HEIC" in name else "image/png")
    assert name in demo.error() and word in demo.error() and "\n" not in demo.error()
    assert np.array_equal(demo.hole(), before) and demo.pixels().shape == (256, 256, 3), "what was there stays"
    if word == "HEIC": shot(demo.page, "demo-heic")


def test_a_turned_a_grey_and_a_transparent_photo(visit):
    demo, exif = visit(), Image.Exif()
    exif[274] = 6
    demo.give(jpeg(face(64)[:, :48], exif=exif), "turned.jpg", "image/jpeg", size="64 × 48 px")
    demo.give(png(face(80)[:50, :, 0]), "grey.png", size="80 × 50 px")
    clear = np.dstack([face(40), np.full((40, 40), 255, np.uint8)])
    clear[:20, :, 3] = 0
    demo.give(png(clear), "clear.png", size="40 × 40 px")
    assert (demo.pixels()[:20] == 255).all() and np.array_equal(demo.pixels()[20:], clear[20:, :, :3])
    demo.give(png(np.zeros((1, 1, 3), np.uint8)), "dot.png", size="1 × 1 px")
    demo.stroke((.5, .5), (.5, .5))
    demo.fill()


@pytest.mark.parametrize("screen", SCREENS)
def test_a_photo_of_4000_pixels(visit, shot, screen):
    demo, rng = visit(screen), np.random.default_rng(0)
    photo = np.asarray(Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).resize((4000, 3000), Image.BICUBIC))
    demo.give(jpeg(photo, quality=90), "large.jpg", "image/jpeg", size="4000 × 3000 px")
    demo.page.locator("#brush").fill("40")
    demo.stroke((.3, .5), (.6, .55))
    demo.evaluate("async () => { const p = (await import('./demo.js')).now(); window.was = { pixels: p.pixels, share: p.share, hole: p.hole }; }")
    demo.fill()
    shot(demo.page, f"demo-{screen}-4000")
    inside, outside, hole = demo.evaluate("""async () => { const { holeOf, stretch, viewSize } = await import('./photo.js'), { pixels } = (await import('./demo.js')).now();
      const size = viewSize(pixels), hole = stretch(await holeOf(was.hole, ...size), ...size, pixels.width, pixels.height), count = [0, 0, 0];
      for (let i = 0; i < hole.length; i++) { const changed = [0, 1, 2].some(c => pixels.data[4*i + c] !== was.pixels.data[4*i + c]); count[hole[i] ? 0 : 1] += changed, count[2] += hole[i]; }
      return count; }""")
    assert outside == 0 and inside > .9*hole and 100_000 < hole < 1_000_000
    demo.button("Undo").click()
    demo.until(demo.share, "undo")
    assert demo.evaluate("async () => (await import('./demo.js')).now().pixels === was.pixels") and not demo.errors


def test_a_drawing_is_stretched_as_in_python(visit):
    demo, hole = visit(), np.random.default_rng(0).random((13, 29)) < .3
    for shape in [(13, 29), (26, 58), (50, 91), (7, 100), (40, 11)]:
        got = demo.evaluate("async a => Array.from((await import('./photo.js')).stretch(...a))", [hole.ravel().astype(int).tolist(), 29, 13, shape[1], shape[0]])
        assert np.array_equal(np.array(got).reshape(shape), ours("resize_nearest")(hole, shape))


def test_a_larger_photo_is_scaled_and_said_so(visit):
    demo = visit()
    demo.give(jpeg(np.zeros((4500, 6000, 3), np.uint8)), "huge.jpg", "image/jpeg", size="4096 × 3072 px")
    assert "huge.jpg has 6000 × 4500 px; this page works at 4096 × 3072" in demo.status()
    demo.give(jpeg(np.zeros((90, 9000, 3), np.uint8)), "wide.jpg", "image/jpeg", size="4096 × 41 px")


@pytest.mark.parametrize("how", ["drop", "paste"])
def test_drop_and_paste(visit, how):
    demo = visit()
    demo.evaluate("""async ([how, s]) => { const t = new DataTransfer(), b = await (await fetch('data:image/png;base64,' + s)).blob();
      t.items.add(new File([b], 'given.png', { type: 'image/png' }));
      document.dispatchEvent(how === 'drop' ? new DragEvent('drop', { dataTransfer: t, bubbles: true }) : new ClipboardEvent('paste', { clipboardData: t, bubbles: true })); }""",
                  [how, base64.b64encode(png(face(77)[:55])).decode()])
    demo.until(lambda: demo.page.locator("#size").inner_text() == "77 × 55 px", "the photo is there")
    assert not demo.share() and np.array_equal(demo.pixels(), face(77)[:55])


# -- for everyone
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("screen", SCREENS)
def test_accessible_and_nothing_scrolls_sideways(visit, shot, screen, scheme):
    demo = visit(screen, color_scheme=scheme)
    for summary in demo.page.locator("summary").all(): summary.click()
    shot(demo.page, f"demo-{screen}-{scheme}")
    assert demo.evaluate("document.documentElement.scrollWidth <= innerWidth")
    axe = demo_build.KEPT/"npm"/"node_modules"/"axe-core"/"axe.min.js"
    demo.evaluate(axe.read_text(encoding="utf-8"))
    found = demo.evaluate("async () => (await axe.run()).violations.map(v => [v.impact, v.id, v.nodes.map(n => n.html)])")
    assert not found, found
    label = demo.page.locator(".pconv-stage canvas").get_attribute("aria-label")
    assert "256 by 256 pixels" in label and "Arrow keys" in label
    if screen == "phone":
        small = demo.evaluate("[...document.querySelectorAll('button')].filter(b => b.offsetParent && b.offsetHeight < 44).map(b => b.id)")
        assert not small, f"too small for a finger: {small}"


def test_the_licence_of_the_weights_is_beside_it(visit, site):
    demo = visit()
    facts = json.loads((site.folder/"assets.json").read_text())
    demo.page.get_by_text("Licences", exact=True).click()
    assert facts["licence"] in demo.page.locator("details").nth(2).inner_text()
    assert (site.folder/"weights-licence.txt").read_text() == (ours("weights_dir")()/"LICENCE.txt").read_text()


def test_the_lock_file_names_no_registry_and_git_stays_light():
    lock = json.loads((TOP/"nbs"/"demo"/"package-lock.json").read_text())
    hosts = {urlsplit(p["resolved"]).netloc for p in lock["packages"].values() if "resolved" in p}
    assert hosts <= {"registry.npmjs.org"} and all(p.get("integrity") for k, p in lock["packages"].items() if k)
    assert sum(f.stat().st_size for f in (TOP/"nbs"/"demo").iterdir() if f.is_file()) < 200_000
