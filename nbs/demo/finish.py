#!/usr/bin/env python3
"""What the site needs besides Quarto's pages; Quarto runs it after a whole render (`post-render` of _quarto.yml).

The live demo, KaTeX and the pictures are put beside the pages, which then ask no other server for anything: require.js and jQuery, which
Quarto adds wherever a notebook shows HTML, go, since nothing here uses them. A script or style from elsewhere that is left stops the build."""
import os
import re
import shutil
import sys
from pathlib import Path

import build

REQUIRE = re.compile(r"""<script[^>]*src="https://[^"]*/(?:require(?:\.min)?\.js|jquery(?:\.min)?\.js|embed-amd\.js|polyfill\.min\.js[^"]*)"[^>]*></script>\s*
                       |<script[^>]*>\s*define\('jquery',\s*\[\],\s*function\(\)\s*\{\s*return\s+window\.jQuery;\s*\}\)\s*</script>\s*""", re.X)
FOREIGN = re.compile(r"""<(?:script|iframe)\b[^>]*\bsrc="((?:https?:)?//[^"]+)"|<link\b(?=[^>]*\brel="(?:stylesheet|preload|modulepreload)")[^>]*\bhref="((?:https?:)?//[^"]+)"
                       |\.src\s*=\s*"((?:https?:)?//[^"]+)" """, re.X)
IMPORT = re.compile(r"""@import\s*(?:url\(\s*)?(?:"https?://[^"]*"|'https?://[^']*'|https?://[^)\s]*)\s*\)?[^;{}]*;""")  # its address may hold a ;
TABLE = re.compile(r"<table\b.*?</table>", re.S)


def own(html):
    "A page without what comes from elsewhere and isn't needed; tables scroll by themselves, also by keyboard."
    html = REQUIRE.sub("", html)
    return TABLE.sub(lambda m: f'<div class="scroll" tabindex="0" role="group" aria-label="Table">{m[0]}</div>', html)


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
    "Complete the rendered site in the folder `docs`; the addresses that it still asks other servers for, by page."
    katex(docs/"katex")
    build.build(docs/"demo")
    shutil.copytree(build.HERE.parent/"images", docs/"images", dirs_exist_ok=True)
    left = {}
    for page in docs.rglob("*.html"):
        old = page.read_text(encoding="utf-8")
        if (new := old if 'class="scroll"' in old else own(old)) != old: page.write_text(new, encoding="utf-8")
        if found := foreign(new): left[page.relative_to(docs).as_posix()] = found
    for sheet in docs.glob("site_libs/**/*.css"):
        old = sheet.read_text(encoding="utf-8")
        if (new := IMPORT.sub("", old)) != old: sheet.write_text(new, encoding="utf-8")
    return left


if __name__ == "__main__":
    docs = Path(os.environ.get("QUARTO_PROJECT_OUTPUT_DIR") or build.TOP/"_docs")
    if (docs/"site_libs").is_dir() and (left := complete(docs)):  # for README.md alone Quarto writes no more than a redirection
        sys.exit("\n".join(f"finish.py: {page} asks {', '.join(found)}" for page, found in left.items()))
