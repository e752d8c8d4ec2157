"Ablations: every deviation does what it says and nothing else, and what is read off the record follows from its numbers."
import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from pconv_course.lab.ablations import (BASES, DEVIATIONS, MEASURED, KnownBorder, OtherLoss, SUSPECTS, ablation_plan, ablation_summary, artifacts, differences,
    loss_tv_everywhere, norms, run_ablations, run_specks, show_differences, soft, specks_plans, verdict, washed_out)
from pconv_course.base.core import InputError, read_json
from pconv_course.base.show import compose
from pconv_course.data import DrawnFaces
from pconv_course.losses import IMAGENET_MEAN, IMAGENET_STD
from pconv_course.objective import InpaintLoss, feature_terms
from pconv_course.masks import MaskBank
from pconv_course.pconv import PartialConv2d, partial_conv2d
from pconv_course.recipe import Recipe, recipe_from, recipe_learner, recipe_with
from pconv_course.lab.plans import WEIGHTS_HERE
from pconv_course.lab.trials import HeldOut, jobs

RESULTS = Path(__file__).resolve().parent.parent/'nbs'/'results'
SMALL = recipe_with(Recipe(size=32, n_faces=40, n_masks=20, depth=3, width=4, bs=4), features='random', weights=WEIGHTS_HERE)
GT = torch.stack([DrawnFaces(4, 32, seed=1)[i] for i in range(4)])
M = MaskBank.make(4, size=32, seed=2, kind='mixed', ratio=(.2, .4)).fixed(4)
OUT = torch.rand(GT.shape, generator=torch.Generator().manual_seed(0))


def learner(*twists, **change):
    learn = recipe_learner(replace(SMALL, **change), device='cpu')
    for t in twists: DEVIATIONS[t](learn, None, 1)
    return learn


def terms(learn):
    learn.loss_func(OUT, GT, M)
    return {k: v.item() for k, v in learn.loss_func.last.items()}


def test_another_loss_without_changes_is_the_loss():
    learn = learner()
    right = terms(learn)
    learn.loss_func.__class__ = OtherLoss
    assert terms(learn) == right


@pytest.mark.parametrize('twist, changed', [('comp_raw', {'perceptual', 'style_comp', 'total'}), ('tv_everywhere', {'tv', 'total'})])
def test_only_these_terms_change(twist, changed):
    a, b = terms(learner()), terms(learner(twist))
    assert {k for k in a if a[k] != b[k]} == changed


def test_comp_raw_is_what_a_net_without_normalisation_computes():
    "The features of comp with mean 0 and deviation 1, those of gt and out as ever; worked out without `washed_out`."
    learn = learner('comp_raw')
    net = learn.loss_func.features
    raw = copy.deepcopy(net)
    raw.mean.zero_(), raw.std.fill_(1.)
    comp = compose(GT, OUT, M)
    f = feature_terms(lambda img: (raw if img is comp else net)(img), OUT, GT, comp)
    got = terms(learn)
    for k, v in f.items(): assert got[k] == pytest.approx(v.item(), rel=1e-4)


def test_washed_out():
    x = torch.stack([torch.full((2, 2), v) for v in (0., .5, 1.)])[None]
    assert_close(washed_out(x)[0, :, 0, 0], torch.tensor(IMAGENET_MEAN) + torch.tensor(IMAGENET_STD)*torch.tensor([0., .5, 1.]))


def test_tv_everywhere_by_hand():
    x = torch.zeros(1, 1, 3, 3)
    x[..., 1, 1] = 1.
    assert loss_tv_everywhere(x).item() == pytest.approx(4/9)
    assert terms(learner('tv_everywhere'))['tv'] == pytest.approx(((OUT[:, :, 1:] - OUT[:, :, :-1]).abs().sum() + (OUT[..., 1:] - OUT[..., :-1]).abs().sum()).item()/OUT.numel())


def test_bn_untrained_stays_as_it_began_and_still_learns_scale_and_shift():
    learn = learner('bn_untrained')
    net = learn.model.train()
    net.freeze_encoder_bn(True).freeze_encoder_bn(False).train()
    learn.loss_func(net(GT, M), GT, M).backward()
    for bn in norms(net):
        assert not bn.training and float(bn.running_mean.abs().sum()) == 0 and torch.equal(bn.running_var, torch.ones_like(bn.running_var))
        assert bn.weight.grad.abs().sum() > 0
    plain = learner().model.train()
    plain(GT, M)
    assert all(bn.training and bn.running_mean.abs().sum() > 0 for bn in norms(plain))


def test_bn_shared_has_one_object_for_each_width():
    nets = [learner(*t).model for t in ((), ('bn_shared',))]
    a, b = ([s.bn.num_features for s in [*n.enc, *n.dec] if isinstance(s.bn, torch.nn.BatchNorm2d)] for n in nets)
    assert a == b and [len(norms(n)) for n in nets] == [len(a), len(set(a))] and len(set(a)) < len(a)


def test_bn_by_batch_looks_at_the_batch_when_judged():
    for twist, depends in (((), False), (('bn_by_batch',), True)):
        net = learner(*twist).model.train()
        net(GT, M)
        net.eval()
        alone, together = net(GT[:1], M[:1]), net(GT, M)[:1]
        assert ((alone - together).abs().max().item() > 1e-3) == depends


def test_border_known_is_a_convolution_of_the_padded_picture_and_mask():
    conv = PartialConv2d(3, 5, 5, stride=2, padding=2, bias=False)
    x, m = GT, M
    want = partial_conv2d(F.pad(x, (2,)*4), F.pad(m, (2,)*4, value=1.), conv.weight, None, 2, 0)
    conv.__class__ = KnownBorder
    assert_close(conv(x, m), want)
    full = torch.ones_like(m)
    assert_close(conv(x, full)[0], F.conv2d(x, conv.weight, None, 2, 2), rtol=1e-4, atol=1e-5)


def test_border_known_in_all_layers_and_only_at_the_border():
    nets = [learner(*t, impl='readable').model.eval() for t in ((), ('border_known',))]
    assert all(isinstance(s.conv, KnownBorder) for s in [*nets[1].enc, *nets[1].dec])
    a, b = (n.enc[0](GT, torch.ones_like(M))[0] for n in nets)
    assert_close(a[..., 2:-2, 2:-2], b[..., 2:-2, 2:-2])
    assert (a - b).abs()[..., 0].max() > 1e-2


def test_grey_masks():
    m = torch.ones(1, 1, 5, 5)
    m[..., 2, 2] = 0
    assert soft(m)[0, 0, 1:4, 1:4].tolist() == [[.9375, .875, .9375], [.875, .75, .875], [.9375, .875, .9375]]
    seen = []
    net = learner('mask_grey').model.eval()
    net.register_forward_pre_hook(lambda n, args: seen.append(args))
    inp = torch.where(M > .5, GT, 0.)
    net(inp, M)
    (x, g), = seen
    assert_close(g, soft(M)), assert_close(x, inp*soft(M))


def test_artifacts_of_the_truth():
    class Truth(torch.nn.Module):
        def __init__(self, gt): super().__init__(); self.p, self.gt = torch.nn.Parameter(torch.zeros(1)), gt
        def forward(self, inp, m): return self.gt
    held = HeldOut(DrawnFaces(4, 32, seed=1), 32, InpaintLoss.pixels())
    s = artifacts(Truth(held.gt), held)
    assert s['hole_l1'] == s['known_l1'] == 0 and s['ssim'] == pytest.approx(1, abs=1e-5)
    assert s['specks'] == pytest.approx(s['true_specks'], abs=.2) and s['seam'] == pytest.approx(s['true_seam'], abs=.02) and s['colour'] < .5
    assert set(MEASURED) <= set(s)


def test_plan():
    "One change each; the same start; names once; every twist known; the last has them all."
    for args in (('tiny',), ('full',), ('full', 'random', 'faces.zip')):
        plan = ablation_plan(*args)
        names = [v.name for v in plan.variants]
        assert names[0] == 'paper' and names[-1] == 'as published' and len(set(names)) == len(names)
        assert all(set(v.twist) <= set(DEVIATIONS) for v in plan.variants) and (plan.variants[0].change, plan.variants[0].twist) == ({}, {})
        assert all(len(v.twist) + len(set(v.change) - {'impl'}) == 1 for v in plan.variants[1:-1])
        assert plan.base.weights['hole'] == 6 and plan.base.formula == 'paper' and plan.base.phases[-1].freeze_bn and not plan.base.phases[0].freeze_bn
        assert plan.images % plan.base.bs == 0
    with pytest.raises(InputError, match='tiny or full'): ablation_plan('huge')


@pytest.mark.slow
def test_every_variant_trains_and_is_recorded(tmp_path, monkeypatch):
    "Eight batches of every variant: none is the base in disguise, and the record has them all."
    monkeypatch.setitem(BASES, 'tiny', replace(BASES['tiny'], n_faces=40, n_masks=20, width=4))
    monkeypatch.setattr('pconv_course.lab.ablations.ablation_plan', lambda *args: replace(ablation_plan(*args), images=64, points=1))
    rows = run_ablations(out=tmp_path/'runs', record=tmp_path/'a.json', scale='tiny', report=lambda t: None)
    ends = {r['name']: (r['curve'][-1]['loss'], r['scores']['hole_l1']) for r in rows}
    assert len(rows) == len(ablation_plan('tiny').variants)
    same = [k for k, v in ends.items() if v == ends['paper'] and k != 'paper']
    assert same == []
    back = read_json(tmp_path/'a.json')
    assert ablation_summary(back['plans']['drawn']['runs']) == ablation_summary(rows) and 'chapter 25' in back['what']
    assert run_ablations(out=tmp_path/'runs', scale='tiny', only=['paper'], report=pytest.fail)[0]['scores'] == rows[0]['scores']


def test_specks_have_a_long_base_and_arms(tmp_path, monkeypatch):
    "Both plans run, look at every point, and are recorded; a second call runs nothing."
    monkeypatch.setitem(BASES, 'tiny', replace(BASES['tiny'], n_faces=40, n_masks=20, width=4))
    monkeypatch.setattr('pconv_course.lab.ablations.SUSPECTS', ('paper', 'as published', 'as published, stride 1'))
    found = run_specks(tmp_path/'runs', tmp_path/'s.json', 'tiny', report=lambda t: None)
    back = read_json(tmp_path/'s.json')['plans']
    assert {k: [r['name'] for r in v] for k, v in found.items()} == {k: [r['name'] for r in v['runs']] for k, v in back.items()} == dict(base=['paper'], arms=['paper', 'as published', 'as published, stride 1'])
    assert all({'specks', 'true_specks', 'seam'} <= p.keys() for v in found.values() for r in v for p in r['curve']) and len(found['base'][0]['curve']) == 2
    assert len({r['curve'][-1]['specks'] for r in found['arms']}) == 3
    run_specks(tmp_path/'runs', scale='tiny', report=pytest.fail)


def test_recorded_specks_are_of_todays_plans():
    "Every arm with three seeds, as long as the plan says, the base eight times as long."
    record = read_json(RESULTS/'specks.json')['plans']
    for plan in specks_plans():
        want = {(v.name, seed): images for v, seed, _, _, images in jobs(plan)}
        assert {(r['name'], r['seed']): r['images'] for r in record[plan.name]['runs']} == want and record[plan.name]['points'] == plan.points
        assert all(len(r['curve']) == plan.points for r in record[plan.name]['runs'])
    assert {r['name'] for r in record['arms']['runs']} == set(SUSPECTS)


ROWS = [dict(name=n, seed=s, scores=dict(specks=v + .1*s, psnr=20 - v)) for n, v in (('paper', 1.), ('worse', 3.), ('same', 1.)) for s in range(3)]


def test_differences_are_taken_seed_by_seed():
    rows = [dict(name=n, seed=s, scores=dict(specks=v)) for n, s, v in (('paper', 0, 1.), ('paper', 1, 5.), ('b', 1, 6.), ('b', 0, 1.5), ('b', 2, 9.))]
    assert differences(rows, 'specks') == dict(b=[1., .5])


@pytest.mark.parametrize('d, word', [([1.9, 2., 2.1], 'more'), ([-2.1, -2., -1.9], 'less'), ([1., 2., 3.], "can't be told"), ([-.1, 2., 2.], "can't be told"), ([2., 2.], "can't be told"), ([], "can't be told")])
def test_verdict(d, word): assert verdict(d) == word


def test_summary():
    s = ablation_summary(ROWS, ['specks', 'psnr'])
    assert s['worse']['specks']['difference'] == pytest.approx(2.) and s['worse']['specks']['verdict'] == 'more' and s['worse']['psnr']['verdict'] == 'less'
    assert s['paper']['specks']['differences'] == [] and s['same']['specks']['verdict'] == "can't be told"


def test_a_trial_that_diverged_is_left_out():
    rows = [*ROWS, dict(name='wild', seed=0, failed='the loss is nan')]
    assert ablation_summary(rows, ['specks'])['wild']['specks']['mean'] is None and 'wild' in [t.get_text() for t in show_differences(rows, ['specks', 'psnr']).get_yticklabels()]


def test_colours_mean_worse():
    "More specks and less PSNR are both on the red side."
    rows = [dict(r, scores={k: v + .01*r['seed']*(r['name'] != 'paper') for k, v in r['scores'].items()}) for r in ROWS]
    data = show_differences(rows, ['specks', 'psnr']).images[0].get_array()
    assert data[0, 0] == data[0, 1] == 8 and np.isfinite(data).all()


def test_recorded_ablations_are_of_todays_plans():
    "What is recorded is what today's plans ask for: base, images, and each variant's change and twist."
    record = read_json(RESULTS/'ablations.json')['plans']
    assert set(record) == {'drawn', 'real'}
    for name, d in record.items():
        plan = ablation_plan('full', 'random', 'drawn' if name == 'drawn' else 'p64')
        base = recipe_from(d['base'] | dict(features='random'))
        assert base == plan.base and d['images'] == plan.images and d['points'] == plan.points
        assert d['twist'] == ({} if d['base']['features'] == 'random' else dict(features_every=2))
        want = {(v.name, seed): (replace(recipe, name='', seed=0), v.twist) for v, seed, recipe, _, _ in jobs(plan)}
        got = {(r['name'], r['seed']): (replace(recipe_with(base, **r['change']), name='', seed=0), r['twist']) for r in d['runs']}
        assert set(got) <= set(want) and all(got[k] == want[k] for k in got)
        assert {v.name for v in plan.variants} == {n for n, _ in got}
