"""Write README.md from nbs/index.ipynb, without quarto: `python tests/readme.py`, or `--check` to compare only.

Markdown cells and the outputs of code cells are taken as they are stored in the notebook; code is shown unless its
cell says `#| echo: false`, cells with `#| hide` are left out, and links are made to work from the top level."""
import json
import re
import sys
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent


def output_text(out):
    "The Markdown of one stored output."
    data = out.get("data", {})
    if "text/markdown" in data: return "".join(data["text/markdown"])
    if any(k.startswith("image/") for k in data):
        raise SystemExit("index.ipynb stores a picture as an output; save it under nbs/images/ and link it in a Markdown cell")
    return "```text\n" + "".join(out.get("text", data.get("text/plain", ""))).rstrip() + "\n```"


def cell_text(cell):
    "The Markdown of one notebook cell, '' for a hidden one."
    src = "".join(cell["source"])
    if cell["cell_type"] == "raw" or re.search(r"^#\|\s*hide\b", src, re.M): return ""
    if cell["cell_type"] == "markdown": return src
    code = "\n".join(l for l in src.splitlines() if not l.startswith("#|")).strip()
    shown = [] if re.search(r"^#\|\s*echo:\s*false", src, re.M) or not code else [f"```python\n{code}\n```"]
    return "\n\n".join(shown + [output_text(o) for o in cell.get("outputs", [])])


def readme():
    "The text of README.md as nbs/index.ipynb has it."
    cells = json.loads((TOP / "nbs/index.ipynb").read_text(encoding="utf-8"))["cells"]
    text = "\n\n".join(t.strip() for t in map(cell_text, cells) if t.strip())
    text = re.sub(r"\]\((?=(?:images/|[\w/-]+\.(?:ipynb|qmd)))", "](nbs/", text)
    note = "<!-- Generated from nbs/index.ipynb by `make readme`: edit the notebook, not this file. -->"
    return f"{note}\n\n{text}\n"


if __name__ == "__main__":
    path = TOP / "README.md"
    if "--check" not in sys.argv: path.write_text(readme(), encoding="utf-8")
    elif path.read_text(encoding="utf-8") != readme(): sys.exit("README.md differs from nbs/index.ipynb: run `make readme`")
