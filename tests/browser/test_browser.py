"""What a person does with the widget, done by a real browser, in voila, JupyterLab and Notebook 7."""
import io
import socket
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

PICTURE = """async i => { const img = document.querySelectorAll('.pconv-after')[i];
  for (let n = 0; n < 50; n++) try { await img.decode(); return Array.from(new Uint8Array(await (await fetch(img.src)).arrayBuffer())); }
    catch { await new Promise(ok => setTimeout(ok, 50)); }                            // replaced in this moment by the next picture
}"""
HOLE = """async i => { const c = document.querySelectorAll('.pconv-stage canvas')[i];
  return Array.from(new Uint8Array(await (await new Promise(ok => c.toBlob(ok))).arrayBuffer())); }"""


class Desk:
    "One page with two widgets on it."
    def __init__(self, page): self.page = page
    def array(self, script, i): return np.asarray(Image.open(io.BytesIO(bytes(self.page.evaluate(script, i)))))
    def picture(self, i=0): return self.array(PICTURE, i)[..., :3]
    def hole(self, i=0): return self.array(HOLE, i)[..., 3] > 0
    def canvas(self, i=0): return self.page.locator(".pconv-stage canvas").nth(i)
    def button(self, name, i=0): return self.page.get_by_role("button", name=name, exact=True).nth(i)
    def status(self, i=0): return self.page.locator(".pconv-status").nth(i)

    def stroke(self, start, end, i=0):
        "Draw with the mouse; in parts of the picture's size."
        self.canvas(i).scroll_into_view_if_needed()
        box = self.canvas(i).bounding_box()
        at = lambda p: (box["x"] + p[0]*box["width"], box["y"] + p[1]*box["height"])
        self.page.mouse.move(*at(start))
        self.page.mouse.down()
        self.page.mouse.move(*at(end), steps=8)
        self.page.mouse.up()

    def until(self, condition, why):
        for _ in range(200):
            if condition(): return
            self.page.wait_for_timeout(100)
        raise AssertionError(why)

    def fill(self, i=0):
        before = self.picture(i)
        self.button("Fill the hole", i).click()
        self.until(lambda: not np.array_equal(self.picture(i), before), "nothing was filled")

    def reset(self, i=0):
        "Undo everything."
        for _ in range(40):
            self.page.wait_for_timeout(100)
            if self.button("Undo", i).is_disabled(): return
            self.button("Undo", i).click()
        raise AssertionError("Undo never ends")


@pytest.fixture(scope="module", params=["voila", "lab", "notebook7"])
def loaded(request, chromium):
    page = chromium.new_page(viewport=dict(width=1200, height=1300))
    page.set_default_timeout(120_000)
    page.errors, page.hosts = [], set()
    page.on("pageerror", lambda e: page.errors.append(str(e)))
    page.on("request", lambda r: page.hosts.add(urlsplit(r.url.removeprefix("blob:")).hostname))
    url = request.getfixturevalue(f"{request.param}_url")
    page.goto(url + dict(voila="", lab="/lab/tree/page.ipynb", notebook7="/notebooks/page.ipynb")[request.param], wait_until="commit")
    if request.param != "voila":
        page.wait_for_selector(".jp-Notebook .jp-Cell", state="attached")
        page.wait_for_function("window.jupyterapp && window.jupyterapp.shell.currentWidget && window.jupyterapp.shell.currentWidget.sessionContext?.session?.kernel")
        page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')")
    page.wait_for_function("document.querySelectorAll('.pconv-after').length == 2 && [...document.querySelectorAll('.pconv-after')].every(i => i.complete && i.naturalWidth == 200)")
    page.where = request.param
    yield page
    page.close()


@pytest.fixture
def desk(loaded):
    desk = Desk(loaded)
    yield desk
    for i in (0, 1): desk.reset(i)


def test_draw_with_the_mouse_fill_and_undo(desk, shot):
    photo = desk.picture()
    assert photo.shape == (150, 200, 3) and not desk.hole().any()
    desk.stroke((.2, .3), (.7, .6))
    hole = desk.hole()
    assert .005 < hole.mean() < .1 and hole[45:50, 38:44].any() and hole[88:92, 136:142].any(), "the stroke lies where the mouse was"
    shot(desk.page, f"{desk.page.where}-drawn")
    desk.fill()
    filled = desk.picture()
    assert np.array_equal((filled != photo).any(2), hole), "pixels change inside of the drawn hole, in all of it, and nowhere else"
    assert (filled[hole] == (255, 0, 0)).all()
    desk.until(lambda: not desk.hole().any(), "the hole is gone")
    assert "filled" in desk.status().inner_text()
    shot(desk.page, f"{desk.page.where}-filled")
    desk.button("Undo").click()
    desk.until(lambda: np.array_equal(desk.picture(), photo), "undo brings the photo back")
    desk.until(lambda: np.array_equal(desk.hole(), hole), "and the hole")
    desk.button("Redo").click()
    desk.until(lambda: np.array_equal(desk.picture(), filled), "redo brings the result back")


def test_a_pen_of_one_pixel_draws_wherever_it_is_put(desk):
    "Between pixels, at the edge of the picture, and by the keyboard."
    canvas, n = desk.canvas(1), 0
    for _ in range(20): canvas.press("[")
    desk.page.wait_for_timeout(300)
    for x, y in ((.2, .2), (.4013, .4017), (.602, .6041), (.9999, .9999), (.0001, .5)):
        desk.stroke((x, y), (x, y), i=1)
        assert desk.hole(1).sum() > n, f"a click at {x}, {y} drew nothing"
        n = desk.hole(1).sum()
    for key in ("Home", " ", " "): canvas.press(key)
    desk.until(lambda: desk.hole(1).sum() > n, "nor did the space bar")
    for _ in range(4): canvas.press("]")


def test_strokes_add_up_and_are_undone_one_by_one(desk):
    desk.stroke((.1, .2), (.4, .2))
    one = desk.hole()
    desk.stroke((.1, .8), (.4, .8))
    two = desk.hole()
    assert (two >= one).all() and two.sum() > 1.5*one.sum()
    desk.button("Undo").click()
    desk.until(lambda: np.array_equal(desk.hole(), one), "the first stroke stays")
    desk.button("Undo").click()
    desk.until(lambda: not desk.hole().any(), "both are gone")


def test_keyboard_only(desk, shot):
    "No mouse: Tab to the canvas, arrows, space, Enter, z."
    page, photo = desk.page, desk.picture()
    page.get_by_role("slider").first.focus()
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.tagName") == "CANVAS": break
    else: raise AssertionError("Tab does not reach the canvas")
    for key in ["Home"] + ["ArrowLeft"]*3 + [" "] + ["ArrowRight"]*8 + ["Shift+ArrowDown"]*2 + [" "]: page.keyboard.press(key)
    assert "cursor at 120, 77" in page.locator(".pconv-say").first.inner_text(), "the position is said: 100 - 12 + 32, 75 + 2"
    desk.until(lambda: not desk.button("Undo").is_disabled(), "the stroke has arrived")
    hole = desk.hole()
    assert hole[75, 88:120].all() and not hole[:70].any() and not hole[82:].any()
    shot(page, f"{page.where}-keyboard")
    page.keyboard.press("Enter")
    desk.until(lambda: not np.array_equal(desk.picture(), photo), "Enter fills")
    assert np.array_equal((desk.picture() != photo).any(2), hole)
    assert page.evaluate("document.activeElement.tagName") == "CANVAS", "the focus stays"
    page.keyboard.press("z")
    desk.until(lambda: np.array_equal(desk.picture(), photo) and np.array_equal(desk.hole(), hole), "z undoes the filling")
    page.keyboard.press("Delete")
    desk.until(lambda: not desk.hole().any(), "Delete clears")


def test_the_second_widget_lives_on_its_own(desk, shot):
    first, second = desk.picture(0), desk.picture(1)
    assert not np.array_equal(first, second)
    desk.stroke((.3, .5), (.6, .5), i=1)
    hole = desk.hole(1)
    assert hole.any() and not desk.hole(0).any()
    desk.fill(1)
    assert np.array_equal((desk.picture(1) != second).any(2), hole) and np.array_equal(desk.picture(0), first)
    assert desk.button("Undo", 0).is_disabled() and not desk.button("Undo", 1).is_disabled()
    shot(desk.page, f"{desk.page.where}-second")


def test_erase_brush_and_random_holes(desk):
    desk.stroke((.1, .5), (.9, .5))
    whole = desk.hole()
    desk.page.get_by_role("checkbox", name="Erase").first.check()
    desk.canvas().focus()
    desk.page.keyboard.press("]")
    desk.until(lambda: desk.page.locator(".widget-readout").first.inner_text() != "8", "] makes the brush thicker")
    desk.stroke((.5, .3), (.5, .7))
    left = desk.hole()
    assert (left <= whole).all() and whole.sum() - left.sum() > 50 and not left[75, 100]
    desk.page.get_by_role("checkbox", name="Erase").first.uncheck()
    desk.canvas().focus()
    desk.page.keyboard.press("[")
    for name in ("Random stroke", "Random sparse", "Random centre"):
        desk.button("Clear hole").click()
        desk.until(lambda: not desk.hole().any(), "cleared")
        desk.button(name).click()
        desk.until(lambda: desk.hole().mean() > .03, f"{name} adds a hole")


def test_a_finger_draws(desk):
    "Touch events, as the browser makes them of a finger."
    desk.canvas().scroll_into_view_if_needed()
    box, cdp = desk.canvas().bounding_box(), desk.page.context.new_cdp_session(desk.page)
    point = lambda u, v: [dict(x=box["x"] + u*box["width"], y=box["y"] + v*box["height"])]
    cdp.send("Input.dispatchTouchEvent", dict(type="touchStart", touchPoints=point(.2, .2)))
    for t in np.linspace(.2, .6, 6): cdp.send("Input.dispatchTouchEvent", dict(type="touchMove", touchPoints=point(float(t), .2)))
    cdp.send("Input.dispatchTouchEvent", dict(type="touchEnd", touchPoints=[]))
    desk.until(lambda: not desk.button("Undo").is_disabled(), "the stroke has arrived")
    assert desk.hole()[30, 45:115].all()


def test_before_and_after(desk):
    desk.stroke((.2, .4), (.8, .4))
    desk.fill()
    clip = lambda: desk.page.locator(".pconv-before").first.evaluate("e => e.style.clipPath")
    assert clip() == "inset(0px 100% 0px 0px)", "after a run the result is shown"
    handle = desk.page.get_by_role("slider").nth(1)
    handle.focus()
    for _ in range(3): desk.page.keyboard.press("ArrowRight")
    desk.until(lambda: clip() != "inset(0px 100% 0px 0px)", "the slider uncovers the photo before")


def test_errors_are_shown_in_the_widget(desk, shot):
    desk.canvas().focus()
    desk.page.keyboard.press("Enter")
    alert = desk.page.get_by_role("alert").first
    desk.until(lambda: alert.count() and "no hole yet" in alert.inner_text(), "an alert says that there is no hole")
    shot(desk.page, f"{desk.page.where}-error")


def test_download_gives_the_picture(desk):
    desk.stroke((.2, .4), (.8, .4))
    desk.fill()
    with desk.page.expect_download() as wait: desk.button("Download").click()
    assert wait.value.suggested_filename == "repaired.png"
    assert np.array_equal(np.asarray(Image.open(wait.value.path())), desk.picture())


def test_names_for_screen_readers(desk):
    label = desk.canvas().get_attribute("aria-label")
    assert "200 by 150 pixels" in label and "Arrow keys" in label and desk.canvas().get_attribute("role") == "application"
    for name in ("Undo", "Redo", "Clear hole", "Fill the hole", "Download"): assert desk.button(name).count() == 1
    assert desk.page.get_by_label("Erase").first.count() and desk.page.get_by_label("Preview while drawing").first.count()


def test_nothing_of_ours_fails_or_is_fetched_from_elsewhere(desk):
    assert not [e for e in desk.page.errors if "pconv" in e or "widget.js" in e], desk.page.errors
    foreign = desk.page.hosts - {"127.0.0.1", "localhost", None}
    assert foreign <= ({"cdn.jsdelivr.net"} if desk.page.where == "voila" else set()), "voila's own template asks there for its icons, nobody else does"


def test_the_installed_command(chromium, app, shot):
    "`pconv app photo.png`: the photo is there, the network of the package fills what is drawn, Ctrl-C ends it all with one line."
    page = chromium.new_page(viewport=dict(width=1100, height=1000))
    page.set_default_timeout(120_000)
    page.goto(app.url, wait_until="commit")
    page.wait_for_function("[...document.querySelectorAll('.pconv-after')].filter(i => i.complete && i.naturalWidth == 200).length == 1")
    desk = Desk(page)
    assert np.array_equal(desk.picture(), app.photo) and desk.button("Undo").is_disabled()
    desk.stroke((.2, .3), (.7, .6))
    hole = desk.hole()
    assert .005 < hole.mean() < .1
    desk.button("Fill the hole").click()
    page.wait_for_function("document.querySelector('.pconv-status')?.innerText.startsWith('filled')")
    desk.until(lambda: not desk.hole().any(), "the hole is gone")
    changed = (desk.picture() != app.photo).any(2)
    assert (changed <= hole).all() and changed[hole].mean() > .5, "known pixels stay, the hole is filled"
    shot(page, "app-filled")
    page.close()
    code, said = app.ctrl_c()
    assert code == 130 and said.splitlines().count("pconv app: stopped") == 1 and "Traceback" not in said, said[-2000:]
    with pytest.raises(OSError): socket.create_connection(("127.0.0.1", app.port), timeout=5)
