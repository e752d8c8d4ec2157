"Experiments: what is equal between networks, what is kept of a run, what is not done twice, which masks and tables come out."
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from pconv_course.base.core import InputError, read_json
from pconv_course.data import DrawnFaces, split_ids
from pconv_course.evaluation import row_of
from pconv_course.lab.experiments import (EXPERIMENTS, NETWORKS, SCALES, STAGES, STEPS, Job, Scale, cost_of, network_recipe, networks_of, open_experiment,
    run_experiment, run_networks, run_steps, stage_callback, train_network)
from pconv_course.lab.records import difference, overview_rows, record_verdict
from pconv_course.masks import half_mask, MaskBank
from pconv_course.weights import load_model
from pconv_course.runs.run import TrainingInterrupted
from pconv_course.recipe import Recipe, recipe_diff
from pconv_course.runs.train import train

RESULTS = Path(__file__).resolve().parent.parent/"nbs"/"results"
TOY = Scale("toy", size=32, depth=3, width=4, images=64, faces=40, masks=10, pairs=6)
QUIET = dict(progress=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "A job whose networks are trained."
    job = Job(TOY, out=tmp_path_factory.mktemp("experiments"), progress=False)
    run_networks(job)
    return job


@pytest.fixture
def job(made, tmp_path):
    "A copy of it, to be spoiled."
    shutil.copytree(made.out, tmp_path/"toy")
    return Job(TOY, out=tmp_path, progress=False)


@pytest.fixture
def no_training(monkeypatch):
    def refuse(*args, **kwargs): raise AssertionError("trained once more")
    monkeypatch.setattr("pconv_course.runs.train.train", refuse)


def weights(path): return {k: v.clone() for k, v in load_model(path)[0].state_dict().items()}
def equal(a, b): return all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("scale", SCALES.values(), ids=list(SCALES))
def test_recipes_differ_in_the_network_alone(scale):
    for data in ("drawn", "folder"):
        a = network_recipe(scale, "partial", data=data)
        for k in NETWORKS[1:]: assert recipe_diff(a, network_recipe(scale, k, data=data)) == [f"network: partial -> {k}"]
        assert recipe_diff(a, network_recipe(scale, "partial", 1, data)) == ["seed: 0 -> 1"]
        assert a.n_faces == (scale.faces if data == "drawn" else 0) and a.bs*a.min_steps >= scale.images
        assert all(p.schedule == "constant" for p in a.phases)  # stages can be compared


def test_networks_see_the_same(tmp_path):
    "Faces, flips and masks of every step, whatever the convolutions."
    from fastai.callback.core import Callback
    class Spy(Callback):
        order, run_valid = 98, False
        def before_fit(self): self.seen = []
        def after_pred(self): self.seen.append([x.clone() for x in (*self.xb, *self.yb)])
    seen = {}
    for k in NETWORKS:
        train(network_recipe(TOY, k), "drawn", tmp_path/k, cbs=[spy := Spy()], **QUIET)
        seen[k] = spy.seen
    for k in NETWORKS[1:]: assert_close(seen[k], seen["partial"], rtol=0, atol=0)
    assert len(seen["partial"]) == 8


def test_the_pixels_judged_on_are_not_trained_on():
    faces, held = DrawnFaces(TOY.faces, TOY.size, 0), open_experiment("sparse", TOY, "drawn", None, "mixed", None, "unused").faces
    seen = {faces.pixels(i).numpy().tobytes() for i in range(len(faces))}
    assert not seen & {held.pixels(i).numpy().tobytes() for i in range(len(held))}


def test_stages(made):
    "Each is the average at its time: the last equals the run's network, and a run stopped there would have saved the same."
    folder = made.out/"networks"/"partial"
    assert {p.name for p in (folder/"stages").iterdir()} == {f"1of{k}" for k in STAGES}
    at = {k: load_model(folder/"stages"/f"1of{k}")[1]["position"]["images"] for k in STAGES}
    assert at == {32: 8, 16: 8, 8: 8, 4: 16, 2: 32, 1: 64}
    assert equal(weights(folder/"stages"/"1of1"), weights(folder)) and not equal(weights(folder/"stages"/"1of2"), weights(folder))


class StopAt:
    "A callback that asks the run to stop after so many steps."
    def __new__(cls, step):
        from fastai.callback.core import Callback
        class Stop(Callback):
            order, run_valid = 54, False
            def after_batch(self):
                if self.learn.position.job.position.step == step: self.learn.position.job.stop = "a test"
        return Stop()


def test_a_stage_holds_what_the_run_would_have_saved(tmp_path, made):
    recipe = network_recipe(TOY, "partial")
    with pytest.raises(TrainingInterrupted): train(recipe, "drawn", tmp_path/"run", cbs=[StopAt(4)], **QUIET)
    assert equal(weights(tmp_path/"run"), weights(made.out/"networks"/"partial"/"stages"/"1of2"))


def test_an_interrupted_network_ends_as_if_nothing_had_happened(tmp_path, made, monkeypatch):
    recipe, folder = network_recipe(TOY, "partial"), tmp_path/"partial"
    with pytest.raises(TrainingInterrupted): train(recipe, "drawn", folder, cbs=[StopAt(5), stage_callback(folder/"stages")], **QUIET)
    before = {p: p.stat().st_mtime_ns for p in (folder/"stages").glob("*/*")}
    assert len(before) == 5
    result = train_network(recipe, "drawn", folder, **QUIET)
    assert result["finished"] and equal(weights(folder), weights(made.out/"networks"/"partial"))
    for k in STAGES: assert equal(weights(folder/"stages"/f"1of{k}"), weights(made.out/"networks"/"partial"/"stages"/f"1of{k}"))
    assert {p: p.stat().st_mtime_ns for p in before} == before  # written once


def test_nothing_is_done_twice(made, no_training):
    run_networks(made)
    a = run_experiment(made, "sparse")
    stamp = (made.out/"sparse.json").stat().st_mtime_ns
    assert run_experiment(made, "sparse") == a and (made.out/"sparse.json").stat().st_mtime_ns == stamp


def test_a_lost_network_is_refused(job):
    shutil.rmtree(job.out/"networks"/"gated")
    with pytest.raises(InputError, match="the network 'gated' is not trained; run the step networks first"): run_experiment(job, "half")


def test_an_unfinished_network_is_not_judged(job):
    "Its weights are there from the first step on."
    folder = job.out/"networks"/"plain"
    (folder/"result.json").unlink()
    assert (folder/"model.safetensors").is_file() and not [n for n, *_ in networks_of(job.out/"networks", TOY) if n.startswith("plain")]
    with pytest.raises(InputError, match="the network 'plain' is not trained"): run_experiment(job, "half")


@pytest.mark.parametrize("change,data", [(dict(width=8), "drawn"), (dict(seed=3), "drawn"), ({}, "elsewhere")])
def test_another_experiment_is_refused(made, no_training, change, data):
    with pytest.raises(InputError, match="holds a network of another experiment .*; choose another --out"):
        train_network(replace(network_recipe(TOY, "partial"), **change), data, made.out/"networks"/"partial", **QUIET)


def test_new_networks_are_judged_anew(job):
    a = run_experiment(job, "half")
    shutil.copyfile(job.out/"networks"/"plain"/"stages"/"1of2"/"model.safetensors", job.out/"networks"/"plain"/"model.safetensors")
    b = run_experiment(job, "half")
    changed = {k for k in a["methods"] if a["methods"][k]["sha256"] != b["methods"][k]["sha256"]}
    assert changed == {"plain"} and row_of(a)["methods"]["telea"] == row_of(b)["methods"]["telea"]


def test_records(job):
    records = run_steps(job, list(EXPERIMENTS))
    assert sorted(p.name for p in job.record.iterdir()) == sorted(f"{k}.json" for k in [*EXPERIMENTS, "training"])
    for k, r in records.items():
        assert read_json(job.record/f"{k}.json") == r and r["against"] == "partial" and r["settings"]["pairs"] == TOY.pairs
        assert list(r["methods"]) == [*(f"partial_1of{n}" for n in STAGES[:-1]), "partial", "plain", "gated_1of2", "gated", "telea", "ns", "biharmonic", *(["patchmatch"] if find_spec("patchmatch") else []), "mean", "average", "truth"]
        assert row_of(r)["methods"]["truth"]["l1_hole"][0] == 0
    assert len({r["pairs_sha256"] for r in records.values()}) == 4
    t = read_json(job.record/"training.json")
    assert set(t["networks"]) == set(NETWORKS) and t["networks"]["gated"]["parameters"] > 1.8*t["networks"]["plain"]["parameters"]
    assert {v["images"] for v in t["networks"].values()} == {64} and "network" not in t["recipe"]
    assert str(job.out) not in json.dumps([t, records])  # no paths


def test_a_second_seed(job):
    run_networks(replace(job, scale=replace(TOY, seeds=2), out=job.out.parent))
    names = [n for n, *_ in networks_of(job.out/"networks", replace(TOY, seeds=2))]
    assert {"partial", "partial_seed1", "gated_seed1"} < set(names) and "partial_1of2" in names
    assert not equal(weights(job.out/"networks"/"plain"), weights(job.out/"networks"/"plain_seed1"))


def test_the_average_face_is_of_training_faces(made):
    "None of those judged on; the same whatever is asked of it."
    from pconv_course.lab.experiments import average_face
    m = average_face(TOY)
    train_faces = DrawnFaces(TOY.faces, TOY.size, 0)
    out = m.fill(torch.zeros(2, 3, 32, 32), torch.zeros(2, 1, 32, 32), [0, 1])
    assert out.shape == (2, 3, 32, 32) and m.info["faces"] == len(split_ids(train_faces.ids, 0.1, 0)[0]) < TOY.faces
    own = train_faces.subset(split_ids(train_faces.ids, 0.1, 0)[0])
    assert_close(out, torch.stack([own[i] for i in range(len(own))]).mean(0).expand(2, -1, -1, -1))
    assert m.sha256 == average_face(TOY).sha256 != average_face(replace(TOY, faces=50)).sha256


def test_cost():
    cost = {k: cost_of(network_recipe(TOY, k)) for k in NETWORKS}
    assert cost["partial"] == cost["plain"] and cost["plain"]["step_gflop"] > 2*cost["plain"]["forward_gflop"]
    assert 1.9 < cost["gated"]["forward_gflop"]/cost["plain"]["forward_gflop"] < 2.2


@pytest.mark.parametrize("size", (16, 33, 64))
def test_half_masks(size):
    bank = MaskBank.make(60, size, 5, "half")
    assert bank.sha256 == MaskBank.make(60, size, 5, "half").sha256 != MaskBank.make(60, size, 6, "half").sha256
    for i in range(60):
        m = bank.array(i)
        left = m[:, 0]
        assert left.min() == left.max() and (m[:, -1] == 1 - left[0]).all()  # a whole side each
        steps = (m != m[:, :1]).argmax(1)
        assert (abs(np.diff(m.astype(int), axis=1)).sum(1) == 1).all() and abs(steps - size//2).max() <= size//16  # one line, near the middle
        assert abs(np.diff(steps)).max() <= 1
    assert 15 < sum(bank.array(i)[0, 0] for i in range(60)) < 45
    middle = [(bank.array(i) != bank.array(i)[:, :1]).argmax(1).mean() for i in range(60)]
    assert np.mean(np.abs(np.array(middle) - size//2)) < 0.5 + size/100  # a walk that is not centred leans to a side
    assert half_mask(np.random.default_rng(0), size).dtype == np.uint8


def fake(**difference):
    rows = [dict(part="all", border="any", n=2, methods=dict(partial=dict(l1_hole=[.1, .09, .11], psnr=[20., 19, 21]), plain=dict(l1_hole=[.12, .1, .13])),
                 against=dict(plain=difference))]
    return dict(against="partial", rows=rows, methods=dict(partial=dict(title="partial"), plain=dict(title="plain"), truth=dict(title="truth")))


def test_difference_and_verdict():
    r = fake(l1_hole=[.02, .01, .03], psnr=[.5, None, None])
    assert difference(r, "plain") == [.02, .01, .03] and record_verdict(difference(r, "plain")) == "worse"
    assert difference(r, "plain", "psnr") is None and difference(r, "telea") is None and difference(r, "plain", part="0.1 to 0.2") is None
    assert record_verdict([1., .5, 2], True) == "better" and record_verdict([1., -.5, 2], True) == "can't be told" == record_verdict([0., 0., 1.])


def test_overview_rows():
    rows = overview_rows(dict(sparse=fake(l1_hole=[.02, .01, .03]), half=fake(l1_hole=[-.02, None, None])))
    assert rows == [["method", "sparse", "half"], ["partial", "0.1000", "0.1000"], ["plain", "0.1200 (+0.0200 [+0.0100, +0.0300])", "0.1200"]]


# the command

TOY_COMMAND = "import sys\nfrom pconv_course.cli import main\nfrom pconv_course.lab.experiments import SCALES, Scale\nSCALES['tiny'] = Scale('tiny', 32, 3, 4, {}, 40, 10, 6)\nmain(['lab', 'experiments', *sys.argv[1:]])\n"
ENV = dict(os.environ, OMP_NUM_THREADS="1", PYTHONWARNINGS="ignore", PYTHONUNBUFFERED="1")


@pytest.fixture
def script(tmp_path):
    "Writes the command with a toy as its tiny scale, so many images; returns how to call it."
    def write(images=64):
        (tmp_path/"toy.py").write_text(TOY_COMMAND.format(images))
        return [sys.executable, str(tmp_path/"toy.py")]
    return write


@pytest.fixture
def shell(script): return lambda *args: subprocess.run([*script(), *args], capture_output=True, text=True, env=ENV)


def test_help(shell):
    r = shell("--help")
    assert r.returncode == 0 and all(f"--{o}" in r.stdout for o in ("scale", "data", "valid", "masks", "hole", "features", "out", "record", "only", "seeds"))


@pytest.mark.parametrize("args,message", [(["--scale", "huge"], "unknown --scale 'huge'; choose from: tiny, full"), (["--seeds", "0"], "--seeds is 0; give 1 to 100"),
                                          (["--only", "networks,nothing"], f"unknown step 'nothing'; choose from: {', '.join(STEPS)}"),
                                          (["--only", "sparse"], "the network 'partial' is not trained; run the step networks first")])
def test_mistakes(shell, tmp_path, args, message):
    r = shell(*args, "--out", str(tmp_path/"x"))
    assert r.returncode == 2 and r.stderr.splitlines() == [r.stderr.strip()] and r.stderr.startswith(f"pconv lab experiments: error: {message}")


def test_command(shell, job, tmp_path):
    (job.out).rename(job.out.with_name("tiny"))
    r = shell("--only", "half", "--out", str(tmp_path), "--record", str(tmp_path/"record"))
    assert r.returncode == 0, r.stderr
    assert "partial, 1/2 of the images" in r.stdout and (tmp_path/"record"/"half.json").is_file() and not (tmp_path/"tiny"/"results"/"half.json").exists()


def test_ctrl_c(script, tmp_path):
    "One line, exit code 130, and a checkpoint to go on from."
    args = [*script(8000), "--only", "networks", "--out", str(tmp_path)]
    p = subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV)
    stage = tmp_path/"tiny"/"networks"/"partial"/"stages"/"1of32"/"model.safetensors"
    for _ in range(2000):
        if stage.exists() or p.poll() is not None: break
        time.sleep(0.1)
    p.send_signal(signal.SIGINT)
    _, err = p.communicate(timeout=120)
    assert p.returncode == 130 and err.splitlines()[-1].startswith("pconv lab experiments: stopped; what is done is in ") and "Traceback" not in err
    assert (stage.parents[2]/"checkpoint.safetensors").exists() and not (tmp_path/"tiny"/"lock").exists()


# the records that the chapters read

@pytest.mark.parametrize("name", list(EXPERIMENTS))
def test_committed_records(name):
    r = read_json(RESULTS/f"{name}.json")
    assert r["against"] == "partial" and {"partial", "plain", "gated", "telea", "ns", "biharmonic", "mean", "truth"} <= set(r["methods"])
    recipes = [v["config"]["recipe"] for v in r["methods"].values() if v["kind"] == "network" and v["config"]["recipe"]["seed"] == 0]
    without = [{k: v for k, v in o.items() if k not in ("name", "network")} for o in recipes]
    assert all(o == without[0] for o in without), "networks of different recipes in one table"


def test_committed_training():
    t = read_json(RESULTS/"training.json")
    today = json.loads(json.dumps({k: v for k, v in vars(network_recipe(SCALES["full"], "partial", 0, "folder", t["recipe"]["valid"])).items()
                                   if k not in ("name", "network", "seed", "phases") and (k in t["recipe"] or v != getattr(Recipe(), k))}))  # later entries at their default
    assert today.items() <= t["recipe"].items(), "the recorded recipe is not today's: run pconv lab experiments --scale full again"
    assert len({v["images"] for v in t["networks"].values()}) == 1
