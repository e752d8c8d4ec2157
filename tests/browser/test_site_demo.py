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
        if self.server.off: return self.send_error(503)
        super().do_GET()


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
        return np.array(self.page.evaluate("""() => { const c = document.querySelector('.pconv-stage canvas'), d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
          return Array.from({ length: c.height }, (_, y) => Array.from({ length: c.width }, (_, x) => d[4*(y*c.width + x) + 3])); }""")) > 0

    def stroke(self, start, end):
        "With the mouse; in parts of the picture's size."
        box = self.page.locator(".pconv-stage canvas").bounding_box()
        at = lambda p: (box["x"] + p[0]*box["width"], box["y"] + p[1]*box["height"])
        self.page.mouse.move(*at(start))
        self.page.mouse.down()
        self.page.mouse.move(*at(end), steps=8)
        self.page.mouse.up()
        self.settle()

    def settle(self):
        "Until everything asked for is done."
        self.page.wait_for_timeout(60)
        self.page.evaluate("async () => (await import('./demo.js')).act('toggle').then(async () => (await import('./demo.js')).act('toggle'))")

    def fill(self):
        self.button("Fill the hole").click()
        self.page.wait_for_function("/filled in/.test(document.getElementById('status').textContent) || document.getElementById('error').textContent")
        assert not self.error(), self.error()

    def give(self, data, name="photo.png", kind="image/png"):
        "A file as by the button that chooses one."
        self.page.locator("#file").set_input_files(dict(name=name, mimeType=kind, buffer=data))


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
