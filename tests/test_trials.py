"Trials: what is equal in all of them, what each twist changes, how they are kept, and what is read off."
import json
import os
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from calling import MODULE
from pconv_course.base.core import InputError, read_json
from pconv_course.data import open_faces
from pconv_course.losses import random_features
from pconv_course.masks import MaskBank
from pconv_course.objective import FEATURE_TERMS, InpaintLoss, PAPER_WEIGHTS
from pconv_course.recipe import public_recipe
from pconv_course.training import RunCallback
from pconv_course.recipe import Phase, Recipe, recipe_from, recipe_learner, recipe_with
from pconv_course.training import learning_rate
from pconv_course.lab.plans import HOLES, PLANS, by_kind, fills, looks, run_trials, weights_plan
from pconv_course.lab.trials import (TWISTS, HeldOut, ImageRun, TrialCallback, TrialPlan, Variant, jobs, record_plan, run_plan, show_trials, step_flop, summary, trial, trial_key, trial_table, work_until)

RESULTS = Path(__file__).resolve().parent.parent/'nbs'/'results'
TINY = Recipe(size=32, n_faces=60, valid=0.2, masks='stroke', n_masks=20, depth=3, width=6, bs=4, phases=(Phase(3e-3, share=3), Phase(6e-4, freeze_bn=True)))
PLAN = TrialPlan('tiny', TINY, 64, (Variant('base', seeds=2), Variant('cosine', dict(phases=(Phase(3e-3, schedule='cosine'),)), seeds=2)), points=2)


class Spy(RunCallback):
    "Notes what reaches the network, the rate and the loss at every step."
    order = 98
    def __init__(self, run): self.job, self.seen, self.rates, self.used, self.weights = run, [], [], [], []
    def after_pred(self):
        self.seen.append((self.xb[0].clone(), self.xb[1].clone()))
        self.rates.append(self.opt.hypers[0]['lr'])
        self.used.append(self.loss_func.use_features)
        self.weights.append(dict(self.loss_func.weights))


@pytest.fixture
def spy(monkeypatch):
    def run(recipe=TINY, images=32, twist=(), **kwargs):
        spies = []
        monkeypatch.setitem(TWISTS, 'spy', lambda learn, run, v: (spies.append(Spy(run)), learn.add_cb(spies[0])))
        row = trial(recipe, 'drawn', images, {**dict(twist), 'spy': 1}, points=1, **kwargs)
        return spies[0], row
    return run


def test_variants_see_the_same(spy):
    "Same faces, mirrored alike, under the same holes, in the same order, whatever rate, average or loss; another seed sees others."
    a, _ = spy()
    for change in (dict(phases=(Phase(1e-2),)), dict(ema=.9), dict(width=8), dict(weights=dict(hole=1.))):
        b, _ = spy(replace(TINY, **change))
        for (xa, ma), (xb, mb) in zip(a.seen, b.seen, strict=True): assert_close((xa, ma), (xb, mb), rtol=0, atol=0)
    b, _ = spy(replace(TINY, seed=1))
    assert not torch.equal(a.seen[0][1], b.seen[0][1]) and not torch.equal(a.seen[0][0], b.seen[0][0])


def test_same_trial_same_numbers(spy):
    (_, a), (_, b) = spy(), spy()
    without = lambda r: [{k: v for k, v in p.items() if k != 'cpu_seconds'} for p in r['curve']]
    assert without(a) == without(b) and a['flop_per_image'] == b['flop_per_image']


def test_images_are_the_clock(spy):
    "The phases share the images: 3 to 1 of 8 batches; a cosine falls over all of them, also over several epochs."
    a, row = spy()
    assert a.rates == [3e-3]*6 + [6e-4]*2 and row['images'] == 32
    b, row = spy(replace(TINY, phases=(Phase(1e-2, schedule='cosine'),)), images=120)
    assert len(b.rates) == 30 and b.rates == sorted(b.rates, reverse=True) and b.rates[0] == pytest.approx(1e-2) and b.rates[-1] < 2e-4
    assert len({x[0, 0].sum().item() for x, _ in b.seen}) == 30


def test_clock_by_hand():
    run = ImageRun(TINY, 200)
    run.position.images = 50
    assert run.tick() == 15. and run.fraction() == .25 and learning_rate(TINY, run.position, run.minutes) == 3e-3


def test_averages_are_what_is_scored(tmp_path, spy):
    "A decay of nearly 0 is the plain run; the average of a real one scores differently, and training does not notice."
    a, b, c = (spy(replace(TINY, ema=e)) for e in (0., 1e-9, .9))
    assert a[1]['curve'][0]['hole_l1'] == pytest.approx(b[1]['curve'][0]['hole_l1'], abs=1e-5)
    assert a[1]['curve'][0]['hole_l1'] != c[1]['curve'][0]['hole_l1']


def test_work_is_counted_by_the_images_and_by_what_a_step_does(spy):
    _, a = spy()
    _, b = spy(images=64)
    assert b['curve'][0]['work'] == pytest.approx(2*a['curve'][0]['work'], rel=1e-2) and a['flop_per_image'] == b['flop_per_image'] > 0


def test_counting_trains_nothing():
    learn, held = recipe_learner(TINY, device='cpu'), HeldOut(open_faces('drawn', 32, 4), 32, InpaintLoss.pixels())
    before = {k: v.clone() for k, v in learn.model.state_dict().items()}
    learn.loss_func.last = dict(mark=1)
    assert step_flop(learn, held.gt[:2], held.m[:2]) > 0
    assert_close(learn.model.state_dict(), before, rtol=0, atol=0)
    assert learn.loss_func.last == dict(mark=1) and all(p.grad is None for p in learn.model.parameters())


def test_held_out_pairs_are_fixed():
    a, b = (HeldOut(open_faces('drawn', 32, 6), 32, InpaintLoss.pixels()) for _ in range(2))
    assert_close((a.gt, a.m), (b.gt, b.m), rtol=0, atol=0)
    assert a.gt.shape == (12, 3, 32, 32) and not torch.equal(a.m[:6], a.m[6:])


LATE = (Phase(3e-3, share=3, features=False), Phase(6e-4, freeze_bn=True))

@pytest.mark.slow
@pytest.mark.parametrize('twist, change, price', [(dict(features_every=4), {}, .25), (dict(features_crop=2), {}, .25), (dict(features_bf16=1), {}, 1.), ({}, dict(phases=LATE), .25),
                                                   ({}, dict(features_reduce=2), .25), (dict(features_bf16=1), dict(features_reduce=2), .25), ({}, dict(phases=LATE, features_reduce=2), 1/16)])
def test_price_of_features(spy, twist, change, price):
    six = recipe_with(TINY, features='random')
    (_, plain), (_, full), (_, row) = spy(), spy(six), spy(recipe_with(six, **change), twist=twist)
    part = (row['flop_per_image'] - plain['flop_per_image'])/(full['flop_per_image'] - plain['flop_per_image'])
    assert part == pytest.approx(price, abs=.03)


def test_features_sometimes(spy):
    six = recipe_with(TINY, features='random')
    s, _ = spy(six, twist=dict(features_every=4))
    assert s.used == [True, False, False, False]*2
    assert all(s.weights[0][k] == 4*six.weights[k] and s.weights[1][k] == 0 and s.weights[0]['hole'] == s.weights[1]['hole'] == 6 for k in FEATURE_TERMS)
    s, _ = spy(recipe_with(six, phases=LATE), twist=dict(features_every=2))
    assert s.used == [False]*6 + [True, False]
    s, _ = spy(twist=dict(features_every=2))
    assert s.used == [False]*8 and s.weights[0] == TINY.weights


def test_curriculum_and_progressive(spy):
    plain, _ = spy()
    s, _ = spy(twist=dict(curriculum=.5))
    assert max(float((1 - m).mean((1, 2, 3)).max()) for _, m in s.seen[:2]) <= .2
    for (xa, ma), (xb, mb) in zip(plain.seen[4:], s.seen[4:], strict=True): assert_close((xa, ma), (xb, mb), rtol=0, atol=0)
    s, _ = spy(twist=dict(progressive=.5))
    assert [x.shape[-1] for x, _ in s.seen] == [16]*4 + [32]*4


def test_output_range(spy):
    for how in ('clamp', 'sigmoid'):
        learn = recipe_learner(TINY, device='cpu')
        TWISTS['output_range'](learn, None, how)
        out = learn.model(torch.rand(2, 3, 32, 32), torch.ones(2, 1, 32, 32))
        assert 0 <= out.min() and out.max() <= 1
    (_, a), (_, b) = spy(), spy(twist=dict(output_range='sigmoid'))
    assert a['curve'][0]['hole_l1'] != b['curve'][0]['hole_l1']


def test_decay_reaches_the_optimiser(spy):
    learn = recipe_learner(TINY, device='cpu')
    TWISTS['decay'](learn, None, .1)
    assert learn.opt.hypers[0]['wd'] == .1
    (_, a), (_, b) = spy(), spy(twist=dict(decay=.5))
    assert a['curve'][0]['hole_l1'] != b['curve'][0]['hole_l1']


def test_divergence_is_a_result():
    row = trial(replace(TINY, phases=(Phase(1e30),)), 'drawn', 64, points=1)
    assert 'loss is' in row['failed'] and row['curve'] == [] and row['images'] < 64
    rows = [dict(name='a', seed=0, failed=None, curve=[dict(work=1., images=1, loss=1., hole_l1=.2, psnr=20.)]), dict(name='b', seed=0, **row)]
    assert row['failed'] in trial_table(rows) and show_trials(rows)


def test_finished_trials_are_kept(tmp_path):
    lines = []
    rows = run_plan(PLAN, out=tmp_path, report=lines.append)
    assert len(rows) == len(lines) == len(list(tmp_path.glob('*.json'))) == 4
    assert [(r['name'], r['seed']) for r in rows] == [('base', 0), ('cosine', 0), ('base', 1), ('cosine', 1)]
    assert run_plan(PLAN, out=tmp_path, report=lines.append) == rows and len(lines) == 4
    next(iter(tmp_path.glob('*.json'))).unlink()
    run_plan(PLAN, out=tmp_path, report=lines.append)
    assert len(lines) == 5
    run_plan(replace(PLAN, images=32), out=tmp_path, report=lines.append, seeds=1, only=['base'])
    assert len(lines) == 6


def test_ctrl_c_loses_one_trial_only(tmp_path, monkeypatch):
    class Press(RunCallback):
        def after_batch(self):
            if self.job.recipe.name == 'cosine': raise KeyboardInterrupt
    monkeypatch.setitem(TWISTS, 'press', lambda learn, run, v: learn.add_cb(Press(run)))
    with pytest.raises(KeyboardInterrupt): run_plan(replace(PLAN, twist=dict(press=1)), out=tmp_path, report=lambda t: None)
    assert len(list(tmp_path.iterdir())) == 1


class AtStep(RunCallback):
    "Ctrl-C after the step `step`. Notes the scale of fp16, which counts steps, too."
    def __init__(self, run, step): self.job, self.step, self.scale = run, step, None
    def after_batch(self):
        if self.job.recipe.precision == 'fp16': self.scale = self.learn.scaler.state_dict()
        if self.job.position.step == self.step: raise KeyboardInterrupt


@pytest.mark.parametrize('step,change', [(3, {}), (13, dict(ema=.9, critic=dict(width=4), precision='fp16', phases=(Phase(3e-3, schedule='cosine'),)))], ids=['plain', 'fp16, critic'])
def test_a_stopped_trial_goes_on(step, change, tmp_path, monkeypatch):
    "In the first epoch or the second, before the first score or after it: what comes out is what an undisturbed trial gives, and nothing else is left in the folder."
    plan, stops, steps = TrialPlan('stopped', replace(TINY, **change), 64, (Variant('base'),), dict(at=1), points=2), iter([None, step, None]), []
    monkeypatch.setattr(TrialCallback, 'minutes', 0.)
    monkeypatch.setitem(TWISTS, 'at', lambda learn, run, v: (steps.append(AtStep(run, next(stops))), learn.add_cb(steps[-1])))
    go = lambda out: [r | dict(curve=[{k: v for k, v in p.items() if k != 'cpu_seconds'} for p in r['curve']]) for r in run_plan(plan, out=out, report=lambda t: None)]
    whole = go(tmp_path/'whole')
    with pytest.raises(KeyboardInterrupt): go(tmp_path/'cut')
    folder, = (tmp_path/'cut').iterdir()
    if step == 3: (folder/'checkpoint.safetensors').unlink()  # killed while a checkpoint took the place of the one before it
    assert go(tmp_path/'cut') == whole and steps[2].scale == steps[0].scale
    assert [f.suffix for f in (tmp_path/'cut').iterdir()] == ['.json']


def test_keys_tell_everything_apart():
    keys = [trial_key(dict(a=1), 2), trial_key(dict(a=2), 2), trial_key(dict(a=1), 3)]
    assert len(set(keys)) == 3 and keys[0] == trial_key(dict(a=1), 2)


def test_unknown_variant():
    with pytest.raises(InputError, match='there are base, cosine'): list(jobs(PLAN, only=['none']))


def test_work_until():
    c = [dict(work=10., images=1, hole_l1=.4), dict(work=20., images=2, hole_l1=.2), dict(work=30., images=3, hole_l1=.3), dict(work=40., images=4, hole_l1=.1)]
    assert [work_until(c, v) for v in (.5, .4, .3, .2, .15, .05)] == [10, 10, pytest.approx(15), 20, pytest.approx(37.5), None]
    assert work_until(c, .3, unit='images') == pytest.approx(1.5) and work_until([], .3) is None


def test_summary_by_hand():
    row = lambda name, seed, v, w=10.: dict(name=name, seed=seed, failed=None, curve=[dict(work=w/2, images=1, loss=1., hole_l1=2*v, psnr=20.), dict(work=w, images=2, loss=.5, hole_l1=v, psnr=21.)])
    rows = [row('paper', 0, .2), row('paper', 1, .4), row('best', 0, .15), row('best', 1, .25), row('worse', 0, .5)]
    s = summary(rows)
    assert s['paper']['mean'] == pytest.approx(.3) and s['paper']['spread'] == pytest.approx(.2) and s['paper']['seeds'] == 2
    assert s['best']['until'] == pytest.approx((5. + 9.)/2) and s['worse']['until'] is None
    table = trial_table(rows).splitlines()
    assert [line.split('|')[1].strip() for line in table[2:]] == ['best', 'paper', 'worse'] and 'not reached' in table[-1] and '0.70' in table[2]


def test_record_comes_back(tmp_path):
    rows = run_plan(PLAN, out=tmp_path/'runs', report=lambda t: None)
    for _ in range(2): record_plan(tmp_path/'t.json', PLAN, rows)
    before = (tmp_path/'t.json').read_text()
    with pytest.raises(InputError, match='not among these') as e: record_plan(tmp_path/'t.json', PLAN, rows[:1])
    assert '\n' not in str(e.value) and (tmp_path/'t.json').read_text() == before
    record_plan(tmp_path/'t.json', replace(PLAN, name='other'), rows[:1])
    record = read_json(tmp_path/'t.json')
    assert list(record['plans']) == ['tiny', 'other'] and str(tmp_path) not in json.dumps(record)
    back = record['plans']['tiny']
    assert summary(back['runs']) == summary(rows) and recipe_with(recipe_from(back['base']), **back['runs'][1]['change']) == replace(TINY, phases=(Phase(3e-3, schedule='cosine'),))
    assert {'date', 'commit', 'packages'} <= back['provenance'].keys() and back['data']['sets'][0]['sha256'].startswith(back['runs'][0]['data'])


@pytest.mark.slow
def test_command(tmp_path):
    run = lambda *args: subprocess.run([*MODULE, 'lab', 'trials', '--plan', *args], capture_output=True, text=True, timeout=300,
                                       env={k: v for k, v in os.environ.items() if k != 'PYTHONWARNINGS'})
    ok = run('steps', '--images', '64', '--out', str(tmp_path/'runs'), '--only', 'lr 1e-3; lr 2e-3', '--seeds', '1', '--record', str(tmp_path/'t.json'))
    assert ok.returncode == 0 and 'lr 2e-3' in ok.stdout and len(read_json(tmp_path/'t.json')['plans']['steps']['runs']) == 2 and ok.stderr == '', ok.stderr
    for args, word in ((('speed',), 'steps, loss'), (('steps', '--images', '3'), '64'), (('steps', '--only', 'lr 7'), 'no variant'), (('steps', '--only', 'lr 1e-3; lr 7'), 'lr 7'), (('weights',), 'give its run as start'), (('steps', '--start', 'runs/a'), 'leave out start')):
        bad = run(*args)
        assert bad.returncode == 2 and word in bad.stderr and bad.stderr.count('\n') == 1


def test_a_first_variant_that_diverged_leaves_a_table():
    "Before its first score, and after it."
    fine = dict(name='b', seed=0, failed=None, curve=[dict(work=1., images=1, loss=1., hole_l1=.2, psnr=20.)])
    for curve in ([], fine['curve']):
        rows = [dict(name='a', seed=0, failed='the loss is nan', curve=curve), fine]
        assert summary(rows)['b']['mean'] == .2 and 'the loss is nan' in trial_table(rows)
        show_trials(rows)


def test_plans_can_be_made():
    for make in PLANS.values():
        plan = make('random')
        names = [v.name for v in plan.variants]
        assert len(set(names)) == len(names) and len(list(jobs(plan))) >= len(names) and all(set(v.twist) <= set(TWISTS) for v in plan.variants)
        assert all(images % r.bs == 0 for _, _, r, _, images in jobs(plan))


def test_another_file_is_another_trial(tmp_path):
    "Features and start count by what is in them, a run's folder by its network; their names and places don't."
    from pconv_course.lab.trials import entries
    for name in ('a', 'b', 'c'): (tmp_path/name).mkdir()
    for name, text in dict(a='one', b='one', c='two').items(): (tmp_path/name/'model.safetensors').write_text(text)
    key = lambda **change: trial_key(entries(recipe_with(TINY, **change)))
    a, b, c = (key(start=str(tmp_path/n)) for n in 'abc')
    assert a == b == key(start=str(tmp_path/'a'/'model.safetensors')) and len({a, c, key()}) == 3
    f, g = (key(features=str(tmp_path/n/'model.safetensors')) for n in 'ac')
    assert f != g


def test_recorded_trials_are_of_todays_plans():
    "Every recorded trial is one that today's plans ask for, with today's recipe, and every plan has its record."
    record = read_json(RESULTS/'trials.json')['plans']
    assert set(record) == set(PLANS)
    for name, d in record.items():
        plan = weights_plan('random', d['base']['start']) if name == 'weights' else PLANS[name]('random')
        base = recipe_from(d['base'] | dict(features='none' if d['base']['features'] == 'none' else 'random'))
        assert public_recipe(base) == public_recipe(plan.base) and d['images'] == plan.images and d['twist'] == plan.twist
        plain = lambda recipe: public_recipe(replace(recipe, name='', seed=0, features='none' if recipe.features == 'none' else 'random'))
        want = {(v.name, seed): (plain(recipe), v.twist, images) for v, seed, recipe, _, images in jobs(plan)}
        got = {(r['name'], r['seed']): (plain(recipe_with(base, **r['change'])), r['twist'], r['images']) for r in d['runs']}
        assert got == want


def test_twists_and_scores_of_ones_own(tmp_path):
    "A further twist reaches the learner; scores come from the network that was trained; both are part of a trial's key."
    seen = []
    def mark(learn, run, v): seen.append((run.recipe.name, v))
    def level(net, held): return dict(level=float(next(net.parameters()).abs().mean()), pairs=len(held.gt))
    plan = replace(PLAN, twist=dict(mark=3), variants=PLAN.variants[:1])
    rows = run_plan(plan, out=tmp_path, seeds=1, report=lambda t: None, twists=dict(mark=mark), scores=level)
    assert seen == [('base', 3)] and rows[0]['scores']['pairs'] == 24
    start = float(next(recipe_learner(TINY, device='cpu').model.parameters()).abs().mean())
    assert rows[0]['scores']['level'] != pytest.approx(start, abs=1e-9)
    run_plan(plan, out=tmp_path, seeds=1, report=lambda t: None, twists=dict(mark=mark))
    assert len(seen) == 2 and len(list(tmp_path.iterdir())) == 2
    with pytest.raises(InputError, match="unknown twist 'mark'; there are output_range"): run_plan(plan, out=tmp_path/'other', report=lambda t: None)


def test_scores_at_every_point(tmp_path):
    "What a plan measures often is in every point of the curve and not at the end; it costs no time of the training; it makes another trial."
    def level(net, held): return dict(level=float(next(net.parameters()).abs().mean()))
    def slow(net, held):
        end = time.process_time() + 1
        while time.process_time() < end: pass
        return level(net, held)
    once, often, late = (run_plan(replace(PLAN, variants=PLAN.variants[:1]), out=tmp_path, seeds=1, report=lambda t: None, **how)[0] for how in (dict(scores=level), dict(often=level), dict(often=slow)))
    assert len(list(tmp_path.iterdir())) == 3 and 'scores' not in often
    levels = [p.pop('level') for p in often['curve']]
    assert levels[0] != levels[1] == once['scores']['level'] and all('level' not in p for p in once['curve'])
    assert late['curve'][-1]['cpu_seconds'] < often['curve'][-1]['cpu_seconds'] + 1


def test_looks_of_the_fourth_plan(monkeypatch):
    "Texture always, LPIPS where its weights are: 0 for the truth itself."
    held = HeldOut(open_faces('drawn', 32, 20), 32, InpaintLoss.pixels())
    class Truth(torch.nn.Module):
        def __init__(self): super().__init__(); self.p, self.at = torch.nn.Parameter(torch.zeros(1)), 0
        def forward(self, inp, m):
            self.at += len(inp)
            return held.gt[(self.at - len(inp)) % len(held.gt):][:len(inp)]
    monkeypatch.setattr('pconv_course.lab.plans.open_lpips', lambda: (None, 'no weights'))
    assert looks(Truth(), held) == dict(texture=1.)
    monkeypatch.setattr('pconv_course.lab.plans.open_lpips', lambda: (lambda comp, gt: (comp - gt).abs().amax((1, 2, 3)), None))
    assert looks(Truth(), held) == dict(texture=1., lpips=0.)


def test_holes_apart_of_the_fifth_plan(monkeypatch):
    "Each kind of hole by itself: a network that paints one grey has its error there and its distance, and in known pixels none."
    class Grey(torch.nn.Module):
        def __init__(self): super().__init__(); self.level = torch.nn.Parameter(torch.tensor(0.5))
        def forward(self, inp, m): return torch.ones_like(inp)*self.level
    held = HeldOut(open_faces('drawn', 32, 20), 32, InpaintLoss.pixels())
    monkeypatch.setattr('pconv_course.lab.plans.open_lpips', lambda: (None, 'no weights'))
    error = by_kind(Grey(), held)
    assert [*error] == [f'{k}_l1' for k in HOLES]
    for kind in HOLES:
        m = MaskBank.make(len(held.gt), 32, 10**6 + 2, kind).fixed(len(held.gt), 2)
        hole = (m < .5).expand_as(held.gt)
        assert error[f'{kind}_l1'] == pytest.approx(np.mean([(g - .5).abs()[h].mean() for g, h in zip(held.gt, hole)]), abs=2e-5)
    monkeypatch.setattr('pconv_course.lab.plans.open_lpips', lambda: (lambda comp, gt: (comp - gt).abs().mean((1, 2, 3)), None))
    both = by_kind(Grey(), held)
    assert both['half_lpips'] > both['sparse_lpips'] > 0 and {k: both[k] for k in error} == error


def test_scores_are_of_the_averaged_weights():
    level = lambda net, held: dict(level=float(next(net.parameters()).abs().sum()))
    a, b = (trial(replace(TINY, ema=e), 'drawn', 32, points=1, scores=level)['scores']['level'] for e in (0., .9))
    assert a != b
    assert 'scores' not in trial(replace(TINY, phases=(Phase(1e30),)), 'drawn', 64, points=1, scores=level)


def test_bf16_twist_reaches_features_behind_another_module(spy):
    learn = recipe_learner(recipe_with(TINY, features='random', features_reduce=2), device='cpu')
    TWISTS['features_bf16'](learn, None, 1)
    assert learn.loss_func.features.features.half == torch.bfloat16
    TWISTS['features_bf16'](recipe_learner(TINY, device='cpu'), None, 1)


def test_run_trials(tmp_path):
    rows = run_trials('steps', images=64, seeds=1, out=tmp_path/'runs', only=['lr 1e-3'], record=tmp_path/'t.json', report=lambda t: None)
    assert [r['name'] for r in rows] == ['lr 1e-3'] and read_json(tmp_path/'t.json')['plans']['steps']['images'] == 64
    with pytest.raises(InputError, match='steps, loss'): run_trials('speed')


def test_end_scores_of_the_third_plan():
    "A network that paints grey adds no texture of its own, only the edges of its holes; lengths of gradients are parts of the hole term's."
    class Grey(torch.nn.Module):
        def __init__(self): super().__init__(); self.level = torch.nn.Parameter(torch.tensor(0.5))
        def forward(self, inp, m): return torch.ones_like(inp)*self.level
    held = HeldOut(open_faces('drawn', 32, 20), 32, InpaintLoss(random_features()))
    grey = fills(Grey(), held)
    assert 0 < grey['texture'] < fills(recipe_learner(TINY, device='cpu').model, held)['texture']
    assert grey['pulls']['hole'] == 1 and [*grey['pulls']] == [*PAPER_WEIGHTS]
