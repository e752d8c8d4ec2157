"""How long the course takes to read: `python tests/minutes.py` prints the minutes of every notebook.

200 words of prose a minute and 4 seconds a line of code; folding code hides it and makes it no shorter. Exercises and
quick questions at the end of a chapter don't count, neither do hidden cells: nobody reads them."""
import json
import re
from pathlib import Path

NBS = Path(__file__).resolve().parent.parent/"nbs"
CORE = "01_pconv 02_masks 03_data 04_unet 06_losses 07_objective 10_metrics 14_learner 17_training 22_sparse 23_large_central 24_comparison".split()
HIDDEN = re.compile(r"^#\|\s*hide\s*$", re.M)
AFTER = re.compile(r"^## (Exercises|Quick questions)\b.*?(?=^## |\Z)", re.M | re.S)


def minutes(nb):
    "Reading minutes of the notebook at the path `nb`."
    words = lines = 0
    skip = False
    for c in json.loads(nb.read_text(encoding="utf-8"))["cells"]:
        src = "".join(c["source"])
        if c["cell_type"] == "markdown":
            for head in re.findall(r"^## (.*)$", src, re.M): skip = bool(re.match("Exercises|Quick questions", head))
            words += 0 if skip and not re.search(r"^## ", src, re.M) else len(AFTER.sub("", src).split())
        elif c["cell_type"] == "code" and not skip and not HIDDEN.search(src):
            lines += sum(bool(l.strip()) and not l.lstrip().startswith("#|") for l in src.splitlines())
    return words/200 + lines*4/60


def chapters(): return sorted(p for p in NBS.glob("[0-9][0-9]_*.ipynb"))


if __name__ == "__main__":
    for p in chapters(): print(f"{p.stem:22} {minutes(p):4.0f} min{'  core' if p.stem in CORE else ''}")
    print(f"the core path: {sum(minutes(NBS/f'{n}.ipynb') for n in CORE)/60:.1f} hours")
    print()
    for p in sorted(NBS.glob("*/*.ipynb")): print(f"{str(p.relative_to(NBS))[:-6]:22} {minutes(p):4.0f} min")
