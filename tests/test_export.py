"""One ONNX file gives the picture that torch gives; and what the command says when it can't."""
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("onnx", reason="needs the extra 'onnx'")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
import onnx
from safetensors.torch import save_file

from calling import pconv
from pconv_course.tools import onnx as onnx_module
from pconv_course.base.core import MissingPackage
from pconv_course.base.core import InputError
from pconv_course.lab.clocks import decibel_of, record_export
from pconv_course.tools.onnx import (check_export, core_graph, export_onnx, frame_text, join_graphs, metadata, open_onnx, run_onnx, run_torch, shrink_weights)
from pconv_course.tools import share
from pconv_course.tools.share import from_pretrained, hub_class, save_pretrained
from pconv_course.weights import open_weights
from pconv_course.networks import build_unet
from pconv_course.weights import weights_hash


def tame(depth=3, width=8, seed=0, formula="paper"):
    "Seeded weights, batch norm statistics that matter, output mostly in [0, 1] so that clipping hides nothing."
    torch.manual_seed(seed)
    net = build_unet(dict(depth=depth, width=width, formula=formula)).eval().requires_grad_(False)
    for s in [*net.enc[1:], *net.dec[:-1]]: s.bn.running_mean.normal_(0, .2), s.bn.running_var.uniform_(.5, 2)
    net.dec[-1].conv.weight.mul_(.1)
    net.dec[-1].conv.bias.fill_(.5)
    return net


@pytest.fixture(scope="module")
def net(): return tame()


@pytest.fixture(scope="module")
def cores(net): return {impl: core_graph(net, impl) for impl in ("fast", "readable")}


@pytest.fixture(scope="module")
def whole(cores): return {impl: join_graphs(core, frame_text(8)) for impl, core in cores.items()}


@pytest.fixture(scope="module")
def sessions(whole): return {impl: open_onnx(model.SerializeToString(), threads=1) for impl, model in whole.items()}


def pairs(n, seed=0, top=200):
    "Noise of several sizes, 1x1 and sides that are no multiple of anything included; batches; RGB and RGBA; masks of any share."
    rng = np.random.default_rng(seed)
    sizes = [(1, 1), (1, 90), (64, 64), (8, 200)] + [tuple(rng.integers(2, top, 2)) for _ in range(n)]
    for i, (h, w) in enumerate(sizes[:n]):
        b, c = 1 + i % 3, 3 + i % 2
        yield rng.integers(0, 256, (b, h, w, c), dtype=np.uint8), (rng.random((b, h, w)) < (i % 7)/6).astype(np.uint8)


def off(a, b): return int(np.abs(a.astype(int) - b).max())


@pytest.mark.parametrize("impl", ["fast", "readable"])
def test_fifty_pairs_within_one_level_and_known_pixels_bit_identical(net, sessions, impl):
    inside = 0
    for image, mask in pairs(50):
        got, want = run_onnx(sessions[impl], image, mask), run_torch(net, image, mask)
        assert got.shape == image.shape and got.dtype == np.uint8
        assert off(got, want) <= 1
        assert (got[mask > 0] == image[mask > 0]).all()
        assert (got[..., 3:] == image[..., 3:]).all(), "alpha passes"
        inside += ((want > 0) & (want < 255))[mask == 0].sum()
    assert inside > 100_000, "the comparison would say little if everything were clipped to 0 or 255"


def test_fast_and_readable_export_to_the_same_numbers(sessions):
    for image, mask in pairs(20, seed=1):
        assert off(run_onnx(sessions["fast"], image, mask), run_onnx(sessions["readable"], image, mask)) <= 1


def test_the_oracle_is_the_network_itself(net):
    "`run_torch` by hand: the network's own call, which pads and crops by itself, and the composition."
    (image, mask), = [p for p in pairs(8, seed=2) if p[0].shape[1] > 30][:1]
    x, m = torch.tensor(image[..., :3]).permute(0, 3, 1, 2)/255, torch.tensor(mask)[:, None].float()
    out = (net(x, m)*255).round().clamp(0, 255).permute(0, 2, 3, 1).numpy()
    want = np.where(mask[..., None] > 0, image[..., :3], out)
    assert off(run_torch(net, image, mask)[..., :3], want) == 0


def test_values_under_the_hole_never_matter(sessions):
    image, mask = next(iter(pairs(7, seed=3)))[0].repeat(40, 1).repeat(50, 2), np.ones((1, 40, 50), np.uint8)
    mask[:, 10:30, 5:25] = 0
    other = np.where(mask[..., None] == 0, 255 - image, image)
    a, b = run_onnx(sessions["fast"], image, mask), run_onnx(sessions["fast"], other, mask)
    assert (a[..., :3] == b[..., :3]).all()


def test_a_mask_of_255_and_one_of_1_are_the_same_and_white_is_the_opposite(net, cores, sessions):
    image, mask = list(pairs(6, seed=4))[5]
    want = sessions["fast"].run(None, dict(image=image, mask=mask))[0]
    assert (sessions["fast"].run(None, dict(image=image, mask=255*mask))[0] == want).all()
    white = open_onnx(join_graphs(cores["fast"], frame_text(8, "white")).SerializeToString(), threads=1)
    assert (white.run(None, dict(image=image, mask=255*(1 - mask)))[0] == want).all()
    assert check_export(white, net, "white") <= 1
    with pytest.raises(InputError, match="hole='grey'"): frame_text(8, "grey")


def test_all_hole_and_no_hole(sessions, net):
    image = np.random.default_rng(5).integers(0, 256, (1, 33, 47, 3), dtype=np.uint8)
    assert (run_onnx(sessions["fast"], image, np.ones((1, 33, 47))) == image).all()
    assert off(run_onnx(sessions["fast"], image, np.zeros((1, 33, 47))), run_torch(net, image, np.zeros((1, 33, 47)))) <= 1


def test_one_image_without_a_batch_axis(sessions):
    image, mask = list(pairs(6, seed=6))[5]
    assert (run_onnx(sessions["fast"], image[0], mask[0]) == run_onnx(sessions["fast"], image[:1], mask[:1])[0]).all()


def test_inputs_and_outputs_have_free_sizes(whole):
    graph = whole["fast"].graph
    shapes = {v.name: [d.dim_param for d in v.type.tensor_type.shape.dim] for v in [*graph.input, *graph.output]}
    assert shapes == dict(image=["N", "H", "W", "C"], mask=["N", "H", "W"], result=["N", "H", "W", "C"])
    assert {v.type.tensor_type.elem_type for v in [*graph.input, *graph.output]} == {onnx.TensorProto.UINT8}


def test_v1_formula_exports_too():
    "The first version of the paper's formula has another ratio."
    net = tame(depth=2, width=4, formula="v1")
    session = open_onnx(join_graphs(core_graph(net), frame_text(4)).SerializeToString(), threads=1)
    assert max(off(run_onnx(session, *p), run_torch(net, *p)) for p in pairs(8, seed=7, top=60)) <= 1


def test_a_wrong_frame_is_noticed(net, cores):
    "The check that `export_onnx` makes can fail: mask padded with 1, colours divided by 256, hole and known swapped."
    for old, new in [("m = Pad (known_numbers, padding)", "m = Pad (known_numbers, padding, white)"), ("float {255.0}", "float {200.0}"),
                     ("Where (known_pixel, image, filled)", "Where (known_pixel, filled, image)")]:
        text = frame_text(8)
        assert old in text
        assert check_export(open_onnx(join_graphs(cores["fast"], text.replace(old, new)).SerializeToString(), threads=1), net) > 1, new


def test_smaller_files(whole, sessions):
    size = {p: len(shrink_weights(whole["fast"], p).SerializeToString()) for p in ("fp32", "fp16", "int8")}
    weights = sum(4*np.prod(w.dims) for w in whole["fast"].graph.initializer)
    assert size["fp32"] - size["fp16"] > .45*weights and size["fp32"] - size["int8"] > .65*weights
    for p, limit in dict(fp16=2, int8=30).items():
        session = open_onnx(shrink_weights(whole["fast"], p).SerializeToString(), threads=1)
        for image, mask in pairs(6, seed=8):
            got, want = run_onnx(session, image, mask), run_onnx(sessions["fast"], image, mask)
            assert off(got, want) <= limit and (got[mask > 0] == image[mask > 0]).all()
    some = shrink_weights(whole["fast"], "int8", 3000)
    assert size["int8"] < len(some.SerializeToString()) < size["fp16"]
    kinds = {w.name.rpartition(".")[2]: w for w in some.graph.initializer if w.name.endswith((".int8", ".fp16"))}
    assert set(kinds) == {"int8", "fp16"} and all((np.prod(w.dims) < 3000) == w.name.endswith("fp16") for w in some.graph.initializer if w.name.endswith((".int8", ".fp16")))
    with pytest.raises(InputError, match="fp8"): shrink_weights(whole["fast"], "fp8")


def test_metadata_names_licence_recipe_and_hash(net, tmp_path, monkeypatch, cores):
    monkeypatch.setattr(onnx_module, "core_graph", lambda model, impl="fast": cores[impl])
    config = dict(licence="only for tests", recipe=dict(name="tiny", size=64))
    made = export_onnx(net, tmp_path/"a.onnx", config)
    assert made["worst"] <= 1 and made["bytes"] == (tmp_path/"a.onnx").stat().st_size
    model = onnx.load(tmp_path/"a.onnx")
    facts = {p.key: p.value for p in model.metadata_props}
    assert (facts["licence"], facts["recipe"], facts["trained_size"]) == ("only for tests", "tiny", "64")
    assert facts["weights_sha256"] == weights_hash(net) and facts["mask"].startswith("uint8 (N,H,W), 0 = hole")
    assert json.loads(facts["network"]) == net.config and "pconv_course" in facts["made_by"]
    assert {o.domain: o.version for o in model.opset_import}[""] == onnx_module.OPSET
    assert list(tmp_path.iterdir()) == [tmp_path/"a.onnx"], "one file, nothing beside it"
    other = tame(seed=1)
    assert weights_hash(other) != weights_hash(net) and "0 = known" in metadata(net, hole="white")["mask"]


def test_a_graph_that_differs_is_not_written(net, tmp_path, monkeypatch, cores):
    monkeypatch.setattr(onnx_module, "core_graph", lambda model, impl="fast": cores[impl])
    with pytest.raises(InputError, match="differs from torch"): export_onnx(tame(seed=1), tmp_path/"a.onnx")
    assert not list(tmp_path.iterdir())


def test_arrays_that_do_not_fit_are_refused(sessions):
    image, mask = np.zeros((20, 30, 3), np.uint8), np.ones((20, 30), np.uint8)
    for a, m, word in [(image/255, mask, "uint8"), (image[..., 0], mask, "uint8"), (image, mask.T, "(20, 30)"), (image, mask[None], "(20, 30)")]:
        with pytest.raises(InputError) as e: run_onnx(sessions["fast"], a, m)
        assert word in str(e.value) and "\n" not in str(e.value)


def test_missing_and_damaged_files(tmp_path):
    with pytest.raises(InputError, match="no such file"): open_onnx(tmp_path/"none.onnx")
    (tmp_path/"bad.onnx").write_bytes(b"not a graph")
    with pytest.raises(InputError, match="can't read"): open_onnx(tmp_path/"bad.onnx")


def test_without_the_extra_one_line_says_what_to_install(monkeypatch, net):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MissingPackage, match=r"^onnxscript is missing; install it: pip install 'pconv_course\[onnx\]'$"): core_graph(net)


def saved(net, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = dict(model=net.config, recipe=dict(name="tiny", size=64))
    save_file({k: v.contiguous() for k, v in net.state_dict().items()}, path, metadata=dict(config=json.dumps(meta)))
    return path


def test_the_command(net, tmp_path, monkeypatch, cores, capsys):
    monkeypatch.setattr(onnx_module, "core_graph", lambda model, impl="fast": cores[impl])
    path, out = saved(net, tmp_path/"run"/"model.safetensors"), tmp_path/"out.onnx"
    pconv("export", model=str(path.parent), out=str(out))
    assert "out.onnx" in capsys.readouterr().out and out.is_file()
    before = out.read_bytes()
    for wrong, word in [(dict(), "exists"), (dict(precision="fp8", overwrite=True), "fp8"), (dict(hole="red", overwrite=True), "red"),
                        (dict(impl="slow", overwrite=True), "slow"), (dict(model=str(tmp_path/"none"), overwrite=True), "no such file")]:
        with pytest.raises(SystemExit) as e: pconv("export", **dict(model=str(path.parent), out=str(out)) | wrong)
        err = capsys.readouterr().err
        assert e.value.code == 2 and word in err and len(err.splitlines()) == 1, err
        assert out.read_bytes() == before
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(SystemExit): pconv("export", model=str(path.parent), out="~/out.onnx")
    assert "exists" in capsys.readouterr().err and out.read_bytes() == before, "~ is the home folder here, too: a shell leaves it in --out=~/out.onnx"
    with pytest.raises(SystemExit): pconv("export", model=str(path.parent), out=str(tmp_path))
    assert "cannot be written: Is a directory" in capsys.readouterr().err
    pconv("export", model=str(path), out=str(out), precision="fp16", overwrite=True)
    assert len(out.read_bytes()) < len(before)


def test_run_onnx_knows_what_the_graph_reads_as_hole(net, tmp_path, monkeypatch, cores):
    "Graphs of either polarity fill the same hole of the same mask, 0 = hole; the network that is exported stays as it is."
    monkeypatch.setattr(onnx_module, "core_graph", lambda model, impl="fast": cores[impl])
    rng = np.random.default_rng(1)
    image, m = rng.integers(0, 256, (40, 32, 3), dtype=np.uint8), (rng.random((40, 32)) < .8).astype(np.uint8)
    net.train()
    made = [onnx_module.run_onnx(onnx_module.open_onnx(export_onnx(net, tmp_path/f"{hole}.onnx", hole=hole)["path"]), image, m) for hole in ("black", "white")]
    assert np.array_equal(*made) and np.array_equal(made[0][m == 1], image[m == 1]) and net.training
    net.eval()


def test_importing_the_module_needs_no_onnx():
    code = "import sys; import pconv_course.tools.onnx; print([m for m in ('onnx', 'onnxscript', 'onnxruntime', 'huggingface_hub') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_open_model_takes_modules_files_and_folders(net, tmp_path):
    path = saved(net, tmp_path/"run"/"model.safetensors")
    for source in (net, path, path.parent):
        model, config = open_weights(source)
        assert not model.training and weights_hash(model) == weights_hash(net) and config["model"] == net.config


# ---- a folder for hubs

hub = pytest.mark.skipif(not importlib.util.find_spec("huggingface_hub"), reason="needs the extra 'hub'")
FACTS = dict(recipe=dict(name="tiny", size=64), licence="only for tests")


@hub
def test_a_hub_folder_round_trip(net, tmp_path):
    home = save_pretrained(net, tmp_path/"faces", FACTS | dict(model="not a fact"))
    assert sorted(p.name for p in home.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    again, config = from_pretrained(home)
    assert weights_hash(again) == weights_hash(net) and not again.training and config == dict(model=net.config, **FACTS)
    x, m = torch.rand(1, 3, 32, 32), (torch.rand(1, 1, 32, 32) < .5).float()
    torch.testing.assert_close(again(x, m), net(x, m), atol=0, rtol=0)
    card = (home/"README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlibrary_name: pconv_course\n") and "only for tests" in card and "tiny" in card and "from_pretrained" in card
    assert open_weights(home)[1]["licence"] == "only for tests", "the other loader takes the folder too"
    assert json.loads((home/"config.json").read_text(encoding="utf-8"))["depth"] == 3


@hub
def test_coarse_to_fine_goes_there_and_back(tmp_path):
    torch.manual_seed(2)
    net = build_unet(dict(network="fine", depth=2, width=4, doublings=2)).eval()
    torch.nn.init.normal_(net.fine.dec[-1].conv.weight)
    again, config = from_pretrained(save_pretrained(net, tmp_path, FACTS))
    assert weights_hash(again) == weights_hash(net) and config == dict(model=net.config, **FACTS)
    x, m = torch.rand(1, 3, 32, 32), (torch.rand(1, 1, 32, 32) < .5).float()
    torch.testing.assert_close(again(x, m), net(x, m), atol=0, rtol=0)
    assert not any(p.requires_grad for p in again.coarse.parameters()) and "coarse to fine" in (tmp_path/"README.md").read_text(encoding="utf-8")


def test_only_partial_and_fine_networks_go_to_hubs(tmp_path):
    with pytest.raises(InputError, match="a partial or a fine network, not a plain one"): save_pretrained(build_unet(dict(depth=3, width=4, network="plain")), tmp_path/"hub")
    assert not (tmp_path/"hub").exists()


@hub
def test_what_is_no_folder_for_hubs_is_said_without_asking_the_network(net, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert save_pretrained(net, "~/mine") == tmp_path/"mine" and weights_hash(from_pretrained("~/mine")[0]) == weights_hash(net)
    with pytest.raises(InputError, match="is a file; give the folder"): from_pretrained(tmp_path/"mine"/"model.safetensors")
    (tmp_path/"run").mkdir()
    (tmp_path/"run"/"config.json").write_text('{"model": {"depth": 2}}')
    with pytest.raises(InputError, match="a run's folder, not one for hubs; use load_model"): from_pretrained(tmp_path/"run")


@hub
def test_a_folder_for_hubs_loses_nothing(net, tmp_path, monkeypatch):
    "A run's folder and a file are refused; a save that fails leaves the folder of before."
    (tmp_path/"run").mkdir()
    (tmp_path/"run"/"config.json").write_text('{"model": {"depth": 2}}')
    (tmp_path/"file").touch()
    for there, words in (("run", "holds a run; give another folder"), ("file", "is a file; give a folder")):
        with pytest.raises(InputError, match=words): save_pretrained(net, tmp_path/there)
    assert [p.name for p in (tmp_path/"run").iterdir()] == ["config.json"]
    home = save_pretrained(net, tmp_path/"faces", FACTS)
    (home/"README.md").write_text("mine")
    def full(*args): raise InputError("no space left")
    with monkeypatch.context() as m, pytest.raises(InputError, match="no space"):
        m.setattr(share, "write_tensors", full)
        save_pretrained(build_unet(dict(depth=2, width=5)), home)
    assert weights_hash(from_pretrained(home)[0]) == weights_hash(net) and (home/"README.md").read_text() == "mine"
    with pytest.raises(InputError, match="device cuda:99 cannot be used here"): from_pretrained(home, device="cuda:99")


@hub
def test_the_class_is_the_mixin_and_is_made_once(net, tmp_path):
    from huggingface_hub import PyTorchModelHubMixin
    cls = hub_class()
    assert issubclass(cls, PyTorchModelHubMixin) and cls is hub_class() and not issubclass(type(net), PyTorchModelHubMixin)
    made = cls(depth=2, width=4)
    made.save_pretrained(tmp_path)
    assert weights_hash(cls.from_pretrained(tmp_path)) == weights_hash(made)


def test_a_hub_folder_without_the_extra_is_one_line(monkeypatch, tmp_path):
    "Whether a network is written, read from a folder, or asked for by its name."
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    hub_class.cache_clear()
    for use in (lambda: save_pretrained(build_unet(dict(depth=2, width=4)), tmp_path/"a"), lambda: from_pretrained(tmp_path), lambda: from_pretrained("somebody/network")):
        with pytest.raises(MissingPackage, match=r"^huggingface_hub is missing; install it: pip install 'pconv_course\[hub\]'$"): use()


@hub
@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".ckpt", ".PKL"])
def test_pickles_stay_closed(tmp_path, suffix):
    "The file would run code when it is opened: the proof is that it doesn't."
    trap, bomb = tmp_path/"ran", tmp_path/"old"/f"pytorch_model{suffix}"
    bomb.parent.mkdir()
    (bomb.parent/"config.json").write_text("{}", encoding="utf-8")
    bomb.write_bytes(b"cos\nsystem\n(Vtouch " + str(trap).encode() + b"\ntR.")
    for load in (from_pretrained, open_weights):
        for source in (bomb, bomb.parent):
            with pytest.raises(InputError, match="a pickle can run code") as e: load(source)
            assert "\n" not in str(e.value) and bomb.name in str(e.value)
    assert not trap.exists()


@hub
def test_a_hub_without_safetensors_is_not_asked_for_its_pickle(monkeypatch, tmp_path):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError
    asked = []
    def download(repo_id=None, filename=None, *args, **kw):
        asked.append(filename or args)
        raise LocalEntryNotFoundError("nothing here")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr("huggingface_hub.hub_mixin.hf_hub_download", download)
    with pytest.raises(InputError, match="needs config.json and model.safetensors") as e: from_pretrained("somebody/network")
    assert "\n" not in str(e.value) and asked and not any("bin" in str(a) for a in asked)


@hub
def test_what_does_not_fit_is_named(net, tmp_path):
    home, state = save_pretrained(net, tmp_path/"a"), net.state_dict()
    for change, word in [({"enc.0.conv.weight": None}, "enc.0.conv.weight is missing"), ({"extra.weight": torch.ones(2)}, "extra.weight is unknown"),
                         ({"dec.0.conv.weight": torch.ones(3, 3)}, r"dec.0.conv.weight is \(3, 3\), the network has \(")]:
        save_file({k: v.contiguous() for k, v in (state | change).items() if v is not None}, home/"model.safetensors")
        with pytest.raises(InputError, match=word) as e: from_pretrained(home)
        assert "\n" not in str(e.value)
    save_file({k: torch.ones(1) for k in state}, home/"model.safetensors")
    with pytest.raises(InputError, match=rf"and {len([v for v in state.values() if tuple(v.shape) != (1,)]) - 1} more"): from_pretrained(home)


@hub
def test_folders_that_are_not_there_or_damaged(net, tmp_path):
    home = save_pretrained(net, tmp_path/"a")
    (home/"model.safetensors").write_bytes(b"junk")
    (tmp_path/"empty").mkdir()
    for source, word in [(home, "damaged"), (tmp_path/"empty", "no such file"), (tmp_path/"none", "no such folder"), ("./none", "no such folder")]:
        with pytest.raises(InputError, match=word) as e: from_pretrained(source)
        assert "\n" not in str(e.value)


@hub
def test_saving_again_replaces_weights_and_keeps_the_card(net, tmp_path):
    home = save_pretrained(net, tmp_path/"a")
    (home/"README.md").write_text("mine", encoding="utf-8")
    save_pretrained(tame(seed=1), home)
    assert weights_hash(from_pretrained(home)[0]) == weights_hash(tame(seed=1)) and (home/"README.md").read_text() == "mine"


# ---- measuring

def test_the_record_names_what_was_measured(net, tmp_path, monkeypatch, cores):
    monkeypatch.setattr(onnx_module, "core_graph", lambda model, impl="fast": cores[impl])
    image, mask = list(pairs(6, seed=9))[5]
    made = record_export(net, image[..., :3], mask, "noise", tmp_path/"onnx.json", threads=1, sizes=(64,), holes=(.1,), rounds=2)
    assert json.loads((tmp_path/"onnx.json").read_text(encoding="utf-8")) == made
    assert [r["precision"] for r in made["quality"]] == ["fp32", "fp16", "int8"] and made["quality"][0]["psnr_fp32"] == 99
    assert made["quality"][0]["bytes"] > made["quality"][1]["bytes"] > made["quality"][2]["bytes"]
    assert made["quality"][1]["psnr_fp32"] > made["quality"][2]["psnr_fp32"] > 20
    assert {r["program"] for r in made["speed"]} == {"torch", "onnxruntime fp32", "onnxruntime fp16", "onnxruntime int8"}
    assert all(0 < r["low"] <= r["seconds"] <= r["high"] for r in made["speed"]) and made["settings"]["data"] == "noise"


def test_decibels_by_hand():
    a, b, where = np.zeros((1, 2, 2, 3), np.uint8), np.full((1, 2, 2, 3), 10, np.uint8), np.array([[[1, 0], [0, 0]]])
    assert decibel_of(a, b, where) == round(20*np.log10(25.5), 2) and decibel_of(a, a, where) == 99
    b[0, 1, 1] = 200
    assert decibel_of(a, b, where) == round(20*np.log10(25.5), 2), "pixels outside do not count"


def test_the_recorded_file_is_of_all_three_precisions():
    path = Path(__file__).resolve().parent.parent/"nbs"/"results"/"onnx.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    fp32, fp16, int8 = record["quality"]
    assert fp16["bytes"] < .56*fp32["bytes"] and int8["bytes"] < .32*fp32["bytes"]
    assert abs(fp16["psnr_truth"] - fp32["psnr_truth"]) < .05 and abs(int8["psnr_truth"] - fp32["psnr_truth"]) < .5
    assert str(Path.home()) not in path.read_text(encoding="utf-8") and set(record["versions"]) == {"onnx", "onnxscript", "onnxruntime"}


# ---- onnxruntime-web

NODE = """
const ort = require("onnxruntime-web"), fs = require("fs");
(async () => {
  const [model, image, mask, out, shape] = process.argv.slice(2), [n, h, w, c] = JSON.parse(shape);
  ort.env.wasm.numThreads = 1;
  const session = await ort.InferenceSession.create(fs.readFileSync(model));
  const {result} = await session.run({ image: new ort.Tensor("uint8", new Uint8Array(fs.readFileSync(image)), [n, h, w, c]),
                                       mask: new ort.Tensor("uint8", new Uint8Array(fs.readFileSync(mask)), [n, h, w]) });
  fs.writeFileSync(out, Buffer.from(result.data)); console.log(JSON.stringify(result.dims), result.type);
})().catch(e => { console.error(e); process.exit(1); });
"""


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_onnxruntime_web_gives_the_same_bytes(whole, sessions, tmp_path, precision):
    "In node, by WebAssembly, as a page would. PCONV_ORT_WEB names a folder with node_modules/onnxruntime-web (npm install onnxruntime-web)."
    folder = os.environ.get("PCONV_ORT_WEB")
    if not folder or not shutil.which("node"): pytest.skip("needs node, and PCONV_ORT_WEB: a folder where onnxruntime-web is installed")
    small = shrink_weights(whole["fast"], precision)
    (tmp_path/"m.onnx").write_bytes(small.SerializeToString())
    (tmp_path/"run.js").write_text(NODE, encoding="utf-8")
    session = open_onnx(small.SerializeToString(), threads=1)
    for image, mask in list(pairs(7, seed=11, top=90))[4:7]:
        image.tofile(tmp_path/"image"), mask.tofile(tmp_path/"mask")
        done = subprocess.run(["node", "run.js", "m.onnx", "image", "mask", "out", json.dumps(image.shape)], cwd=tmp_path, capture_output=True, text=True,
                              timeout=120, env={**os.environ, "NODE_PATH": str(Path(folder)/"node_modules")})
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.split() == [json.dumps(image.shape).replace(" ", "").replace("(", "["), "uint8"]
        got = np.fromfile(tmp_path/"out", np.uint8).reshape(image.shape)
        assert off(got, run_onnx(session, image, mask)) <= 1 and (got[mask > 0] == image[mask > 0]).all()


@pytest.mark.parametrize("which", ["onnxconverter_common.float16", "onnxruntime.transformers.float16"])
@pytest.mark.parametrize("impl", ["fast", "readable"])
def test_the_standard_converters_to_float16_take_the_file(whole, sessions, which, impl):
    half = pytest.importorskip(which).convert_float_to_float16(onnx.ModelProto.FromString(whole[impl].SerializeToString()))
    session = open_onnx(half.SerializeToString(), threads=1)
    for image, mask in pairs(5):
        got = run_onnx(session, image, mask)
        assert np.array_equal(got[mask > 0], image[mask > 0]) and off(got, run_onnx(sessions[impl], image, mask)) <= 3


def test_constants_are_tensors_and_every_node_has_a_name_of_its_own(whole):
    for model in whole.values():
        assert {a.name for n in model.graph.node if n.op_type == "Constant" for a in n.attribute} == {"value"}
        assert len({n.name for n in model.graph.node}) == len(model.graph.node)


def test_the_optimiser_of_onnxruntime_takes_the_file(net, whole, sessions, tmp_path):
    import onnxruntime as ort
    options = ort.SessionOptions()
    options.graph_optimization_level, options.optimized_model_filepath = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED, str(tmp_path/"o.onnx")
    ort.InferenceSession(whole["fast"].SerializeToString(), options, providers=["CPUExecutionProvider"])
    optimizer = pytest.importorskip("onnxruntime.transformers.optimizer")
    (tmp_path/"i.onnx").write_bytes(whole["fast"].SerializeToString())
    optimizer.optimize_model(str(tmp_path/"i.onnx"), opt_level=1, only_onnxruntime=True).save_model_to_file(str(tmp_path/"t.onnx"))
    for name in ("o.onnx", "t.onnx"):
        session = open_onnx(tmp_path/name, 1)
        for image, mask in pairs(4): assert off(run_onnx(session, image, mask), run_onnx(sessions["fast"], image, mask)) <= 1
