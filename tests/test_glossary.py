"""The glossary tells where a word is met first: it stands in the text of that chapter, and in no earlier one."""
import json
import re
from pathlib import Path

import pytest

NBS = Path(__file__).resolve().parent.parent/"nbs"
# Everyday words: what they look like where the course means its own.
SENSE = {"depth": r"\b[Dd]epth of (a|the|every) pixel", "skip": r"\bthe skip\b", "plan": r"\bplans?\b", "phase": r"\b(first|second|two|both) phases?\b",
         "out": r"`out`", "plain": r"\bplain (network|U-Net|one)\b", "gated": r"\b[Gg]ated (network|one|convolution)\b(?!\])", "blobs": r"\b(`|[Cc]olou?r )blobs?\b|## Blobs",
         "specks": r"`specks`|\*\*[Ss]pecks|## Specks", "texture": r"`texture`", "told": r"can't be told|can be told|\bare told\b", "average": r"[Aa]verage of the weights",
         "pair": r"\bpairs? (of each face|of \d+ faces)", "record": r"\brecords?\b(?! with)"}


def rows():
    "(term, pattern, chapter) of the table, in its order."
    found = re.findall(r"^\| (\*\*.+?) \| .+ \| \[(\d\d)\]\((\d\d_\w+)\.ipynb\) \|$", (NBS/"glossary.qmd").read_text(encoding="utf-8"), re.M)
    for words, number, chapter in found:
        assert chapter.startswith(number), chapter
        for term in re.findall(r"\*\*(.+?)\*\*", words):
            yield term, SENSE.get(term) or rf"(?i)\b{re.escape(term)}s?\b", chapter


def paragraphs():
    "{chapter: its paragraphs}: text and captions, without code, addresses and the titles of other people's work."
    out = {}
    for path in sorted(NBS.glob("[0-9]*.ipynb")):
        text = []
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            source = "".join(cell["source"])
            text += [source] if cell["cell_type"] == "markdown" else re.findall(r'(?m)^#\| fig-(?:cap|alt): "(.*)"$', source)
        whole = re.sub(r"```.*?```", "", "\n\n".join(text), flags=re.S).split("## Further reading")[0]
        out[path.stem] = [p for p in re.split(r"\n\s*\n", whole) if "colab.research" not in p]
    return out


TEXT, ROWS = paragraphs(), list(rows())


def met(pattern, chapter, ahead=""):
    "The paragraphs of a chapter that use a word; not those that look ahead, with a link to the chapter `ahead` or to the glossary."
    plain = lambda p: re.sub(r"\]\([^)]*\)", "]", p)
    return [p for p in TEXT[chapter] if re.search(pattern, plain(p)) and not (ahead and (f"({ahead}.ipynb" in p or "(glossary.qmd" in p))]


def test_every_row_is_read():
    lines = (NBS/"glossary.qmd").read_text(encoding="utf-8").count("\n| **")
    assert len({c for *_, c in ROWS}) > 12 and len(ROWS) >= lines > 25
    assert len({t for t, *_ in ROWS}) == len(ROWS), "a word stands in two rows"
    assert set(SENSE) <= {t for t, *_ in ROWS}, "a sense of a word that is not in the glossary"
    chapters = [c for *_, c in ROWS]
    assert chapters == sorted(chapters), "rows stand in the order of the course"


@pytest.mark.parametrize("term,pattern,chapter", ROWS, ids=[t for t, *_ in ROWS])
def test_first_met_in(term, pattern, chapter):
    assert met(pattern, chapter), f"{term} does not occur in {chapter}"
    early = {c: met(pattern, c, chapter) for c in TEXT if c < chapter}
    early = {c: p[0][:160] for c, p in early.items() if p}
    assert not early, f"{term}, said to be first met in {chapter}: {early}"


def test_the_test_sees_a_word_that_comes_too_early():
    assert met(r"\bU-Net\b", "04_unet") and met(r"\bmask", "01_pconv") and not met(r"\bledger\b", "22_sparse", "26_ledger") and met(r"\bledger\b", "22_sparse")
