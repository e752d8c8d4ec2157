"""The house: imports only go down, wings are acyclic, one name means one thing, and the course is one line."""
import ast
import json
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import yaml
from minutes import CORE, chapters, minutes

TOP = Path(__file__).resolve().parent.parent
PKG, NBS = TOP/"pconv_course", TOP/"nbs"

# One row per storey, from the ground up; the middle ones are the course, in the order in which it is read.
LAYERS = """
base
pconv
masks
data
unet
fast
losses
objective
networks
weights
metrics
artifacts
intervals
step
learner
critic
recipe
training
pairs
evaluation
windows
inpainting
runs
tools
lab
cli_lab
cli
"""
RANK = {name: i for i, name in enumerate(LAYERS.split())}
WINGS = ("base", "runs", "tools", "lab")
ROOF = ("cli_lab", "cli")  # every command: the only modules with lazy imports of our own
MODULES = sorted(p for p in PKG.rglob("*.py") if not p.stem.startswith("_"))


def name_of(path): return ".".join(path.relative_to(PKG).with_suffix("").parts)


def own_imports(path):
    "[(module of the package, inside a function?)] of every import of our own in a file."
    here, found = ("pconv_course", *path.relative_to(PKG).with_suffix("").parts), []
    def walk(node, inside):
        for n in ast.iter_child_nodes(node):
            deeper = inside or isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            if isinstance(n, ast.ImportFrom):
                full = ".".join(here[:-n.level] + ((n.module,) if n.module else ())) if n.level else n.module
                if full.split(".")[0] == "pconv_course":
                    names = [f"{full}.{a.name}" if (PKG.joinpath(*full.split(".")[1:], a.name).with_suffix(".py")).exists() else full for a in n.names]
                    found.extend((o.removeprefix("pconv_course").lstrip("."), inside) for o in names)
            elif isinstance(n, ast.Import): found.extend((a.name[13:], inside) for a in n.names if a.name.startswith("pconv_course."))
            walk(n, deeper)
    walk(ast.parse(path.read_text(encoding="utf-8")), False)
    return sorted(set(found))


def test_every_module_has_a_place():
    assert {name_of(p).split(".")[0] for p in MODULES} == set(RANK)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_only_go_down(path):
    "Every import of our own, lazy ones too, goes to a lower storey, or to another room of the same wing."
    me = name_of(path)
    up = [other for other, _ in own_imports(path) if not (RANK[other.split(".")[0]] < RANK[me.split(".")[0]]
          or me.split(".")[0] in WINGS and other.split(".")[0] == me.split(".")[0])]
    assert not up, f"{me} imports {up}, which stand above it or beside it"


@pytest.mark.parametrize("wing", WINGS)
def test_wings_are_acyclic(wing):
    rooms = {name_of(p): {o for o, _ in own_imports(p) if o.startswith(f"{wing}.")} for p in MODULES if name_of(p).startswith(f"{wing}.")}
    assert rooms
    TopologicalSorter(rooms).prepare()


def test_the_line_imports_no_wing():
    line = [p for p in MODULES if name_of(p).split(".")[0] not in (*WINGS, *ROOF)]
    assert line and not [(name_of(p), o) for p in line for o, _ in own_imports(p) if o.split(".")[0] in ("runs", "tools", "lab", *ROOF)]


def test_only_the_roof_imports_lazily():
    "Inside a function only the roof imports our own, and at its top the roof knows the errors of the ground alone; nobody imports by a string, and nobody looks into sys.modules for our own."
    lazy = {name_of(p) for p in MODULES if any(inside for _, inside in own_imports(p))}
    assert lazy == set(ROOF), lazy
    assert {o for n in ROOF for o, inside in own_imports(PKG/f"{n}.py") if not inside} == {"base.core", "cli_lab"}
    texts = {name_of(p): p.read_text(encoding="utf-8") for p in MODULES}
    assert not [n for n, t in texts.items() if re.search(r"(import_module|__import__|sys\.modules)[^\n]*pconv_course", t)]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_module_is_too_long(path):
    n = len(path.read_text(encoding="utf-8").splitlines())
    assert n <= 500, f"{name_of(path)} has {n} lines: give a part of it a room of its own"


def exported(path):
    "{name: how it is defined} of what a module promises in `__all__`; names that it takes from others don't count."
    tree = ast.parse(path.read_text(encoding="utf-8"))
    promised = next((ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign) and getattr(n.targets[0], "id", "") == "__all__"), [])
    own = {n.name for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
    own |= {t.id for n in tree.body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)}
    return own & set(promised)


def test_one_name_means_one_thing():
    "No name that two modules export with two meanings."
    homes = {}
    for p in MODULES:
        for n in exported(p): homes.setdefault(n, []).append(name_of(p))
    assert len(homes) > 100 and not {n: h for n, h in homes.items() if len(h) > 1}


# The course as a line

def cells(nb): return json.loads(nb.read_text(encoding="utf-8"))["cells"]


def exports_to(nb):
    m = re.search(r"^#\|\s*default_exp\s+([\w.]+)", "\n".join("".join(c["source"]) for c in cells(nb)), re.M)
    return m and m[1]


def lesson_imports(nb):
    "Modules of the package that a notebook imports, in exported cells and in others."
    found = set()
    for c in cells(nb):
        if c["cell_type"] != "code": continue
        code = "\n".join(l for l in "".join(c["source"]).splitlines() if not l.startswith(("%", "!")))
        for n in ast.walk(ast.parse(code)):
            if isinstance(n, ast.ImportFrom) and (n.module or "").startswith("pconv_course."): found.add(n.module.removeprefix("pconv_course."))
            if isinstance(n, ast.ImportFrom) and n.module == "pconv_course": found |= {a.name for a in n.names if (PKG/f"{a.name}.py").exists()}
    return found


def test_numbers_are_the_order_of_imports():
    "The course's modules stand in LAYERS in the order of their chapters' numbers."
    line = [m for nb in chapters() if (m := exports_to(nb))]
    assert line == sorted(line, key=RANK.get) and set(line) == set(RANK) - {*WINGS, *ROOF}


@pytest.mark.parametrize("nb", chapters(), ids=lambda p: p.stem)
def test_chapters_import_nothing_from_later_ones(nb):
    "A chapter stands on the ones before it and on the ground; an experiment, which exports nothing, may use the lab."
    me = exports_to(nb)
    if me is None: return
    late = {m for m in lesson_imports(nb) if RANK[m.split(".")[0]] > RANK[me]}
    assert not late, f"{nb.stem} needs {late}, which come later"


def test_experiments_come_last():
    kinds = [exports_to(nb) is None for nb in chapters() if nb.stem != "00_start"]
    assert kinds == sorted(kinds) and any(kinds)


def sidebar():
    conf = yaml.safe_load((TOP/"_quarto.yml").read_text(encoding="utf-8"))
    return re.findall(r"[\w./-]+\.ipynb", json.dumps(conf["website"]["sidebar"]))


def test_sidebar_is_the_order_of_the_numbers():
    numbered = [n for n in sidebar() if re.match(r"\d\d_", n)]
    assert numbered == [p.name for p in chapters()]


def test_nobody_writes_previous_and_next_by_hand():
    texts = {p: "\n".join("".join(c["source"]) for c in cells(p) if c["cell_type"] == "markdown") for p in NBS.rglob("*.ipynb")}
    assert not [p.name for p, t in texts.items() if re.search(r"(?im)^\W*(previous|next)( chapter)?\W*:", t)]


@pytest.mark.parametrize("nb", chapters(), ids=lambda p: p.stem)
def test_no_chapter_takes_longer_than_a_lesson(nb):
    assert minutes(nb) <= 45, f"{minutes(nb):.0f} minutes"


def test_core_path_reads_in_six_hours():
    names = {p.stem for p in chapters()}
    assert set(CORE) <= names
    total = sum(minutes(NBS/f"{n}.ipynb") for n in CORE)
    assert total <= 360, f"{total:.0f} minutes"
