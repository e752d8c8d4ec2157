"""What is packed: a network between two runs, and its record."""
import shutil

import pytest
import torch
from safetensors import safe_open, SafetensorError
from safetensors.torch import load_file, save_file

from pconv_course import weights
from pconv_course.base.core import InputError, read_json, write_json
from pconv_course.base.wider import widen
from pconv_course.inpainting import open_model
from pconv_course.runs import checkpoint
from pconv_course.tools import pack
from pconv_course.tools.pack import blend, pack_weights
from pconv_course.tools.share import from_pretrained, save_pretrained
from pconv_course.weights import in_bytes, load_model, load_pretrained, pretrained_info, weights_hash
from pconv_course.networks import build_unet
from pconv_course.recipe import Phase, Recipe
from pconv_course.runs.train import train
from pconv_course.training import begin_from


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    "Two runs of a tiny network, the second begun from the first."
    folder = tmp_path_factory.mktemp("runs")
    tiny = dict(size=32, n_faces=40, valid=.2, n_masks=10, depth=3, width=4, bs=8, min_steps=1, phases=(Phase(3e-3, epochs=2),))
    train(Recipe(name="first", **tiny), out=folder/"a", device="cpu", progress=False)
    train(Recipe(name="second", start=str(folder/"a"), seed=1, **tiny), out=folder/"b", device="cpu", progress=False)
    return [folder/"a", folder/"b"]


def state(run): return load_file(run/"model.safetensors")


def test_the_packed_network_lies_between_the_last_two_runs(runs, tmp_path):
    "In 16 bits, so within one part in 2048; part=1 is the last run itself, and the record says which it was."
    record = pack_weights(runs, tmp_path, "half", part=.5)
    net, _ = load_pretrained("half", folder=tmp_path)
    a, b = map(state, runs)
    assert any(not torch.equal(a[k], b[k]) for k in a)
    for k, v in net.state_dict().items(): torch.testing.assert_close(v, (a[k] + b[k])/2 if v.is_floating_point() else b[k], rtol=2**-11, atol=1e-7)
    assert record["part"] == .5 and [s["recipe"]["name"] for s in record["stages"]] == ["first", "second"]
    assert pack_weights(runs, tmp_path, "last")["part"] == 1
    for k, v in load_pretrained("last", folder=tmp_path)[0].state_dict().items(): torch.testing.assert_close(v, b[k], rtol=2**-11, atol=1e-7)


def test_packed_weights_are_not_overwritten(runs, tmp_path):
    pack_weights(runs[:1], tmp_path, "mine"), (tmp_path/"theirs.json").write_text("1")
    was = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(InputError, match="mine.safetensors is there already; choose another name"): pack_weights(runs, tmp_path, "mine")
    with pytest.raises(InputError, match="theirs.json is there already; choose another name"): pack_weights(runs, tmp_path, "theirs")
    for name in ("", "../mine", "a.b"):
        with pytest.raises(InputError, match="letters, digits"): pack_weights(runs, tmp_path, name)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == was


def test_large_kernels_in_8_bits(runs, tmp_path):
    "Off by half a step at most, a 254th of the largest weight of their output channel; the others in 16 bits; less than 0.7 of the bytes."
    wide = tmp_path/"wide"
    train(Recipe(name="wide", size=32, n_faces=40, valid=.2, n_masks=10, depth=3, width=32, bs=8, min_steps=1, phases=(Phase(3e-3),)), out=wide, device="cpu", progress=False)
    record, whole = pack_weights([wide], tmp_path, "byte", bits=8), state(wide)
    stored, (net, _) = load_file(tmp_path/"byte.safetensors"), load_pretrained("byte", folder=tmp_path)
    large = [k for k, v in whole.items() if v.ndim == 4 and v.numel() >= 2**15]
    assert large and {str(stored[k].dtype) for k in large} == {"torch.int8"} and record["bits"] == 8
    for k, v in net.state_dict().items():
        if k in large: assert ((v - whole[k]).abs() <= whole[k].abs().amax((1, 2, 3), keepdim=True)/254*1.001).all()
        else: torch.testing.assert_close(v, whole[k], rtol=2**-11, atol=1e-7)
    assert record["bytes"] < .7*pack_weights([wide], tmp_path, "half")["bytes"]
    with pytest.raises(InputError, match="bits=4: give 16 or 8"): pack_weights([wide], tmp_path, "four", bits=4)
    with pytest.raises(InputError, match="no kernel .* has 32,768 weights"): pack_weights(runs, tmp_path, "small", bits=8)
    whole, scale = in_bytes(net.state_dict()[large[0]])
    assert torch.equal(whole, stored[large[0]]), "packed once more, it is the same"


def test_a_network_between_a_narrow_one_and_a_wide_one_that_began_from_it(runs, tmp_path):
    "The narrow one is widened as it was then, so the history of either is in the record."
    tiny = dict(size=32, n_faces=40, valid=.2, n_masks=10, depth=3, width=6, bs=8, min_steps=1, phases=(Phase(1e-3),))
    train(Recipe(name="wide", start=str(runs[1]), **tiny), out=tmp_path/"wide", device="cpu", progress=False)
    pack_weights(runs, tmp_path, "narrow")
    record = pack_weights([tmp_path/"narrow.safetensors", tmp_path/"wide"], tmp_path, "between", part=.75)
    assert [s["recipe"]["name"] for s in record["stages"]] == ["first", "second", "wide"] and record["part"] == .75
    net, b = load_pretrained("between", folder=tmp_path)[0], state(tmp_path/"wide")
    widened = build_unet(net.config)
    widen(load_model(tmp_path/"narrow.safetensors")[0], widened)
    a = widened.state_dict()
    for k, v in net.state_dict().items(): torch.testing.assert_close(v, a[k] + .75*(b[k] - a[k]) if v.is_floating_point() else b[k], rtol=2**-10, atol=1e-6)
    far = lambda x, y: sum((x[k] - y[k]).square().sum() for k in x if x[k].ndim == 4)
    torch.manual_seed(0)
    assert far(a, b) < .2*far(build_unet(net.config).state_dict(), b)


def test_a_file_in_bytes_without_its_scales_is_refused(runs, tmp_path):
    "Taken as they are, the whole numbers would be weights of up to 127."
    a = state(runs[0])
    k = next(k for k, v in a.items() if v.ndim == 4)
    whole, scale = in_bytes(a[k])
    with safe_open(runs[0]/"model.safetensors", "pt") as f: meta = f.metadata()
    def written(**changes):
        save_file(a | changes, tmp_path/"model.safetensors", metadata=meta)
        return load_model(tmp_path)[0]
    torch.testing.assert_close(written(**{k: whole, f"{k}.scale": scale}).state_dict()[k], a[k], rtol=0, atol=a[k].abs().max().item()/250)
    for changes, words in (({k: whole}, "scale is missing"), ({k: whole, f"{k}.scale": scale.flatten()}, "of shape"), ({f"{k}.scale": scale}, "Unexpected key|loading state_dict")):
        with pytest.raises(InputError, match=f"not a network of this library, or damaged .*({words})"): written(**changes)


def test_a_folder_for_hubs_may_hold_a_file_in_bytes(runs, tmp_path):
    net, config = load_model(runs[0])
    save_pretrained(net, tmp_path, config)
    k = next(k for k, v in net.state_dict().items() if v.ndim == 4)
    whole, scale = in_bytes(net.state_dict()[k])
    save_file(load_file(tmp_path/"model.safetensors") | {k: whole, f"{k}.scale": scale}, tmp_path/"model.safetensors")
    torch.testing.assert_close(from_pretrained(tmp_path)[0].state_dict()[k], whole*scale)


def test_a_full_disk_is_one_line(runs, tmp_path, monkeypatch):
    def full(*args, **kwargs): raise SafetensorError("I/O error: No space left on device (os error 28)")
    monkeypatch.setattr(checkpoint, "save_file", full)
    for write in (lambda: pack_weights(runs, tmp_path/"out", "mine"), lambda: save_pretrained(load_model(runs[0])[0], tmp_path/"hub")):
        with pytest.raises(InputError, match="No space left on device"): write()
    assert not [p for p in tmp_path.rglob("*") if "safetensors" in p.name]


@pytest.mark.parametrize("part, word", [(1.5, "1 at most"), (0, "above 0"), (float("nan"), "above 0")])
def test_parts_that_are_none(runs, tmp_path, part, word):
    with pytest.raises(InputError, match=word): pack_weights(runs, tmp_path, part=part)
    assert not list(tmp_path.iterdir())


def test_a_run_that_went_on_from_packed_weights_has_their_runs_before_its_own(runs, tmp_path):
    "And the network may lie between the two."
    pack_weights(runs, tmp_path, "base", part=.5)
    record = pack_weights([tmp_path/"base.safetensors", runs[0]], tmp_path, "more", part=.25)
    assert [(s["recipe"]["name"], s.get("part")) for s in record["stages"]] == [("first", None), ("second", .5), ("first", None)] and record["part"] == .25
    net, a, b = load_pretrained("more", folder=tmp_path)[0], load_file(tmp_path/"base.safetensors"), state(runs[0])
    for k, v in net.state_dict().items():
        if v.is_floating_point(): torch.testing.assert_close(v, a[k].float() + .25*(b[k] - a[k].float()), rtol=2**-11, atol=1e-7)
    assert pack_weights(["drawn", runs[0]], tmp_path, "named")["licence"] == pack.DRAWN_LICENCE, "by its name in the package, too"


def test_one_run_has_nothing_between(runs, tmp_path):
    with pytest.raises(InputError, match="two or more"): pack_weights(runs[:1], tmp_path, part=.5)
    train(Recipe(size=32, n_faces=20, n_masks=10, depth=3, width=4, formula="v1", bs=8, min_steps=1, phases=(Phase(3e-3),)), out=tmp_path/"v1", device="cpu", progress=False)
    with pytest.raises(InputError, match="runs of different networks"): pack_weights([tmp_path/"v1", runs[1]], tmp_path/"out", part=.5)
    assert pack_weights([tmp_path/"v1", runs[1]], tmp_path/"out")["part"] == 1
    with pytest.raises(InputError, match="two are of different networks"): blend(state(runs[0]), {"w": torch.zeros(2)}, .5)


def test_the_file_in_the_package_is_what_the_card_says():
    info, (_, config) = pretrained_info(), load_pretrained()
    assert info["part"] == config["part"] and config["recipe"]["name"] == info["stages"][-1]["recipe"]["name"]
    recipes = [s["recipe"] for s in info["stages"]]
    assert not recipes[0]["start"] and {r["valid"] for r in recipes} == {"800-849"}, "from nothing, and no test face chose anything"


def test_two_files_ship_and_their_licence_is_told_once(capsys, monkeypatch):
    "'faces' by default, 'drawn' by its name, also where a path is asked for; the latter saw nothing but drawn faces."
    monkeypatch.setattr(weights, "TOLD", set())
    assert weights.pretrained_names() == ["drawn", "faces"] and sum(pretrained_info(n)["bytes"] for n in ("drawn", "faces")) <= 20e6
    assert load_model("drawn") and not capsys.readouterr().out  # nobody was told, so the next one is
    net = load_pretrained("drawn")[0]
    assert "Apache-2.0" in capsys.readouterr().out and load_pretrained("drawn") and not capsys.readouterr().out
    assert load_pretrained() and "non-commercial" in capsys.readouterr().out
    assert weights_hash(load_model("drawn")[0]) == weights_hash(net) and not capsys.readouterr().out
    stages = pretrained_info("drawn")["stages"]
    assert {s["data"]["name"] for s in stages} == {"drawn"} and all(s["recipe"]["critic"] for s in stages) and not stages[0]["recipe"]["start"]


def test_a_folder_of_pictures_does_not_hide_the_weights_of_its_name(tmp_path, monkeypatch, runs):
    monkeypatch.chdir(tmp_path)
    (tmp_path/"faces").mkdir()
    assert weights.packaged_file("faces") == weights.weights_file("faces") == weights.weights_dir()/"faces.safetensors"
    shutil.copytree(runs[0], tmp_path/"drawn")
    assert weights.packaged_file("drawn") is None and load_model("drawn")[1]["recipe"]["name"] == "first", "a run does"


def test_a_network_alone_is_used_at_the_size_of_its_training():
    for name, px in (("faces", 256), ("drawn", 128)):
        net, config = load_pretrained(name, say=None)
        assert open_model(net)[1] == open_model((net, config))[1] == px


def test_a_device_that_is_not_there():
    with pytest.raises(InputError, match="device foo cannot be used here") as e: load_model("drawn", "foo")
    assert "\n" not in str(e.value)
    with pytest.raises(InputError, match="device foo"): open_model(load_model("drawn")[0], device="foo")


def test_a_checkpoint_of_others_is_told_where_to_go(tmp_path):
    file = tmp_path/"1000000.pth"
    file.write_bytes(b"something that torch.save wrote")
    with pytest.raises(InputError, match="pconv lab convert") as e: open_model(file)
    assert "\n" not in str(e.value)
    file.rename(tmp_path/"model.safetensors")
    with pytest.raises(InputError, match="fetch it again"): open_model(tmp_path)


def test_a_training_may_begin_with_weights_by_their_name():
    net, config = load_pretrained("drawn", say=None)
    assert begin_from(net, "drawn")["sha256"] == pretrained_info("drawn")["sha256"]


def test_the_licence_follows_from_the_faces(runs, tmp_path):
    "A run that saw drawn faces only is free; one that saw others isn't, unless its packer says what holds."
    assert pack_weights(runs, tmp_path, "a")["licence"] == pack.DRAWN_LICENCE
    record = read_json(runs[0]/"result.json")
    other = tmp_path/"other"
    shutil.copytree(runs[0], other)
    write_json(other/"result.json", record | dict(data=record["data"] | dict(name="photos")))
    made = pack_weights([other], tmp_path, "b")["licence"]
    assert made.startswith("Trained on ") and "FFHQ" not in made and "the rights in these pictures" in made
    told = {k: pretrained_info(k)["licence"] for k in ("faces", "drawn")}
    assert pack_weights(["faces", other], tmp_path, "d")["licence"] == f"{told['faces']} {made}" and pack_weights(["drawn", other], tmp_path, "e")["licence"] == made
    begun = tmp_path/"begun"
    shutil.copytree(runs[0], begun)
    write_json(begun/"result.json", record | dict(start=dict(sha256=pretrained_info("faces")["sha256"])))
    assert pack_weights([begun], tmp_path, "f")["licence"] == told["faces"], "drawn faces, but not from nothing"
    assert pack_weights([other], tmp_path, "c", licence="mine")["licence"] == "mine"
