"""What a fastai user does with a learner, on the real loaders; and values that can't be meant, on the first batch."""
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from fastai.data.core import DataLoaders
from fastai.interpret import Interpretation
from fastai.learner import load_learner
from PIL import Image
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from pconv_course import metrics
from pconv_course.base.core import InputError
from pconv_course.base.show import to_array
from pconv_course.data import DrawnFaces, face_dls
from pconv_course.metrics import score
from pconv_course.learner import inpaint_batch, pconv_learner
from pconv_course.losses import random_features
from pconv_course.objective import InpaintLoss
from pconv_course.masks import MaskBank
from pconv_course.unet import PConvUNet
from pconv_course.windows import fill, repair

SIZE, BANK = 32, MaskBank.make(30, size=32, seed=1)


def net():
    torch.manual_seed(0)
    return PConvUNet(depth=2, width=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("faces")
    for i in range(20): Image.fromarray(to_array(DrawnFaces(20, SIZE)[i])).save(out/f"{i:02}.png")
    return out


@pytest.fixture(params=["drawn", "folder"])
def learn(request, folder, tmp_path):
    src = folder if request.param == "folder" else "drawn"
    learn = pconv_learner(face_dls(src, SIZE, bs=4, n=20, valid=.35, device="cpu", flip=True), BANK, net(), path=tmp_path)
    with learn.no_bar(), learn.no_logging(): yield learn


def truth(ds): return torch.stack([ds[i] for i in range(len(ds))])


@pytest.mark.parametrize("ds_idx", [0, 1])
@pytest.mark.parametrize("reorder", [True, False])
def test_get_preds_gives_the_faces_of_the_dataset_in_order_and_unmirrored(learn, ds_idx, reorder):
    inp, out, (gt, m), loss = learn.get_preds(ds_idx=ds_idx, reorder=reorder, with_input=True, with_loss=True)
    assert_close(gt, truth(learn.dls[ds_idx].dataset))
    assert_close(m, learn.mask.valid_masks(len(gt)))
    assert_close(inp, gt)
    assert_close(out, learn.model.eval()(gt*m, m).detach())
    assert loss.shape == (len(gt),)
    assert_close(loss.mean(), learn.loss_func(out, gt, m))


def test_get_preds_of_a_training_loader_loses_no_face(learn):
    _, (gt, _) = learn.get_preds(dl=learn.dls.train)
    assert_close(gt, truth(learn.dls.train_ds))


@pytest.mark.parametrize("chunk", [None, 1, "auto"])
@pytest.mark.parametrize("per", ["image", "hole"])
def test_a_loss_for_each_image_has_the_loss_as_its_mean(chunk, per):
    loss, gt, m = InpaintLoss(random_features(), per=per, chunk=chunk), torch.rand(3, 3, 32, 32), BANK.sample(3, torch.Generator())
    out = torch.rand(3, 3, 32, 32, requires_grad=True)
    whole, last = loss(out, gt, m), dict(loss.last)
    loss.reduction = "none"
    each = loss(out, gt, m)
    assert each.shape == (3,)
    assert_close(each.mean(), whole, rtol=1e-4, atol=1e-6)
    assert_close(loss.last, last, rtol=1e-4, atol=1e-6)
    for i in range(3): assert_close(loss(out[i:i+1], gt[i:i+1], m[i:i+1])[0], each[i])


def test_a_list_of_pictures_becomes_a_loader(learn, folder):
    paths = sorted(folder.glob("*.png"))[:5]
    want = torch.stack([torch.from_numpy(np.array(Image.open(p))).permute(2, 0, 1)/255 for p in paths])
    arrays = [(255*x).round().byte() for x in want]
    pairs = [(x, BANK[7]) for x in want]
    for items in (paths, [str(p) for p in paths], list(want), want, arrays, [a.permute(1, 2, 0).numpy() for a in arrays], [(x,) for x in want], pairs):
        out, (gt, m), loss = learn.get_preds(dl=learn.dls.test_dl(items, bs=2), with_loss=True)
        assert_close(gt, want, rtol=0, atol=1e-6)
        assert_close(m, torch.stack([BANK[7]]*5) if items is pairs else learn.mask.valid_masks(5))
    assert_close(learn.get_preds(dl=learn.dls.test_dl(paths, num_workers=1))[1][0], want)
    assert len(learn.validate(dl=learn.dls.test_dl(list(want)))) == len(learn.metrics) + 1


@pytest.mark.parametrize("items, says", [([3.5], "give a path"), ([torch.rand(1, 32, 32)], "give a path"), ([(torch.rand(3, 32, 32), BANK[0]), torch.rand(3, 32, 32)], "none"),
                                         ([torch.rand(3, 48, 48)], "don't fit")])
def test_a_list_of_something_else_is_refused_in_one_line(learn, items, says):
    with pytest.raises(InputError, match=says) as e: learn.get_preds(dl=learn.dls.test_dl(items))
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("ds_idx", [0, 1])
def test_interpretation_shows_the_faces_and_masks_its_losses_came_from(learn, ds_idx):
    interp = Interpretation.from_learner(learn, ds_idx=ds_idx)
    losses, idx = interp.top_losses(3)
    _, preds, (gt, m), _, at = interp[idx]
    assert_close(gt, truth(learn.dls[ds_idx].dataset)[idx])
    assert_close(at, losses)
    assert_close(torch.stack([learn.loss_func(*(t[i:i+1] for t in (preds, gt, m))) for i in range(3)]), losses)
    plt.close("all")
    interp.plot_top_losses(3)
    assert [ax.get_title() for ax in plt.gcf().axes] == [f"loss {v:.4f}" for v in losses.tolist()]
    interp.show_results([0, 1])
    assert len(plt.gcf().axes) == 2
    plt.close("all")


def test_interpretation_of_given_pictures_stays_with_them(learn):
    x = torch.rand(5, 3, SIZE, SIZE)
    interp = Interpretation.from_learner(learn, dl=learn.dls.test_dl(x))
    assert_close(interp[[4, 2]][2][0], x[[4, 2]])


def test_tta_mirrors_back_what_it_mirrored(learn):
    out, (gt, m) = learn.get_preds()
    mirrored = learn.model.eval()((gt*m).flip(-1), m.flip(-1)).flip(-1).detach()
    got, (gt2, m2) = learn.tta()
    assert_close(got, (out + mirrored)/2)
    assert_close((gt2, m2), (gt, m))
    assert_close(learn.tta(beta=1)[0], out)


def test_strips_can_be_shuffled_and_of_a_test_loader(learn, folder):
    for how in (dict(shuffle=True), dict(ds_idx=0), dict(dl=learn.dls.test_dl(sorted(folder.glob("*.png"))[:3]))):
        assert isinstance(learn.show_results(max_n=2, **how), plt.Figure)


@pytest.mark.parametrize("item", [torch.rand(3, SIZE, SIZE), (torch.rand(3, SIZE, SIZE),), "face.png"])
def test_predict_without_a_mask_says_what_to_give(learn, item):
    with pytest.raises(InputError, match=r"give both, \(gt, m\)"): learn.predict(item)


def test_an_exported_learner_opens_pictures(learn, folder, tmp_path):
    paths = sorted(folder.glob("*.png"))[:3]
    want = learn.get_preds(dl=learn.dls.test_dl(paths))
    learn.export("e.pkl")
    with warnings.catch_warnings(action="ignore"): back = load_learner(tmp_path/"e.pkl")
    with back.no_bar(): assert_close(back.get_preds(dl=back.dls.test_dl(paths)), want)


def test_lr_find_leaves_the_masks_where_they_were(learn):
    assert learn.lr_find(num_it=4, show_plot=False).valley > 0
    assert learn.mask.first_epoch == 0


def test_tensorboard_callback_with_its_defaults(learn, tmp_path):
    board = pytest.importorskip("fastai.callback.tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    learn.fit(1, cbs=board.TensorBoardCallback(log_dir=tmp_path/"tb"))
    tags = EventAccumulator(str(tmp_path/"tb")).Reload().Tags()
    assert tags["graph"] and tags["images"] == ["gt, out"] and "train_loss" in tags["scalars"] and "psnr" in tags["scalars"]


@pytest.mark.parametrize("bare", [True, False])
def test_a_learner_on_plain_torch_loaders(bare, tmp_path):
    x = torch.rand(10, 3, SIZE, SIZE)
    data = list(x) if bare else TensorDataset(x)
    learn = pconv_learner(DataLoaders(DataLoader(data, 4, shuffle=True), DataLoader(data, 4)), BANK, net(), path=tmp_path)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
        assert_close(learn.get_preds(ds_idx=0)[1][0], x)
        assert learn.get_preds(with_loss=True)[2].shape == (10,) and len(learn.validate()) == 7
        assert_close(learn.get_preds(dl=learn.dls.test_dl(list(x[:3])))[1][0], x[:3])
        assert isinstance(learn.show_results(), plt.Figure) and isinstance(learn.show_batch(), plt.Figure) and learn.tta()[0].shape == x.shape
        learn.lr_find(num_it=3, show_plot=False)
        learn.export("e.pkl")
    with warnings.catch_warnings(action="ignore"): back = load_learner(tmp_path/"e.pkl")
    assert_close(back.predict((x[0], BANK[0])), learn.predict((x[0], BANK[0])))


# Values that can't be meant

GT, M = torch.rand(4, 3, SIZE, SIZE), BANK.sample(4, torch.Generator())
WRONG = [(255*GT, M, "divide by 255"), ((GT - .5)/.25, M, "undo the normalisation"), ((255*GT).byte(), M, "uint8"), (GT, 255*M, r"m > 127"),
         (GT, .5*M, r"m > 0.5"), (GT, M.expand(4, 3, -1, -1), "m\\[:, :1\\]"), (255*GT, 255*M, "masks hold 255")]


@pytest.mark.parametrize("gt, m, says", WRONG)
@pytest.mark.parametrize("where", ["fit", "validate", "inpaint_batch", "score", "mean_fill", "telea_fill", "ns_fill", "biharmonic_fill"])
def test_what_cannot_be_meant_is_refused_with_what_to_do(where, gt, m, says):
    with pytest.raises(InputError, match=says) as e:
        if where == "inpaint_batch": inpaint_batch(net(), gt, m)
        elif where == "score": score(gt, GT, m)
        elif where.endswith("fill"): getattr(metrics, where)(gt, m)
        else:
            data = DataLoader(TensorDataset(gt, m), 2)
            learn = pconv_learner(DataLoaders(data, data), BANK, net())
            with learn.no_bar(), learn.no_logging(): getattr(learn, where)(*[1]*(where == "fit"))
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("gt, m, says", WRONG)
def test_windows_refuse_it_too(gt, m, says):
    with pytest.raises(InputError, match=says): fill(net(), gt, m)


@pytest.mark.parametrize("m", [255*np.eye(24, dtype=np.uint8), .5*np.eye(24)], ids=["255", "soft"])
def test_repair_takes_no_other_masks_than_0_and_1(m):
    a = np.full((24, 24, 3), 90, np.uint8)
    with pytest.raises(InputError, match=r"goes up to (255|0.5); give 0 \(hole\) and 1 \(known\)"): repair([a], [m], lambda x, m: x, 16)
    assert (a == 90).all()


def test_a_fill_of_bytes_is_refused_by_score():
    with pytest.raises(InputError, match="fill is torch.uint8"): score(GT, (255*GT).byte(), M)


def test_values_are_read_on_the_first_batch_of_a_loader_only(monkeypatch):
    import pconv_course.learner as module
    calls = []
    monkeypatch.setattr(module, "check_values", lambda *a: calls.append(1))
    data = DataLoader(TensorDataset(GT.repeat(3, 1, 1, 1)), 2)
    learn = pconv_learner(DataLoaders(data, DataLoader(TensorDataset(GT), 2)), BANK, net())
    with learn.no_bar(), learn.no_logging():
        learn.fit(3)
        assert len(calls) == 2
        learn.fit(1)
    assert len(calls) == 4


def test_slight_overshoot_and_anything_under_the_hole_are_fine():
    inpaint_batch(net(), torch.where(M > .5, GT*1.04 - .02, 1e6), M)
