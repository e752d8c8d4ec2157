"""One ONNX file gives the picture that torch gives; and what the command says when it can't."""
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("onnx", reason="needs the extra 'onnx'")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
import onnx
from safetensors.torch import save_file

from pconv_course import export
from pconv_course.core import InputError
from pconv_course.export import (check_export, core_graph, export_onnx, frame_text, join, metadata, open_model, open_onnx,
                                 pconv_export, run_onnx, run_torch, shrink, weights_hash)
from pconv_course.fast import build_unet


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
def whole(cores): return {impl: join(core, frame_text(8)) for impl, core in cores.items()}


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
    white = open_onnx(join(cores["fast"], frame_text(8, "white")).SerializeToString(), threads=1)
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
    session = open_onnx(join(core_graph(net), frame_text(4)).SerializeToString(), threads=1)
    assert max(off(run_onnx(session, *p), run_torch(net, *p)) for p in pairs(8, seed=7, top=60)) <= 1


def test_a_wrong_frame_is_noticed(net, cores):
    "The check that `export_onnx` makes can fail: mask padded with 1, colours divided by 256, hole and known swapped."
    for old, new in [("m = Pad (known_numbers, padding)", "m = Pad (known_numbers, padding, white)"), ("float = 255.0", "float = 200.0"),
                     ("Where (known_pixel, image, filled)", "Where (known_pixel, filled, image)")]:
        text = frame_text(8)
        assert old in text
        assert check_export(open_onnx(join(cores["fast"], text.replace(old, new)).SerializeToString(), threads=1), net) > 1, new


def test_smaller_files(whole, sessions):
    size = {p: len(shrink(whole["fast"], p).SerializeToString()) for p in ("fp32", "fp16", "int8")}
    weights = sum(4*np.prod(w.dims) for w in whole["fast"].graph.initializer)
    assert size["fp32"] - size["fp16"] > .45*weights and size["fp32"] - size["int8"] > .65*weights
    for p, limit in dict(fp16=2, int8=30).items():
        session = open_onnx(shrink(whole["fast"], p).SerializeToString(), threads=1)
        for image, mask in pairs(6, seed=8):
            got, want = run_onnx(session, image, mask), run_onnx(sessions["fast"], image, mask)
            assert off(got, want) <= limit and (got[mask > 0] == image[mask > 0]).all()
    with pytest.raises(InputError, match="fp8"): shrink(whole["fast"], "fp8")


def test_metadata_names_licence_recipe_and_hash(net, tmp_path, monkeypatch, cores):
    monkeypatch.setattr(export, "core_graph", lambda model, impl="fast": cores[impl])
    config = dict(licence="only for tests", recipe=dict(name="tiny", size=64))
    made = export_onnx(net, tmp_path/"a.onnx", config)
    assert made["worst"] <= 1 and made["bytes"] == (tmp_path/"a.onnx").stat().st_size
    model = onnx.load(tmp_path/"a.onnx")
    facts = {p.key: p.value for p in model.metadata_props}
    assert (facts["licence"], facts["recipe"], facts["trained_size"]) == ("only for tests", "tiny", "64")
    assert facts["weights_sha256"] == weights_hash(net) and facts["mask"].startswith("uint8 (N,H,W), 0 = hole")
    assert json.loads(facts["network"]) == net.config and "pconv_course" in facts["made_by"]
    assert {o.domain: o.version for o in model.opset_import}[""] == export.OPSET
    assert list(tmp_path.iterdir()) == [tmp_path/"a.onnx"], "one file, nothing beside it"
    other = tame(seed=1)
    assert weights_hash(other) != weights_hash(net) and "0 = known" in metadata(net, hole="white")["mask"]


def test_a_graph_that_differs_is_not_written(net, tmp_path, monkeypatch, cores):
    monkeypatch.setattr(export, "core_graph", lambda model, impl="fast": cores[impl])
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
    with pytest.raises(InputError, match=r"pip install 'pconv_course\[onnx\]'"): core_graph(net)


def saved(net, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = dict(model=net.config, recipe=dict(name="tiny", size=64))
    save_file({k: v.contiguous() for k, v in net.state_dict().items()}, path, metadata=dict(config=json.dumps(meta)))
    return path


def test_the_command(net, tmp_path, monkeypatch, cores, capsys):
    monkeypatch.setattr(export, "core_graph", lambda model, impl="fast": cores[impl])
    path, out = saved(net, tmp_path/"run"/"model.safetensors"), tmp_path/"out.onnx"
    pconv_export(model=str(path.parent), out=str(out))
    assert "out.onnx" in capsys.readouterr().out and out.is_file()
    before = out.read_bytes()
    for wrong, word in [(dict(), "exists"), (dict(precision="fp8", overwrite=True), "fp8"), (dict(hole="red", overwrite=True), "red"),
                        (dict(impl="slow", overwrite=True), "slow"), (dict(model=str(tmp_path/"none"), overwrite=True), "no such file")]:
        with pytest.raises(SystemExit) as e: pconv_export(**dict(model=str(path.parent), out=str(out)) | wrong)
        err = capsys.readouterr().err
        assert e.value.code == 2 and word in err and len(err.splitlines()) == 1, err
        assert out.read_bytes() == before
    pconv_export(model=str(path), out=str(out), precision="fp16", overwrite=True)
    assert len(out.read_bytes()) < len(before)


def test_importing_the_module_needs_no_onnx():
    code = "import sys; import pconv_course.export; print([m for m in ('onnx', 'onnxscript', 'onnxruntime', 'huggingface_hub') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_open_model_takes_modules_files_and_folders(net, tmp_path):
    path = saved(net, tmp_path/"run"/"model.safetensors")
    for source in (net, path, path.parent):
        model, config = open_model(source)
        assert not model.training and weights_hash(model) == weights_hash(net) and config["model"] == net.config
