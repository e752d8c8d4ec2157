#!/usr/bin/env python3
"""Put the live demo together: `python nbs/demo/build.py [FOLDER]`, by itself or after Quarto. Needs npm and `pip install 'pconv_course[onnx]'`.

The page is copied as it is. Beside it come the drawing area of the notebook widget, the portrait, the network as ONNX, exported from the
weights of the package, and onnxruntime-web from npm as package-lock.json pins it. All that takes time is kept in build/demo."""
import hashlib
import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
TOP = HERE.parent.parent
KEPT = TOP/"build"/"demo"
PAGE = ("index.html", "demo.css", "demo.js", "photo.js", "engine.js", "worker.js", "windows.js", "sw.js")
RUNTIME = dict(wasm=("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"),
               webgpu=("ort.webgpu.bundle.min.mjs", "ort-wasm-simd-threaded.asyncify.wasm"))
MIT = """ONNX Runtime {version}, https://onnxruntime.ai

MIT License

Copyright (c) Microsoft Corporation

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated documentation files (the
"Software"), to deal in the Software without restriction, including without limitation the rights to use, copy, modify, merge, publish,
distribute, sublicense, and/or sell copies of the Software, and to permit persons to whom the Software is furnished to do so, subject to
the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF
MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR
ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH
THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""


def ours(name, beside=None):
    "A function of the package by its name, in whichever module it lives; `beside`: in the module of that other one."
    sys.path[:0] = [str(TOP)]*(str(TOP) not in sys.path)
    from pconv_course._modidx import d
    homes = [m for m, found in d["syms"].items() if f"{m}.{beside or name}" in found]
    if len(homes) != 1: raise SystemExit(f"build.py: {beside or name} is in {homes or 'no module'}; run nbdev_export")
    return getattr(importlib.import_module(homes[0]), name)


def packages():
    "The folder with what package-lock.json pins, installed once."
    to, lock = KEPT/"npm", (HERE/"package-lock.json").read_bytes()
    if not (to/"lock").is_file() or (to/"lock").read_bytes() != lock:
        if not shutil.which("npm"): raise SystemExit("build.py: npm is missing; install Node.js 18 or newer")
        to.mkdir(parents=True, exist_ok=True)
        for f in ("package.json", "package-lock.json"): shutil.copy(HERE/f, to)
        subprocess.run([shutil.which("npm"), "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"], cwd=to, check=True)
        (to/"lock").write_bytes(lock)
    return to/"node_modules"


def network():
    "(path of the ONNX file, side of its input in px, licence): the graph alone, x and m in, floats out, large kernels in 8 bits as they ship."
    net, config = ours("load_pretrained")(say=None)
    code = Path(sys.modules[ours("core_graph").__module__].__file__).read_bytes()
    path = KEPT/f"{hashlib.sha256(ours('weights_hash')(net).encode() + code).hexdigest()[:16]}.onnx"
    if not path.is_file():
        import onnx
        graph = ours("core_graph")(net)
        model = onnx.helper.make_model(graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", ours("OPSET", beside="core_graph"))])
        model = ours("shrink_weights")(model, "int8", ours("LARGE", beside="in_bytes"))
        onnx.checker.check_model(model, full_check=True)
        KEPT.mkdir(parents=True, exist_ok=True)
        path.write_bytes(model.SerializeToString())
    return path, ours("trained_size")(net, config), config["licence"]


def portrait():
    "JPEG of the photograph that is free of rights."
    from PIL import Image
    to, photo = KEPT/"portrait.jpg", ours("portrait")()[0]
    Image.fromarray((255*photo).round().byte().permute(1, 2, 0).numpy()).save(to, quality=95, subsampling=0)
    return to


def put(path, out, name=None):
    "Copy a file; how the page finds it: name, bytes, and a hash that changes with it."
    name = name or path.name
    shutil.copyfile(path, out/name)
    return dict(name=name, bytes=path.stat().st_size, hash=hashlib.sha256(path.read_bytes()).hexdigest()[:16])


def build(out):
    "Write the demo into the folder `out`, which can then be served; what it consists of."
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    modules, (onnx_file, size, licence) = packages()/"onnxruntime-web", network()
    for f in PAGE: put(HERE/f, out)
    for f in ("widget.js", "widget.css"): put(TOP/"pconv_course"/"static"/f, out)
    put(HERE.parent/"images"/"favicon.svg", out, "icon.svg")
    put(portrait(), out)
    put(ours("weights_dir")()/"LICENCE.txt", out, "weights-licence.txt")
    (out/"onnxruntime-licence.txt").write_text(MIT.format(version=json.loads((modules/"package.json").read_text())["version"]), encoding="utf-8")
    runtime = {kind: dict(zip(("script", "wasm"), (put(modules/"dist"/f, out) for f in files))) for kind, files in RUNTIME.items()}
    assets = dict(size=size, licence=licence, model=put(onnx_file, out, "model.onnx"), runtime=runtime)
    (out/"assets.json").write_text(json.dumps(assets, indent=1), encoding="utf-8")
    return assets


if __name__ == "__main__":
    docs = Path(os.environ.get("QUARTO_PROJECT_OUTPUT_DIR") or TOP/"_docs")
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else docs/"demo"
    made = build(out)
    print(f"{out}: {sum(f.stat().st_size for f in out.iterdir())/1e6:.1f} MB, of it the network {made['model']['bytes']/1e6:.1f} MB")
