"""The project around the chapters: what nbdev generates is in step, notebooks are clean, modules stand alone."""
import ast
import json
import os
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest
import yaml

TOP = Path(__file__).resolve().parent.parent
PKG = TOP / "pconv_course"
NBS = sorted(p for p in (TOP / "nbs").rglob("*.ipynb") if not p.name.startswith((".", "_")))
NOTES = [p for p in NBS if p.name not in ("index.ipynb", "00_start.ipynb")]  # what exports code or is an experiment
ALL = os.environ.get("PCONV_ALL") == "1"                            # `make test-all`
MODULES = sorted(".".join(p.relative_to(PKG).with_suffix("").parts) for p in PKG.rglob("*.py") if not p.stem.startswith("_"))


def name(nb): return nb.relative_to(TOP / "nbs").as_posix()


def settings():
    "What settings.ini says."
    ini = ConfigParser(delimiters=["="])
    ini.read(TOP / "settings.ini", encoding="utf-8")
    return ini["DEFAULT"]


def cells(nb): return json.loads(nb.read_text(encoding="utf-8"))["cells"]
def source(cell): return "".join(cell["source"])


def run(*cmd, cwd=TOP, **kw):
    return subprocess.run([str(c) for c in cmd], cwd=cwd, capture_output=True, text=True, timeout=300, **kw)


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    "A copy of what nbdev reads and writes, so that checking never touches the checkout."
    to = tmp_path_factory.mktemp("copy")
    for d in ("nbs", "pconv_course"): shutil.copytree(TOP / d, to / d, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    for f in ("settings.ini", "setup.py", "_quarto.yml", "README.md"): shutil.copy(TOP / f, to)
    return to


def test_no_notebook_left_files_behind():
    "Notebooks run in their own folders; what they write goes to a temporary one."
    known = {".ipynb", ".qmd", ".yml", ".scss", ".css", ".lua", ".json", ".png", ".jpg", ".svg", ".woff2", ".html", ".js", ".mjs", ".py", ".txt"}
    left = [p.relative_to(TOP).as_posix() for p in (TOP / "nbs").rglob("*") if p.is_file() and p.suffix not in known and "node_modules" not in p.parts and "__pycache__" not in p.parts
            and not any(o.startswith(".") for o in p.relative_to(TOP).parts)]
    assert not left


@pytest.mark.dev
def test_export_in_step(copy):
    "Deleting every generated module and exporting again gives the same files: no stale, missing or hand-edited module."
    for p in (copy / "pconv_course").rglob("*.py"):
        if not p.name.startswith("__"): p.unlink()
    out = run(sys.executable, "-c", "from nbdev.doclinks import nbdev_export; nbdev_export()", cwd=copy)
    assert out.returncode == 0, out.stdout + out.stderr
    here, there = ({p.relative_to(d).as_posix(): p.read_text(encoding="utf-8") for p in d.rglob("*.py")} for d in (PKG, copy / "pconv_course"))
    assert sorted(here) == sorted(there)
    differ = [n for n in here if here[n] != there[n]]
    assert not differ, f"{differ} differ from their notebooks: run nbdev_export, and edit notebooks, not modules"


@pytest.mark.dev
def test_notebooks_clean(copy):
    "nbdev_clean has nothing left to do."
    out = run(sys.executable, "-c", "from nbdev.clean import nbdev_clean; nbdev_clean()", cwd=copy)
    assert out.returncode == 0, out.stdout + out.stderr
    dirty = [name(p) for p in NBS if p.read_text(encoding="utf-8") != (copy / "nbs" / name(p)).read_text(encoding="utf-8")]
    assert not dirty, f"{dirty} hold metadata or counts: run nbdev_clean"


@pytest.mark.dev
def test_site_notebooks_process(copy):
    "nbdev's own processing for the documentation site works on every notebook; it needs no quarto."
    code = ("from nbdev.serve import proc_nbs; from nbdev.quarto import refresh_quarto_yml, nbdev_sidebar;"
            "refresh_quarto_yml(); nbdev_sidebar.__wrapped__(); proc_nbs(n_workers=0)")
    out = run(sys.executable, "-c", code, cwd=copy)
    assert out.returncode == 0, out.stdout + out.stderr
    assert {p.relative_to(copy / "_proc").as_posix() for p in (copy / "_proc").rglob("*.ipynb")} == {name(p) for p in NBS}


@pytest.mark.dev
def test_readme_in_step():
    out = run(sys.executable, "tests/readme.py", "--check")
    assert out.returncode == 0, out.stderr


@pytest.mark.dev
def test_linter_finds_no_undefined_name():
    "Undefined names, unused imports and star imports in what is exported, and undefined names in the notebooks."
    out = run(sys.executable, "-m", "ruff", "check", "--isolated", "--no-cache", "--select", "F401,F403,F405,F811,F821,F841", "pconv_course", "tests")
    assert out.returncode == 0, out.stdout
    out = run(sys.executable, "-m", "ruff", "check", "--isolated", "--no-cache", "--select", "F821", "nbs")
    assert out.returncode == 0, out.stdout


ALONE = """
import json, os, sys, traceback
import cv2, fastai.vision.all, matplotlib.pyplot, pandas, skimage, torch, torchmetrics.image  # other people's, once for all
found = {}
for name in sys.argv[1:]:
    if (child := os.fork()) == 0:
        try:
            exec(f"import {name} as m; from {name} import *")
            bare = [n for n in m.__all__ if callable(getattr(m, n)) and not getattr(m, n).__doc__]
            if bare: print(f"{name}: without a docstring: {bare}", file=sys.stderr, flush=True)
            os._exit(bool(bare))
        except BaseException: traceback.print_exc(); sys.stderr.flush(); os._exit(1)
    found[name] = os.waitpid(child, 0)[1]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    "{module: exit status of a process in which it was the first of our modules to be imported}, and what they said."
    out = run(sys.executable, "-W", "ignore", "-W", "error::SyntaxWarning", "-c", ALONE, *(f"pconv_course.{n}" for n in MODULES), cwd=tmp_path_factory.mktemp("alone"))
    return json.loads(out.stdout.splitlines()[-1]), out.stderr


@pytest.mark.parametrize("name", MODULES)
def test_module_imports_alone(name, alone):
    "A process without any other of our modules imports it, and everything that `__all__` promises is there and documented."
    status, said = alone
    assert status[f"pconv_course.{name}"] == 0, said


def test_package_is_light_and_lazy(tmp_path):
    "`import pconv_course` loads no torch; the names it offers are the modules' own, and the layer needs no fastai."
    code = ("import sys, pconv_course as p\nassert 'torch' not in sys.modules\n"
            "from pconv_course import PartialConv2d\nassert 'torch' in sys.modules and 'fastai' not in sys.modules\n"
            "assert all(getattr(p, n).__module__ == f'pconv_course.{h}' for n, h in p._homes.items())\n"
            "assert set(p._homes) <= set(dir(p)) and not hasattr(p, 'nothing')")
    out = run(sys.executable, "-c", code, cwd=tmp_path)
    assert out.returncode == 0, out.stderr


def test_one_module_per_notebook():
    "A notebook and its module share name and folder (04_unet -> unet, runs/checkpoint -> runs.checkpoint), and no module is an orphan."
    exports = {name(nb): m.group(1) for nb in NBS if (m := re.search(r"^#\|\s*default_exp\s+([\w.]+)", "\n".join(map(source, cells(nb))), re.M))}
    assert all(re.sub(r"^\d\d_", "", n.removesuffix(".ipynb")).replace("/", ".") == mod for n, mod in exports.items()), exports
    assert sorted(exports.values()) == MODULES


def test_one_console_script():
    "settings.ini promises one command; its function is there, and `python -m pconv_course` calls the same one."
    assert settings()["console_scripts"].split() == ["pconv=pconv_course.cli:main"]
    tree = ast.parse((PKG / "cli.py").read_text(encoding="utf-8"))
    assert "main" in [n.name for n in tree.body if isinstance(n, ast.FunctionDef)]
    assert "from pconv_course.cli import main" in (PKG / "__main__.py").read_text(encoding="utf-8")


OLD = re.compile(r"\bpconv_(data|train|demo|evaluate|inpaint|app|export|bench|trials|pack|convert|experiments)\b(?!\.ipynb)")


def test_nobody_names_the_old_commands():
    "Prose, messages, outputs, build files: `pconv train`, not pconv_train. Only the table of renamed commands has both."
    files = [*NBS, *TOP.glob("*.md"), *TOP.glob("*.ini"), *(TOP / ".github").rglob("*.yml"), TOP / "Makefile", *PKG.rglob("*.py"), *(PKG / "static").iterdir()]
    named = {p.name: m[0] for p in files if p.name != "CHANGELOG.md" and (m := OLD.search(p.read_text(encoding="utf-8")))}
    assert not named, named


# What a reader of a stored notebook sees

PATHS = re.compile(r"(?<![\w.:/])/(?:home|root|tmp|work|Users|private)/\w")
DEBRIS = re.compile(r"\r|█|━|\d+%\|")


@pytest.mark.parametrize("nb", NBS, ids=name)
def test_stored_outputs_are_clean(nb):
    "Executed, no error, no home path, no progress-bar debris, no warning, under 1 MB."
    assert nb.stat().st_size < 1_000_000
    outs = [o for c in cells(nb) if c["cell_type"] == "code" for o in c["outputs"]]
    assert outs, "no stored output: run `make nbs`"
    text = "\n".join("".join(o.get("text", "")) + "".join(o.get("data", {}).get("text/plain", "")) for o in outs)
    assert not [o for o in outs if o["output_type"] == "error"]
    assert not PATHS.findall(text) and not DEBRIS.findall(text) and "Warning" not in text, text[:2000]


@pytest.mark.parametrize("nb", NBS, ids=name)
def test_notebook_opens_as_the_site_expects(nb):
    "The first cell is a level-one title and a one-line description; imports stand alone in their cells."
    first = source(cells(nb)[0])
    assert re.match(r"# \S.*\n+> \S", first), first
    for c in cells(nb):
        code = "\n".join(l for l in source(c).splitlines() if not l.startswith(("%", "!")))
        if c["cell_type"] != "code" or not code.strip(): continue
        kinds = {isinstance(n, (ast.Import, ast.ImportFrom)) for n in ast.parse(code).body}
        assert len(kinds) < 2, f"imports mixed with other code (the site's processing would run it):\n{code}"


@pytest.mark.parametrize("nb", NOTES, ids=name)
def test_the_site_shows_what_is_exported(nb):
    "`#| exports` puts the source beside its signature; `#| export`, which hides it, is for imports."
    for c in cells(nb):
        if c["cell_type"] == "code" and re.match(r"#\|\s*export\s*$", source(c).split("\n")[0]):
            assert all(isinstance(n, (ast.Import, ast.ImportFrom)) for n in ast.parse(source(c)).body), source(c)


@pytest.mark.parametrize("nb", NOTES, ids=name)
def test_cells_stay_short(nb):
    long = [source(c) for c in cells(nb) if c["cell_type"] == "code"
            and sum(bool(l.strip()) and not l.lstrip().startswith("#|") for l in source(c).splitlines()) > 25]
    assert not long, long[0]


def test_figures_are_labelled():
    "Every stored picture has a label of its own, a caption, and a text for those who can't see it."
    labels, bare = [], []
    for nb in NOTES:
        for c in cells(nb):
            if c["cell_type"] != "code": continue
            src = source(c)
            labels += re.findall(r"^#\|\s*label:\s*(\S+)", src, re.M)
            if any(k.startswith("image/") for o in c["outputs"] for k in o.get("data", {})):
                if not all(re.search(rf"^#\|\s*{k}:", src, re.M) for k in ("label", "fig-cap", "fig-alt")): bare.append(f"{name(nb)}: {src[:200]}")
    assert not bare, "\n\n".join(bare)
    assert len(labels) == len(set(labels)), sorted(l for l in labels if labels.count(l) > 1)
    assert all(l.startswith(("fig-", "tbl-")) for l in labels), labels


def test_links_resolve():
    "Relative links and pictures in notebooks and in README.md exist; references to figures name a label."
    missing, labels = [], set()
    for nb in NBS: labels |= set(re.findall(r"^#\|\s*label:\s*(\S+)", "\n".join(map(source, cells(nb))), re.M))
    texts = {nb: "\n".join(source(c) for c in cells(nb) if c["cell_type"] == "markdown") for nb in NBS}
    texts[TOP / "README.md"] = (TOP / "README.md").read_text(encoding="utf-8")
    for path, text in texts.items():
        text = re.sub(r"```.*?```|`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]+\$", "", text, flags=re.S)
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            if not re.match(r"https?://|mailto:|#", link) and not (path.parent / link.split("#")[0]).exists(): missing.append((path.name, link))
        missing += [(path.name, ref) for ref in re.findall(r"(?<![\w.])@((?:fig|tbl)-[\w-]+)", text) if ref not in labels]
    assert not missing, missing


def test_site_configuration():
    "The site's configuration parses, and its sidebar lists every notebook exactly once."
    conf = yaml.safe_load((TOP / "_quarto.yml").read_text(encoding="utf-8"))
    assert yaml.safe_load((TOP / "nbs/_quarto.yml").read_text(encoding="utf-8")) == {"metadata-files": ["../_quarto.yml", "nbdev.yml"]}
    listed = re.findall(r"[\w/-]+\.ipynb", json.dumps(conf["website"]["sidebar"]))
    assert sorted(listed) == sorted(map(name, NBS))
    for f in (TOP / ".github/workflows").glob("*.y*ml"): assert yaml.safe_load(f.read_text(encoding="utf-8"))["jobs"]


COLAB_EXTRAS = {"00_start": "[app]", "10_metrics": "[eval]", "19_evaluation": "[eval]"}   # the widget, PatchMatch
COLAB_RECORDS = ("05_fast", "22_sparse", "23_large_central", "24_comparison", "25_ablations", "26_ledger")  # they read nbs/results, which no wheel holds


def test_every_chapter_has_its_number_and_opens_in_colab():
    "The title begins with the number; the button and the one line that installs there follow settings.ini."
    git, branch = settings()["git_url"], settings()["branch"]
    for nb in (p for p in NBS if re.match(r"\d\d_", p.name)):
        title, button, install = map(source, cells(nb)[:3])
        assert title.startswith(f"# {nb.name[:2]} ")
        if nb.stem == "27_card": continue                          # a page to read
        assert f"](https://colab.research.google.com/github/{git.removeprefix('https://github.com/')}/blob/{branch}/nbs/{nb.name})" in button
        assert button.endswith(")<!-- -->"), "a picture alone in its paragraph becomes a figure on the site, which loses the link and the picture's text"
        extra = COLAB_EXTRAS.get(nb.stem, "")
        line = f'get_ipython().run_line_magic("pip", "install -q pconv_course{extra}@git+{git}")'
        if nb.stem in COLAB_RECORDS: line = f'get_ipython().run_cell("%pip install -q pconv_course@git+{git}\\n!git clone -q --depth 1 {git}\\n%cd pconv_course/nbs")'
        assert install == f'#| hide\nif "google.colab" in str(get_ipython()): {line}'


# A process that has what the wheel requires and nothing of the development set, and runs the cells of a notebook.
AS_IN_COLAB = """
import json, re, sys
from importlib.metadata import distribution, packages_distributions, PackageNotFoundError
from packaging.requirements import Requirement
needed = set()
def need(name):
    key = re.sub(r"[-_.]+", "-", name).lower()
    try: requires = [] if key in needed else distribution(name).requires or []
    except PackageNotFoundError: return
    needed.add(key)
    for r in map(Requirement, requires):
        if r.marker is None or r.marker.evaluate(dict(extra="")): need(r.name)
for r in sys.argv[2:]: need(Requirement(r).name)
hidden = {m for m, of in packages_distributions().items() if not any(re.sub(r"[-_.]+", "-", d).lower() in needed for d in of)} - {"pconv_course", "sitecustomize", "IPython"}
class Without:
    def __init__(self, finder): self.finder = finder
    def __getattr__(self, name): return getattr(self.finder, name)
    def find_spec(self, name, *rest): return None if name.split(".")[0] in hidden else self.finder.find_spec(name, *rest)
sys.meta_path[:] = map(Without, sys.meta_path)
assert "nbdev" in hidden and "torch" not in hidden
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
for c in json.load(open(sys.argv[1], encoding="utf-8"))["cells"]:
    if c["cell_type"] == "code": shell.run_cell("".join(c["source"])).raise_error()
import pconv_course
print("ran with", pconv_course.__file__)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory, copy):
    "The project as pip installs it, in a folder."
    to = tmp_path_factory.mktemp("wheel")
    for f in ("MANIFEST.in", "LICENSE"): shutil.copy(TOP / f, copy)
    out = run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target", to, copy)
    assert out.returncode == 0, out.stderr
    return to


@pytest.mark.dev
@pytest.mark.parametrize("chapter", [p.stem for p in NBS if re.match(r"\d\d_", p.name) and p.stem != "27_card" and (ALL or p.stem < "02")])
def test_a_chapter_runs_as_in_colab(wheel, copy, chapter, tmp_path):
    "The wheel and what it requires are enough, and the package is the wheel's."
    extra = COLAB_EXTRAS.get(chapter, "").strip("[]")
    needs = settings()["requirements"].split() + (settings()[f"{extra}_requirements"].split() if extra else [])
    out = run(sys.executable, "-c", AS_IN_COLAB, TOP / "nbs" / f"{chapter}.ipynb", *needs, cwd=copy / "nbs" if chapter in COLAB_RECORDS else tmp_path,
              env=os.environ | dict(PYTHONPATH=str(wheel), MPLBACKEND="agg"))
    assert out.returncode == 0 and f"ran with {wheel}" in out.stdout, out.stdout[-1000:] + out.stderr[-3000:]


def test_readme_has_every_chapter():
    text = (TOP / "README.md").read_text(encoding="utf-8")
    titles = {nb.name: source(cells(nb)[0]).splitlines()[0][5:] for nb in NBS if nb.name[0].isdigit()}
    assert not {n: t for n, t in titles.items() if t not in text or f"nbs/{n}" not in text}


def test_numbers_have_a_source():
    "Each result file says what wrote it, when, with which software and seed."
    files = sorted((TOP / "nbs/results").glob("*.json"))
    assert files, "no result files under nbs/results"
    for f in files:
        record = json.loads(f.read_text(encoding="utf-8"))
        parts = record["plans"].values() if "plans" in record else [record]
        assert parts and all({"date", "commit", "seed", "packages", "cpu"} <= p["provenance"].keys() for p in parts), f.name
        assert not PATHS.findall(f.read_text(encoding="utf-8")), f.name
