"Training: recipes that are refused, runs that are interrupted in every way there is, and come back the same."
import errno
import io
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from fastai.callback.core import Callback
from rich.console import Console
from safetensors.torch import load_file
from torch.testing import assert_close

from pconv_course.base.core import InputError
from pconv_course.base.wider import widen
from pconv_course.losses import loss_perceptual, random_features
from pconv_course.networks import build_unet
from pconv_course.objective import PAPER_WEIGHTS
from pconv_course.runs.checkpoint import flatten, latest_checkpoint, load_checkpoint, save_checkpoint, unflatten
from pconv_course.runs.progress import BarReport, LineReport, reporter
from pconv_course.runs.run import TrainingInterrupted, read_log
from pconv_course.training import Position, RestOfEpoch, rng_state, total_epochs
from pconv_course.fast import FastPConvUNet
from pconv_course.recipe import (FIRST, PRESETS, Phase, Recipe, recipe_diff, recipe_from, recipe_from_json, recipe_learner, recipe_loss, recipe_model,
    recipe_with)
from pconv_course.runs.train import train
from pconv_course.training import RunCallback, average_decay, begin_from, fit_recipe, learning_rate, phase_part
from pconv_course.weights import load_model
from pconv_course.unet import PConvUNet

RESULTS = Path(__file__).resolve().parent.parent/'nbs'/'results'
TINY = Recipe(name='tiny', size=32, n_faces=36, valid=0.2, masks='stroke', n_masks=20, depth=3, width=6, bs=6, min_steps=1, warmup=3,
              phases=(Phase(3e-3, epochs=2), Phase(6e-4, epochs=1, freeze_bn=True)))
AVERAGED = replace(TINY, name='averaged', ema=0.9, precision='bf16',
                   phases=(Phase(3e-3, epochs=2, schedule='cosine', lr_end=1e-3), Phase(1e-3, epochs=1, freeze_bn=True, schedule='cosine')))


def go(recipe, out, **kwargs): return train(recipe, out=out, device='cpu', **{'progress': False, **kwargs})


class At(Callback):
    "Does `act` after the training batch number `step` of the run (order 54: after the log, before the checkpoint)."
    order, run_valid = 54, False
    def __init__(self, step, act): self.step_at, self.act = step, act
    def after_batch(self):
        if self.position.job.position.step == self.step_at: self.act(self)


def press(number=signal.SIGINT): return lambda cb: signal.raise_signal(number)


def same_files(a, b, names=('model', 'checkpoint')):
    "Bit for bit the same tensors."
    for n in names: assert_close(load_file(Path(a)/f'{n}.safetensors'), load_file(Path(b)/f'{n}.safetensors'), rtol=0, atol=0)


def without_time(rows): return [{k: v for k, v in r.items() if k not in ('seconds', 'images_per_s')} for r in rows]


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    "A run that nothing interrupted, and what it returned."
    out = tmp_path_factory.mktemp('whole')/'run'
    return out, go(TINY, out, log_every=2)


# recipes

@pytest.mark.parametrize('change, word', [
    (dict(size=0), 'size'), (dict(size=-64), 'size'), (dict(size=64.5), 'size'), (dict(size='64'), 'size'), (dict(bs=0), 'bs'), (dict(depth=1), 'depth'),
    (dict(depth=12), 'halved'), (dict(width=0), 'width'), (dict(seed=-1), 'seed'), (dict(warmup=-1), 'warmup'), (dict(n_masks=0), 'n_masks'),
    (dict(phases=()), 'phase'), (dict(phases=[dict(lr=-1e-3)]), 'lr'), (dict(phases=[dict(lr=math.nan)]), 'lr'), (dict(phases=[dict(lr=1e-3, epochs=0)]), 'epochs'),
    (dict(phases=[dict(lr=1e-3, share=0)]), 'share'), (dict(phases=[dict(rate=1)]), "no 'rate'"), (dict(phases=3), 'type'), (dict(hole_ratio=(0.6, 0.1)), 'hole_ratio'),
    (dict(hole_ratio=(0, 2)), 'hole_ratio'), (dict(hole_ratio=None), 'type'), (dict(weights=dict(hole=-1)), 'hole'), (dict(weights=dict(holes=1)), 'holes'),
    (dict(weights=dict(hole=0)), 'no loss term'), (dict(weights=PAPER_WEIGHTS), "features='none'"), (dict(per='pixel'), 'per'), (dict(formula='v3'), 'formula'),
    (dict(precision='fp8'), 'precision'), (dict(impl='slow'), 'impl'), (dict(channels_last=None), 'channels_last'), (dict(ema=1.), 'ema'),
    (dict(ema=-0.1), 'ema'), (dict(ema='a lot'), 'type'), (dict(chunk=0), 'chunk'), (dict(accumulate=0), 'accumulate'), (dict(features_reduce=0), 'features_reduce'), (dict(features_own='no'), 'features_own'), (dict(features='random', weights=PAPER_WEIGHTS, features_reduce=16), '4 px of 64'), (dict(bs=6, accumulate=4), 'accumulate'), (dict(chunk='some'), 'chunk'), (dict(phases=[dict(lr=1e-3, schedule='step')]), 'schedule'),
    (dict(phases=[dict(lr=1e-3, lr_end=1.)]), 'lr_end'), (dict(phases=[dict(lr=1e-3, lr_end=-1.)]), 'lr_end')])
def test_values_that_make_no_sense(change, word):
    with pytest.raises(InputError) as e: Recipe(**change)
    assert word in str(e.value) and '\n' not in str(e.value)


def test_json_and_back(tmp_path):
    for r in (*PRESETS.values(), TINY):
        (tmp_path/'r.json').write_text(json.dumps(asdict(r)))
        assert recipe_from_json(tmp_path/'r.json') == r
    for text in ('{"size": 64, "sise": 3}', '[1]', '{"size"'):
        (tmp_path/'r.json').write_text(text)
        with pytest.raises(InputError): recipe_from_json(tmp_path/'r.json')


def test_paper_is_the_papers():
    r = PRESETS['paper']
    assert (r.size, r.depth, r.width, r.bs, r.features, r.weights, r.per, r.formula) == (256, 7, 64, 12, 'vgg16', PAPER_WEIGHTS, 'image', 'paper')
    assert [(p.lr, p.freeze_bn) for p in r.phases] == [(2e-4, False), (5e-5, True)] and sum(p.epochs for p in r.phases) == 35


def test_paper_uses_adam_without_decay():
    learn = recipe_learner(replace(TINY, phases=PRESETS['paper'].phases), device='cpu')
    h = learn.opt.hypers[0]
    assert (h['lr'], h['wd'], h['mom'], h['sqr_mom'], h['eps']) == (2e-4, 0, 0.9, 0.999, 1e-8)


def test_best_is_the_papers_network_for_less():
    a, b = PRESETS['paper'], PRESETS['best']
    assert all(getattr(a, k) == getattr(b, k) for k in ('size', 'depth', 'width', 'formula', 'features', 'weights', 'per', 'masks'))
    assert 3*total_epochs(b) <= total_epochs(a) + 1 and b.features_reduce == 2 and b.ema > 0


def stirred(config, seed=0):
    "A network whose batch norms have statistics and parameters of their own."
    torch.manual_seed(seed)
    net = build_unet(config).eval().requires_grad_(False)
    for o in net.modules():
        if isinstance(o, torch.nn.BatchNorm2d):
            for t, at in ((o.running_mean, -.2), (o.running_var, .5), (o.weight, .5), (o.bias, -.2)): t.uniform_(at, at + 1)
    return net


@pytest.mark.parametrize('network', [dict(network=k) for k in ('partial', 'plain', 'masked', 'fine')] + [dict(network='fine', doublings=2)], ids=str)
@pytest.mark.parametrize('width', [12, 28])
def test_a_wider_network_begins_as_the_same_function(network, width):
    "Without noise; a partial one inside the hole, as its last stage counts the image among fewer features."
    a, b = stirred(network | dict(depth=3, width=8)), stirred(network | dict(depth=3, width=width), 1)
    last = [o for o in a.modules() if isinstance(o, torch.nn.Conv2d)][-1].weight
    if not last.any(): last.normal_(0, .1)  # that of a fine network is 0 at first
    x, m = torch.rand(2, 3, 32, 32), torch.ones(2, 1, 32, 32)
    before = b(x, m)
    assert (before - a(x, m)).abs().max() > .01
    widen(a, b, noise=0)
    exact = lambda: assert_close(b(x, m)[where], a(x, m)[where], rtol=1e-3, atol=1e-4)
    where = (...,)
    if network['network'] != 'partial': exact()
    m[..., 8:24, 8:24] = 0
    if network['network'] == 'partial': where = (..., slice(11, 21), slice(11, 21))
    if network['network'] != 'fine': exact()
    else: assert (b(x, m) - a(x, m)).abs().mean() < .3*(before - a(x, m)).abs().mean()  # along the rim its first part is a little off


@pytest.mark.parametrize('formula', ['paper', 'v1', 'raw'])
def test_a_wider_network_keeps_the_ratios_of_every_formula(formula):
    a, b = (stirred(dict(depth=3, width=w, formula=formula), i) for i, w in enumerate((8, 12)))
    x, m = torch.rand(2, 3, 48, 48), torch.ones(2, 1, 48, 48)
    m[..., 12:36, 12:36] = 0
    widen(a, b, noise=0)
    inside = (..., slice(16, 32), slice(16, 32))
    assert_close(b(x, m)[inside], a(x, m)[inside], rtol=1e-3, atol=1e-4*float(a(x, m).abs().max()))


def test_what_cannot_be_widened_is_refused_before_anything_changes():
    base = dict(depth=3, width=8)
    for a, b, words in ((base, dict(base, width=6), 'more channels'), (base, dict(depth=4, width=12), 'more channels'), (base, dict(base, width=12, network='plain'), 'more channels'),
                        (dict(base, max_width=16), dict(base, max_width=16, width=12), 'max_width=16'),
                        (dict(base, network='gated'), dict(base, network='gated', width=12), "kind 'gated' can't be widened"),
                        (dict(base, network='attention'), dict(base, network='attention', width=12), "kind 'attention' can't be widened")):
        a, b = build_unet(a), build_unet(b)
        before = {k: v.clone() for k, v in b.state_dict().items()}
        with pytest.raises(InputError, match=words): widen(a, b)
        assert all(torch.equal(v, before[k]) for k, v in b.state_dict().items())
    a, b = stirred(base).double(), stirred(dict(base, width=12)).double()
    widen(a, b, noise=0)
    x, m = torch.rand(1, 3, 16, 16, dtype=torch.double), torch.zeros(1, 1, 16, 16, dtype=torch.double)
    m[..., :2, :2] = 1
    assert_close(b(x, m)[..., 6:, 6:], a(x, m)[..., 6:, 6:])


def test_twins_part():
    "Their weights are uneven parts of one, and after a step of training no two channels are alike."
    a, b = stirred(dict(depth=3, width=8)), stirred(dict(depth=3, width=16), 1)
    widen(a, b, noise=0)
    w, narrow = b.enc[1].conv.weight, a.enc[1].conv.weight
    assert torch.equal(b.enc[0].conv.weight[:8], a.enc[0].conv.weight) and sorted(map(str, b.enc[0].conv.weight)) == sorted([*map(str, a.enc[0].conv.weight)]*2)
    of = [next(j for j in range(8) if torch.equal(o, a.enc[0].conv.weight[j])) for o in b.enc[0].conv.weight]
    for j in range(8): assert_close(sum(w[:16, i] for i in range(16) if of[i] == j), narrow[:, j])
    assert (w[:16, :8]/narrow).min() > .24 and (w[:16, :8]/narrow).max() < .76
    b.requires_grad_(True).train()
    x, m = torch.rand(4, 3, 32, 32), torch.ones(4, 1, 32, 32)
    b(x, m).square().mean().backward()
    grads = b.enc[0].conv.weight.grad
    assert all((grads[i] - grads[of.index(of[i])]).abs().max() > 0 for i in range(8, 16))


def test_a_run_begins_from_a_narrower_one(tmp_path):
    narrow = replace(TINY, name='narrow', width=4)
    train(narrow, data='drawn', out=tmp_path/'a', minutes=None, device='cpu', progress=False)
    result = train(replace(narrow, name='wide', width=6, start=str(tmp_path/'a'), phases=(Phase(1e-6),)), data='drawn', out=tmp_path/'b', device='cpu', progress=False)
    assert result['start']['width'] == 4 and result['start']['name'] == 'a'
    (a, _), (b, _) = load_model(tmp_path/'a'), load_model(tmp_path/'b')
    x, m = torch.rand(2, 3, 64, 64), torch.ones(2, 1, 64, 64)
    m[..., 16:48, 16:48] = 0
    with torch.no_grad(): theirs, ours, anew = (o(x, m)[..., 19:45, 19:45] for o in (a, b, build_unet(b.config).eval()))
    assert (theirs - ours).abs().mean() < .3*(theirs - anew).abs().mean()  # but for a few steps' statistics
    net = build_unet(dict(a.config, width=4))
    assert 'width' not in begin_from(net, tmp_path/'a')
    for config, words in ((dict(width=3), 'width 4, here 3'), (dict(width=6, depth=a.config['depth'] + 1), 'depth'), (dict(width=6, network='gated'), 'network partial, here gated')):
        with pytest.raises(InputError, match=words): begin_from(build_unet({k: v for k, v in a.config.items() if k != 'formula'} | config), tmp_path/'a')


def test_single_pictures_are_refused_before_the_first_step():
    "Batch norm over the one pixel of one picture has nothing to norm by; a network without it can do that."
    small = replace(TINY, size=32, depth=5, bs=4)
    for r in (replace(small, bs=1), replace(small, accumulate=4)):
        with pytest.raises(InputError, match='one picture at a time .* give bs of [28] or more'): recipe_model(r)
    assert recipe_model(replace(small, accumulate=2)) and recipe_model(replace(small, depth=4, bs=1)) and recipe_model(replace(small, network='attention', bs=1))


def test_features_of_the_reduced_picture():
    "The terms are those of the pictures averaged 2x2, worked out by hand; pixel terms don't notice."
    r = recipe_with(TINY, features='random')
    gt, out, m = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32), (torch.rand(2, 1, 32, 32) > .3).float()
    whole, half = recipe_loss(r), recipe_loss(replace(r, features_reduce=2))
    whole(out, gt, m), half(out, gt, m)
    f, small = random_features(), lambda x: torch.nn.functional.interpolate(x, scale_factor=.5, mode='area')
    comp = m*gt + (1 - m)*out
    assert_close(half.last['perceptual'], loss_perceptual(f(small(out)), f(small(comp)), f(small(gt))), rtol=1e-4, atol=1e-6)
    assert_close(half.last['hole'], whole.last['hole'])
    assert abs(float(half.last['style_out'] - whole.last['style_out'])) > 1e-6
    comp_only = recipe_loss(replace(r, features_own=False))
    comp_only(out, gt, m)
    assert comp_only.last['style_out'] == comp_only.last['style_comp'] == whole.last['style_comp'] != whole.last['style_out']


def test_small_presets_need_no_network():
    assert all(PRESETS[p].features in ('none', 'random') for p in ('demo', 'real'))


def test_features_take_their_weights_along():
    r = recipe_with(PRESETS['real'], features='random')
    assert r.weights == PAPER_WEIGHTS and recipe_with(r, features='none') == PRESETS['real']
    assert recipe_diff(TINY, replace(TINY, name='other')) == []


def test_recorded_recipes_are_still_recipes():
    files = list(RESULTS.glob('train_*.json'))
    assert files
    for f in files:
        d = json.loads(f.read_text())
        for r in [d['recipe']] if 'recipe' in d else [t['recipe'] for t in d['trials']]: recipe_from(r)


def test_recorded_run_is_of_todays_preset():
    d = json.loads((RESULTS/'train_real.json').read_text())
    assert recipe_diff(PRESETS['real'], recipe_from(d['recipe'])) == ['valid: None -> 800-898', 'impl: fast -> readable', 'channels_last: True -> False']
    assert d['finished'] and d['scores'][-1]['phase'] == len(PRESETS['real'].phases)


# schedules, averages, another start

def test_recipes_saved_before_there_was_a_choice():
    old = {k: v for k, v in asdict(TINY).items() if k not in ('impl', 'doublings', 'channels_last', 'accumulate', 'chunk', 'features_reduce', 'features_own', 'ema', 'start')}
    old['phases'] = [{k: p[k] for k in ('lr', 'epochs', 'share', 'freeze_bn')} for p in old['phases']]
    assert recipe_from(old) == replace(TINY, **FIRST) and FIRST == dict(impl='readable', channels_last=False)
    assert recipe_from(dict(size=32)).impl == 'fast' and recipe_from(asdict(TINY)) == TINY


def test_cosine_by_steps_and_by_time():
    r = replace(TINY, warmup=0, phases=(Phase(1e-2, epochs=3, share=1, schedule='cosine', lr_end=1e-3), Phase(5e-3, epochs=1, share=1)))
    at = lambda e, i=0, phase=0: learning_rate(r, Position(epoch=e, iteration=i, phase=phase), n_iter=10)
    assert at(0) == pytest.approx(1e-2) and at(1, 5) == pytest.approx(5.5e-3) and at(2, 9) == pytest.approx(1e-3, rel=0.05) and at(3, 5, 1) == 5e-3
    rates = [at(e, i) for e in range(3) for i in range(10)]
    assert rates == sorted(rates, reverse=True) and len(set(rates)) == 30
    timed = lambda s, phase=0: learning_rate(r, Position(seconds=s, phase=phase), minutes=2, n_iter=10)
    assert timed(0) == pytest.approx(1e-2) and timed(30) == pytest.approx(5.5e-3) and timed(60) == pytest.approx(1e-3) and timed(90, 1) == 5e-3
    assert [phase_part(r, Position(seconds=s, phase=1), 2) for s in (0, 60, 90, 120, 999)] == [0, 0, .5, 1, 1]


def test_warmup_and_cosine_multiply():
    r = replace(TINY, warmup=9, phases=(Phase(1e-2, epochs=1, schedule='cosine'),))
    at = lambda i: learning_rate(r, Position(iteration=i, step=i), n_iter=100)
    assert at(0) == pytest.approx(1e-3) and at(4) < 5e-3 and at(99) < 1e-5


def test_rates_of_a_run_follow_the_schedule(averaged):
    r, rows = AVERAGED, [row for row in read_log(averaged[0]/'log.jsonl') if row['kind'] == 'step']
    n = len(rows)//3
    want = [learning_rate(r, Position(epoch=i//n, iteration=i % n, step=i, phase=int(i >= 2*n)), n_iter=n) for i in range(3*n)]
    assert_close([row['lr'] for row in rows], want)


@pytest.fixture(scope='module')
def averaged(tmp_path_factory):
    "A run with everything that can be resumed wrongly: cosine, averaged weights, bf16, channels_last."
    out = tmp_path_factory.mktemp('averaged')/'run'
    return out, go(AVERAGED, out, log_every=1)


@pytest.mark.parametrize('step', [1, 4, 5, 8, 11, 12])
def test_interrupted_with_averages_is_uninterrupted(averaged, tmp_path, step):
    with pytest.raises(TrainingInterrupted): go(AVERAGED, tmp_path/'cut', log_every=1, cbs=[At(step, press())])
    back = go(None, tmp_path/'cut', resume=True, log_every=1)
    same_files(averaged[0], tmp_path/'cut')
    assert without_time(back['scores']) == without_time(averaged[1]['scores'])
    assert without_time(read_log(averaged[0]/'log.jsonl')) == without_time(read_log(tmp_path/'cut'/'log.jsonl'))


def test_interrupted_while_validating_the_average(averaged, tmp_path):
    "The averaged weights are in the network at that moment; the checkpoint must hold the others all the same."
    class InValidation(Callback):
        order = 54
        def after_batch(self):
            if not self.training and self.position.job.position.epoch == 1: signal.raise_signal(signal.SIGTERM)
    with pytest.raises(TrainingInterrupted, match='SIGTERM'): go(AVERAGED, tmp_path/'cut', cbs=[InValidation()])
    go(AVERAGED, tmp_path/'cut', resume=True)
    same_files(averaged[0], tmp_path/'cut', ['model'])


def test_average_is_the_average(tmp_path):
    "The file holds the moving average of the states after every step, by hand; the scores are its scores; training goes on unaveraged."
    states = []
    class Keep(Callback):
        order, run_valid = 49, False
        def after_batch(self): states.append({k: v.clone() for k, v in self.model.state_dict().items()})
    keep = Keep()
    result = go(replace(AVERAGED, precision='fp32'), tmp_path/'run', cbs=[keep])
    go(replace(AVERAGED, precision='fp32', ema=0.), tmp_path/'plain')
    assert_close(states[-1], load_file(tmp_path/'plain'/'model.safetensors'), rtol=0, atol=0)
    learn = recipe_learner(replace(AVERAGED, precision='fp32'), device='cpu')
    mean = {k: v.clone().double() for k, v in learn.model.state_dict().items()}
    for i, state in enumerate(states, 1):
        for k, v in state.items(): mean[k] = average_decay(0.9, i)*mean[k] + (1 - average_decay(0.9, i))*v if v.is_floating_point() else v.double()
    saved = load_file(tmp_path/'run'/'model.safetensors')
    for k, v in saved.items(): assert_close(v.double(), mean[k], rtol=1e-4, atol=1e-6)
    assert not torch.equal(saved['enc.0.conv.weight'], states[-1]['enc.0.conv.weight'])
    learn.model.load_state_dict(saved)
    with learn.no_bar(): scores = learn.validate()
    assert scores[0] == pytest.approx(result['scores'][-1]['valid_loss'], rel=1e-5)


def test_readable_and_fast_train_alike(tmp_path):
    "Same masks, same order, same start: the two networks differ by rounding after three steps, and either loads as the other."
    r = replace(TINY, phases=(Phase(1e-3),), warmup=0)
    assert type(recipe_learner(r, device='cpu').model) is FastPConvUNet and type(recipe_learner(replace(r, impl='readable'), device='cpu').model) is PConvUNet
    for impl in ('fast', 'readable'): go(replace(r, impl=impl, channels_last=impl == 'fast'), tmp_path/impl)
    a, b = (load_model(tmp_path/d)[0] for d in ('fast', 'readable'))
    x, m = torch.rand(2, 3, 32, 32), (torch.rand(2, 1, 32, 32) > .3).float()
    assert_close(a(x, m), b(x, m), rtol=1e-2, atol=1e-2)
    assert_close(load_model(tmp_path/'fast', impl='readable')[0](x, m), a(x, m), rtol=1e-4, atol=1e-5)


def test_channels_last_is_the_layout_of_the_weights():
    layout = lambda r: recipe_learner(r, device='cpu').model.enc[1].conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert layout(TINY) and not layout(replace(TINY, channels_last=False))


def test_start_from_another_run(averaged, tmp_path):
    r = replace(TINY, start=str(averaged[0]/'model.safetensors'), size=48, phases=(Phase(1e-3),))
    first = {}
    class Begin(Callback):
        def before_fit(self): first.update({k: v.clone() for k, v in self.model.state_dict().items()})
    result = go(r, tmp_path/'run', cbs=[Begin()])
    assert_close(first, load_file(averaged[0]/'model.safetensors'), rtol=0, atol=0)
    config = json.loads((averaged[0]/'config.json').read_text())
    assert result['start']['sha256'] == config['sha256'] and result['recipe']['start'] == 'model.safetensors'
    assert str(averaged[0]) not in (tmp_path/'run'/'result.json').read_text()
    with pytest.raises(TrainingInterrupted): go(r, tmp_path/'cut', cbs=[At(2, press())])
    assert go(None, tmp_path/'cut', resume=True)['start'] == result['start']
    same_files(tmp_path/'run', tmp_path/'cut')


def test_starts_that_cannot_be_used(averaged, tmp_path):
    for change, word in (dict(width=4), 'width 6, here 4'), (dict(depth=4), 'depth 3, here 4'), (dict(formula='v1'), 'formula'):
        with pytest.raises(InputError, match=word) as e: go(replace(TINY, start=str(averaged[0]), **change), tmp_path/'run')
        assert '\n' not in str(e.value) and not (tmp_path/'run'/'recipe.json').exists()
    with pytest.raises(InputError, match='no such file'): go(replace(TINY, start='nowhere.safetensors'), tmp_path/'run')


# checkpoints

def test_tree_there_and_back():
    tree = dict(a=[torch.arange(3), dict(b=1.5, c=None)], d='text', e={}, f=[], g=torch.tensor(2.), h=True)
    tensors = {}
    back = unflatten(json.loads(json.dumps(flatten(tree, tensors))), tensors)
    assert_close([back['a'][0], back['g']], [tree['a'][0], tree['g']], rtol=0, atol=0)
    assert (back['a'][1], back['d'], back['e'], back['f'], back['h']) == (dict(b=1.5, c=None), 'text', {}, [], True)


@pytest.mark.parametrize('damage', ['empty', 'half', 'last byte', 'bit', 'header', 'missing'])
def test_damaged_checkpoint_is_noticed_and_the_one_before_used(tmp_path, damage):
    path = tmp_path/'checkpoint.safetensors'
    for i in (1, 2): save_checkpoint(path, dict(i=i, w=torch.full((100,), float(i))))
    b = path.read_bytes()
    new = {'empty': b'', 'half': b[:len(b)//2], 'last byte': b[:-1], 'bit': b[:-2] + bytes([b[-2] ^ 4]) + b[-1:], 'header': b.replace(b'"sha256":"', b'"sha256":"0', 1)}
    path.unlink() if damage == 'missing' else path.write_bytes(new[damage])
    with pytest.raises(InputError): load_checkpoint(path)
    state, remark = latest_checkpoint(tmp_path)
    assert state['i'] == 1 and 'going on from the one before' in remark and '\n' not in remark
    path.with_suffix('.previous.safetensors').write_bytes(b'')
    with pytest.raises(InputError, match='no usable checkpoint'): latest_checkpoint(tmp_path)


def test_full_disk_leaves_both_checkpoints(tmp_path, monkeypatch):
    path = tmp_path/'checkpoint.safetensors'
    for i in (1, 2): save_checkpoint(path, dict(i=i))
    def full(fd): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(InputError, match='No space left'): save_checkpoint(path, dict(i=3))
    state, _ = latest_checkpoint(tmp_path)
    assert state['i'] in (1, 2) and not list(tmp_path.glob('.*'))


def test_rest_of_epoch_is_the_end_of_the_epoch():
    dl = recipe_learner(TINY, device='cpu').dls.train
    n = len(dl)
    rows = [b[0].clone() for b in RestOfEpoch(dl, epoch=1, passes=3)]
    assert len(rows) == 3*n
    for skip in (0, 1, n, n + 2, 3*n - 1, 3*n):
        rest = RestOfEpoch(dl, epoch=1, passes=3, skip=skip)
        got = [b[0].clone() for b in rest]
        assert len(rest) == len(got) == 3*n - skip
        assert_close(got, rows[skip:], rtol=0, atol=0)


# interrupted runs

@pytest.mark.parametrize('step', [1, 4, 5, 8, 11, 12])
def test_interrupted_is_uninterrupted(whole, tmp_path, step):
    "In mid-epoch, at the end of an epoch, in the phase with frozen batch norm: same weights, Adam, generators, scores and logs."
    out, result = whole
    with pytest.raises(TrainingInterrupted, match='pconv train --resume --out') as e: go(TINY, tmp_path/'cut', log_every=2, cbs=[At(step, press())])
    assert isinstance(e.value, KeyboardInterrupt) and '\n' not in str(e.value)
    back = go(None, tmp_path/'cut', resume=True, log_every=2)
    same_files(out, tmp_path/'cut')
    assert without_time(back['scores']) == without_time(result['scores'])
    assert without_time(read_log(out/'log.jsonl')) == without_time(read_log(tmp_path/'cut'/'log.jsonl'))
    assert back['finished'] and back['images'] == result['images']


def test_interrupted_while_validating(whole, tmp_path):
    class InValidation(Callback):
        order = 54
        def after_batch(self):
            if not self.training and self.position.job.position.epoch == 1: signal.raise_signal(signal.SIGTERM)
    with pytest.raises(TrainingInterrupted, match='SIGTERM'): go(TINY, tmp_path/'cut', cbs=[InValidation()])
    go(TINY, tmp_path/'cut', resume=True)
    same_files(whole[0], tmp_path/'cut', ['model'])


def test_pressing_twice_ends_at_once(tmp_path):
    def twice(cb): signal.raise_signal(signal.SIGINT), signal.raise_signal(signal.SIGINT)
    with pytest.raises(TrainingInterrupted, match='at once.*epoch 1, iteration 0'): go(TINY, tmp_path/'run', cbs=[At(3, twice)])
    assert latest_checkpoint(tmp_path/'run')[0]['position']['step'] == 0


def test_killed(whole, tmp_path):
    "kill -9 in another process, with checkpoints in mid-epoch: the log is cut back to the checkpoint, the end is the same."
    code = f'''
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_train import TINY, At, go
go(TINY, {str(tmp_path/"run")!r}, log_every=2, save_minutes=0, cbs=[At(8, lambda cb: os.kill(os.getpid(), signal.SIGKILL))])'''
    run = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True, timeout=300)
    assert run.returncode == -signal.SIGKILL, run.stderr
    assert latest_checkpoint(tmp_path/'run')[0]['position']['step'] == 7
    with open(tmp_path/'run'/'log.jsonl', 'a') as f: f.write('{"kind": "st')
    (tmp_path/'run'/'checkpoint.safetensors').write_bytes(b'cut short')
    go(None, tmp_path/'run', resume=True, log_every=2)
    same_files(whole[0], tmp_path/'run', ['model'])
    assert [r['step'] for r in read_log(tmp_path/'run'/'log.jsonl')] == [r['step'] for r in read_log(whole[0]/'log.jsonl')]


def test_several_passes_make_an_epoch(tmp_path):
    "A folder of few faces: the epoch has min_steps batches or more, and a resume in its second pass is exact."
    r = replace(TINY, n_faces=14, min_steps=7, phases=(Phase(1e-3, epochs=2),))
    a = go(r, tmp_path/'a')
    assert a['steps'] >= 14 and len(a['scores']) == 2
    with pytest.raises(TrainingInterrupted): go(r, tmp_path/'b', cbs=[At(5, press())])
    go(r, tmp_path/'b', resume=True)
    same_files(tmp_path/'a', tmp_path/'b')


def test_training_leaves_the_generators_alone(tmp_path):
    before = rng_state()
    go(replace(TINY, phases=(Phase(1e-3),)), tmp_path/'run')
    after = rng_state()
    assert_close([before['torch'], before['numpy'][1]], [after['torch'], after['numpy'][1]])
    assert before['python'] == after['python']


# what a run does

def test_run_learns_and_leaves_everything(whole):
    out, result = whole
    rows = (out/'log.csv').read_text().splitlines()
    assert len(rows) == 4 and len(list((out/'strips').glob('*.png'))) == 3
    assert {r['kind'] for r in read_log(out/'log.jsonl')} == {'step', 'epoch'}
    assert result['scores'][-1]['valid_hole_l1_error'] < 0.95*result['scores'][0]['valid_hole_l1_error']
    saved = json.loads((out/'result.json').read_text())
    assert saved == json.loads(json.dumps({k: v for k, v in result.items() if k != 'out'})) and saved['finished']
    assert {'date', 'commit', 'seed', 'packages', 'cpu', 'threads'} <= saved['provenance'].keys()
    assert all(str(out.parent) not in f.read_text() for f in out.glob('*.json'))


def test_last_phase_freezes_the_encoders_batch_norm(tmp_path):
    seen = {}
    keep = lambda name: lambda cb: seen.update({name: {k: v.clone() for k, v in cb.model.state_dict().items()}})
    n = len(recipe_learner(TINY, device='cpu').dls.train)
    go(TINY, tmp_path/'run', cbs=[At(2*n, keep('two')), At(3*n, keep('three'))])
    moved = {k for k in seen['two'] if not torch.equal(seen['two'][k], seen['three'][k])}
    bn = {k for k in seen['two'] if '.bn.' in k}
    assert not [k for k in moved & bn if k.startswith('enc')] and [k for k in moved & bn if k.startswith('dec') and 'running' in k]
    assert {k for k in seen['two'] if k.endswith('conv.weight')} <= moved


class Passes(Callback):
    "Counts how often a step, or the scoring of an epoch, sends pictures through the features."
    def before_fit(self):
        self.seen, own = [], self.loss_func.features
        own.register_forward_hook(lambda *_: self.seen[-1].__setitem__(-1, self.seen[-1][-1] + 1))
    def before_batch(self): self.seen.append([self.position.job.position.epoch, self.training, 0])


def test_a_phase_without_features_has_none(tmp_path):
    "No pass through the features in its steps and their terms 0, all six in every held-out loss; the first phase is that of a run of pixel terms."
    recipe = recipe_with(TINY, features='random', chunk=None, phases=(Phase(3e-3, epochs=2, features=False), Phase(6e-4, freeze_bn=True)))
    go(recipe, tmp_path/'a', cbs=[passes := Passes()])
    in_steps, in_scores = ({(e, n) for e, training, n in passes.seen if training is t} for t in (True, False))
    assert in_steps == {(0, 0), (1, 0), (2, 3)} and {n for _, n in in_scores} == {3}
    rows = [r for r in read_log(tmp_path/'a'/'log.jsonl') if r['kind'] == 'epoch']
    style = [k for k in rows[0] if 'style' in k or 'perceptual' in k]
    assert [all(r[k] == 0 for k in style if k.startswith('train')) for r in rows] == [True, True, False]
    assert len(style) == 6 and all(r[k] > 0 for r in rows for k in style if k.startswith('valid'))
    go(replace(TINY, phases=(Phase(3e-3, epochs=2), Phase(6e-4, freeze_bn=True))), tmp_path/'b')
    pixels = [r for r in read_log(tmp_path/'b'/'log.jsonl') if r['kind'] == 'epoch']
    assert [r['valid_psnr'] for r in rows[:2]] == [r['valid_psnr'] for r in pixels[:2]] and rows[2]['valid_psnr'] != pixels[2]['valid_psnr']


def test_interrupted_between_phases_with_and_without_features(tmp_path):
    "Before, at and after the border: bit for bit the uninterrupted run."
    recipe = recipe_with(TINY, features='random', phases=(Phase(3e-3, features=False), Phase(6e-4)))
    go(recipe, tmp_path/'whole')
    n = read_log(tmp_path/'whole'/'log.jsonl')[-1]['step']//2
    for step in (n - 1, n, n + 1):
        with pytest.raises(TrainingInterrupted): go(recipe, tmp_path/str(step), cbs=[At(step, press())])
        go(None, tmp_path/str(step), resume=True)
        same_files(tmp_path/'whole', tmp_path/str(step))


def test_phases_say_yes_or_no():
    "A word from JSON is neither, though Python takes it for true."
    for k in ('features', 'freeze_bn'):
        with pytest.raises(InputError, match=f"phase 1 has {k}='false': give True or False"): recipe_from(asdict(TINY) | dict(phases=[{'lr': 1e-3, k: 'false'}]))


def test_features_that_no_phase_uses():
    with pytest.raises(InputError, match='no phase has features=True'): recipe_with(TINY, features='random', phases=(Phase(1e-3, features=False),))
    assert 'no features' in str(recipe_with(TINY, features='random', phases=(Phase(1e-3, features=False), Phase(1e-3)))) and 'no features' not in str(TINY)


def test_budget_ends_the_run_in_its_last_phase(tmp_path):
    r = go(TINY, tmp_path/'run', minutes=0.05)
    assert r['finished'] and r['scores'][-1]['phase'] == 2 and r['minutes'] < 0.5
    assert go(None, tmp_path/'run', resume=True)['steps'] == r['steps']
    more = go(None, tmp_path/'run', resume=True, minutes=r['minutes'] + 0.03)
    assert more['steps'] > r['steps'] and more['budget_minutes'] > 0.05


def test_a_budget_that_was_raised_is_not_forgotten_by_an_interrupt(tmp_path):
    r = go(TINY, tmp_path/'run', minutes=0.05)
    with pytest.raises(TrainingInterrupted): go(None, tmp_path/'run', resume=True, minutes=r['minutes'] + 0.05, cbs=[At(r['steps'] + 2, press())])
    assert go(None, tmp_path/'run', resume=True)['steps'] > r['steps'] + 2


@pytest.mark.parametrize('minutes', [0, -1, math.nan, math.inf])
def test_budgets_that_make_no_sense(tmp_path, minutes):
    with pytest.raises(InputError): go(TINY, tmp_path/'run', minutes=minutes)
    assert not (tmp_path/'run').exists()


def test_half_precision_trains(tmp_path):
    r = go(replace(TINY, precision='bf16', phases=(Phase(1e-3),)), tmp_path/'run')
    assert math.isfinite(r['scores'][-1]['train_loss'])


def test_model_comes_back(whole):
    model, config = load_model(whole[0])
    assert not model.training and config['recipe']['name'] == 'tiny'
    assert_close(model.state_dict(), load_file(whole[0]/'model.safetensors'), rtol=0, atol=0)
    assert_close(load_model(whole[0]/'model.safetensors')[0].state_dict(), model.state_dict())


def test_models_that_cannot_be_loaded(whole, tmp_path):
    b = (whole[0]/'model.safetensors').read_bytes()
    for name, content in dict(short=b[:1000], text=b'not a model', checkpoint=(whole[0]/'checkpoint.safetensors').read_bytes()).items():
        (tmp_path/name).write_bytes(content)
        with pytest.raises(InputError) as e: load_model(tmp_path/name)
        assert '\n' not in str(e.value)
    with pytest.raises(InputError, match='no such file'): load_model(tmp_path)


# trouble

def test_nothing_is_overwritten(whole, tmp_path):
    before = {p: p.read_bytes() for p in whole[0].rglob('*') if p.is_file()}
    with pytest.raises(InputError, match='already holds a run'): go(TINY, whole[0])
    with pytest.raises(InputError, match='another recipe.*bs: 6 -> 7'): go(replace(TINY, bs=7), whole[0], resume=True)
    assert before == {p: p.read_bytes() for p in whole[0].rglob('*') if p.is_file()}
    (tmp_path/'mine.txt').write_text('mine')
    for out in (tmp_path, tmp_path/'mine.txt'):
        with pytest.raises(InputError, match='not an empty folder'): go(TINY, out)
    with pytest.raises(InputError, match='no run to resume'): go(None, tmp_path/'nowhere', resume=True)
    with pytest.raises(InputError, match='no recipe'): go(None, tmp_path/'new')
    with pytest.raises(InputError, match='unknown preset'): go('huge', tmp_path/'new')
    assert [p.name for p in tmp_path.iterdir()] == ['mine.txt']


def test_other_faces_are_refused(tmp_path):
    from PIL import Image
    for n, colour in (('a', 10), ('b', 200)):
        (tmp_path/n).mkdir()
        for i in range(12): Image.new('RGB', (40, 40), (colour, 5*i, 90)).save(tmp_path/n/f'{i}.png')
    with pytest.raises(TrainingInterrupted): go(TINY, tmp_path/'run', data=tmp_path/'a', cbs=[At(1, press())])
    with pytest.raises(InputError, match='other faces'): go(None, tmp_path/'run', data=tmp_path/'b', resume=True)
    assert go(None, tmp_path/'run', data=tmp_path/'a', resume=True)['finished']


def test_nan_stops_with_the_batch_saved(tmp_path, whole):
    def after_pred(cb): cb.yb[0][1, 0, 3, 4] = math.nan
    class Poison(Callback):
        run_valid = False
        def after_pred(self):
            if self.position.job.position.step == 7: after_pred(self)
    with pytest.raises(InputError) as e: go(TINY, tmp_path/'run', cbs=[Poison()])
    text, batch = str(e.value), load_file(tmp_path/'run'/'batch.safetensors')
    assert 'nan' in text and 'face 1' in text and 'batch.safetensors' in text and '\n' not in text
    assert batch['gt'].isnan().nonzero().tolist() == [[1, 0, 3, 4]] and {'gt', 'm', 'inp', 'out'} == batch.keys()
    assert all(v.isfinite().all() for v in load_model(tmp_path/'run')[0].state_dict().values())
    go(None, tmp_path/'run', resume=True)
    same_files(whole[0], tmp_path/'run')


def test_too_large_a_step_is_named_as_such(tmp_path):
    with pytest.raises(InputError, match='lower lr'): go(replace(TINY, warmup=0, phases=(Phase(1e30, epochs=3),)), tmp_path/'run')


def test_disk_fills_up_in_training(tmp_path, monkeypatch, whole):
    def fill(cb):
        def full(fd): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(InputError, match='No space left.*intact') as e: go(TINY, tmp_path/'run', cbs=[At(7, fill)])
    assert '\n' not in str(e.value)
    monkeypatch.undo()
    go(None, tmp_path/'run', resume=True)
    same_files(whole[0], tmp_path/'run')


def test_no_permission(tmp_path, monkeypatch):
    def denied(*a, **k): raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    monkeypatch.setattr(os, 'open', denied)
    with pytest.raises(InputError, match='Permission denied') as e: go(TINY, tmp_path/'run')
    assert '\n' not in str(e.value)


# progress

def test_lines_and_bar():
    out = io.StringIO()
    rows = []
    for report in (LineReport(every=0, file=out), BarReport(Console(file=out, force_terminal=True, width=160))):
        with tempfile.TemporaryDirectory() as d: go(replace(TINY, phases=(Phase(1e-3),)), Path(d)/'run', progress=report)
        rows.append(out.getvalue())
        out.truncate(0), out.seek(0)
    assert '\r' not in rows[0] and '6*hole' in rows[0] and 'psnr' in rows[0] and 'left' in rows[0]
    assert '6*hole' in rows[1] and 'psnr' in rows[1] and 'images/s' in rows[1]
    assert isinstance(reporter(None), LineReport)


# in memory

@pytest.mark.parametrize('recipe', [TINY, AVERAGED, replace(TINY, accumulate=2)], ids=['plain', 'averaged', 'pieces'])
def test_fit_in_memory_is_the_run_without_its_folder(tmp_path, recipe):
    "`fit_recipe` writes nothing, leaves the generators alone, and ends with the weights of `train`, bit for bit."
    torch.manual_seed(5)
    before, state = set(Path.cwd().iterdir()), torch.get_rng_state()
    learn = fit_recipe(recipe, device='cpu')
    assert torch.equal(torch.get_rng_state(), state) and set(Path.cwd().iterdir()) == before
    assert not any(isinstance(cb, RunCallback) for cb in learn.cbs)
    go(recipe, tmp_path/'run')
    assert_close(dict(learn.model.state_dict()), load_file(tmp_path/'run'/'model.safetensors'), rtol=0, atol=0)


def test_fit_in_memory_begins_from_a_file(tmp_path, whole):
    recipe = replace(TINY, start=str(whole[0]/'model.safetensors'), seed=1)
    go(recipe, tmp_path/'run')
    assert_close(dict(fit_recipe(recipe, device='cpu').model.state_dict()), load_file(tmp_path/'run'/'model.safetensors'), rtol=0, atol=0)


def test_fit_in_memory_stops_at_an_exception_and_leaves_the_generators_alone():
    class Stop(Callback):
        def after_batch(self): raise KeyboardInterrupt
    state = torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt): fit_recipe(TINY, device='cpu', cbs=Stop())
    assert torch.equal(torch.get_rng_state(), state)
