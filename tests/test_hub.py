"""FFHQ at the door: two client libraries against local servers that hang up, refuse and lie; masks of either polarity."""
import base64
import csv
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from calling import MODULE, pconv
from pconv_course.base import core
from pconv_course import data
from pconv_course.tools import ffhq
from pconv_course.base.pixels import FaceWarning
from pconv_course.base.core import InputError, read_json
from pconv_course.data import FaceFiles, face_dls
from pconv_course.masks import MaskBank, hole_ratio, stroke_mask

NUMBERS = [*range(10), 800, 801, 50000, 50001, 60000]
HELD = ["00800", "00801", "50000", "50001", "60000"]
KAGGLE = ffhq.COPIES[0].id


def pictures(suffix, size=128, numbers=NUMBERS, prefix=""):
    "{name: bytes} of smooth coloured pictures; the first eight have the official colours in their quarters."
    rng, out = np.random.default_rng(0), {}
    for n, k in enumerate(numbers):
        quarters = ffhq.QUARTERS[k] if k < 8 else rng.integers(0, 256, 12)
        img = Image.fromarray(quarters.reshape(2, 2, 3).astype(np.uint8)).resize((size, size), Image.Resampling.NEAREST)
        f = io.BytesIO()
        noise = np.asarray(img, float) + rng.normal(0, 6, (size, size, 3))
        Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(f, "PNG" if suffix == ".png" else "JPEG", **({} if suffix == ".png" else dict(quality=95)))
        out[f"{prefix}{k:05d}{suffix}"] = f.getvalue()
    return out


def zipped(files):
    f = io.BytesIO()
    with zipfile.ZipFile(f, "w") as z:
        for name, content in files.items(): z.writestr(zipfile.ZipInfo(name), content)
    return f.getvalue()


FFHQ_ZIP = zipped(pictures(".png", prefix="FFHQ_128/"))


class Fake(BaseHTTPRequestHandler):
    "What a test says the host shall do: `content`, `cut` (hang up after so many bytes), `status`, `hash` (of other content)."
    def log_message(self, *a): pass

    def send(self, status, body=b"", **headers):
        self.send_response(status)
        for k, v in {"Content-Length": len(body), **headers}.items(): self.send_header(k.replace("_", "-"), str(v))
        self.end_headers()
        if self.command != "HEAD": self.wfile.write(body)

    def send_part(self, **headers):
        "The file from the byte that the Range header asks for, or the beginning of it."
        s, wanted = self.server, self.headers.get("Range") if not self.server.no_ranges else None
        start = int(re.match(r"bytes=(\d+)-", wanted)[1]) if wanted else 0
        s.log.append((self.command, start))
        body = s.content[start:]
        self.send_response(206 if wanted else 200)
        ranges = {"Accept-Ranges": "bytes", **({"Content-Range": f"bytes {start}-{len(s.content) - 1}/{len(s.content)}"} if wanted else {})}
        for k, v in {"Content-Length": len(body), **ranges, **headers}.items(): self.send_header(k, str(v))
        self.end_headers()
        if self.command == "HEAD": return
        self.wfile.write(body if s.cut is None else body[:max(0, s.cut - start)])
        if s.cut is not None: self.close_connection = True


class FakeHF(Fake):
    def do_HEAD(self): self.do_GET()

    def do_GET(self):
        s = self.server
        if "/resolve/" not in self.path: return self.send(404)
        s.tokens.append(self.headers.get("Authorization"))
        if s.status and (s.only is None or self.command == s.only): return self.send(s.status, b"no", **s.headers)
        self.send_part(**{"X-Repo-Commit": "c"*40, "ETag": f'"{hashlib.sha256(s.hash or s.content).hexdigest()}"'})


class FakeKaggle(Fake):
    def do_POST(self):
        s, n = self.server, int(self.headers.get("Content-Length") or 0)
        asked = json.loads(self.rfile.read(n) or b"{}")
        s.asked.append((self.path.rsplit("/", 1)[-1], asked))
        if s.status: return self.send(s.status, json.dumps(dict(code=s.status, message="no")).encode(), Content_Type="application/json")
        if self.path.endswith("GetDataset"): return self.send(200, json.dumps(dict(currentVersionNumber=3)).encode(), Content_Type="application/json")
        self.send(302, Location=f"http://localhost:{s.server_port}/storage/archive.zip")

    def do_GET(self):
        s = self.server
        md5 = base64.b64encode(hashlib.md5(s.hash or s.content).digest()).decode()
        self.send_part(**{"Content-Type": "application/zip", "x-goog-hash": f"crc32c=AAAA,md5={md5}"})


def serve(handler):
    server = ThreadingHTTPServer(("localhost", 0), handler)
    server.content, server.cut, server.status, server.hash, server.only, server.headers, server.no_ranges = b"", None, None, None, None, {}, False
    server.log, server.asked, server.tokens = [], [], []
    threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=.02), daemon=True).start()
    return server


@pytest.fixture(autouse=True)
def own_homes(tmp_path, monkeypatch):
    "No credentials, no caches but those of this test; nobody waits."
    for k in ("HF_TOKEN", "KAGGLE_USERNAME", "KAGGLE_KEY", "KAGGLE_API_TOKEN", "KAGGLE_KERNEL_RUN_TYPE"): monkeypatch.delenv(k, raising=False)
    for k in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"): monkeypatch.delenv(k, raising=False)
    for k, v in dict(PCONV_CACHE="cache", HOME="home", KAGGLEHUB_CACHE="kaggle", KAGGLE_CONFIG_DIR="none").items():
        (tmp_path / v).mkdir(exist_ok=True)
        monkeypatch.setenv(k, str(tmp_path / v))
    monkeypatch.setattr(ffhq.time, "sleep", lambda s: None)


@pytest.fixture
def hf(tmp_path, monkeypatch):
    "A local Hugging Face with the zip of fifteen faces."
    constants = pytest.importorskip("huggingface_hub.constants")
    server = serve(FakeHF)
    server.content = FFHQ_ZIP
    url = f"http://localhost:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 5000)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 5)
    yield server
    server.shutdown(), server.server_close()


@pytest.fixture
def kaggle(tmp_path, monkeypatch):
    "A local Kaggle with the same faces, as its library sees them."
    pytest.importorskip("kagglehub")
    from kagglehub import clients
    from kagglesdk import kaggle_env
    server = serve(FakeKaggle)
    server.content = zipped(pictures(".png", size=128))
    monkeypatch.setenv("KAGGLE_API_ENVIRONMENT", "LOCALHOST")
    monkeypatch.setitem(kaggle_env._env_to_endpoint, kaggle_env.KaggleEnv.LOCAL, f"http://localhost:{server.server_port}")
    monkeypatch.setattr(clients, "CHUNK_SIZE", 5000)
    monkeypatch.setattr(clients, "get_user_agent", lambda: "kagglehub")  # the real one looks through the whole call stack, seconds under pytest
    yield server
    server.shutdown(), server.server_close()


def command(*args, **kw):
    "(exit code, stderr lines, stdout) of `pconv data`, called as Python calls it."
    from contextlib import redirect_stderr, redirect_stdout
    err, out, code = io.StringIO(), io.StringIO(), 0
    with redirect_stderr(err), redirect_stdout(out):
        try: pconv("data", *args, **kw)
        except SystemExit as e: code = e.code
    return code, err.getvalue().splitlines(), out.getvalue()


def fetch_ffhq(source, out, **kw): return command("ffhq", source=source, size=128, out=str(out), **kw)


def downloads(tmp_path): return sorted(p.name for d in (tmp_path / "kaggle", tmp_path / "out.download") if d.exists() for p in d.rglob("*") if p.is_file())


# The whole way

@pytest.mark.parametrize("source", ["hf", "kaggle"])
def test_from_the_host_to_the_loop(source, request, tmp_path):
    request.getfixturevalue(source)
    code, err, out = fetch_ffhq(source, tmp_path / "out")
    assert (code, err) == (0, []), err
    assert "NON-COMMERCIAL" in out and "15 faces of 128 px" in out and "10 to train on, 5 held out" in out and "no longer needed" in out
    m = read_json(tmp_path / "out" / "manifest.json")
    assert m["valid"] == HELD and m["train"] == [f"{k:05d}" for k in range(10)]
    text = (tmp_path / "out" / "LICENCE.txt").read_text(encoding="utf-8")
    assert "CC BY-NC-SA 4.0" in text and "face recognition" in text
    origin = read_json(tmp_path / "out" / "source.json")
    assert origin["source"] == source and origin["id"] in [c.id for c in ffhq.COPIES] and str(tmp_path) not in json.dumps(origin)
    before = [p.stat().st_mtime_ns for p in (tmp_path / "out" / "cache").glob("*.npy")]
    dls = face_dls(tmp_path / "out", 128, bs=4, device="cpu")
    assert len(before) == 1 and dls.train_ds.cache.path.stat().st_mtime_ns == before[0], "the loop finds the cache, and makes none"
    assert sorted(dls.valid_ds.ids) == HELD and next(iter(dls.train))[0].shape == (4, 3, 128, 128)


def test_two_sources_make_the_same_faces(hf, kaggle, tmp_path):
    hf.content = kaggle.content
    (tmp_path / "mine.zip").write_bytes(kaggle.content)
    with zipfile.ZipFile(tmp_path / "mine.zip") as z: z.extractall(tmp_path / "mine")
    for source, src in dict(hf=None, kaggle=None, zip=str(tmp_path / "mine.zip"), folder=str(tmp_path / "mine")).items():
        assert fetch_ffhq(source, tmp_path / f"of_{source}", src=src)[0] == 0
    made = [read_json(tmp_path / f"of_{s}" / "manifest.json") for s in ffhq.SOURCES]
    assert len({m["sha256"] for m in made}) == len({str((m["train"], m["valid"])) for m in made}) == 1


@pytest.mark.parametrize("source", ["hf", "kaggle"])
def test_again_costs_nothing(source, request, tmp_path):
    server = request.getfixturevalue(source)
    fetch_ffhq(source, tmp_path / "out")
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / "faces").iterdir()}
    server.log.clear(), server.asked.clear()
    for d in ("out.download", "kaggle", "hf"): shutil.rmtree(tmp_path / d, ignore_errors=True)
    code, _, out = fetch_ffhq(source, tmp_path / "out")
    assert code == 0 and "15 faces" in out
    assert not server.log and not server.asked and stamps == {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / "faces").iterdir()}


def test_only_some_numbers(hf, tmp_path):
    assert fetch_ffhq("hf", tmp_path / "out", ids="0-51999")[0] == 0
    m = read_json(tmp_path / "out" / "manifest.json")
    assert m["count"] == 14 and m["valid"] == HELD[:-1]
    assert fetch_ffhq("hf", tmp_path / "out", ids="0-51999", valid="800-801")[0] == 0, "another split of the same faces"
    assert read_json(tmp_path / "out" / "manifest.json")["valid"] == HELD[:2] and len([k for k in hf.log if k[0] == "GET"]) == 1


@pytest.mark.slow
def test_the_command_in_a_terminal(hf, tmp_path):
    "The real command in a process of its own, told by HF_ENDPOINT where its host is."
    env = {**os.environ, "HF_ENDPOINT": f"http://localhost:{hf.server_port}", "HF_HOME": str(tmp_path / "hf")}
    run = lambda *a: subprocess.run([*MODULE, "data", *a], capture_output=True, text=True, env=env)
    r = run("ffhq", "--source", "hf", "--size", "128", "--out", str(tmp_path / "out"))
    assert r.returncode == 0 and r.stderr == "" and "15 faces of 128 px" in r.stdout, r.stderr
    hf.cut = len(hf.content)//2
    r = run("ffhq", "--source", "hf", "--size", "64", "--out", str(tmp_path / "cut"))
    assert r.returncode == 2 and r.stdout.count("\n") == 2 and r.stderr.count("\n") == 1 and "no connection to hf, or it broke" in r.stderr, r.stderr
    r = run("ffhq", str(tmp_path), "--source", "zip", "--out", str(tmp_path / "other"))
    assert r.returncode == 2 and r.stderr == f"pconv data: error: {tmp_path} is no zip; give --source folder\n"


# Interrupted

@pytest.mark.parametrize("source", ["hf", "kaggle"])
def test_cut_off_then_resumed(source, request, tmp_path):
    "The host hangs up after N bytes, every time: one line, code 2. The same command later fetches the rest, and only the rest."
    server = request.getfixturevalue(source)
    server.cut = len(server.content)//2
    code, err, _ = fetch_ffhq(source, tmp_path / "out")
    assert code == 2 and len(err) == 1 and "what has arrived stays" in err[0], err
    have = sum(p.stat().st_size for d in ("kaggle", "out.download") for p in (tmp_path / d).rglob("*") if p.is_file())
    assert len(server.content)//3 < have <= server.cut and not (tmp_path / "out").exists()
    server.cut = None
    server.log.clear()
    code, err, _ = fetch_ffhq(source, tmp_path / "out")
    assert code == 0, err
    assert [start for kind, start in server.log if kind == "GET"][-1] == have, "the second run asks for what is missing"
    assert read_json(tmp_path / "out" / "manifest.json")["count"] == 15


@pytest.mark.parametrize("source", ["hf", "kaggle"])
def test_a_line_that_drops_now_and_then_is_waited_for(source, request, tmp_path, monkeypatch):
    "Dropped three times within one command: it goes on by itself."
    server = request.getfixturevalue(source)
    server.cut, n = len(server.content)//4, len(server.content)
    def sleep(s): server.cut = min(n, server.cut + n//4)
    monkeypatch.setattr(ffhq.time, "sleep", sleep)
    code, err, _ = fetch_ffhq(source, tmp_path / "out")
    assert code == 0 and read_json(tmp_path / "out" / "manifest.json")["count"] == 15, err
    starts = [s for kind, s in server.log if kind == "GET" and s]
    assert len(starts) >= 3 and starts == sorted(starts)


class Killed(BaseException): "Stands for kill -9: nothing of ours runs after it."


def test_killed_then_resumed_hf(hf, tmp_path, monkeypatch):
    import huggingface_hub.file_download as lib
    hf.cut = len(hf.content)//2
    def killed(s): raise Killed
    monkeypatch.setattr(ffhq.time, "sleep", killed)
    with pytest.raises(Killed): ffhq.ffhq("hf", tmp_path / "out", 128, say=lambda s: None)
    monkeypatch.setattr(ffhq.time, "sleep", lambda s: None)
    hf.cut = None
    (part,) = (tmp_path / "out.download").glob("*.part")
    have = part.stat().st_size
    assert have > 0
    m = ffhq.ffhq("hf", tmp_path / "out", 128, say=lambda s: None, progress=False)
    assert m["count"] == 15 and hf.log[-1] == ("GET", have) and downloads(tmp_path) == ["FFHQ_128.zip"]
    assert lib.http_get


def test_prepare_interrupted_then_resumed(hf, tmp_path):
    def stop(done, total):
        if done == 6: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): ffhq.ffhq("hf", tmp_path / "out", 128, say=lambda s: None, progress=stop, workers=1)
    hf.log.clear()
    seen = []
    m = ffhq.ffhq("hf", tmp_path / "out", 128, say=lambda s: None, progress=lambda done, total: seen.append(done))
    assert m["count"] == 15 and 0 < len(seen) < 15 and not [k for k in hf.log if k[0] == "GET"]


def test_a_host_without_ranges_begins_again(hf, tmp_path):
    hf.cut = len(hf.content)//2
    fetch_ffhq("hf", tmp_path / "out")
    hf.cut, hf.no_ranges = None, True
    assert fetch_ffhq("hf", tmp_path / "out")[0] == 0 and read_json(tmp_path / "out" / "manifest.json")["count"] == 15


def test_halves_of_two_versions_do_not_mix(hf, tmp_path):
    hf.cut = len(hf.content)//2
    fetch_ffhq("hf", tmp_path / "out")
    (old,) = (tmp_path / "out.download").glob("*.part")
    hf.content, hf.cut = zipped(pictures(".jpg", prefix="new/")), None
    assert fetch_ffhq("hf", tmp_path / "out")[0] == 0 and not old.exists()
    assert downloads(tmp_path) == ["FFHQ_128.zip"] and (tmp_path / "out.download" / "FFHQ_128.zip").read_bytes() == hf.content


@pytest.mark.parametrize("source", ["hf", "kaggle"])
def test_wrong_hash(source, request, tmp_path):
    "What arrives is not what was announced: one line, the damaged file is gone, the next attempt is clean."
    server = request.getfixturevalue(source)
    server.hash = b"something else"
    code, err, _ = fetch_ffhq(source, tmp_path / "out")
    assert code == 2 and len(err) == 1 and "hash is wrong" in err[0] and "repeat the command" in err[0], err
    assert downloads(tmp_path) == [] and not list(tmp_path.glob("out*"))
    server.hash = None
    assert fetch_ffhq(source, tmp_path / "out")[0] == 0


# Refused

WORDS = {401: "only to people it knows", 403: "only to people it knows", 404: "has no", 429: "slow down", 500: "trouble of its own", 503: "trouble of its own"}


@pytest.mark.parametrize("status", WORDS)
@pytest.mark.parametrize("source", ["hf", "kaggle"])
def test_refused(source, status, request, tmp_path):
    server = request.getfixturevalue(source)
    server.status = status
    code, err, _ = fetch_ffhq(source, tmp_path / "out")
    assert code == 2 and len(err) == 1 and WORDS[status] in err[0], err
    assert err[0].startswith("pconv data: error: ") and len(err[0]) < 300 and "Traceback" not in err[0]
    if status in (401, 403): assert {"hf": "HF_TOKEN", "kaggle": "KAGGLE_API_TOKEN"}[source] in err[0]
    assert not list(tmp_path.glob("out*")), "neither a folder of faces nor an empty one of the download"
    server.status = None
    assert fetch_ffhq(source, tmp_path / "out")[0] == 0, "a refusal leaves nothing that is in the way"


def test_a_refusal_after_the_greeting_leaves_nothing(hf, tmp_path):
    "Size and hash are told, the file itself is not: no half file of no bytes stays. What somebody else put there does."
    hf.status, hf.only = 403, "GET"
    assert fetch_ffhq("hf", tmp_path / "out")[0] == 2 and not list(tmp_path.glob("out*"))
    (tmp_path / "out.download").mkdir()
    (tmp_path / "out.download" / "notes.txt").touch()
    assert fetch_ffhq("hf", tmp_path / "out")[0] == 2 and downloads(tmp_path) == ["notes.txt"]


def test_too_many_requests_in_the_middle(hf, tmp_path):
    "429 on the file itself, with Retry-After: the library waits and asks again, then we give up; nothing is lost."
    hf.cut = len(hf.content)//2
    fetch_ffhq("hf", tmp_path / "out")
    hf.status, hf.only, hf.headers = 429, "GET", {"Retry_After": "1"}
    code, err, _ = fetch_ffhq("hf", tmp_path / "out")
    assert code == 2 and len(err) == 1 and "429" in err[0], err
    (part,) = (tmp_path / "out.download").glob("*.part")
    assert part.stat().st_size > len(hf.content)//3 and len(hf.tokens) > 6


@pytest.mark.parametrize("source", ["hf", "kaggle"])
def test_no_connection(source, request, tmp_path):
    server = request.getfixturevalue(source)
    server.shutdown(), server.server_close()
    code, err, _ = fetch_ffhq(source, tmp_path / "out")
    assert code == 2 and len(err) == 1 and "no connection" in err[0], err
    assert not list(tmp_path.glob("out*"))


def test_a_private_copy_says_so(hf, tmp_path):
    hf.status, hf.headers = 403, {"X_Error_Code": "GatedRepo"}
    assert "only to people it knows" in fetch_ffhq("hf", tmp_path / "out")[1][0]
    hf.status, hf.headers = 404, {"X_Error_Code": "EntryNotFound"}
    assert "has no" in fetch_ffhq("hf", tmp_path / "out")[1][0]
    hf.status, hf.headers = 401, {"X_Error_Code": "RepoNotFound"}
    assert "has no" in fetch_ffhq("hf", tmp_path / "out")[1][0]


def test_a_token_is_sent_to_its_host(hf, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert fetch_ffhq("hf", tmp_path / "out")[0] == 0 and set(hf.tokens) == {"Bearer hf_secret"}
    monkeypatch.delenv("HF_TOKEN")
    everything = "".join(p.read_text(encoding="utf-8", errors="ignore") for p in (tmp_path / "out").glob("*.*"))
    assert "hf_secret" not in everything


@pytest.mark.parametrize("source,name", [("hf", "huggingface_hub"), ("kaggle", "kagglehub")])
def test_library_absent(source, name, tmp_path, monkeypatch):
    "Neither library is needed until its source is asked for; then one line names what to install."
    for k in [m for m in sys.modules if m == name or m.startswith(name + ".")]: monkeypatch.delitem(sys.modules, k)
    monkeypatch.setitem(sys.modules, name, None)
    code, err, out = fetch_ffhq(source, tmp_path / "out")
    assert (code, err) == (2, [f"pconv data: error: {name} is missing; install it: pip install 'pconv_course[hub]'"])
    assert "fetching" not in out and not list(tmp_path.glob("out*"))


def test_importing_the_module_loads_no_client():
    code = "import sys, pconv_course.tools.ffhq; print([m for m in ('kagglehub', 'huggingface_hub') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_disk_full(hf, tmp_path, monkeypatch):
    from collections import namedtuple
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(core.shutil, "disk_usage", lambda p: usage(0, 0, 10**9))
    code, err, _ = fetch_ffhq("hf", tmp_path / "out")
    assert code == 2 and len(err) == 1 and "2.06 GB" in err[0] and "1.0 GB free" in err[0] and not hf.log, "asked before the first byte"
    monkeypatch.setattr(core.shutil, "disk_usage", lambda p: usage(0, 0, 5*10**9))
    assert "takes 6.1 GB" in fetch_ffhq("hf", tmp_path / "out")[1][0], "download, faces and cache on one disk are added up"
    monkeypatch.undo()


def test_disk_fills_up_on_the_way(hf, tmp_path, monkeypatch):
    import huggingface_hub.file_download as lib
    real = lib.http_get
    def full(url, f, **kw):
        f.write(hf.content[:3000])
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(lib, "http_get", full)
    code, err, _ = fetch_ffhq("hf", tmp_path / "out")
    assert code == 2 and len(err) == 1 and "disk is full" in err[0]
    monkeypatch.setattr(lib, "http_get", real)
    assert fetch_ffhq("hf", tmp_path / "out")[0] == 0 and ("GET", 3000) in hf.log


# What is asked for

def test_wrong_arguments(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "anna.jpg").write_bytes(pictures(".jpg", numbers=[3])["00003.jpg"])
    (tmp_path / "notours").mkdir()
    (tmp_path / "notours" / "thesis.txt").write_text("all my work")
    mine, out = str(tmp_path / "mine"), str(tmp_path / "out")
    cases = [(dict(source="dropbox", out=out), "unknown --source"), (dict(source="hf"), "--out DIR"), (dict(source="folder", out=out), "needs a folder"),
             (dict(source="zip", src=mine, out=out), "is no zip"), (dict(source="folder", src=mine, out=out), "no FFHQ numbers"),
             (dict(source="hf", size=1024, out=out), "no copy of 1024 px"), (dict(source="hf", src="x/y", out=out), "names no data set"),
             (dict(source="kaggle", src="xyz", out=out), "names no data set"), (dict(source="hf", out=str(tmp_path / "notours")), "not ours")]
    for kw, word in cases:
        code, err, _ = command("ffhq", **kw)
        assert code == 2 and len(err) == 1 and word in err[0], (kw, err)
    assert not (tmp_path / "out").exists() and [p.name for p in (tmp_path / "notours").iterdir()] == ["thesis.txt"]
    for args in (("prepare",), ("masks", "x")):
        code, err, _ = command(*args)
        assert code == 2 and len(err) == 1 and "SRC DST" in err[0]


@pytest.mark.parametrize("kw", [dict(ids="many"), dict(ids="80000-90000"), dict(ids="9-5"), dict(valid="foo"), dict(valid="2"), dict(valid="nan"), dict(valid="70000-80000"),
                                dict(valid="0-69999"), dict(ids="0-99"), dict(ids="0-99", valid="0-200")])
def test_what_cannot_be_split_is_not_fetched(kw, hf, tmp_path):
    "One line before the host is asked for anything; no folder, no word of a file that is not there."
    code, err, out = fetch_ffhq("hf", tmp_path / "out", **kw)
    assert code == 2 and len(err) == 1 and err[0].startswith("pconv data: error: ") and ("--ids" in err[0] or "valid" in err[0]), err
    assert out == "" and not hf.log and not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("valid,ids", [(ffhq.VALID, None), (ffhq.VALID, "0-51999"), (.1, None), ("0.999", "7-8"), ("800 - 898", "0-900"), ("0-0", "0-1"), (["00003"], None)])
def test_what_can_be_split_passes(valid, ids): ffhq.check_split(valid, ids)


def test_a_failed_fetch_names_no_file_that_is_not_there(hf, tmp_path):
    hf.status = 404
    assert "LICENCE.txt" not in fetch_ffhq("hf", tmp_path / "out")[2]
    hf.status = None
    assert f"the licence is in {tmp_path / 'out' / 'LICENCE.txt'}" in fetch_ffhq("hf", tmp_path / "out")[2] and (tmp_path / "out" / "LICENCE.txt").exists()


# The weights in the package, trained on FFHQ

def test_the_weights_carry_their_licence(tmp_path):
    "Their terms lie beside them, say what their record says, are installed with them, and are named in the README."
    from pconv_course.weights import pretrained_info, weights_dir
    text = (weights_dir() / "LICENCE.txt").read_text(encoding="utf-8")
    assert pretrained_info()["licence"] in " ".join(text.split()) and "NON-COMMERCIAL" in text
    assert {r["recipe"]["features"] for r in pretrained_info()["stages"]} == {"none", "vgg16_to_pool3.safetensors"} and "VGG-16" in text
    top = Path(ffhq.__file__).parents[1]
    if not (top / "setup.py").exists(): pytest.skip("not a checkout")
    assert "pconv_course/weights/LICENCE.txt" in (top / "README.md").read_text(encoding="utf-8")
    pytest.importorskip("setuptools")
    subprocess.run([sys.executable, "setup.py", "-q", "build_py", "-d", str(tmp_path)], cwd=top, check=True, capture_output=True)
    assert {p.name for p in (tmp_path / "pconv_course" / "weights").iterdir()} >= {"LICENCE.txt", "faces.json", "faces.safetensors"}


def test_another_size_in_the_same_folder(hf, tmp_path):
    fetch_ffhq("hf", tmp_path / "out")
    code, err, _ = command("ffhq", source="hf", size=64, out=str(tmp_path / "out"))
    assert code == 2 and "size=128" in err[0]


def test_other_copies_by_id(hf, kaggle, tmp_path):
    code, err, _ = fetch_ffhq("hf", tmp_path / "a", src="somebody/faces/all.zip")
    assert code == 0, err
    assert fetch_ffhq("kaggle", tmp_path / "b", src="somebody/faces")[0] == 0
    name, asked = kaggle.asked[0]
    assert name == "GetDataset" and (asked["ownerSlug"], asked["datasetSlug"]) == ("somebody", "faces")


@pytest.mark.parametrize("names,ids", [(["00000.png"], ["00000"]), (["img00069999.png"], ["69999"]), (["thumbnails128x128/03000/03123.png"], ["03123"]),
                                       (["resized/00001.jpg", "resized/00002.jpg"], ["00001", "00002"])])
def test_official_ids(names, ids): assert ffhq.official_ids(names) == ids


@pytest.mark.parametrize("names", [["1.png"], ["70000.png"], ["000x1.png"], ["anna.png"], ["a/00001.png", "b/00001.jpg"], ["٠٠٠٠١.png"]])
def test_names_that_are_no_numbers(names):
    with pytest.raises(InputError, match="no FFHQ numbers"): ffhq.official_ids(names)


def test_ids_that_are_no_ranges():
    for keep in ("many", "5", "9-", "-", ""):
        with pytest.raises(InputError, match="no list of ranges"): ffhq.official_ids(["00001.png"], keep)


def test_the_split_is_the_documented_one():
    "One rule by number for every copy; training faces of ours are training faces of NVIDIA's."
    ids = [f"{k:05d}" for k in range(70_000)]
    train, valid = data.split_ids(ids, ffhq.VALID)
    assert (len(train), len(valid)) == (57_901, 12_099) and max(train) == "59999" and not {f"{k:05d}" for k in (800, 898, 50_000, 51_999, 60_000)} & set(train)
    small, held = data.split_ids(ids[:52_000], ffhq.VALID)
    assert (len(small), len(held)) == (49_901, 2_099) and set(small) < set(train) and set(held) < set(valid)


def test_a_copy_with_other_numbers_is_noticed(hf, tmp_path):
    files = list(pictures(".png").items())
    hf.content = zipped({f"{NUMBERS[(k + 1) % len(files)]:05d}.png": files[k][1] for k in range(len(files))})
    with pytest.warns(FaceWarning, match="does not look like the official one"): ffhq.ffhq("hf", tmp_path / "out", 128, say=lambda s: None)
    code, err, _ = fetch_ffhq("hf", tmp_path / "out")
    assert code == 0 and len(err) == 1 and err[0].startswith("pconv data: note: face 0")


def test_a_broken_picture_is_set_aside(hf, tmp_path):
    files = pictures(".png")
    hf.content = zipped({**files, "00009.png": files["00009.png"][:200]})
    code, err, out = fetch_ffhq("hf", tmp_path / "out")
    assert (code, err) == (0, []) and "14 faces" in out and "1 set aside" in out


def test_copies_are_described():
    assert {c.source for c in ffhq.COPIES} == {"hf", "kaggle"} and [c.count for c in ffhq.COPIES].count(52_000) == 1
    assert ffhq.choose_copy("kaggle", 256).count == 52_000 and ffhq.choose_copy("kaggle", 512).count == 52_000
    assert [ffhq.choose_copy("hf", s).file for s in (16, 128, 129, 512)] == ["FFHQ_128.zip", "FFHQ_128.zip", "FFHQ_256.zip", "FFHQ_512.zip"]


# Masks

def write_masks(path, masks, known, extra=None):
    files = {}
    for k, m in enumerate(masks):
        f = io.BytesIO()
        Image.fromarray(np.where(m == 1, known, 255 - known).astype(np.uint8)).save(f, "PNG")
        files[f"mask/testing_mask_dataset/{k:05d}.png"] = f.getvalue()
    path.write_bytes(zipped({**files, **(extra or {})}))
    return path


@pytest.fixture(scope="module")
def masks(): return [stroke_mask(np.random.default_rng(k), 128, (.02, .58)) for k in range(24)]


@pytest.mark.parametrize("known,colour", [(0, "white"), (255, "black")])
def test_masks_of_either_polarity(known, colour, masks, tmp_path):
    code, err, out = command("masks", str(write_masks(tmp_path / "m.zip", masks, known)), str(tmp_path / "bank"), size=64)
    assert (code, err) == (0, []) and f"{colour} was the hole" in out
    bank, m = MaskBank.load(tmp_path / "bank" / "masks.npz"), read_json(tmp_path / "bank" / "manifest.json")
    assert len(bank) == 24 and bank.size == 64 and m["hole"] == colour and sum(m["buckets"].values()) + m["outside"] == 24
    small = [np.asarray(Image.fromarray(k*255).resize((64, 64), Image.Resampling.BOX)) > 127 for k in masks]
    assert np.mean([(bank.array(i) == s).mean() for i, s in enumerate(small)]) > .97
    rows = list(csv.DictReader((tmp_path / "bank" / "masks.csv").open(encoding="utf-8")))
    for i, r in enumerate(rows):
        assert float(r["hole_ratio"]) == pytest.approx(float(hole_ratio(bank.array(i))), abs=1e-5)
        lo, hi = map(float, r["bucket"].split("-"))
        assert lo < float(r["hole_ratio"]) <= hi and r["file"] == bank.names[i]
    assert "CC BY-NC-SA" in (tmp_path / "bank" / "LICENCE.txt").read_text(encoding="utf-8")


def test_masks_that_cannot_be_used(masks, tmp_path):
    full, text = io.BytesIO(), b"no picture"
    Image.new("L", (128, 128), 0).save(full, "PNG")
    src = write_masks(tmp_path / "m.zip", masks, 0, {"mask/testing_mask_dataset/90000.png": full.getvalue()})
    m = ffhq.irregular_masks(src, tmp_path / "bank", 64, say=lambda s: None)
    assert m["count"] == 24 and "no hole" in m["quarantine"][0]["reason"]
    src = write_masks(tmp_path / "half.zip", [np.tile([0, 1], (64, 32)).astype(np.uint8)]*3, 0)
    with pytest.raises(InputError, match="which with --hole"): ffhq.irregular_masks(src, tmp_path / "b2", 64)
    assert ffhq.irregular_masks(src, tmp_path / "b2", 64, hole="white", say=lambda s: None)["count"] == 3
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_bytes(text)
    code, err, _ = command("masks", str(src), str(tmp_path / "mine"), hole="white")
    assert code == 2 and len(err) == 1 and "holds no masks of 256 px made here" in err[0]
    with pytest.raises(InputError, match="of this source"): ffhq.irregular_masks(src, tmp_path / "bank", 64, hole="white", say=lambda s: None)
    assert command("masks", str(tmp_path / "nowhere.zip"), str(tmp_path / "b3"))[0] == 2
    assert len(FaceFiles(src)) == 3 and Path(src).exists()
