#!/usr/bin/env python3
"""What the site needs besides Quarto's pages; Quarto runs it after a whole render (`post-render` of _quarto.yml).

The live demo, KaTeX and the pictures are put beside the pages, which then ask no other server for anything: require.js and jQuery, which
Quarto adds wherever a notebook shows HTML, go, since nothing here uses them. A script or style from elsewhere that is left, or a file that is missing, stops the build."""
import os
import re
import shutil
import sys
from pathlib import Path
from urllib.parse import unquote

import build

REQUIRE = re.compile(r"""<script[^>]*src="https://[^"]*/(?:require(?:\.min)?\.js|jquery(?:\.min)?\.js|embed-amd\.js|polyfill\.min\.js[^"]*)"[^>]*></script>\s*
                       |<script[^>]*>\s*define\('jquery',\s*\[\],\s*function\(\)\s*\{\s*return\s+window\.jQuery;\s*\}\)\s*</script>\s*""", re.X)
FOREIGN = re.compile(r"""<(?:script|iframe)\b[^>]*\bsrc="((?:https?:)?//[^"]+)"|<link\b(?=[^>]*\brel="(?:stylesheet|preload|modulepreload)")[^>]*\bhref="((?:https?:)?//[^"]+)"
                       |\.src\s*=\s*"((?:https?:)?//[^"]+)" """, re.X)
IMPORT = re.compile(r"""@import\s*(?:url\(\s*)?(?:"https?://[^"]*"|'https?://[^']*'|https?://[^)\s]*)\s*\)?[^;{}]*;""")  # its address may hold a ;
TABLE = re.compile(r"<table\b.*?</table>", re.S)
CARD = re.compile(r'(<meta\b[^>]*="(?:og|twitter):image"[^>]*images/)colab\.svg"')
FOLD = re.compile(r'<details open(?:="")?( class="code-fold">\s*<summary>Exported source</summary>)')
FILES = re.compile(r"""<(?:script|img|iframe|source)\b[^>]*\bsrc="([^"#?]+)|<link\b(?=[^>]*\brel="(?:stylesheet|icon)")[^>]*\bhref="([^"#?]+)""")


def own(html, deep=0, lesson=True):
    """A page without what comes from elsewhere and isn't needed, `deep` folders below the top; tables, outputs and formulas scroll by themselves, also by keyboard.

    A card of a page shows a restored face and not the button for Colab; outside the lessons, exported source begins folded, below its signature."""
    html = CARD.sub(r'\1restored.jpg"', REQUIRE.sub("", html))
    html = re.sub(r'(<(?:script|link)\b[^>]*\b(?:src|href)=")(?=katex/)', lambda m: m[1] + "../"*deep, html)
    html = re.sub(r'<(pre(?: class="text")?|span class="math display")>', r'<\1 tabindex="0">', html)
    if not lesson: html = FOLD.sub(r"<details\1", html)
    return TABLE.sub(lambda m: f'<div class="scroll" tabindex="0" role="group" aria-label="Table">{m[0]}</div>', html)


def missing(html, folder):
    "Scripts, styles and pictures that a page in `folder` asks for, by an address relative to it, and that aren't there."
    found = {a or b for a, b in FILES.findall(html)}
    return sorted(f for f in found if not re.match(r"[a-z]+:|/", f) and not (folder/unquote(f)).is_file())


def foreign(html):
    "Addresses on other servers that the page would load scripts or styles from."
    return sorted({a or b or c for a, b, c in FOREIGN.findall(html)})


def katex(out):
    "The scripts, styles and fonts for formulas; woff2 is what every browser of today takes."
    source = build.packages()/"katex"/"dist"
    (out/"fonts").mkdir(parents=True, exist_ok=True)
    for f in ("katex.min.js", "katex.min.css"): shutil.copyfile(source/f, out/f)
    for f in (source/"fonts").glob("*.woff2"): shutil.copyfile(f, out/"fonts"/f.name)
    shutil.copyfile(source.parent/"LICENSE", out/"LICENSE")


def complete(docs):
    "Complete the rendered site in the folder `docs`; by page, the addresses that it still asks other servers for, and files that aren't there."
    katex(docs/"katex")
    build.build(docs/"demo")
    shutil.copytree(build.HERE.parent/"images", docs/"images", dirs_exist_ok=True)
    left = {}
    for page in docs.rglob("*.html"):
        old, place = page.read_text(encoding="utf-8"), page.relative_to(docs)
        lesson = re.search(rf"/nbs/\d\d_{re.escape(page.stem)}\.ipynb", old) is not None  # 01_pconv.ipynb becomes pconv.html, and a link shows where it is from
        if (new := old if 'class="scroll"' in old else own(old, len(place.parts) - 1, lesson)) != old: page.write_text(new, encoding="utf-8")
        if found := foreign(new) + missing(new, page.parent): left[place.as_posix()] = found
    for sheet in docs.glob("site_libs/**/*.css"):
        old = sheet.read_text(encoding="utf-8")
        if (new := IMPORT.sub("", old)) != old: sheet.write_text(new, encoding="utf-8")
    return left


if __name__ == "__main__":
    docs = Path(os.environ.get("QUARTO_PROJECT_OUTPUT_DIR") or build.TOP/"_docs")
    if (docs/"site_libs").is_dir() and (left := complete(docs)):  # for README.md alone Quarto writes no more than a redirection
        sys.exit("\n".join(f"finish.py: {page} asks {', '.join(found)}" for page, found in left.items()))
