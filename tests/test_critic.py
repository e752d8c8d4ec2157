"A critic: each of its terms against another way to compute it, and runs with one that are cut, shared and resumed like runs without."
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from fastai.callback.core import Callback
from forking import forks
from safetensors.torch import load_file
from test_distributed import RECIPE as SHARED
from test_distributed import close, job, same
from test_train import AVERAGED, TINY, At, go, press, same_files, without_time
from torch.testing import assert_close

from pconv_course.base.core import InputError
from pconv_course.base.show import compose
from pconv_course.critic import (CoarseCallback, Critic, CriticCallback, CriticSpec, adversarial_loss, critic_loss, feature_matching, hole_patches, in_hole, r1_penalty, settle)
from pconv_course.data import face_dls
from pconv_course.networks import build_unet
from pconv_course.learner import pconv_learner
from pconv_course.step import paper_adam
from pconv_course.objective import InpaintLoss
from pconv_course.masks import MaskBank
from pconv_course.runs.checkpoint import latest_checkpoint
from pconv_course.runs.run import TrainingInterrupted, read_log
from pconv_course.recipe import Phase, recipe_from, recipe_learner, recipe_with
from pconv_course.runs.train import rehearsal

torch.set_num_threads(1)
SMALL = CriticSpec(width=6, lr=1e-3, every=3)
JUDGED = replace(AVERAGED, name='judged', precision='fp32', critic=SMALL, betas=(0.5, 0.99),
                 phases=(Phase(3e-3, critic=False), Phase(1e-3, schedule='cosine'), Phase(1e-3, freeze_bn=True)))
LN2 = math.log(2)


def tiny(size=16, width=3, n=2):
    "A critic in float64 with pictures, fills and masks."
    torch.manual_seed(0)
    m = MaskBank.make(n, size, kind='restore').fixed(n).double()
    return Critic(size, width).double(), torch.rand(n, 3, size, size).double(), torch.rand(n, 3, size, size).double(), m


def by_differences(f, x, at, h=1e-6):
    "The derivative of f(x) in the entries `at` of x, by central differences."
    slopes = []
    for i in at:
        a, b = x.detach().clone(), x.detach().clone()
        a.view(-1)[i] += h
        b.view(-1)[i] -= h
        slopes.append((f(a) - f(b)).item()/(2*h))
    return torch.tensor(slopes, dtype=x.dtype)


# what it is

@pytest.mark.parametrize('size, stages, last', [(16, 2, 4), (32, 3, 4), (48, 3, 6), (64, 4, 4), (100, 4, 6), (128, 5, 4), (256, 6, 4)])
def test_patches_lie_on_the_map_before_the_last(size, stages, last):
    critic = Critic(size, 2)
    patches, whole, maps = critic(torch.rand(2, 3, size, size), torch.ones(2, 1, size, size))
    assert len(maps) == stages and maps[-1].shape[2:] == (last, last) and patches.shape == (2, 1, *maps[-2].shape[2:]) and whole.shape == (2,)


def test_channels_double_up_to_256():
    assert [s.out_channels for s in Critic(64, 48).stages] == [48, 96, 192, 256]
    assert [s.out_channels for s in Critic(128, 32).stages] == [32, 64, 128, 256, 256]
    assert [s.out_channels for s in Critic(64, 300).stages] == [300]*4


def test_pictures_of_a_batch_do_not_see_each_other():
    critic, gt, _, m = tiny(n=4)
    for whole, one in zip(critic(gt, m)[:2], critic(gt[1:2], m[1:2])[:2]): assert_close(whole[1:2], one)


# which patches count

@pytest.mark.parametrize('size, n', [(16, 8), (64, 8), (48, 6), (50, 12)])
def test_a_patch_counts_when_it_touches_the_hole(size, n):
    "Pixel by pixel: patch (i,j) spans the pixels from floor(i*size/n) to ceil((i+1)*size/n)."
    m = MaskBank.make(10, size, kind='restore').fixed(10)
    got = hole_patches(m, (n, n))
    for k in range(10):
        for i in range(n):
            for j in range(n):
                rows, cols = (range(a*size//n, -(-(a + 1)*size//n)) for a in (i, j))
                assert got[k, 0, i, j] == float(any(m[k, 0, y, x] == 0 for y in rows for x in cols))


def test_the_mean_over_patches_in_the_hole_by_hand():
    v, where = torch.tensor([[[[1., 2.], [3., 4.]]], [[[5., 6.], [7., 8.]]]]), torch.tensor([[[[1., 0.], [0., 1.]]], [[[0., 0.], [0., 0.]]]])
    assert_close(in_hole(v, where), torch.tensor([2.5, 0.]))


# the terms

def test_losses_at_chance():
    nothing, where = (torch.zeros(2, 1, 4, 4), torch.zeros(2), []), torch.ones(2, 1, 4, 4)
    assert_close(critic_loss(nothing, nothing, where).item(), 4*LN2)
    assert_close(adversarial_loss(nothing, where).item(), 2*LN2)


def test_losses_are_likelihoods_of_patches_and_pictures():
    "A loop over pictures and patches, with -log of the probability itself."
    critic, gt, fill, m = tiny(n=3)
    real, fake = critic(gt, m), critic(compose(gt, fill, m), m)
    where, p = hole_patches(m, real[0].shape[2:]), torch.sigmoid
    told, fooled = 0., 0.
    for i in range(3):
        at = where[i, 0].nonzero().tolist()
        told += sum(-p(real[0][i, 0, y, x]).log() - (1 - p(fake[0][i, 0, y, x])).log() for y, x in at)/len(at) - p(real[1][i]).log() - (1 - p(fake[1][i])).log()
        fooled += sum(-p(fake[0][i, 0, y, x]).log() for y, x in at)/len(at) - p(fake[1][i]).log()
    assert_close(critic_loss(real, fake, where), told/3)
    assert_close(adversarial_loss(fake, where), fooled/3)


def test_the_hinge_by_a_loop():
    critic, gt, fill, m = tiny(n=3)
    real, fake = ((5*p, 5*w, maps) for p, w, maps in (critic(gt, m), critic(compose(gt, fill, m), m)))
    where = hole_patches(m, real[0].shape[2:])
    told, fooled = 0., 0.
    for i in range(3):
        at = where[i, 0].nonzero().tolist()
        told += sum(max(0., 1 - real[0][i, 0, y, x].item()) + max(0., 1 + fake[0][i, 0, y, x].item()) for y, x in at)/len(at) + max(0., 1 - real[1][i].item()) + max(0., 1 + fake[1][i].item())
        fooled -= sum(fake[0][i, 0, y, x].item() for y, x in at)/len(at) + fake[1][i].item()
    assert_close(critic_loss(real, fake, where, 'hinge').item(), told/3)
    assert_close(adversarial_loss(fake, where, 'hinge').item(), fooled/3)
    sure = torch.full((1, 1, 4, 4), 3.), torch.full((1,), 3.)
    assert critic_loss(sure, [-o for o in sure], torch.ones(1, 1, 4, 4), 'hinge') == 0 < critic_loss(sure, [-o for o in sure], torch.ones(1, 1, 4, 4))


def test_spectral_norm():
    "Singular values of 1; looking moves nothing, a step does; without it the critic is what it was."
    torch.manual_seed(0)
    sn, m = Critic(32, 8, spectral=True), torch.ones(1, 1, 32, 32)
    for _ in range(50): settle(sn)
    convs = [*sn.stages, sn.patches, sn.whole]
    for c in convs: assert_close(torch.linalg.matrix_norm(c.weight.flatten(1), 2).item(), 1., rtol=1e-2, atol=0)
    state = {k: v.clone() for k, v in sn.state_dict().items()}
    sn(torch.rand(1, 3, 32, 32), m), r1_penalty(sn, torch.rand(1, 3, 32, 32), m)
    assert all(torch.equal(v, state[k]) for k, v in sn.state_dict().items())
    with torch.no_grad(): sn.stages[1].parametrizations.weight.original.normal_()
    settle(sn)
    moved = [k for k, v in sn.state_dict().items() if not torch.equal(v, state[k]) and '_u' in k]
    assert any('stages.1.' in k for k in moved) and not sn.training
    torch.manual_seed(0)
    plain = Critic(32, 8)
    assert list(plain.state_dict()) == [f'{n}.{k}' for n in ('stages.0', 'stages.1', 'stages.2', 'patches', 'whole') for k in ('weight', 'bias')]
    assert torch.equal(plain.stages[0].weight, sn.stages[0].parametrizations.weight.original)


def test_patches_outside_the_hole_change_nothing():
    where = hole_patches(MaskBank.make(2, 16, kind='sparse', ratio=(.02, .1)).fixed(2), (8, 8))
    assert 0 < where.mean() < 1
    real, fake = ((torch.randn(2, 1, 8, 8), torch.randn(2)) for _ in range(2))
    other = [(torch.where(where > 0, v[0], 100.), v[1]) for v in (real, fake)]
    assert critic_loss(real, fake, where) == critic_loss(*other, where) and adversarial_loss(fake, where) == adversarial_loss(other[1], where)


@pytest.mark.parametrize('term', ['critic', 'adversarial', 'matching', 'r1'])
def test_gradients_are_those_of_finite_differences(term):
    "In the critic's weights (its loss, R1) or in the fill (what the network is told)."
    critic, gt, fill, m = tiny()
    where = hole_patches(m, critic(gt, m)[0].shape[2:])
    with torch.no_grad(): real = critic(gt, m)
    say = lambda out: critic(compose(gt, out, m), m)
    if term in ('adversarial', 'matching'):
        f = (lambda o: adversarial_loss(say(o), where)) if term == 'adversarial' else (lambda o: feature_matching(say(o)[2], real[2]))
        x = fill.requires_grad_()
        slope, = torch.autograd.grad(f(x), x)
        assert (slope*m == 0).all()  # known pixels are the photograph's
        at = (slope.view(-1) != 0).nonzero()[::37, 0].tolist()
        assert len(at) > 10
    else:
        x, f0 = critic.stages[1].weight, (lambda: critic_loss(critic(gt, m), say(fill), where)) if term == 'critic' else (lambda: r1_penalty(critic, gt, m))
        slope, = torch.autograd.grad(f0(), x)
        def f(w):
            with torch.no_grad(): was = x.clone(); x.copy_(w)
            value = f0().detach()
            with torch.no_grad(): x.copy_(was)
            return value
        at = range(0, x.numel(), 29)
    assert_close(slope.reshape(-1)[list(at)], by_differences(f, x, at), rtol=1e-4, atol=1e-7)


def test_r1_is_the_squared_slope_at_the_photographs():
    critic, gt, _, m = tiny()
    where = hole_patches(m, critic(gt, m)[0].shape[2:])
    said = lambda x: (in_hole(critic(x, m)[0], where) + critic(x, m)[1]).sum()
    slope = by_differences(said, gt, range(gt.numel())).view(2, -1)
    assert_close(r1_penalty(critic, gt, m), slope.square().sum(1).mean(), rtol=1e-5, atol=0)
    with torch.autocast('cpu', torch.bfloat16): inside = r1_penalty(critic.float(), gt.float(), m.float())
    assert_close(inside, r1_penalty(critic, gt.float(), m.float()), rtol=0, atol=0)  # float32 whatever the autocast


def test_matching_asks_nothing_of_the_photographs():
    real = [torch.rand(2, 3, 4, 4, requires_grad=True)]
    fake = [torch.rand(2, 3, 4, 4, requires_grad=True)]
    feature_matching(fake, real).backward()
    assert real[0].grad is None and fake[0].grad is not None and feature_matching(real, real) == 0


# beside a network

def learner(cbs, seed=0, **kwargs):
    torch.manual_seed(seed)
    dls = face_dls('drawn', size=32, bs=8, n=40, valid=0.2, device='cpu')
    return pconv_learner(dls, MaskBank.make(20, 32, kind='restore'), build_unet(dict(depth=3, width=4)), InpaintLoss.pixels(dict(valid=1, hole=6)), cbs=cbs, **kwargs)


def test_the_network_gets_the_gradient_of_the_sum_and_the_critic_that_of_its_loss():
    "One step by hand: pixel terms, adversarial term and matching in one graph; the critic's loss and R1 in another."
    cb, seen = CriticCallback(SMALL, 32), {}
    class Compare(Callback):
        order, run_valid = 12, False
        def after_loss(self):
            if seen: return
            critic, (gt, m) = cb.net, self.yb
            out = self.pred
            real, fake = critic(gt, m), critic(compose(gt, out, m), m)
            where = hole_patches(m, real[0].shape[2:])
            loss = self.loss_func(out, gt, m) + .1*adversarial_loss(fake, where) + 2*feature_matching(fake[2], real[2])
            seen['net'] = torch.autograd.grad(loss, list(self.model.parameters()), retain_graph=True)
            real, fake = critic(gt, m), critic(compose(gt, out.detach(), m), m)
            own = critic_loss(real, fake, where) + .2*r1_penalty(critic, gt, m)
            seen['critic'], seen['given'] = torch.autograd.grad(own, list(critic.parameters())), [p.grad.clone() for p in critic.parameters()]
            assert_close(self.loss, loss.detach())
            assert_close(cb.terms['critic'], critic_loss(real, fake, where).detach())
        def after_backward(self): seen.setdefault('back', [p.grad.clone() for p in self.model.parameters()])
    learn = learner([cb, Compare()])
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert_close(seen['back'], list(seen['net']), rtol=1e-4, atol=1e-6)
    assert_close(seen['given'], list(seen['critic']), rtol=1e-4, atol=1e-7)


def test_a_critic_learns_to_tell():
    "On drawn faces within seconds: from chance to below it; the fit loop is fastai's."
    seen, cb = [], CriticCallback(CriticSpec(width=16, lr=1e-3), 32)
    class Keep(Callback):
        order, run_valid = 12, False
        def after_loss(self): seen.append([float(v) for v in cb.terms.values()])
    learn = learner([cb, Keep()], lr=1e-3)
    with learn.no_bar(), learn.no_logging(): learn.fit(8)
    assert abs(seen[0][2] - 4*LN2) < 0.2 and sum(o[2] for o in seen[-8:])/8 < 0.92*4*LN2


def test_a_search_for_a_learning_rate_leaves_the_critic_as_it_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    judge = CriticCallback(SMALL, size=16)
    learn = pconv_learner(face_dls(n=24, size=16, bs=4, device="cpu"), MaskBank.make(8, 16), model=build_unet(dict(depth=3, width=4)), cbs=[judge])
    for steps in (0, 5):
        was, begun = {k: v.clone() for k, v in judge.net.state_dict().items()}, judge.steps
        with learn.no_bar(): learn.lr_find(num_it=8, show_plot=False)
        assert judge.steps == begun == steps and judge.to_put_back is None
        assert_close(judge.net.state_dict(), was, rtol=0, atol=0)
        with learn.no_bar(), learn.no_logging(): learn.fit(1)
        assert judge.steps == steps + 5 and any(not torch.equal(v, was[k]) for k, v in judge.net.state_dict().items())


def test_without_r1_and_with_it_every_few_steps():
    calls = []
    import pconv_course.critic as module
    was, module.r1_penalty = module.r1_penalty, lambda *a: calls.append(1) or was(*a)
    try:
        for spec, n in ((SMALL, 1), (replace(SMALL, r1=0.), 0)):
            calls.clear()
            learn = learner([CriticCallback(spec, 32)])
            with learn.no_bar(), learn.no_logging(): learn.fit(3)
            assert len(calls) == n*math.ceil(3*len(learn.dls.train)/3)
    finally: module.r1_penalty = was


# recipes

@pytest.mark.parametrize('change, word', [
    (dict(critic=dict(width=0)), 'critic: width=0'), (dict(critic=dict(lr=0)), 'critic: lr=0'), (dict(critic=dict(lr=math.nan)), 'critic: lr'), (dict(critic=dict(every=0)), 'critic: every'),
    (dict(critic=dict(weight=-1)), 'critic: weight'), (dict(critic=dict(r1=math.inf)), 'critic: r1'), (dict(critic=dict(weight=0, matching=0)), 'nobody listens'),
    (dict(critic=dict(loss='wasserstein')), 'critic: loss'), (dict(critic=dict(spectral=2)), 'critic: spectral'), (dict(critic=dict(rate=1)), "the critic has no 'rate'; it has width"), (dict(critic=3), 'wrong type'), (dict(betas=(1., .9)), 'betas'), (dict(betas=(.9,)), 'betas'), (dict(betas=('a', 'b')), 'betas'),
    (dict(critic={}, phases=(Phase(1e-3, critic=False),)), 'no phase has critic=True'), (dict(phases=(Phase(1e-3, critic='no'),)), 'critic=.no'), (dict(phases=[dict(lr=1e-3, epoch=2)]), "a phase has no 'epoch'; it has lr"),
    (dict(hole_ratio='0.1-0.5'), 'wrong type'), (dict(features=None), 'features=None'),
])
def test_critics_that_make_no_sense(change, word):
    with pytest.raises(InputError, match=word) as e: recipe_with(TINY, **change)
    assert '\n' not in str(e.value)


def test_a_critic_goes_through_json():
    r = replace(JUDGED, critic=replace(SMALL, matching=1.))
    assert recipe_from(json.loads(json.dumps(asdict(r)))) == r and recipe_with(TINY, critic={}).critic == CriticSpec()
    assert 'no critic' in str(JUDGED) and 'width 6' in str(JUDGED) and recipe_from(asdict(TINY)).critic is None


def test_critics_of_before_are_those_of_today():
    "A recipe.json without loss and spectral loads, and says of itself what it said."
    d = json.loads(json.dumps(asdict(JUDGED)))
    for k in ('loss', 'spectral'): del d['critic'][k]
    assert recipe_from(d) == JUDGED and (SMALL.loss, SMALL.spectral) == ('logistic', False)
    assert str(CriticSpec()) == 'width 48, weight 0.1, matching 2, lr 0.0003, r1 0.2, every 16'
    assert str(CriticSpec(loss='hinge', spectral=True)).endswith('every 16, loss hinge, spectral True')


def test_betas_are_those_of_adam():
    h = recipe_learner(JUDGED, device='cpu').opt.hypers[0]
    assert (h['mom'], h['sqr_mom']) == (0.5, 0.99)
    h = recipe_learner(TINY, device='cpu').opt.hypers[0]
    assert (h['mom'], h['sqr_mom']) == tuple(paper_adam([torch.nn.Parameter(torch.zeros(1))]).hypers[0][k] for k in ('mom', 'sqr_mom'))


# runs

@pytest.fixture(scope='module')
def judged(tmp_path_factory):
    "A run with a critic that nothing interrupted: averages, a phase without critic, one with a cosine, one with frozen batch norm."
    out = tmp_path_factory.mktemp('judged')/'run'
    return out, go(JUDGED, out, log_every=1)


def test_a_run_logs_the_critic(judged):
    rows = [r for r in read_log(judged[0]/'log.jsonl') if r['kind'] == 'step']
    n = len(rows)//3
    assert all(r['train_critic'] == r['train_0.1*adversarial'] == r['train_2*matching'] == 0 for r in rows[:n])
    assert all(2 < r['train_critic'] < 3 and r['train_0.1*adversarial'] > 0 and r['train_2*matching'] > 0 for r in rows[n:])
    for r in rows: assert_close(r['train_loss'], sum(v for k, v in r.items() if '*' in k), rtol=1e-5, atol=0)
    assert 'train_critic' in (judged[0]/'log.csv').read_text().splitlines()[0]


def test_the_first_phase_is_that_of_a_run_without_a_critic(judged, tmp_path):
    go(replace(JUDGED, critic=None, ema=0., phases=(Phase(3e-3),)), tmp_path/'plain')
    first = [r for r in read_log(judged[0]/'log.jsonl') if r['kind'] == 'epoch'][0]
    plain = [r for r in read_log(tmp_path/'plain'/'log.jsonl') if r['kind'] == 'epoch'][0]
    assert first['train_6*loss_hole'] == plain['train_6*loss_hole']


@pytest.mark.parametrize('step', [1, 4, 5, 7, 12])
def test_interrupted_with_a_critic_is_uninterrupted(judged, tmp_path, step):
    "Weights, averages, both Adams, generators, scores and log; R1 comes in the same steps."
    with pytest.raises(TrainingInterrupted): go(JUDGED, tmp_path/'cut', log_every=1, cbs=[At(step, press())])
    back = go(None, tmp_path/'cut', resume=True, log_every=1)
    same_files(judged[0], tmp_path/'cut')
    assert any(k.startswith('.critic.model') for k in load_file(judged[0]/'checkpoint.safetensors'))
    assert without_time(back['scores']) == without_time(judged[1]['scores'])
    assert without_time(read_log(judged[0]/'log.jsonl')) == without_time(read_log(tmp_path/'cut'/'log.jsonl'))


def test_interrupted_with_spectral_norm_is_uninterrupted(tmp_path):
    "Weights, the estimates of the singular values, both Adams."
    r = replace(JUDGED, critic=replace(SMALL, loss='hinge', spectral=True), phases=(Phase(1e-3, epochs=2),))
    go(r, tmp_path/'whole', log_every=1)
    with pytest.raises(TrainingInterrupted): go(r, tmp_path/'cut', log_every=1, cbs=[At(5, press())])
    go(None, tmp_path/'cut', resume=True, log_every=1)
    same_files(tmp_path/'whole', tmp_path/'cut')
    state = load_file(tmp_path/'whole'/'checkpoint.safetensors')
    assert any(k.startswith('.critic.model') and k.endswith('_u') for k in state)
    assert all(3 < r['train_critic'] < 5 for r in read_log(tmp_path/'whole'/'log.jsonl') if r['kind'] == 'step')


def test_the_first_answer_is_trained_too():
    "Loss and gradient of a step are those of both answers, also in pieces; other networks have no such callback."
    seen = []
    class Look(Callback):
        order, run_valid = 5.7, False
        def after_loss(self):
            gt, m = self.yb
            want = self.loss_func(self.pred, gt, m) + sum(w*t for w, t in zip((1, 6), ((v*(self.model.guess - gt).abs()).mean() for v in (m, 1 - m))))
            assert_close(self.loss, want.detach())
            params = list(self.model.parameters())
            seen.append((torch.autograd.grad(want, params, retain_graph=True), torch.autograd.grad(self.loss_grad, params, retain_graph=True)))
    r = replace(TINY, network='attention', depth=3, width=8, phases=(Phase(1e-3),))
    learn = recipe_learner(r, device='cpu', cbs=[Look()])
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert seen and len([cb for cb in learn.cbs if isinstance(cb, CoarseCallback)]) == 1
    for a, b in zip(*seen[0]): assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert not [cb for cb in recipe_learner(TINY, device='cpu').cbs if isinstance(cb, CoarseCallback)]


def test_killed_with_a_critic(judged, tmp_path):
    "kill -9 in mid-epoch, checkpoints after every step: the end is the same."
    code = f'''
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_critic import JUDGED, At, go
go(JUDGED, {str(tmp_path/"run")!r}, log_every=1, save_minutes=0, cbs=[At(8, lambda cb: os.kill(os.getpid(), signal.SIGKILL))])'''
    run = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True, timeout=300, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert run.returncode == -signal.SIGKILL, run.stderr
    assert latest_checkpoint(tmp_path/'run')[0]['position']['step'] == 7
    go(None, tmp_path/'run', resume=True, log_every=1)
    same_files(judged[0], tmp_path/'run', ['model'])


@pytest.mark.parametrize('precision', ['bf16', 'fp16'])
def test_half_precision_with_a_critic_resumes(tmp_path, precision):
    r = replace(JUDGED, precision=precision, phases=(Phase(1e-3, epochs=2),))
    go(r, tmp_path/'whole')
    with pytest.raises(TrainingInterrupted): go(r, tmp_path/'cut', cbs=[At(5, press())])
    go(None, tmp_path/'cut', resume=True)
    same_files(tmp_path/'whole', tmp_path/'cut')
    assert all(2 < r['train_critic'] < 3.2 for r in read_log(tmp_path/'whole'/'log.jsonl') if r['kind'] == 'epoch')


def test_a_run_like_the_one_that_ships_resumes(judged, tmp_path):
    "From coarse to fine, both parts learning together, bf16, averages, a falling rate, and a critic that begins with what the one before knew."
    r = replace(JUDGED, network='fine', doublings=1, start=str(judged[0]), joint=True, precision='bf16', phases=(Phase(1e-3, epochs=2, schedule='cosine', lr_end=1e-4),))
    go(r, tmp_path/'whole')
    with pytest.raises(TrainingInterrupted): go(r, tmp_path/'cut', cbs=[At(5, press())])
    go(None, tmp_path/'cut', resume=True)
    same_files(tmp_path/'whole', tmp_path/'cut')
    coarse = load_file(judged[0]/'model.safetensors')
    assert any(not torch.equal(v, load_file(tmp_path/'whole'/'model.safetensors')[f'coarse.{k}']) for k, v in coarse.items() if k.endswith('conv.weight'))


def test_nan_stops_before_the_critic_learns_from_it(tmp_path):
    "The weights are those of before the bad step, of both networks; the line names the term."
    weights = lambda cb: {k: v.clone() for net in (cb.model, cb.run_critic.net) for k, v in net.named_parameters()}
    seen = {}
    class Spoil(Callback):
        order, run_valid = 11.5, False
        def after_loss(self):
            if self.position.job.position.step == 6: seen['before'], self.run_critic.terms['critic'] = weights(self), torch.tensor(math.nan)
        def after_fit(self): seen['after'] = weights(self)
    with pytest.raises(InputError, match='critic is nan'): go(JUDGED, tmp_path/'run', cbs=[Spoil()])
    assert_close(seen['before'], seen['after'], rtol=0, atol=0)


@pytest.mark.parametrize('of, size, taken', [('file', 32, ()), ('file', 64, ()), ('run', 64, ('stages.0', 'stages.1', 'stages.2')), ('run', 32, ('',))])
def test_a_critic_begins_with_what_the_one_before_knows(judged, tmp_path, of, size, taken):
    "From a run: the stages of a smaller size, or all of it; from a file of weights: nothing. And the network's weights in any case."
    start = judged[0] if of == 'run' else judged[0]/'model.safetensors'
    r = replace(JUDGED, size=size, n_faces=30, start=str(start), phases=(Phase(1e-3),), seed=JUDGED.seed + 1)
    first = {}
    class Begin(Callback):
        def before_fit(self): first.update(net=self.model.enc[0].conv.weight.clone(), critic={k: v.clone() for k, v in self.run_critic.net.state_dict().items()})
    result = go(r, tmp_path/'run', cbs=[Begin()])
    assert_close(first['net'], load_file(judged[0]/'model.safetensors')['enc.0.conv.weight'], rtol=0, atol=0)
    last, new = load_file(judged[0]/'checkpoint.safetensors'), CriticCallback(r.critic, size, r.seed).net.state_dict()
    for k, v in first['critic'].items(): assert_close(v, last[f'.critic.model.{k}'] if k.startswith(taken) else new[k], rtol=0, atol=0)
    assert result['start']['critic'] == (len([t for t in taken if t]) or 3*len(taken))


def test_a_start_with_damaged_checkpoints_says_what_to_start_from(judged, tmp_path):
    "The network is whole, the critic is lost: start from the weights, and nothing of the new run is written."
    (tmp_path/'old').mkdir()
    shutil.copy(judged[0]/'model.safetensors', tmp_path/'old')
    for p in judged[0].glob('checkpoint*'): (tmp_path/'old'/p.name).write_bytes(b'torn')
    with pytest.raises(InputError, match=r'damaged, and with them its critic; start from .*old/model.safetensors'): go(replace(JUDGED, start=str(tmp_path/'old'), seed=1), tmp_path/'run')
    assert not (tmp_path/'run'/'recipe.json').exists()


def test_rehearsal_counts_steps_with_and_without_critic():
    cost = rehearsal(replace(JUDGED, n_faces=60, bs=6), steps=2)[1]
    assert cost['epochs'] == 3 and cost['images_per_s'] > 0
    without = rehearsal(replace(JUDGED, critic=None, phases=(Phase(1e-3),), n_faces=60, bs=6), steps=2)[1]
    assert cost['memory']['features'] > 1.2*without['memory']['features'], 'what the critic keeps for its backward counts, too'


# pieces and processes

PARTS = replace(SHARED, critic=SMALL, betas=(0.5, 0.99), phases=(Phase(2e-3, schedule='cosine'), Phase(6e-4, freeze_bn=True)))


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    "One process, whole batches, batch norm as in evaluation."
    out = tmp_path_factory.mktemp('parts')/'run'
    assert forks().run(job(out, PARTS, bn_eval=True)) == [(0, '')]
    return out


def critics(out): return {k: v for k, v in load_file(Path(out)/'checkpoint.safetensors').items() if k.startswith('.critic.model')}


def test_pieces_are_the_batch_for_the_critic_too(whole, tmp_path):
    assert forks().run(job(tmp_path/'run', replace(PARTS, accumulate=3), bn_eval=True)) == [(0, '')]
    close(whole, tmp_path/'run')
    assert_close(critics(whole), critics(tmp_path/'run'), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('pieces', [1, 3])
def test_two_processes_are_one_for_the_critic_too(whole, tmp_path, pieces):
    r = replace(PARTS, accumulate=pieces)
    assert [o[0] for o in forks().run(*[job(tmp_path/'run', r, bn_eval=True)]*2, together=True)] == [0, 0]
    close(whole, tmp_path/'run')
    assert_close(critics(whole), critics(tmp_path/'run'), rtol=1e-3, atol=1e-4)


def test_two_processes_with_a_critic_resume(tmp_path):
    assert forks().run(*[job(tmp_path/'whole', PARTS)]*2, together=True) == [(0, '')]*2
    assert [code for code, _ in forks().run(*[job(tmp_path/'cut', PARTS, at=7, do=['SIGTERM'], only=1)]*2, together=True)] == [130, 130]
    assert forks().run(*[job(tmp_path/'cut', None)]*2, together=True) == [(0, '')]*2
    same(tmp_path/'whole', tmp_path/'cut')


def test_pieces_and_processes_of_two_stages_under_a_hinge(tmp_path):
    "SN-PatchGAN moves its estimates once a step, and the first stage's error is shared out as everybody's is."
    r = replace(PARTS, network='attention', width=8, critic=replace(SMALL, loss='hinge', spectral=True))
    assert forks().run(job(tmp_path/'whole', r, bn_eval=True)) == [(0, '')]
    assert forks().run(job(tmp_path/'pieces', replace(r, accumulate=3), bn_eval=True)) == [(0, '')]
    assert [o[0] for o in forks().run(*[job(tmp_path/'two', r, bn_eval=True)]*2, together=True)] == [0, 0]
    for out in ('pieces', 'two'):
        close(tmp_path/'whole', tmp_path/out)
        assert_close(critics(tmp_path/'whole'), critics(tmp_path/out), rtol=1e-3, atol=1e-4)
