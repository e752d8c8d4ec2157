"""The commands as a shell sees them: help, exit codes, one line of error, nothing heavy before it is needed."""
import errno
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from calling import MODULE, command_of, pconv, shell
from fastcore.script import anno_parser

from pconv_course.base import core
from pconv_course import cli
from pconv_course.base.core import UsageError, check_number, clean_exit, exit_code, one_line
from pconv_course.base.core import InputError, write_json

def paths(commands, before=""):
    "All commands: 'data', ..., 'lab bench', ..."
    return [p for k, f in commands.items() for p in (paths(f, f"{before}{k} ") if isinstance(f, dict) else [before + k])]


NAMES = paths(cli.COMMANDS)


def test_the_table_of_commands():
    assert NAMES == ["data", "train", "evaluate", "inpaint", "app", "export", "demo", *(f"lab {n}" for n in ("bench", "trials", "experiments", "pack", "convert"))]


HEAVY = """import sys
from pconv_course.cli import main
try: main({words})
except SystemExit: pass
print([m for m in ("torch", "numpy", "PIL", "fastai", "matplotlib") if m in sys.modules], file=sys.stderr)"""


@pytest.mark.parametrize("name", ["", "lab", *NAMES])
def test_help(name):
    "Every option of every command has a help text; help is 0 and loads nothing heavy, neither does the import."
    r = subprocess.run([sys.executable, "-c", HEAVY.format(words=[*name.split(), "--help"])], capture_output=True, text=True)
    assert r.stderr.strip() == "[]" and r.stdout.startswith(f"usage: {f'pconv {name}'.strip()} ")
    if name not in NAMES: return
    for action in cli.dashed(anno_parser(command_of(name)))._actions:
        if action.help != "==SUPPRESS==": assert action.help and (action.option_strings or [action.dest])[0] in r.stdout


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"], ["lab"], ["lab", "--help"]], ids=" ".join)
def test_the_way_through(words, capsys):
    "A line for each command, a group among them, and an example that the parser takes."
    assert cli.main(words) is None
    out, table = capsys.readouterr().out, cli.LAB if "lab" in words else cli.COMMANDS
    assert re.findall(r"^  (\w+) ", out, re.M) == list(table) and max(map(len, out.splitlines())) <= 100
    example = shlex.split(out.splitlines()[-1].removeprefix("For example: pconv "))
    name = " ".join(example[:2]) if example[0] == "lab" else example[0]
    assert cli.read_options(command_of(name), "pconv", example[len(name.split()):])


@pytest.mark.parametrize("words,says", [(["trian"], "pconv train"), (["bench"], "did you mean pconv lab bench?"), (["lab", "trails"], "did you mean pconv lab trials?"),
                                        (["inpant", "a.png"], "did you mean pconv inpaint?"), (["xyzzy"], "choose from: data, train"), (["lab", "xyzzy"], "choose from: bench, trials"),
                                        (["--data", "x"], "unknown command '--data'")], ids=lambda o: " ".join(o) if isinstance(o, list) else "")
def test_unknown_words_bring_the_nearest(words, says, capsys):
    with pytest.raises(SystemExit) as e: cli.main(words)
    out, err = capsys.readouterr()
    assert (e.value.code, out, err.count("\n")) == (2, "", 1) and says in err and err.startswith("pconv lab: error: " if words[0] == "lab" else "pconv: error: ")


def test_options_for_several_values():
    "By blanks, by commas, and by the option once more; all of it counts."
    read = lambda *words: cli.read_options(cli.evaluate_cmd, "x", words)
    for words in (["--baseline", "telea", "ns"], ["--baseline", "telea,ns"], ["--baseline", "telea", "--baseline", "ns"], ["--baseline=telea", "--baseline=ns"]):
        assert cli.split_words(read(*words)["baseline"]) == ["telea", "ns"]
    assert cli.split_words(read("--model", "a", "--outputs", "b", "c", "--model", "d=e")["model"]) == ["a", "d=e"]
    assert read()["baseline"] is None and cli.split_words(None) == []


def test_an_option_given_twice_loses_nothing(monkeypatch):
    "Every option that stands for several values; the variants of trials are named with blanks, so ';' divides them."
    from pconv_course import cli_lab
    from pconv_course.lab import plans, trials
    read = lambda command, *words: cli.read_options(command, "x", words)
    for option in ("model", "baseline", "outputs", "join"): assert cli.split_words(read(cli.evaluate_cmd, f"--{option}", "a", f"--{option}", "b", "c, d")[option]) == list("abcd")
    seen = []
    monkeypatch.setattr(plans, "run_trials", lambda *a: seen.append(a[-1]))
    monkeypatch.setattr(trials, "trial_table", lambda r: "")
    for words in (["--only", "a a; b", "--only", "c"], ["--only", "a a", "b", "c"], []): cli_lab.trials_cmd(**read(cli_lab.trials_cmd, *words))
    cli_lab.trials_cmd(only="a a; b")
    assert seen == [["a a", "b", "c"], ["a a", "b", "c"], None, ["a a", "b"]]
    seen.clear()
    monkeypatch.setattr(cli_lab, "_experiments", lambda job, steps: seen.append(steps))
    for words in (["--only", "sparse", "--only", "half,central"], ["--only", "sparse half", "central"], []): cli_lab.experiments_cmd(**read(cli_lab.experiments_cmd, *words))
    assert seen == [["sparse", "half", "central"], ["sparse", "half", "central"], []]
    with pytest.raises(UsageError, match="unknown step 'x'"): cli_lab.experiments_cmd(**read(cli_lab.experiments_cmd, "--only", "sparse", "--only", "x"))


def test_help_says_what_the_options_take():
    "Every way to mark a hole, and the words of LPIPS: those that the code knows."
    from pconv_course.base.pictures import POLARITIES
    from pconv_course.metrics import open_lpips
    says = lambda name, option: next(a.help for a in anno_parser(command_of(name))._actions if a.dest == option)
    for name in ("inpaint", "evaluate", "lab experiments"): assert not [w for w in POLARITIES if w not in says(name, "hole")], name
    assert not [w for w in ("alex", "download", "none", "FILE") if w not in says("evaluate", "lpips")] and "vgg" not in says("evaluate", "lpips")
    with pytest.raises(InputError, match="choose from alex, download, none, or give a file"): open_lpips("vgg")


def test_a_process_of_its_own(tmp_path):
    "`python -m pconv_course` is the command."
    code, out, err = shell("", cwd=tmp_path)
    assert (code, err) == (0, "") and out.startswith("usage: pconv ")
    assert shell("frobnicate", cwd=tmp_path)[0] == 2


@pytest.mark.parametrize("name,args", [("data", ["prepare", "a", "b", "--size", "big"]), ("data", []),
                                       ("train", ["--minutes", "soon"]), ("demo", ["--colour", "red"]),
                                       ("lab trials", ["--seeds", "few"]), ("app", ["--port", "here"]), ("inpaint", ["a.png"]), ("lab pack", [])])
def test_argparse_errors_look_like_ours(name, args, capsys):
    with pytest.raises(SystemExit) as e: cli.main([*name.split(), *args])
    out, err = capsys.readouterr()
    assert (e.value.code, out) == (2, "") and "Traceback" not in err
    assert [o for o in err.splitlines() if "error:" in o] == err.splitlines()[-1:] and err.splitlines()[-1].startswith(f"pconv {name}: error: ")


BAD_NUMBERS = [("data", ["prepare", "a", "b", "--size", "0"]), ("data", ["prepare", "a", "b", "--workers", "-1"]), ("train", ["--seed", "-1"]),
               ("evaluate", ["--size", "3"]), ("inpaint", ["a.png", "-o", "b.png", "--grow", "-1"]), ("demo", ["--minutes", "-1"]), ("demo", ["--minutes", "inf"]),
               ("lab bench", ["--batch", "0"]), ("lab trials", ["--images", "63"]), ("lab trials", ["--seeds", "0"]), ("lab experiments", ["--seeds", "0"]), ("app", ["--port", "0"])]


@pytest.mark.parametrize("name,args", BAD_NUMBERS)
def test_bad_numbers_are_refused_at_once(name, args):
    "One line, before anything heavy is imported."
    r = subprocess.run([sys.executable, "-c", HEAVY.format(words=[*name.split(), *args])], capture_output=True, text=True)
    line, heavy = r.stderr.splitlines()
    assert (r.stdout, heavy) == ("", "[]") and line.startswith(f"pconv {name}: error: --") and "give" in line


def test_one_line_and_code():
    cases = [(InputError("a\n b"), "b", 2), (UsageError("no"), "no", 2), (KeyboardInterrupt(), "stopped", 130),
             (FileNotFoundError(2, "No such file", "x"), "x: No such file; check the path, its permissions and the free space", 2),
             (KeyboardInterrupt("saved; go on"), "saved; go on", 130), (ZeroDivisionError(), "ZeroDivisionError", 1),
             (torch.OutOfMemoryError("CUDA out of memory.\nTried"), "out of memory; take a smaller --size or --bs, or a machine with more memory", 2),
             (RuntimeError("Caught\nTraceback\npconv_course.core.InputError: a.jpg is cut; replace it\n"), "a.jpg is cut; replace it", 1)]
    assert [(one_line(e), exit_code(e)) for e, _, _ in cases] == [(line, code) for _, line, code in cases]


def test_check_number():
    assert [check_number("n", v, 0, 2) for v in (None, 0, 2)] == [None, 0, 2]
    for v in (-1, 3, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="^--n is .*; give 0 to 2 px$"): check_number("n", v, 0, 2, "px")


def test_clean_exit_lets_success_through_and_debug_shows_all(capsys, monkeypatch):
    with clean_exit("x"): pass
    with pytest.raises(SystemExit) as e, clean_exit("x"): sys.exit(0)
    assert e.value.code == 0 and capsys.readouterr().err == ""
    monkeypatch.setenv("PCONV_DEBUG", "1")
    with pytest.raises(InputError), clean_exit("x"): raise InputError("no")


def test_unforeseen_fault_is_ours(capsys):
    with pytest.raises(SystemExit) as e, clean_exit("x"): raise ValueError("shapes (3,) and (4,)")
    err = capsys.readouterr().err
    assert e.value.code == 1 and err.count("\n") == 1 and "shapes (3,) and (4,)" in err and "PCONV_DEBUG=1" in err


def test_only_our_warnings_are_shown(capsys):
    import warnings
    from pconv_course.base.pictures import MaskWarning
    with clean_exit("x"):
        warnings.warn("for programmers", FutureWarning)
        warnings.warn("for programmers too")
        warnings.warn("the hole covers\n most", MaskWarning)
    assert capsys.readouterr().err == "x: note: most\n"


def test_commands_return_nothing(monkeypatch):
    "sys.exit(result) would turn a result into an error: the functions must return None."
    seen = []
    monkeypatch.setattr("pconv_course.tools.prepare.prepare", lambda *a, **k: dict(count=1))
    assert pconv("data", "prepare", "a", "b") is None
    monkeypatch.setattr("pconv_course.runs.train.train", lambda *a, **k: dict(images=1, minutes=1.))
    assert pconv("train", out="x") is None
    monkeypatch.setattr("pconv_course.tools.demo.demo", lambda *a, **k: dict(cases={}, total_minutes=1.))
    monkeypatch.setattr("pconv_course.tools.demo.case_table", lambda c: "")
    assert pconv("demo", out="x") is None
    monkeypatch.setattr("pconv_course.lab.plans.run_trials", lambda *a: a)
    monkeypatch.setattr("pconv_course.lab.trials.trial_table", seen.append)
    assert pconv("lab trials", "loss", "faces", "runs", "t.json", "vgg16", None, 128, 2, "a; b") is None
    assert seen == [("loss", "faces", "runs", "t.json", "vgg16", None, 128, 2, ["a", "b"])]


@pytest.fixture
def without(tmp_path):
    "A function that runs Python in a process where some modules can't be imported."
    def run(*args, modules):
        (tmp_path/"sitecustomize.py").write_text(f"import sys\nfor name in {modules}: sys.modules[name] = None\n")
        r = subprocess.run([*map(str, args)], cwd=tmp_path, capture_output=True, text=True, timeout=120, env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]), "OMP_NUM_THREADS": "1"})
        return r.returncode, r.stdout, r.stderr
    return run


@pytest.mark.parametrize("missing", ["anywidget", "voila"])
def test_without_the_packages_of_the_app(without, missing):
    "The command says in one line what to install; help needs neither."
    code, out, err = without(*MODULE, "app", "--no-browser", modules=[missing])
    assert (code, out, err) == (2, "", f"pconv app: error: {missing} is missing; install it: pip install 'pconv_course[app]'\n")
    code, out, err = without(*MODULE, "app", "--help", modules=[missing])
    assert (code, err) == (0, "") and "--port" in out


def test_the_photo_of_the_app_is_a_word_not_an_option(tmp_path):
    code, out, err = shell("app", "me.jpg", "--no-browser", cwd=tmp_path)
    assert (code, out, err) == (2, "", "pconv app: error: me.jpg: no such file; check the path\n")


def test_the_widget_without_anywidget_is_one_line(without):
    code, out, err = without(sys.executable, "-W", "ignore", "-c", "import pconv_course.tools.widget", modules=["anywidget"])
    assert code == 1 and err.splitlines()[-1] == "pconv_course.base.core.MissingPackage: anywidget is missing; install it: pip install 'pconv_course[app]'"
    assert "During handling" not in err and "direct cause" not in err
    code, out, err = without(sys.executable, "-W", "ignore", "-c", "try: import pconv_course.tools.widget\nexcept ImportError as e: print(e)", modules=["anywidget"])
    assert (code, out) == (0, "anywidget is missing; install it: pip install 'pconv_course[app]'\n"), err


def test_a_result_without_a_place_is_one_line():
    assert shell("inpaint", "photo.jpg", "mask.png") == (2, "", "pconv inpaint: error: say where the result goes: -o fixed.png\n")
    assert shell("lab convert", "theirs.pth") == (2, "", "pconv lab convert: error: say where the result goes: -o FOLDER\n")


def test_need():
    "Imports what is there; what is missing is an input error for a command and an ImportError for Python."
    assert [m.__name__ for m in core.need("json", "email.message", extra="x")] == ["json", "email.message"]
    with pytest.raises(ImportError, match=r"^no_such_module is missing; install it: pip install 'pconv_course\[x\]'$") as e: core.need("json", "no_such_module.part", extra="x")
    assert isinstance(e.value, UsageError) and exit_code(e.value) == 2 and one_line(e.value) == str(e.value)


def test_options_reach_train(monkeypatch):
    seen = {}
    def fake(recipe, data, out, minutes, resume, **kwargs):
        seen.update(recipe=recipe, data=data, out=out, minutes=minutes, resume=resume, **kwargs)
        return dict(images=1, minutes=1.)
    monkeypatch.setattr("pconv_course.runs.train.train", fake)
    pconv("train", "real", "faces.zip", "r", 3., False, "800-898", None, 32, 4, 7, "cpu")
    r = seen["recipe"]
    assert (r.size, r.bs, r.seed, r.valid, r.name) == (32, 4, 7, "800-898", "real")
    assert (seen["data"], seen["out"], seen["minutes"], seen["resume"], seen["device"]) == ("faces.zip", "r", 3., False, "cpu")
    pconv("train", resume=True, out="r")
    assert seen["recipe"] is None and seen["resume"] and (seen["num_workers"], seen["tensorboard"]) == (0, False)
    pconv("train", precision="bf16", accumulate=4, workers=3, tensorboard=True, network="gated", out="r")
    r = seen["recipe"]
    assert (r.precision, r.accumulate, r.start, r.network, r.bs % 4) == ("bf16", 4, None, "gated", 0) and (seen["num_workers"], seen["tensorboard"]) == (3, True)


@pytest.mark.parametrize("action, given, named", [("prepare", dict(ids="0-9"), "--ids"), ("prepare", dict(hole="white", source="hf"), "--source or --hole"),
                                                  ("masks", dict(valid=".2"), "--valid"), ("ffhq", dict(versions=3, out="x"), "--versions")])
def test_an_option_that_an_action_does_not_read_is_refused(capsys, action, given, named):
    with pytest.raises(SystemExit) as e: pconv("data", action, "a", "b", **given)
    assert (e.value.code, capsys.readouterr().err) == (2, f"pconv data: error: {action} takes no {named}; leave it out\n")


def test_a_preset_beside_a_saved_recipe_is_refused(capsys):
    with pytest.raises(SystemExit) as e: pconv("train", resume=True, out="r", preset="best")
    assert (e.value.code, capsys.readouterr().err) == (2, "pconv train: error: --resume goes on with the saved recipe; leave out --preset\n")


def test_recipe_of_a_file(tmp_path, monkeypatch):
    "--preset takes a recipe's JSON file; options replace what is in it; the run's folder has the name of the recipe, or of the file."
    from pconv_course.recipe import PRESETS, recipe_with
    seen = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pconv_course.runs.train.train", lambda recipe, data, out, *a, **k: seen.append((recipe, out)) or dict(images=1, minutes=1.))
    recipe = recipe_with(PRESETS["demo"], name="mine", size=48, depth=3, width=4)
    names = dict(recipe=asdict(recipe), part=dict(width=8), climber=dict(name="../../up", width=8))
    for stem, d in names.items(): write_json(tmp_path/f"{stem}.json", d)
    pconv("train", "recipe.json")
    pconv("train", "recipe.json", size=32, seed=7, out="r")
    for stem in ("part", "climber"): pconv("train", str(tmp_path/f"{stem}.json"))
    assert [out for _, out in seen] == ["runs/mine", "r", "runs/part", "runs/climber"]
    assert seen[0][0] == recipe and seen[1][0] == recipe_with(recipe, size=32, seed=7) and seen[2][0].width == 8


def test_files_that_hold_no_recipe(tmp_path, capsys):
    "One line, code 2, nothing made: no such name or file, a folder, no JSON, JSON of something else, values that cannot be."
    (tmp_path/"folder.json").mkdir()
    for name, text in dict(cut='{"size": 32', bytes="\xff\xfe\x00", list="[1]", scores='{"psnr": 24.1}', wrong='{"size": "big"}').items():
        (tmp_path/f"{name}.json").write_text(text, encoding="latin-1")
    says = dict(cut="not valid JSON", bytes="not valid JSON", list="a recipe is an object", scores="unknown in a recipe: 'psnr'", wrong="size='big'",
                folder="or give a recipe's JSON file", nowhere="or give a recipe's JSON file")
    for name, words in says.items():
        with pytest.raises(SystemExit) as e: pconv("train", str(tmp_path/f"{name}.json"), out=str(tmp_path/"run"))
        err = capsys.readouterr().err
        assert e.value.code == 2 and err.count("\n") == 1 and words in err, err
    assert not (tmp_path/"run").exists()


@pytest.mark.parametrize("how", ["name", "file"])
def test_train_on_from_the_weights_of_the_package(how, tmp_path, capsys):
    "No preset has their network; the command takes it from them, by name or by file, and a tiny run ends with its shape."
    from pconv_course.weights import load_model, pretrained_info, weights_dir
    write_json(tmp_path/"tiny.json", dict(TINY, n_faces=6, bs=2, valid=.4, min_steps=2, formula="v1", phases=[dict(lr=1e-4)]))
    start = "faces" if how == "name" else str(weights_dir()/"faces.safetensors")
    pconv("train", str(tmp_path/"tiny.json"), out=str(tmp_path/"run"), start=start, device="cpu")
    theirs, config = load_model(weights_dir()/"faces.safetensors")[1]["model"], load_model(tmp_path/"run")[1]
    assert config["model"] == theirs and config["recipe"]["size"] == 32 and config["position"]["step"] == 2
    assert config["start"]["sha256"] == pretrained_info()["sha256"] and config["recipe"]["start"] == "faces.safetensors"


def test_train_on_with_a_wider_network(tmp_path, capsys):
    "--width beside --start: the network of the start with more channels, and its work; a smaller one is refused."
    from pconv_course.weights import load_model
    tiny = dict(TINY, n_faces=6, bs=2, valid=.4, min_steps=1, phases=[dict(lr=1e-6)])
    write_json(tmp_path/"tiny.json", tiny)
    pconv("train", str(tmp_path/"tiny.json"), out=str(tmp_path/"narrow"), device="cpu")
    width = load_model(tmp_path/"narrow")[0].config["width"]
    pconv("train", str(tmp_path/"tiny.json"), out=str(tmp_path/"wide"), start=str(tmp_path/"narrow"), width=width + 3, device="cpu")
    model, config = load_model(tmp_path/"wide")
    assert model.config["width"] == width + 3 and config["start"]["width"] == width
    capsys.readouterr()
    with pytest.raises(SystemExit) as e: pconv("train", str(tmp_path/"tiny.json"), out=str(tmp_path/"thin"), start=str(tmp_path/"narrow"), width=width - 1, device="cpu")
    err = capsys.readouterr().err
    assert e.value.code == 2 and err.count("\n") == 1 and f"width {width}, here {width - 1}" in err and not (tmp_path/"thin").exists()


def test_every_command_line_in_a_text_can_be_typed():
    "What stands in a block of shell lines, in notebooks and README, are options that the command has."
    top, lines = Path(__file__).resolve().parent.parent, []
    for p in [top/"README.md", top/"CONTRIBUTING.md", *(top/"nbs").rglob("*.ipynb")]:
        text = p.read_text(encoding="utf-8")
        if p.suffix == ".ipynb": text = "\n".join("".join(c["source"]) for c in json.loads(text)["cells"] if c["cell_type"] == "markdown")
        for block in re.findall(r"```(?:sh|bash)\n(.*?)```", text, re.S):
            lines += [(p.name, l) for l in block.replace("\\\n", " ").splitlines() if re.match(r"(\.venv/bin/)?pconv ", l)]
    assert len(lines) > 8
    for where, line in lines:
        prog, command, words = "pconv", cli.COMMANDS, shlex.split(line, comments=True)[1:]
        while isinstance(command, dict): prog, command = f"{prog} {words[0]}", command[words.pop(0)]
        try: cli.read_options(command, prog, words)
        except SystemExit as e: pytest.fail(f"{where}: {line!r} ends with exit code {e.code}")


def test_tune_the_weights_of_the_package_to_faces_of_ones_own(tmp_path, capsys):
    "One command line: a folder of pictures, the network of the package, a critic; the run leaves a network of its shape that fills."
    from PIL import Image
    from pconv_course.base.faces import draw_face
    from pconv_course.weights import load_model
    (tmp_path/"mine").mkdir()
    for i in range(12): Image.fromarray(draw_face((5, i), 48)).save(tmp_path/"mine"/f"{i}.png")
    cli.main(["train", "--preset", "tune", "--start", "faces", "--data", str(tmp_path/"mine"), "--size", "32", "--bs", "2", "--minutes", ".03", "--device", "cpu", "--out", str(tmp_path/"run")])
    config = load_model(tmp_path/"run")[1]
    assert config["model"] == load_model("faces")[1]["model"] and config["recipe"]["critic"] and config["recipe"]["name"] == "tune" and config["position"]["step"] > 0


def test_the_chain_for_a_rented_gpu_in_small(tmp_path, capsys):
    "The lines of the notebook train: from coarse to fine with a critic, the recipe of the last stage that ships from a file, packed, and it fills."
    from PIL import Image
    from pconv_course.base.core import write_json
    from pconv_course.base.faces import draw_face
    from pconv_course.learner import inpaint_batch
    from pconv_course.weights import load_model, pretrained_info
    (tmp_path/"faces").mkdir()
    for i in range(8): Image.fromarray(draw_face((5, i), 64)).save(tmp_path/"faces"/f"{i}.png")
    write_json(tmp_path/"polish.json", pretrained_info()["stages"][-1]["recipe"] | dict(name="polish", start="runs/256", features="random", bs=2))
    runs = [str(tmp_path/k) for k in ("16", "32", "64", "polish")]
    for i, (preset, size) in enumerate(zip(("restore", "tune", "tune", str(tmp_path/"polish.json")), (16, 32, 64, 64))):
        more = ["--start", runs[i - 1]]*(i > 0) + ["--network", "fine"]*(0 < i < 3)
        cli.main(["train", "--preset", preset, *more, "--data", str(tmp_path/"faces"), "--valid", "0.25", "--size", str(size), "--bs", "2", "--minutes", ".02", "--device", "cpu", "--out", runs[i]])
    cli.main(["lab", "pack", *runs, "--out", str(tmp_path/"weights"), "--name", "mine"])
    net, config = load_model(tmp_path/"weights"/"mine.safetensors")
    photo, m = torch.rand(1, 3, 64, 64), torch.ones(1, 1, 64, 64)
    m[..., 20:44, 20:44] = 0
    comp = inpaint_batch(net, photo, m)[1]
    assert comp.isfinite().all() and torch.equal((comp*m), photo*m)
    assert (net.config["network"], net.config["doublings"]) == ("fine", 2) and [s["recipe"]["name"] for s in pretrained_info("mine", tmp_path/"weights")["stages"]] == ["restore", "tune", "tune", "polish"]


def test_a_home_of_nobody_is_a_matter_of_the_user(capsys, tmp_path):
    "Shells leave ~ and an unknown name as they are; pathlib ends with a RuntimeError."
    for line in (["inpaint", "~nobody-here/a.png", "m.png", "-o", "b.png", "--hole", "white"], ["data", "prepare", "~nobody-here", str(tmp_path/"out")]):
        with pytest.raises(SystemExit) as e: cli.main(line)
        err = capsys.readouterr().err
        assert e.value.code == 2 and err.count("\n") == 1 and "a path begins with ~" in err, err


def test_start_brings_its_size_unless_a_file_or_an_option_has_one(tmp_path, monkeypatch):
    "A preset's size is nobody's wish; a further part has twice the size."
    from pconv_course.runs import train as runs
    seen = []
    monkeypatch.setattr(runs, "rehearsal", lambda recipe, *a, **k: [seen.append(recipe.size)])
    monkeypatch.setattr(cli, "_cost_text", lambda *a: "")
    (file := tmp_path/"polish.json").write_text(json.dumps(dict(size=64)))
    for more, size in (([], 128), (["--preset", "tune"], 128), (["--preset", "tune", "--network", "fine"], 256), (["--size", "96"], 96), (["--preset", str(file)], 64)):
        cli.main(["train", "--start", "drawn", *more, "--dry-run"])
        assert seen.pop() == size, more


def test_tune_alone_says_what_it_goes_on_from(tmp_path, capsys):
    with pytest.raises(SystemExit) as e: cli.main(["train", "--preset", "tune", "--out", str(tmp_path/"run")])
    assert e.value.code == 2 and "--start faces" in capsys.readouterr().err and not (tmp_path/"run").exists()


def test_start_brings_its_network(tmp_path, capsys):
    "Also a gated one; another network asked for at the same time is refused, and so is a start that is none."
    from pconv_course.recipe import PRESETS, Phase, recipe_with
    from pconv_course.runs.train import train
    gated = recipe_with(PRESETS["demo"], **TINY, min_steps=1, network="gated", phases=(Phase(1e-3),))
    train(gated, out=tmp_path/"gated", device="cpu", progress=False)
    shape = dict(depth=3, width=4, formula="paper", network="gated", doublings=1)
    for network in (None, "gated"): assert cli._begun(str(tmp_path/"gated"), network) == dict(start=str(tmp_path/"gated"), **shape)
    assert cli._begun(size=32) == dict(size=32) and cli._begun(network="plain") == dict(network="plain")
    first = recipe_with(gated, network="partial")
    train(first, out=tmp_path/"first", device="cpu", progress=False)
    fine = recipe_with(first, **cli._begun(str(tmp_path/"first"), "fine"))
    train(fine, out=tmp_path/"fine", device="cpu", progress=False)
    doublings = [cli._begun(str(tmp_path/name), network)["doublings"] for name, network in (("first", "fine"), ("fine", None), ("fine", "fine"))]
    assert fine.network == "fine" and doublings == [1, 1, 2]
    says = [(dict(start=str(tmp_path/"gated"), network="partial"), "leave out one of the two"), (dict(start="faces", network="gated"), "which is fine"),
            (dict(start=str(tmp_path/"nowhere")), "no such file")]
    for how, words in says:
        with pytest.raises(SystemExit) as e: pconv("train", out=str(tmp_path/"run"), device="cpu", **how)
        err = capsys.readouterr().err
        assert e.value.code == 2 and err.count("\n") == 1 and words in err and not (tmp_path/"run").exists(), err


@pytest.mark.parametrize("option,place", [("record", "folder"), ("record", "file/t.json"), ("record", "/proc/t.json"), ("record", "link/t.json"), ("record", "file"),
                                          ("record", "list.json"), ("out", "file"), ("out", "file/runs"), ("out", "/proc/pconv/runs")])
def test_trials_that_cannot_be_recorded(option, place, tmp_path, capsys, monkeypatch):
    "Refused before the first trial; what is there stays, and nothing is made."
    monkeypatch.setattr("pconv_course.lab.plans.run_trials", lambda *a: pytest.fail("the trials began"))
    (tmp_path/"folder").mkdir(), (tmp_path/"file").write_text("precious"), (tmp_path/"list.json").write_text("[1]"), (tmp_path/"link").symlink_to(tmp_path/"gone")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as e: pconv("lab trials", **{"out": str(tmp_path/"runs"), option: str(tmp_path/place)})
    err = capsys.readouterr().err
    assert e.value.code == 2 and err.count("\n") == 1 and err.startswith("pconv lab trials: error: ") and place in err, err
    assert sorted(tmp_path.rglob("*")) == before and (tmp_path/"file").read_text() == "precious"


def test_places_where_trials_can_be_recorded(tmp_path, monkeypatch):
    "A file that is there, a folder that is not; nothing is made, the read-only file system is simulated since root may write anywhere else."
    (tmp_path/"t.json").write_text('{"plans": {}}')
    for path in (None, "t.json", "new/folder/t.json"): assert core.check_place("record", path and str(tmp_path/path)) == (path and str(tmp_path/path))
    assert core.check_place("out", str(tmp_path/"a"/"b"), folder=True) and core.check_place("out", str(tmp_path), folder=True)
    assert [p.name for p in tmp_path.iterdir()] == ["t.json"] and core.check_place("record", "~/t.json") == os.path.expanduser("~/t.json")
    def refuse(**kw): raise OSError(errno.EROFS, os.strerror(errno.EROFS))
    monkeypatch.setattr(core.tempfile, "TemporaryFile", refuse)
    with pytest.raises(UsageError, match="^--record .*t.json cannot be written: Read-only file system; choose another place$"): core.check_place("record", str(tmp_path/"t.json"))


TINY = dict(size=32, n_faces=40, n_masks=10, depth=3, width=4, bs=8)


def test_dashes_or_underscores(capsys):
    "Both spellings of an option are understood; values are left alone."
    for option in ("--dry-run", "--dry_run"):
        with pytest.raises(SystemExit) as e: cli.main(["train", option, "--minutes", "nan"])
        assert e.value.code == 2 and "--minutes is nan" in capsys.readouterr().err
    assert cli.dashes(["--dry_run", "--out=a_b", "--out", "--a_b-c=c_d", "-x_y", "e_f"]) == ["--dry-run", "--out=a_b", "--out", "--a-b-c=c_d", "-x_y", "e_f"]


def test_dry_run(tmp_path, monkeypatch, capsys):
    "Recipe, parameters, memory, speed, time; nothing on the disk; the numbers fit each other."
    from pconv_course.recipe import PRESETS, Phase, recipe_with
    from pconv_course.runs.train import rehearsal
    from pconv_course.unet import PConvUNet
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(PRESETS, "demo", recipe_with(PRESETS["demo"], **TINY, min_steps=1, phases=(Phase(1e-3, epochs=50),)))
    pconv("train", dry_run=True, accumulate=2, device="cpu")
    out = capsys.readouterr().out
    n = sum(p.numel() for p in PConvUNet(3, 4).parameters())
    assert "phase 1      lr 0.001" in out and f"{n:,} parameters" in out and "features of 4 pictures" in out and "nothing was written" in out
    assert not list(tmp_path.iterdir())
    recipe, cost = rehearsal(PRESETS["demo"], device="cpu")
    assert cost["memory"]["weights"] == 16*n and cost["epochs"] == pytest.approx(50) and cost["images"] == 50*32
    assert 0.3 < cost["images"]/cost["images_per_s"]/(3600*cost["hours"]) <= 1  # the rest of the time is scoring
    half, cost2 = rehearsal(recipe_with(PRESETS["demo"], accumulate=2), device="cpu", steps=2)
    assert 0.3 < cost2["memory"]["features"]/cost["memory"]["features"] < 0.7
    assert rehearsal(PRESETS["demo"], minutes=6, device="cpu", steps=2)[1]["hours"] == 0.1


def test_dry_run_counts_phases_of_both_kinds():
    "Steps with and without features are timed apart, and count by the epochs or the time that they have left."
    from fastai.callback.core import Callback
    from pconv_course.runs.rehearsal import epochs_ahead, rehearse
    from pconv_course.runs.run import Run
    from pconv_course.training import Position
    from pconv_course.recipe import PRESETS, Phase, recipe_learner, recipe_with
    from pconv_course.training import step_callbacks
    class Look(Callback):
        used = []
        def after_loss(self): self.used.append((self.training, self.loss_func.use_features))
    recipe = recipe_with(PRESETS["demo"], **TINY, features="random", min_steps=1, phases=(Phase(1e-3, epochs=3, share=3, features=False), Phase(1e-3, epochs=2)))
    run = Run("", recipe)
    cost = rehearse(run, recipe_learner(recipe, "drawn", "cpu", 0, [*step_callbacks(run), Look()]), steps=3, warm=1)
    assert Look.used == [(True, False)]*4 + [(True, True)]*4 + [(False, True)] and cost["epochs"] == 5 and run.position == Position()
    ahead = lambda run: epochs_ahead(run, 10, {False: 1., True: 4.})
    assert ahead(run) == {False: 3, True: 2}
    run.position = Position(epoch=2, iteration=5)
    assert ahead(run) == {False: .5, True: 2} and ahead(run := Run("", recipe, minutes=2)) == {False: 90, True: 7.5}
    run.position = Position(seconds=100, phase=1)
    assert ahead(run) == {False: 0, True: 5}


def test_dry_run_of_a_resumed_run(tmp_path):
    "Only the rest counts; the run is not changed."
    from fastai.callback.core import Callback, CancelFitException
    from pconv_course.recipe import PRESETS, Phase, recipe_with
    from pconv_course.runs.train import rehearsal, train
    class Stop(Callback):
        order = 60
        def after_epoch(self):
            if self.epoch == 1: raise CancelFitException
    recipe = recipe_with(PRESETS["demo"], **TINY, min_steps=1, phases=(Phase(1e-3, epochs=5),))
    train(recipe, out=tmp_path/"run", device="cpu", progress=False, cbs=[Stop()])
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    cost = rehearsal(None, out=tmp_path/"run", resume=True, device="cpu", steps=2)[1]
    assert cost["epochs"] == pytest.approx(3) and before == {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}


def test_tensorboard(tmp_path, capsys):
    "fastai's callback: the loss after every step and the scores after every epoch, by the steps of the run, also of a resumed one."
    from fastai.callback.core import Callback
    from pconv_course.runs.run import TrainingInterrupted
    from pconv_course.recipe import PRESETS, Phase, recipe_with
    from pconv_course.runs.train import train
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    class CtrlC(Callback):
        order = 52.5
        def after_batch(self):
            if self.training and self.position.job.position.step == 3: self.position.job.stop = "SIGINT"
    recipe = recipe_with(PRESETS["demo"], **TINY, accumulate=2, min_steps=1, phases=(Phase(1e-3, epochs=2),))
    how = dict(out=tmp_path/"run", device="cpu", progress=False, tensorboard=True)
    with pytest.raises(TrainingInterrupted): train(recipe, cbs=[CtrlC()], **how)
    train(None, resume=True, **how)
    events = event_accumulator.EventAccumulator(str(tmp_path/"run"/"tensorboard"))
    events.Reload()
    steps = sorted({e.step for e in events.Scalars("train_loss")})
    assert steps == list(range(1, steps[-1] + 1)) and steps[-1] == 8
    assert len(events.Scalars("psnr")) == 2 and {"valid_loss", "lr_0", "6*loss_hole"} <= set(events.Tags()["scalars"])


def test_tensorboard_is_optional(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("pconv_course.runs.run.find_spec", lambda name: None)
    with pytest.raises(SystemExit) as e: pconv("train", out=str(tmp_path/"run"), tensorboard=True, size=32, device="cpu")
    err = capsys.readouterr().err
    assert e.value.code == 2 and err.count("\n") == 1 and "pip install 'pconv_course[tensorboard]'" in err and not (tmp_path/"run").exists()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_like_single(precision, tmp_path):
    "The same run in half precision: other bits, hardly other losses; the weights stay float32."
    from safetensors.torch import load_file
    from pconv_course.recipe import PRESETS, Phase, recipe_with
    from pconv_course.runs.train import train
    rows = {}
    for p in ("fp32", precision):
        recipe = recipe_with(PRESETS["demo"], **TINY, min_steps=1, precision=p, phases=(Phase(1e-3, epochs=2),))
        rows[p] = train(recipe, out=tmp_path/p, device="cpu", progress=False)["scores"][-1]
        assert {v.dtype for k, v in load_file(tmp_path/p/"model.safetensors").items() if "weight" in k} == {torch.float32}
    a, b = (rows[p]["train_loss"] for p in ("fp32", precision))
    assert a != b and abs(a - b) < 0.05*a
