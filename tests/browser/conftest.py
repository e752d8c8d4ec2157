"""A real browser (Debian's chromium by playwright) and three servers, voila, JupyterLab and Notebook 7, on the same small notebook."""
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

CHROMIUM = os.environ.get("PCONV_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SHOTS = Path(os.environ.get("PCONV_SHOTS", "")) if os.environ.get("PCONV_SHOTS") else None

# Two widgets on one page. The fill paints red, so that a changed pixel is a changed pixel; it says what it was given.
CELLS = ["""import numpy as np
from PIL import Image
from pconv_course.tools.widget import InpaintWidget
def red(image, known): return Image.fromarray(np.where(known[..., None] > 0, np.asarray(image), (255, 0, 0)).astype(np.uint8))
def photo(level): return np.repeat(np.linspace(level, level + 60, 200).astype(np.uint8)[None, :, None], 150, 0).repeat(3, 2)
first, second = InpaintWidget(photo(40), fill=red), InpaintWidget(photo(120), fill=red)""", "first", "second"]


def pytest_collection_modifyitems(items):
    for item in items: item.add_marker(pytest.mark.browser)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for(server, port, log, seconds=90):
    "Wait until a server answers."
    for _ in range(4*seconds):
        assert server.poll() is None, log.read_text()[-3000:]
        try: return socket.create_connection(("127.0.0.1", port), timeout=5).close()
        except OSError: time.sleep(.25)
    raise AssertionError(log.read_text()[-3000:])


def serve(command, port, folder):
    "Start a server, wait until it answers, end it (and only it) afterwards."
    with open(folder/"server.log", "wb") as log:
        server = subprocess.Popen([sys.executable, "-m", *command], cwd=folder, stdout=log, stderr=subprocess.STDOUT)
        try:
            wait_for(server, port, folder/"server.log")
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            try: server.wait(10)
            except subprocess.TimeoutExpired: server.kill()


@pytest.fixture(scope="session")
def notebook(tmp_path_factory):
    cells = [dict(cell_type="code", id=f"c{i}", metadata={}, source=o, outputs=[], execution_count=None) for i, o in enumerate(CELLS)]
    path = tmp_path_factory.mktemp("page")/"page.ipynb"
    kernel = dict(kernelspec=dict(name="python3", display_name="Python 3", language="python"))
    path.write_text(json.dumps(dict(cells=cells, metadata=kernel, nbformat=4, nbformat_minor=5)))
    return path


@pytest.fixture(scope="session")
def voila_url(notebook):
    port = free_port()
    yield from serve(["voila", notebook.name, "--no-browser", f"--port={port}"], port, notebook.parent)


def jupyter(module, app, folder):
    "JupyterLab or Notebook 7; the page may be driven through `window.jupyterapp`."
    port = free_port()
    command = [module, "--no-browser", f"--port={port}", "--allow-root", "--IdentityProvider.token=", "--ServerApp.password=", f"--ServerApp.root_dir={folder}",
               f"--{app}.user_settings_dir={folder}/settings", f"--{app}.workspaces_dir={folder}/workspaces", f"--{app}.expose_app_in_browser=True"]
    yield from serve(command, port, folder)


@pytest.fixture(scope="session")
def lab_url(notebook): yield from jupyter("jupyterlab", "LabApp", notebook.parent)


@pytest.fixture(scope="session")
def notebook7_url(notebook): yield from jupyter("notebook", "JupyterNotebookApp", notebook.parent)


class App:
    "The command `pconv app`, serving a photo in a group of processes of its own, as a terminal has one."
    def __init__(self, folder):
        self.log, self.port = folder/"app.log", free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.photo = np.repeat(np.linspace(40, 200, 200).astype(np.uint8)[None, :, None], 150, 0).repeat(3, 2)
        Image.fromarray(self.photo).save(folder/"photo.png")
        command = [sys.executable, "-m", "pconv_course", "app", "photo.png", "--no-browser", f"--port={self.port}"]
        with open(self.log, "wb") as log: self.process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        wait_for(self.process, self.port, self.log)

    def ctrl_c(self):
        "What a terminal does; the exit code and everything that was printed."
        os.killpg(self.process.pid, signal.SIGINT)
        return self.process.wait(30), self.log.read_text()


@pytest.fixture
def app(tmp_path):
    app = App(tmp_path)
    yield app
    with contextlib.suppress(ProcessLookupError): os.killpg(app.process.pid, signal.SIGKILL)


@pytest.fixture(scope="session")
def chromium():
    if not CHROMIUM: pytest.skip("no chromium; apt-get install chromium, or name one in PCONV_CHROMIUM")
    sync = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    with sync.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


@pytest.fixture
def new_page(chromium):
    pages = []
    def make(url, **kw):
        page = chromium.new_page(viewport=dict(width=1100, height=1200), **kw)
        page.set_default_timeout(60_000)
        page.errors = []
        page.on("pageerror", lambda e: page.errors.append(str(e)))
        page.goto(url)
        pages.append(page)
        return page
    yield make
    for p in pages: p.close()


@pytest.fixture
def shot(request):
    "Save a screenshot when PCONV_SHOTS names a folder."
    def take(page, name):
        if SHOTS:
            SHOTS.mkdir(parents=True, exist_ok=True)
            page.screenshot(path=SHOTS/f"{name}.png", full_page=True)
    return take
