"""What the chapter on the learner promises, on learners that train in milliseconds."""
import copy
import pickle
import warnings
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from fastai.callback.core import Callback, CancelBatchException, CancelEpochException, CancelFitException, CancelTrainException
from fastai.callback.tracker import SaveModelCallback
from fastai.callback.training import GradientAccumulation
from fastai.data.core import DataLoaders, TfmdDL
from fastai.learner import Learner, load_learner
from fastai.optimizer import Adam
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from pconv_course.base.core import InputError
from pconv_course.data import face_dls
from pconv_course.fast import FastPConvUNet, kernels
from pconv_course.networks import build_unet
from pconv_course.lab.clocks import BareTwin
from pconv_course.learner import (MaskCallback, PConvLearner, check_sizes, fit_log, inpaint_batch, loss_metrics, mask_generator,
    masked_batch, pconv_learner, term_names)
from pconv_course.metrics import hole_l1_error, psnr, ssim
from pconv_course.step import DevicePrecision, EncoderBNFreeze, paper_adam, Parts
from pconv_course.losses import random_features
from pconv_course.objective import PAPER_WEIGHTS, InpaintLoss
from pconv_course.masks import MaskBank
from pconv_course.recipe import Through
from pconv_course.unet import PConvUNet

SIZE = 32
BANK = MaskBank.make(20, size=SIZE, seed=1)


def faces(n, seed):
    x = torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return [(o,) for o in torch.nn.functional.interpolate(x, size=(SIZE, SIZE), mode="bilinear")]


def make_dls(bs=4, shuffle=False):
    return DataLoaders(TfmdDL(faces(12, 0), bs=bs, shuffle=shuffle, num_workers=0), TfmdDL(faces(6, 1), bs=bs, num_workers=0), device=torch.device("cpu"))


def net():
    torch.manual_seed(0)
    return PConvUNet(depth=3, width=4)


def synth(tmp_path=None, cbs=None, **kwargs):
    return pconv_learner(make_dls(), BANK, net(), cbs=cbs, path=tmp_path, **kwargs)


def fit(learn, n=1, **kwargs):
    with learn.no_bar(), learn.no_logging():
        learn.fit(n, **kwargs)
    return learn


class Spy(Callback):
    order = 98

    def __init__(self): self.train, self.valid = [], []

    def after_pred(self): (self.train if self.training else self.valid).append((self.xb, self.yb))


class Raise(Callback):
    order = 97

    def __init__(self, exc, event="after_pred", epoch=0):
        self.exc, self.at = exc, epoch
        setattr(self, event, self.stop)

    def stop(self):
        if self.training and self.epoch == self.at:
            raise self.exc


def masks(n): return BANK.sample(n, mask_generator(99))


def state(model): return {k: v.clone() for k, v in model.state_dict().items()}


# Masks

def test_masks_do_not_depend_on_the_global_generator():
    cb = MaskCallback(BANK, seed=3)
    torch.manual_seed(0)
    a = cb.train_masks(4, 2, 1)
    torch.rand(100)
    assert torch.equal(a, cb.train_masks(4, 2, 1))
    for other in (cb.train_masks(4, 2, 2), cb.train_masks(4, 1, 1), MaskCallback(BANK, seed=4).train_masks(4, 2, 1)):
        assert not torch.equal(a, other)


def test_training_and_validation_seeds_never_meet():
    seeds = {mask_generator(0, 0, e, i, 0).initial_seed() for e in range(20) for i in range(50)}
    seeds |= {mask_generator(0, 1, i, 0).initial_seed() for i in range(1000)}
    assert len(seeds) == 2000


def test_masks_belong_to_the_step_and_not_to_a_process(monkeypatch):
    cb = MaskCallback(BANK)
    a, v = cb.train_masks(4, 0, 0), cb.valid_masks(4)
    monkeypatch.setenv("RANK", "1")
    assert torch.equal(a, cb.train_masks(4, 0, 0)) and torch.equal(v, cb.valid_masks(4))


def test_masks_are_made_on_the_batch_device():
    cb = MaskCallback(BANK)
    assert cb.train_masks(2, 0, 0, device="meta").device.type == "meta"
    assert cb.valid_masks(2, device="meta").device.type == "meta"


def test_batch_is_what_network_and_loss_need():
    learn = fit(synth(cbs=[Spy()]))
    (inp, m), (gt, m2) = learn.spy.train[0]
    assert inp.shape == gt.shape == (4, 3, SIZE, SIZE) and m.shape == (4, 1, SIZE, SIZE)
    assert torch.equal(m, m2) and set(m.unique().tolist()) == {0., 1.}
    assert torch.equal(inp, gt*m)
    assert_close(m, learn.mask.train_masks(4, 0, 0))


def test_nan_in_a_face_stays_out_of_the_input_when_it_is_under_the_hole():
    gt, m = torch.full((1, 3, 2, 2), float("nan")), torch.zeros(1, 1, 2, 2)
    assert masked_batch(gt, m)[0][0].eq(0).all()


def test_epochs_are_counted_over_fits_and_cancels():
    twice, whole = fit(fit(synth(cbs=[Spy()]))), fit(synth(cbs=[Spy()]), 2)
    for a, b in zip(twice.spy.train, whole.spy.train, strict=True):
        assert_close(a, b)
    learn = fit(synth(), 5, cbs=Raise(CancelFitException, epoch=1))
    assert learn.mask.first_epoch == 2
    assert fit(synth(), 2, cbs=Raise(CancelTrainException)).mask.first_epoch == 2
    assert fit(synth(), 2, cbs=Raise(CancelEpochException)).mask.first_epoch == 2


def test_validate_predict_and_lr_find_do_not_count(tmp_path):
    learn = synth(tmp_path)
    before = state(learn.model)
    with learn.no_bar():
        learn.validate(), learn.get_preds()
        learn.lr_find(num_it=8, show_plot=False)
    assert learn.mask.first_epoch == 0
    for k, v in learn.model.state_dict().items():
        assert torch.equal(v, before[k])


class Epochs(TfmdDL):
    "Notes what it is told."
    told = ()

    def set_epoch(self, e): self.told = (*self.told, e)


def test_loader_is_told_the_absolute_epoch():
    dls = make_dls()
    dls.train = Epochs(faces(12, 0), bs=4, num_workers=0)
    learn = pconv_learner(dls, BANK, net())
    fit(fit(learn, 2))
    assert dls.train.told == (0, 1, 2)
    fit(learn, 3, start_epoch=2)
    assert dls.train.told == (0, 1, 2, 5)


def test_resumed_run_ends_with_the_same_weights(tmp_path):
    whole = fit(synth(tmp_path), 2)
    half = fit(synth(tmp_path), 1)
    half.save("half")
    resumed = fit(synth(tmp_path).load("half"), 2, start_epoch=1)
    for k, v in whole.model.state_dict().items():
        assert torch.equal(v, resumed.model.state_dict()[k]), k
    forgot = synth(tmp_path).load("half")
    fit(forgot, 1)
    assert any(not torch.equal(v, forgot.model.state_dict()[k]) for k, v in whole.model.state_dict().items())


def test_validation_masks_are_fixed_whatever_the_batch_size():
    runs = []
    for bs in (1, 4, 6):
        learn = pconv_learner(make_dls(bs), BANK, net(), cbs=[Spy()])
        with learn.no_bar():
            learn.validate(), learn.validate()
        first, second = torch.cat([xb[1] for xb, _ in learn.spy.valid]).chunk(2)
        assert torch.equal(first, second)
        runs.append(first)
    assert torch.equal(runs[0], runs[1]) and torch.equal(runs[0], runs[2])


def test_validation_can_have_masks_of_its_own():
    other = MaskBank.make(5, size=SIZE, seed=9, kind="central")
    learn = synth(cbs=[Spy()], valid_bank=other)
    with learn.no_bar():
        learn.validate()
    assert_close(learn.spy.valid[0][0][1], MaskCallback(other).valid_masks(4))


def test_given_masks_are_kept():
    learn, (gt,) = synth(cbs=[Spy()]), make_dls().valid.one_batch()
    m = masks(4)
    with learn.no_bar():
        _, (gt2, m2) = learn.get_preds(dl=[(gt, m)])
    assert torch.equal(gt, gt2) and torch.equal(m, m2)


def test_both_inputs_given_are_left_alone():
    cb = MaskCallback(BANK)
    learn = synth()
    cb.learn = learn
    learn.xb, learn.yb = (torch.rand(1, 3, SIZE, SIZE), torch.ones(1, 1, SIZE, SIZE)), ()
    before = learn.xb
    cb.before_batch()
    assert learn.xb is before and learn.yb == ()


def test_sizes_that_do_not_fit():
    with pytest.raises(InputError, match="64x64.*32x32") as e:
        pconv_learner(make_dls(), MaskBank.make(2, size=64), net())
    assert "\n" not in str(e.value)
    with pytest.raises(InputError, match="64x64"):
        check_sizes(make_dls(), BANK, MaskBank.make(2, size=64))
    with pytest.raises(InputError, match="don't fit"):
        masked_batch(torch.zeros(2, 3, 8, 8), torch.zeros(1, 1, 8, 8))
    learn = synth()
    learn.mask.bank = MaskBank.make(2, size=64)
    with pytest.raises(InputError, match="don't fit"):
        fit(learn)


def test_without_the_callback_the_error_names_the_mask():
    learn = synth()
    learn.remove_cb(MaskCallback)
    with pytest.raises(TypeError, match="argument: 'm'"):
        fit(learn)


# Metrics

def test_metrics_against_numpy():
    g = torch.Generator().manual_seed(0)
    gt, out, m = torch.rand(3, 3, 16, 16, generator=g), torch.rand(3, 3, 16, 16, generator=g)*2 - 0.5, masks(3)[..., 8:24, 8:24]
    comp = np.where(m.numpy() > 0.5, gt.numpy(), out.clamp(0, 1).numpy())
    d, hole = comp - gt.numpy(), 1 - m.numpy()
    mse = (d**2).mean((1, 2, 3))
    assert np.isclose(psnr(out, gt, m).item(), (10*np.log10(1/mse)).mean(), rtol=1e-5)
    assert np.isclose(hole_l1_error(out, gt, m).item(), (abs(d).sum((1, 2, 3))/(3*hole.sum((1, 2, 3)).clip(1))).mean(), rtol=1e-5)
    assert ssim(gt, gt, m).item() == pytest.approx(1)


def test_metrics_of_perfect_and_of_no_hole():
    gt, ones = torch.rand(2, 3, 16, 16), torch.ones(2, 1, 16, 16)
    assert psnr(gt*0, gt, ones).item() == float("inf") and hole_l1_error(gt*0, gt, ones).item() == 0


def test_metrics_ignore_known_pixels():
    gt, m = torch.rand(2, 3, 16, 16), masks(2)[..., 8:24, 8:24]
    out = torch.rand_like(gt)
    for f in (psnr, ssim, hole_l1_error):
        assert_close(f(torch.where(m > 0.5, 7., out), gt, m), f(out, gt, m))


def test_monitors_point_the_right_way():
    learn = synth()
    for metric in learn.metrics:
        want = np.greater if metric.name in ("psnr", "ssim") else np.less
        assert SaveModelCallback(monitor=metric.name).comp == want, metric.name


# Terms

def test_columns_add_up_and_carry_their_weights():
    loss = InpaintLoss(random_features(width=2), dict(valid=1., hole=6., perceptual=.05, style_out=2., style_comp=0., tv=.1))
    assert list(term_names(loss).values()) == ["1*loss_valid", "6*loss_hole", "0.05*loss_perceptual", "2*loss_style_out", "0.1*loss_tv"]
    learn = synth(loss=loss)
    with learn.no_bar():
        record = learn.validate()
    values = dict(zip(list(learn.recorder.metric_names)[2:], record))
    assert values["valid_loss"] == pytest.approx(sum(values[k] for k in term_names(loss).values()), rel=1e-5)


def test_term_metric_weighs_by_batch_size():
    loss = InpaintLoss.pixels()
    small, whole = (Learner(make_dls(bs), net(), loss, metrics=loss_metrics(loss), cbs=MaskCallback(BANK)) for bs in (4, 6))
    with small.no_bar(), whole.no_bar():
        for a, b in zip(small.validate(), whole.validate(), strict=True):
            assert a == pytest.approx(b, rel=1e-5)


def test_a_loss_without_terms_works():
    learn = fit(synth(loss=lambda out, gt, m: (out - gt).abs().mean()))
    assert learn.loss_terms.names == [] and [m.name for m in learn.metrics] == ["psnr", "ssim", "hole_l1_error"]
    assert len(fit_log(learn)) == 1


def test_loss_terms_record():
    learn = fit(synth(), 2)
    assert learn.loss_terms.steps.shape == (6, 3) and list(learn.loss_terms.epochs) == [0, 1]
    row = learn.loss_terms.epochs[1]
    assert_close(torch.tensor(list(row.values())), learn.loss_terms.steps[3:].mean(0))
    kept = learn.loss_terms.steps
    with learn.no_bar():
        learn.validate()
    assert learn.loss_terms.steps is kept
    fit(learn)
    assert learn.loss_terms.steps.shape == (3, 3)


def test_fit_log_of_a_resumed_fit():
    log = fit_log(fit(synth(), 3, start_epoch=1))
    assert [r["epoch"] for r in log] == [0, 1, 2] and "train_6*loss_hole" not in log[0] and log[2]["train_6*loss_hole"] > 0
    assert all(isinstance(v, (int, float)) for r in log[1:] for v in r.values())


def test_loss_terms_after_cancel():
    learn = fit(synth(), 2, cbs=Raise(CancelFitException, event="after_step", epoch=1))
    assert list(learn.loss_terms.epochs) == [0] and learn.loss_terms.steps.shape == (3, 3)


def test_a_batch_cancelled_before_its_loss_leaves_no_row():
    assert fit(synth(), cbs=Raise(CancelBatchException)).loss_terms.steps is None
    assert fit(synth(), cbs=Raise(CancelBatchException, event="after_loss")).loss_terms.steps.shape == (3, 3)


# Optimiser

@pytest.mark.parametrize("steps", [1, 7])
def test_paper_adam_is_torch_adam(steps):
    def run(opt_func):
        g = torch.Generator().manual_seed(0)
        p = torch.nn.Parameter(torch.randn(50, generator=g, dtype=torch.float64))
        opt = opt_func([p], lr=2e-4)
        for _ in range(steps):
            p.grad = torch.randn(50, generator=g, dtype=torch.float64)*1e-4
            opt.step()
        return p.detach()
    assert_close(run(paper_adam), run(torch.optim.Adam), rtol=0, atol=1e-14)


readable_adam = partial(Adam, mom=.9, sqr_mom=.999, eps=1e-8, wd=0.)


def adam_run(opt_func, steps=5, dtype=torch.float64, **kwargs):
    "Parameters of two groups after some steps in which one of them now and then has no gradient."
    g = torch.Generator().manual_seed(0)
    ps = [torch.nn.Parameter(torch.randn(shape, generator=g, dtype=dtype)) for shape in ((4, 3, 3, 3), (7,), (2, 5))]
    opt = opt_func([ps[:2], ps[2:]], lr=1e-2, **kwargs)
    for i in range(steps):
        for p in ps: p.grad = torch.randn(p.shape, generator=g, dtype=dtype)
        if i % 2: ps[1].grad = None
        opt.set_hypers(lr=[1e-2/(i + 1), 1e-3])
        opt.step()
    return opt, torch.cat([p.detach().flatten() for p in ps])


@pytest.mark.parametrize("kwargs", [{}, dict(wd=.1), dict(mom=.5, sqr_mom=.9, eps=1e-3)])
def test_one_pass_equals_the_chain_of_fastai(kwargs):
    "Groups with rates of their own, parameters that sit out a step, decoupled weight decay; same state, name by name."
    (ours, a), (theirs, b) = adam_run(paper_adam, **kwargs), adam_run(readable_adam, **kwargs)
    assert_close(a, b, rtol=0, atol=1e-13)
    ours, theirs = ours.state_dict(), theirs.state_dict()
    assert [dict(h) for h in ours["hypers"]] == [dict(h) for h in theirs["hypers"]]
    for x, y in zip(ours["state"], theirs["state"], strict=True):
        assert set(x) == set(y) == {"grad_avg", "sqr_avg", "step"} and x["step"] == y["step"] and isinstance(x["step"], int)
        for k in ("grad_avg", "sqr_avg"): assert_close(x[k], y[k], rtol=1e-12, atol=1e-15)


def test_float32_steps_agree_to_rounding():
    assert_close(adam_run(paper_adam, dtype=torch.float32)[1], adam_run(readable_adam, dtype=torch.float32)[1], rtol=0, atol=1e-6)


def test_no_weight_decay_where_fastai_wants_none():
    p = torch.nn.Parameter(torch.ones(3))
    opt = paper_adam([p], lr=.1, wd=.5)
    opt.state[p]["do_wd"] = False
    p.grad = torch.zeros(3)
    opt.step()
    assert torch.equal(p.detach(), torch.ones(3))
    opt.state[p]["do_wd"] = True
    opt.step()
    assert_close(p.detach(), torch.full((3,), .95))
    opt.clear_state()
    assert opt.state[p] == dict(do_wd=True)


@pytest.mark.parametrize("first,second", [(paper_adam, readable_adam), (readable_adam, paper_adam)])
def test_a_state_of_one_continues_in_the_other(first, second):
    def two_then_three(f, g):
        rng = torch.Generator().manual_seed(0)
        p = torch.nn.Parameter(torch.randn(20, generator=rng, dtype=torch.float64))
        opt = f([p], lr=1e-2)
        for i in range(5):
            if i == 2:
                saved = copy.deepcopy(opt.state_dict())
                opt = g([p], lr=7.)
                opt.load_state_dict(saved)
            p.grad = torch.randn(20, generator=rng, dtype=torch.float64)
            opt.step()
        return p.detach()
    assert_close(two_then_three(first, second), two_then_three(readable_adam, readable_adam), rtol=0, atol=1e-13)


@pytest.mark.parametrize("what", ["parameter", "averages", "gradient"])
def test_the_kernel_may_not_mix_memory_layouts(what):
    def run(last):
        p = torch.nn.Parameter(torch.linspace(-1, 1, 54, dtype=torch.float64).view(2, 3, 3, 3))
        opt = paper_adam([p], lr=.1)
        for i in range(4):
            p.grad = (p.detach() - .5)**3
            if last and i == 2:
                if what == "parameter": p.data = p.data.to(memory_format=torch.channels_last)
                if what == "averages": opt.state[p].update({k: opt.state[p][k].to(memory_format=torch.channels_last) for k in ("grad_avg", "sqr_avg")})
            if last and what == "gradient": p.grad = p.grad.to(memory_format=torch.channels_last)
            opt.step()
        assert all(opt.state[p][k].stride() == p.stride() for k in ("grad_avg", "sqr_avg"))
        return p.detach().contiguous()
    assert_close(run(True), run(False), rtol=0, atol=1e-15)


def test_gradients_are_let_go():
    p = torch.nn.Parameter(torch.ones(3))
    opt = paper_adam([p])
    opt.step(), opt.zero_grad()
    assert opt.state[p] == {}
    p.grad = torch.ones(3)
    opt.step(), opt.zero_grad()
    assert p.grad is None and opt.state[p]["step"] == 1
    with pytest.raises(NotImplementedError): opt.step(lambda: None)
    assert pickle.loads(pickle.dumps(opt)).hypers == opt.hypers


def test_a_step_of_the_optimiser_is_a_handful_of_operations():
    "Whatever the number of parameters; fastai's chain needs eight for each."
    ps = [torch.nn.Parameter(torch.ones(2, 2)) for _ in range(50)]
    opt = paper_adam(ps)
    for p in ps: p.grad = torch.ones_like(p)
    opt.step()
    assert kernels(opt.step) <= 4 and kernels(opt.zero_grad) == 0


def test_learner_has_the_papers_hypers():
    learn = fit(synth())
    assert dict(learn.opt.hypers[0]) == dict(lr=2e-4, mom=.9, sqr_mom=.999, eps=1e-8, wd=0.)


# Precision

class Dtypes(Callback):
    order = 99

    def after_pred(self): self.pred_dtype, self.open = self.pred.dtype, torch.is_autocast_enabled("cpu")

    def after_loss(self): self.loss_dtype = self.loss.dtype


@pytest.mark.parametrize("name,dtype", [("to_bf16", torch.bfloat16), ("to_fp16", torch.float16)])
def test_half_precision_on_this_cpu(name, dtype):
    learn = getattr(synth(cbs=[Dtypes()]), name)()
    seen = []
    learn.model.enc[1].register_forward_hook(lambda mod, i, o: seen.append(o[0].dtype))
    fit(learn, 2)
    assert set(seen) == {dtype} and learn.dtypes.pred_dtype == torch.float32 and learn.dtypes.loss_dtype == torch.float32
    assert learn.dtypes.open and not torch.is_autocast_enabled("cpu")
    assert all(v.isfinite().all() for v in learn.model.state_dict().values())
    assert all(np.isfinite(v) for v in fit_log(learn)[-1].values())
    fit(learn.to_fp32())
    assert not learn.dtypes.open and not hasattr(learn, "mixed_precision")


def test_switching_precision_leaves_one_callback():
    learn = synth().to_fp16().to_bf16()
    assert len([cb for cb in learn.cbs if isinstance(cb, DevicePrecision)]) == 1


@pytest.mark.parametrize("exc", [CancelBatchException, CancelFitException, CancelTrainException, RuntimeError])
def test_autocast_does_not_stay_open(exc):
    learn = synth().to_bf16()
    try:
        fit(learn, cbs=Raise(exc("stop")))
    except RuntimeError:
        fit(learn)  # no event comes after an error: the next fit tidies up
    assert not torch.is_autocast_enabled("cpu")


def test_channels_last_on_and_off():
    learn = fit(synth().to_channelslast(amp_mode="bf16"))
    assert learn.model.enc[0].conv.weight.is_contiguous(memory_format=torch.channels_last)
    learn.to_contiguous(to_fp32=True)
    assert learn.model.enc[0].conv.weight.is_contiguous() and not hasattr(learn, "mixed_precision")
    assert not hasattr(synth().to_channelslast(use_amp=False), "mixed_precision")


# The loss in chunks, and features in 16 bits, inside fastai's loop

class Grads(Callback):
    "Keeps every gradient that the optimiser is given."
    order = 99
    def __init__(self): self.seen = []
    def before_step(self): self.seen.append(torch.cat([p.grad.flatten() for p in self.model.parameters()]))


@pytest.mark.parametrize("exc", [None, CancelFitException, KeyboardInterrupt, RuntimeError])
def test_parts_give_the_loaders_back_however_a_fit_ends(exc):
    learn = pconv_learner(face_dls("drawn", SIZE, n=20, bs=8, device="cpu"), BANK, net())
    loaders = list(learn.dls.loaders)
    try: fit(learn, cbs=[Parts(2), GradientAccumulation(8)] + ([Raise(exc("stop"))] if exc else []))
    except (KeyboardInterrupt, RuntimeError): pass
    assert learn.dls.loaders == loaders


def trained(chunk, precision=None, cbs=(), **kwargs):
    loss = InpaintLoss(random_features(width=2), PAPER_WEIGHTS | dict(style_out=.12, style_comp=.12), chunk=chunk)
    learn = synth(loss=loss, cbs=[Grads(), *cbs], lr=1e-3)
    if precision: getattr(learn, precision)(**kwargs)
    return fit(learn, 2)


@pytest.mark.parametrize("precision,kwargs,rtol", [(None, {}, 1e-4), ("to_bf16", dict(features=False), 1e-2), ("to_bf16", {}, .1),
                                                   ("to_fp16", dict(init_scale=2.**9), 1e-2)])
@pytest.mark.parametrize("accumulate", [False, True])
def test_chunks_train_like_the_whole_batch(precision, kwargs, rtol, accumulate):
    runs = [trained(c, precision, [GradientAccumulation(8)] if accumulate else [], **kwargs) for c in (None, 1, 3)]
    n = 3 if accumulate else 6
    for learn in runs:
        assert len(learn.grads.seen) == n
        assert all(g.isfinite().all() for g in learn.grads.seen)
    for learn in runs[1:]:
        first, want = learn.grads.seen[0], runs[0].grads.seen[0]
        assert (first - want).norm() < rtol*want.norm()
        a, b = learn.loss_terms.steps, runs[0].loss_terms.steps
        assert a.shape == b.shape == (6, 6)
        assert_close(a, b, rtol=max(rtol, 1e-3), atol=1e-3)
    assert_close(torch.tensor(fit_log(runs[1])[-1]["valid_loss"]), torch.tensor(fit_log(runs[0])[-1]["valid_loss"]), rtol=max(rtol, 1e-3), atol=0)


def test_chunks_leave_a_resume_exact(tmp_path):
    make = lambda: synth(tmp_path, loss=InpaintLoss(random_features(width=2), chunk=3))
    whole, half = fit(make(), 2), fit(make())
    half.save("half")
    resumed = fit(make().load("half"), 2, start_epoch=1)
    for k, v in whole.model.state_dict().items(): assert torch.equal(v, resumed.model.state_dict()[k]), k


@pytest.mark.parametrize("exc", [None, CancelBatchException, CancelFitException, RuntimeError])
def test_features_are_back_in_32_bits_however_the_fit_ends(exc):
    loss = InpaintLoss(random_features(width=2))
    learn, seen = synth(loss=loss).to_bf16(), []
    hook = lambda *_: seen.append(loss.features.half)
    loss.features.register_forward_hook(hook)
    try: fit(learn, cbs=[Raise(exc("stop"))] if exc else [])
    except RuntimeError: fit(learn)  # no event comes after an error: the next fit tidies up
    assert loss.features.half is None
    if exc in (None, RuntimeError): assert set(seen) == {torch.bfloat16}
    seen.clear()
    fit(learn.to_bf16(features=False))
    assert set(seen) == {None}
    fit(learn.to_fp16())
    assert set(seen) == {None} and loss.features.half is None


def test_features_behind_another_module_are_in_16_bits_as_well():
    loss, seen = InpaintLoss(Through(random_features(width=2), partial(torch.nn.functional.avg_pool2d, kernel_size=2))), []
    loss.features.features.register_forward_hook(lambda net, *_: seen.append(net.half))
    fit(synth(loss=loss).to_bf16())
    assert set(seen) == {torch.bfloat16} and loss.features.features.half is None


# The loop

def test_the_default_network_is_the_fast_one():
    learn = pconv_learner(make_dls(), BANK)
    assert isinstance(learn.model, FastPConvUNet) and learn.model.config == build_unet().config


@pytest.mark.parametrize("loss", [InpaintLoss.pixels(), InpaintLoss(random_features(width=2), chunk=3)])
def test_learner_and_bare_loop_do_the_same_work(loss):
    learn = fit(pconv_learner(make_dls(), BANK, build_unet(dict(depth=3, width=4)), loss, lr=1e-3, cbs=BareTwin()), 2)
    assert learn.bare_twin.equal() and learn.bare_twin.times.shape == (6, 2) and (learn.bare_twin.times > 0).all()
    learn.mask.seed = 5
    before = {k: v.clone() for k, v in learn.bare_twin.twin.state_dict().items()}
    fit(learn)
    assert learn.bare_twin.equal() and not all(torch.equal(v, before[k]) for k, v in learn.model.state_dict().items())
    learn.bare_twin.bare_step(learn.bare_twin.twin, torch.rand(4, 3, SIZE, SIZE))
    assert not learn.bare_twin.equal()
    with pytest.raises(InputError, match="to_fp32"): fit(learn.to_bf16())


def test_a_step_of_the_learner_adds_few_operations():
    "Counted, not timed: tensor operations of a training step against those of the bare loop with the same work."
    n = {}

    class Count(BareTwin):
        def bare_step(self, *args): n["loop"] = kernels(lambda: BareTwin.bare_step(self, *args))
    learn = pconv_learner(make_dls(), BANK, build_unet(dict(depth=3, width=4)), cbs=Count())
    learn.one_batch = lambda i, b: n.update({learn.training: kernels(lambda: Learner.one_batch(learn, i, b))})
    fit(learn)
    assert n["loop"] > 100 and -10 <= n[True] - 2*n["loop"] <= 40


# Freeze

def bn(model, side): return {k: v.clone() for k, v in getattr(model, side).state_dict().items() if ".bn." in k}


def test_freeze_holds_for_two_epochs_of_train_and_eval():
    learn = fit(synth())
    enc, dec = bn(learn.model, "enc"), bn(learn.model, "dec")
    fit(learn, 2, cbs=EncoderBNFreeze())
    for k, v in bn(learn.model, "enc").items():
        assert torch.equal(v, enc[k]), k
    for k, v in bn(learn.model, "dec").items():
        assert not torch.equal(v, dec[k]), k


def is_frozen(model): return [s.bn_frozen for s in model.enc], [p.requires_grad for s in model.enc for p in s.bn.parameters()]


@pytest.mark.parametrize("exc", [None, CancelBatchException, CancelEpochException, CancelFitException, KeyboardInterrupt, RuntimeError])
def test_freeze_is_undone_however_the_fit_ends(exc):
    learn = synth()
    free = is_frozen(learn.model)
    try:
        fit(learn, cbs=[EncoderBNFreeze()] + ([Raise(exc("stop"))] if exc else []))
    except (KeyboardInterrupt, RuntimeError):
        pass
    assert is_frozen(learn.model) == free
    enc = bn(learn.model, "enc")
    fit(learn)
    assert not torch.equal(bn(learn.model, "enc")["1.bn.running_mean"], enc["1.bn.running_mean"])


def test_freeze_leaves_an_already_frozen_model_frozen():
    learn = synth()
    learn.model.freeze_encoder_bn()
    before = is_frozen(learn.model)
    fit(learn, cbs=EncoderBNFreeze())
    assert is_frozen(learn.model) == before


def test_freeze_of_another_model():
    with pytest.raises(InputError, match="use a PConvUNet"):
        fit(Learner(make_dls(), torch.nn.Linear(1, 1), InpaintLoss.pixels(), cbs=EncoderBNFreeze()))


# Pictures and predictions

def test_strips_are_figures_and_none_stays_open(tmp_path):
    plt.close("all")
    learn = synth(tmp_path)
    for fig in (learn.show_batch(), learn.show_batch(ds_idx=1, max_n=2), learn.show_results(), learn.show_results(ds_idx=0, max_n=2)):
        assert isinstance(fig, plt.Figure)
    assert plt.get_fignums() == []
    assert [t.get_text() for t in learn.show_results(max_n=1).axes[0].texts] == ["gt", "inp", "out", "comp"]
    gt, m = faces(3, 5), masks(3)
    assert isinstance(learn.show_results(dl=TfmdDL([(g[0], k) for g, k in zip(gt, m)], bs=3, num_workers=0)), plt.Figure)


def test_show_batch_shows_the_masks_of_the_next_step():
    learn = synth(cbs=[Spy()])
    want = learn.mask.train_masks(4, learn.mask.first_epoch, 0)
    assert_close(fit(learn).spy.train[0][0][1], want)


def test_inpaint_batch_keeps_known_pixels_and_the_mode():
    model, gt, m = net().train(), torch.rand(2, 3, 40, 24), torch.ones(2, 1, 40, 24)
    m[..., 5:20, 5:15] = 0
    before = state(model)
    out, comp = inpaint_batch(model, torch.where(m > 0.5, gt, torch.nan), m)
    assert model.training and torch.equal(comp*m, gt*m) and comp.isfinite().all() and 0 <= comp.min() and comp.max() <= 1
    assert not out.requires_grad and all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    with pytest.raises(InputError, match="don't fit"):
        inpaint_batch(model, gt, m[:1])


def test_predict_takes_one_image():
    learn, gt, m = synth(), faces(1, 3)[0][0], BANK[0]
    assert_close(learn.predict((gt, m)), inpaint_batch(learn.model, gt[None], m[None])[1][0])


def test_get_preds_gives_faces_and_masks():
    learn = synth()
    with learn.no_bar():
        out, (gt, m) = learn.get_preds()
    assert out.shape == gt.shape == (6, 3, SIZE, SIZE) and m.shape == (6, 1, SIZE, SIZE)
    assert_close(m, learn.mask.valid_masks(6))


# Files

def test_best_model_is_kept(tmp_path, capsys):
    learn = fit(synth(tmp_path, lr=1e-2), 3, cbs=SaveModelCallback(monitor="hole_l1_error"))
    log = fit_log(learn)
    with learn.no_bar():
        values = learn.validate()
    assert values[-1] == pytest.approx(min(r["hole_l1_error"] for r in log), rel=1e-5)


def test_save_and_load_with_the_optimiser(tmp_path):
    learn = fit(synth(tmp_path))
    learn.save("a")
    again = synth(tmp_path).load("a")
    for k, v in learn.model.state_dict().items():
        assert torch.equal(v, again.model.state_dict()[k])
    assert len(again.opt.state_dict()["state"]) == len(learn.opt.state_dict()["state"])


def test_export_and_load_learner(tmp_path):
    learn = fit(synth(tmp_path).to_bf16())
    learn.export("learner.pkl")
    assert len(learn.dls.train_ds) == 12
    fit(learn)
    with warnings.catch_warnings(action="ignore"):
        back = load_learner(tmp_path/"learner.pkl")
    assert len(back.dls.train_ds) == 0 and isinstance(back, PConvLearner)
    learn.export("learner.pkl")
    with warnings.catch_warnings(action="ignore"):
        back = load_learner(tmp_path/"learner.pkl")
    item = faces(1, 3)[0][0], BANK[0]
    assert_close(back.predict(item), learn.predict(item))


def test_safetensors_and_config_rebuild_the_model(tmp_path):
    learn = fit(synth())
    save_file(learn.model.state_dict(), tmp_path/"m.safetensors")
    model = PConvUNet(**learn.model.config)
    model.load_state_dict(load_file(tmp_path/"m.safetensors"))
    item = faces(1, 3)[0][0], BANK[0]
    assert torch.equal(inpaint_batch(model, item[0][None], item[1][None])[1][0], learn.predict(item))


def test_the_loop_is_fastais():
    "No method of the loop is overridden; the last two belong to chapter 24 and are there once it has been imported."
    own = {n for n in vars(PConvLearner) if not n.startswith(("__", "_orig_"))} - {"to_distributed", "detach_distributed"}
    assert own == {"show_batch", "show_results", "predict", "tta", "_split", "to_fp16", "to_bf16", "to_channelslast", "export"}
