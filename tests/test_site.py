"""The site as far as it can be tested without Quarto: what comes from elsewhere goes, code blocks hold no Markdown, formulas are read."""
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

TOP = Path(__file__).resolve().parent.parent
DEMO = TOP/"nbs"/"demo"
CONFIG = yaml.safe_load((TOP/"_quarto.yml").read_text(encoding="utf-8"))

# What Quarto 1.11 writes into the head of a page whose notebook shows HTML.
HEAD = """<script src="https://cdn.jsdelivr.net/npm/requirejs@2.3.6/require.min.js" integrity="sha384-c9" crossorigin="anonymous"></script>
<script src="https://cdn.jsdelivr.net/npm/jquery@3.5.1/dist/jquery.min.js" integrity="sha384-Zv" crossorigin="anonymous" data-relocate-top="true"></script>
<script type="application/javascript">define('jquery', [],function() {return window.jQuery;})</script>
<script src="site_libs/quarto-nav/quarto-nav.js"></script>
"""


@pytest.fixture(scope="module")
def finish():
    sys.path.insert(0, str(DEMO))                                  # it imports build.py beside it
    try:
        spec = importlib.util.spec_from_file_location("finish", DEMO/"finish.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    finally: sys.path.remove(str(DEMO))


def test_nothing_comes_from_elsewhere(finish):
    assert finish.foreign(HEAD) and finish.own(HEAD).strip() == '<script src="site_libs/quarto-nav/quarto-nav.js"></script>'
    for line, host in [('<script src="https://a.org/x.js"></script>', "https://a.org/x.js"), ('<link rel="stylesheet" href="//b.org/y.css">', "//b.org/y.css"),
                       ('<link href="https://c.org/z.css" rel="stylesheet">', "https://c.org/z.css"), ('script.src  = "https://d.org/mathjax.js";', "https://d.org/mathjax.js")]:
        assert finish.foreign(finish.own(line)) == [host]
    for line in ('<a href="https://a.org">a</a>', '<link rel="canonical" href="https://a.org/">', '<script src="site_libs/a.js"></script>', '<link rel="stylesheet" href="styles.css">'):
        assert finish.foreign(line) == [] and finish.own(line) == line


def test_tables_scroll_by_themselves(finish):
    page = '<p>a</p><table class="a">\n<tr><td>1</td></tr></table><p>b</p><table><tr></tr></table>'
    got = finish.own(page)
    assert got.count('class="scroll" tabindex="0"') == 2 and re.sub(r"<div[^>]*>|</div>", "", got) == page


def test_pages_below_the_top_find_katex(finish, tmp_path):
    page = '<script defer="" src="katex/katex.min.js"></script><link rel="stylesheet" href="katex/katex.min.css"><a href="katex/LICENSE">a</a>'
    (tmp_path/"katex").mkdir()
    for f in ("katex.min.js", "katex.min.css"): (tmp_path/"katex"/f).touch()
    (tmp_path/"lab").mkdir()
    assert finish.own(page) == page and finish.missing(page, tmp_path) == []
    assert finish.missing(page, tmp_path/"lab") == ["katex/katex.min.css", "katex/katex.min.js"], "as Quarto 1.11 writes it"
    below = finish.own(page, 1)
    assert below.count("../katex/") == 2 and finish.missing(below, tmp_path/"lab") == [] and finish.own(below, 1) == below


def test_files_that_are_missing(finish, tmp_path):
    (tmp_path/"a b.png").touch()
    page = '<img src="a%20b.png" alt="a"><img src="b.png?1"><img src="data:image/png;base64,a"><link rel="icon" href="f.svg"><link rel="next" href="no.html"><script src="/at/the/root.js">'
    assert finish.missing(page, tmp_path) == ["b.png", "f.svg"]


def test_cards_show_a_face(finish):
    for name in ("og", "twitter"):
        meta = f'<meta property="{name}:image" content="https://a.org/b/images/colab.svg">'
        assert finish.own(meta) == meta.replace("colab.svg", "restored.jpg")
    assert finish.own('<img src="images/colab.svg" alt="Open in Colab">') == '<img src="images/colab.svg" alt="Open in Colab">'
    assert (TOP/"nbs"/"images"/"restored.jpg").is_file()


def test_source_is_open_in_lessons_and_folded_elsewhere(finish):
    source = '<details open="" class="code-fold">\n<summary>Exported source</summary>'
    other = '<details open="" class="code-fold">\n<summary>The check</summary>'
    assert finish.own(source + other) == source + other
    assert finish.own(source + other, lesson=False) == source.replace(' open=""', "") + other


def test_a_whole_folder(finish, tmp_path, monkeypatch):
    npm = tmp_path/"npm"
    (npm/"katex"/"dist"/"fonts").mkdir(parents=True)
    for f in ("LICENSE", "dist/katex.min.js", "dist/katex.min.css", "dist/fonts/a.woff2", "dist/fonts/a.ttf"): (npm/"katex"/f).write_text(f)
    built = []
    monkeypatch.setattr(finish.build, "packages", lambda: npm)
    monkeypatch.setattr(finish.build, "build", built.append)
    docs, css = tmp_path/"docs", tmp_path/"docs"/"site_libs"/"bootstrap"/"b.css"
    css.parent.mkdir(parents=True)
    css.write_text('@import"https://fonts.googleapis.com/css2?family=Lato:ital@0;1&display=swap";body{}'
                   "@import url('https://fonts.googleapis.com/css2?family=A;b');\n@import url(https://a.org/c.css);@import 'own.css';")
    (docs/"index.html").write_text(HEAD + "<table></table>", encoding="utf-8")
    (docs/"runs").mkdir()
    (docs/"site_libs"/"quarto-nav").mkdir()
    (docs/"site_libs"/"quarto-nav"/"quarto-nav.js").touch()
    for page in ("other.html", "runs/train.html"): (docs/page).write_text('<script src="https://a.org/x.js"></script>', encoding="utf-8")
    for _ in range(2): assert finish.complete(docs) == dict.fromkeys(("other.html", "runs/train.html"), ["https://a.org/x.js"])
    assert built == [docs/"demo"]*2 and css.read_text() == "body{}\n@import 'own.css';" and (docs/"images"/"favicon.svg").is_file()
    assert (docs/"index.html").read_text().count("scroll") == 1 and sorted(f.name for f in (docs/"katex"/"fonts").iterdir()) == ["a.woff2"]


def test_no_demo_for_a_readme(tmp_path):
    "Rendering README.md leaves README.md and an index.html that redirects; whole pages come with site_libs, and make docs has no README.md rendered."
    (tmp_path/"index.html").write_text('<meta http-equiv="refresh" content="0;URL=\'a.html\'" />')
    out = subprocess.run([sys.executable, DEMO/"finish.py"], env={**os.environ, "QUARTO_PROJECT_OUTPUT_DIR": str(tmp_path)}, capture_output=True, text=True, check=True)
    assert [f.name for f in tmp_path.iterdir()] == ["index.html"] and not out.stdout + out.stderr
    recipe = (TOP/"Makefile").read_text(encoding="utf-8").split("\ndocs:")[1].split("\n\n")[0]
    assert recipe.index("touch README.md") < recipe.index("nbdev_docs")


def test_code_blocks_hold_no_markdown(tmp_path):
    if not shutil.which("pandoc"): pytest.skip("no pandoc; Quarto brings its own")
    code = "def f(\n  a:Path=None, # from [`jpeg_like`](https://a.github.io/b/c.html#jpeg_like); else [`x`](https://a.org/y)\n  b=[`no`](link), c='[a](https://a.org)')->list[int]"
    text = f"see [`jpeg_like`](https://a.org/z)\n\n> ```python\n> " + code.replace("\n", "\n> ") + "\n> ```\n"
    out = subprocess.run(["pandoc", "-f", "markdown", "-t", "json", "--lua-filter", TOP/"nbs"/"plain-code.lua"], input=text, capture_output=True, text=True, check=True)
    first, quote = json.loads(out.stdout)["blocks"]
    assert '"Link"' in json.dumps(first), "links in running text stay"
    assert quote["c"][0]["c"][1] == code.replace("[`jpeg_like`](https://a.github.io/b/c.html#jpeg_like)", "jpeg_like").replace("[`x`](https://a.org/y)", "x")


def test_links_hold_no_links(tmp_path):
    if not shutil.which("pandoc"): pytest.skip("no pandoc; Quarto brings its own")
    text = "[[`train`](https://a.org/t#train), more](t.html); [see [`x`](https://a.org/y)](z.html); [a [b](c.html); [`y`](https://a.org/y)"
    out = subprocess.run(["pandoc", "-f", "markdown", "-t", "html", "--wrap=none", "--lua-filter", TOP/"nbs"/"plain-code.lua"], input=text, capture_output=True, text=True, check=True).stdout
    assert re.findall(r"<a href.*?</a>", out) == ['<a href="t.html"><code>train</code>, more</a>', '<a href="z.html">see <code>x</code></a>', '<a href="c.html">b</a>',
                                                  '<a href="https://a.org/y"><code>y</code></a>']


def test_what_scrolls_can_be_reached_by_keyboard(finish):
    page = '<pre><code>1</code></pre><pre class="text"><code>2</code></pre><span class="math display">x</span><pre class="sourceCode">a</pre><span class="math inline">y</span>'
    new = finish.own(page)
    assert new.count('tabindex="0"') == 3 and finish.own(new) == new and new.replace(' tabindex="0"', "") == page


def test_the_configuration_names_files_that_are_there():
    html = CONFIG["format"]["html"]
    assert html["html-math-method"] == dict(method="katex", url="katex/") and html["respect-user-color-scheme"] is True
    for f in [html["css"], *CONFIG["filters"], *(o for t in html["theme"].values() for o in t if "." in o)]: assert (TOP/"nbs"/f).is_file(), f
    assert (TOP/"nbs"/"404.qmd").is_file() and "python ../nbs/demo/finish.py" in CONFIG["project"]["post-render"]
    for f in ("light.scss", "dark.scss"): assert "$web-font-path: false;" in (TOP/"nbs"/f).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["light", "dark"])
def test_white_on_the_navbar_can_be_read(name):
    colour = re.search(r"\$primary: #(\w{6});", (TOP/"nbs"/f"{name}.scss").read_text(encoding="utf-8"))[1]
    linear = [(v/12.92 if v <= .04045 else ((v + .055)/1.055)**2.4) for v in (int(colour[i:i + 2], 16)/255 for i in (0, 2, 4))]
    assert 1.05/(sum(a*b for a, b in zip((.2126, .7152, .0722), linear)) + .05) > 5.5


def formulas():
    "(chapter, TeX, on its own line?) of all that is written between dollar signs."
    for nb in sorted((TOP/"nbs").glob("*.ipynb")):
        for cell in json.loads(nb.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] != "markdown": continue
            text = re.sub(r"```.*?```|`[^`\n]*`", "", "".join(cell["source"]), flags=re.S)
            yield from ((nb.stem, t, True) for t in re.findall(r"\$\$(.+?)\$\$", text, re.S))
            yield from ((nb.stem, t, False) for t in re.findall(r"(?<![\\$\w])\$(?=\S)([^$\n]+?)(?<=\S)\$(?!\d)", re.sub(r"\$\$.+?\$\$", "", text, flags=re.S)))


def test_katex_reads_every_formula(tmp_path):
    katex, found = TOP/"build"/"demo"/"npm"/"node_modules"/"katex", list(formulas())
    assert len(found) > 100
    if not shutil.which("node") or not katex.is_dir(): pytest.skip("no KaTeX; `make demo-site` brings it")
    (tmp_path/"all.json").write_text(json.dumps(found))
    code = (f"const k = require({json.dumps(str(katex))}); for (const [nb, t, d] of require({json.dumps(str(tmp_path/'all.json'))}))"
            " try { k.renderToString(t, { displayMode: d, throwOnError: true }) } catch (e) { console.log(nb, t, e.message) }")
    out = subprocess.run(["node", "-e", code], capture_output=True, text=True, check=True)
    assert not out.stdout, out.stdout
