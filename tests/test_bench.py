"The race: order, ratios, memory, peers from their files, the record and what happens when a run is stopped or refused."
import json
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from calling import shell
from pconv_course.lab import bench as bench_module
from pconv_course.lab import charts
from pconv_course.lab import peers as peers_module
from pconv_course import networks as networks_module
from pconv_course.lab.bench import (SETTINGS, BenchTask, adam, bench, bench_settings, compare, entrants, measure_all, networks, peak_bytes, quick, race, rotated, rows,
    seconds, step_in_parts, tasks, vgg_shaped)
from pconv_course.lab.charts import between, chart, mode_table, parts_chart, reached
from pconv_course.lab.peers import NaotoUNet, NvidiaUNet, check_layer, find_peers, run_file
from pconv_course.base.core import UsageError
from pconv_course.fast import FastPConvUNet
from pconv_course.losses import random_features
from pconv_course.objective import InpaintLoss
from pconv_course.masks import MaskBank
from pconv_course.unet import PConvUNet

TINY = quick(SETTINGS) | dict(modes=['one thread'], whole_modes=['one thread'], threads=1, masks=8)

LAYER = """
import torch
from pconv_course.pconv import PartialConv2d as Own
class PartialConv2d(Own):
    "slide_winsize is the word that this file is known by"
    def __init__(self, *args, multi_channel=False, return_mask=False, **kwargs): super().__init__(*args, **kwargs)
    def forward(self, x, m):
        assert m.shape == x.shape
        m_sum = m.sum(1, keepdim=True)
        pairs = [(m[:, :1], x.shape[1])] if (m_sum.remainder(x.shape[1]) == 0).all() else [(m[:, i:i+1], 1) for i in range(x.shape[1])]
        out, m_out = super().forward(x, pairs)
        return out, m_out.expand_as(out)
"""
NET = """
import torch
class PCBActiv(torch.nn.Conv2d): pass
class PConvUNet(torch.nn.Module):
    def __init__(self, layer_size=7):
        super().__init__()
        self.conv, self.layer_size = PCBActiv(3, 3, 3, padding=1), layer_size
    def forward(self, x, m):
        assert m.shape == x.shape
        return self.conv(x*m), m
    def train(self, mode=True): super().train(mode)
"""


@pytest.fixture
def light(monkeypatch):
    "A feature network of a few channels, so that the whole step takes milliseconds."
    monkeypatch.setattr(bench_module, 'vgg_shaped', lambda: random_features(width=2))


@pytest.fixture
def peers(tmp_path):
    "Checkouts under other names than usual, one of them deeper than the other."
    for file, text in (('a peer/models/partialconv2d.py', LAYER), ('b/net.py', NET), ('c/net.py', 'x = 1')):
        (tmp_path/'peers'/file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path/'peers'/file).write_text(text)
    return tmp_path/'peers'


class Clock:
    "A clock that only moves when told to."
    now = 0.
    def __call__(self): return self.now
    def work(self, n): return lambda: setattr(self, 'now', self.now + n)


def test_race_rotates_keeps_and_goes_on():
    clock, log, kept = Clock(), [], []
    def runner(name, n):
        def f(): log.append(name), clock.work(n)()
        return f
    runners = {k: runner(k, n) for k, n in dict(a=1., b=2., c=4.).items()}
    first = race(runners, 2, clock, keep=lambda r: kept.append(len(r)))
    assert first == [dict(a=1., b=2., c=4.)]*2 and ''.join(log) == 'abcbca' and kept == [1, 2]
    assert race(runners, 4, clock, done=first) == [dict(a=1., b=2., c=4.)]*4 and ''.join(log) == 'abcbca' + 'cababc'
    assert race(runners, 2, clock, done=first) == first and len(log) == 12
    assert list(first[0]) == ['a', 'b', 'c']


def test_compare_is_a_median_of_ratios_within_rounds():
    rounds = [dict(a=1., b=2.), dict(a=10., b=30.), dict(a=2., b=8.)]
    assert compare(rounds, 'b', 'a') == dict(ratio=3., q1=2.5, q3=3.5, seconds=8.)
    assert compare(rounds[:1], 'b', 'a') == dict(ratio=2., q1=2., q3=2., seconds=2.)
    assert rotated([1, 2, 3], 5) == [3, 1, 2]


def test_seconds_by_any_clock():
    clock = Clock()
    assert seconds(clock.work(3.), clock) == 3.


def test_peak_counts_what_lives_together():
    def many(n): return lambda: [torch.ones(25_000) for _ in range(n)]
    assert [peak_bytes(many(n)) for n in (1, 5)] == [100_000, 500_000]
    def one_by_one():
        for _ in range(5): torch.ones(25_000)
    assert peak_bytes(one_by_one) == 100_000
    kept = torch.ones(10**6)
    assert peak_bytes(lambda: kept.add_(0)) < 1000


def test_peak_of_a_step_is_the_same_every_time():
    net, gt, m = FastPConvUNet(3, 8), torch.rand(2, 3, 64, 64), torch.ones(2, 1, 64, 64)
    step = BenchTask(net, 'fp32', gt, m).step
    step()
    assert peak_bytes(step) == peak_bytes(step) > 4*sum(p.numel() for p in net.parameters())


def test_peers_are_found_by_what_is_in_them(peers, tmp_path):
    found = find_peers(peers)
    assert {k: v.parts[-2] for k, v in found.items()} == {"NVIDIA's layer": 'models', "naoto0804's net": 'b'}
    assert list(find_peers(peers/'b')) == ["naoto0804's net"]
    for wrong, word in ((tmp_path/'no', 'no such folder'), (peers/'c', 'naoto0804/pytorch')):
        with pytest.raises(UsageError, match=word): find_peers(wrong)


def test_a_file_of_a_peer_leaves_no_trace(peers, tmp_path):
    before = sorted(peers.rglob('*'))
    assert run_file(find_peers(peers)["naoto0804's net"]).PConvUNet(4).layer_size == 4
    assert sorted(peers.rglob('*')) == before
    (tmp_path/'bad.py').write_text('import no_such_module_anywhere')
    with pytest.raises(UsageError, match='no_such_module_anywhere'): run_file(tmp_path/'bad.py')


def test_the_layer_of_a_peer_is_checked(peers):
    layer = run_file(find_peers(peers)["NVIDIA's layer"]).PartialConv2d
    assert max(check_layer(layer).values()) < 1e-12
    class Wrong(layer):
        def forward(self, x, m):
            out, m_out = super().forward(x, m)
            return out + 1e-5*out.detach().abs().max()*m_out, m_out
    class WrongMask(layer):
        def forward(self, x, m):
            out, m_out = super().forward(x, m)
            return out, torch.ones_like(m_out)
    for wrong in (Wrong, WrongMask):
        with pytest.raises(UsageError, match='differ'): check_layer(wrong)


def test_shape_around_a_layer_of_many_channels(peers):
    "The U-Net with somebody else's layer computes what ours does."
    layer = run_file(find_peers(peers)["NVIDIA's layer"]).PartialConv2d
    torch.manual_seed(0)
    ours, theirs = PConvUNet(3, 4).double(), NvidiaUNet(layer, depth=3, width=4).double()
    theirs.load_state_dict(ours.state_dict())
    x, m = torch.rand(2, 3, 40, 24).double(), (torch.rand(2, 1, 40, 24) < .1).double()
    assert_close(theirs(x, m), ours(x, m), atol=1e-12, rtol=1e-12)


def test_naoto_has_one_width(peers):
    net = run_file(find_peers(peers)["naoto0804's net"]).PConvUNet
    assert NaotoUNet(net, depth=4, width=64)(torch.rand(1, 3, 16, 16), torch.ones(1, 1, 16, 16)).shape == (1, 3, 16, 16)
    for shape in (dict(depth=7, width=32), dict(depth=3, width=64)):
        with pytest.raises(UsageError, match='width 64'): NaotoUNet(net, **shape)


def test_own_networks_share_parameters_key_for_key():
    nets = networks(depth=3, width=4)
    state = nets['plain'].state_dict()
    for net in nets.values(): net.load_state_dict(state)
    x, m = torch.rand(2, 3, 32, 32), torch.ones(2, 1, 32, 32)
    want = nets['readable'].eval()(x, m)
    assert_close(nets['fast'].eval()(x, m), want, atol=1e-5, rtol=1e-4)


def test_tasks_are_what_training_does(light):
    settings = TINY | dict(precisions=['fp32', 'bf16', 'fp16'])
    nets = networks(depth=3, width=4)
    made = tasks(nets, {k: adam(n) for k, n in nets.items()}, settings, 2)
    assert list(made) == [f'{k}, {p}' for p in settings['precisions'] for k in (*nets, 'plain, loss at once')]
    for name, t in made.items():
        assert t.loss.chunk == (None if 'at once' in name else 'auto')
        assert t.loss.features.half == (torch.bfloat16 if name.endswith('bf16') else None)
        assert t.inp.is_contiguous(memory_format=torch.channels_last) and all(p.is_contiguous(memory_format=torch.channels_last) for p in t.net.parameters() if p.dim() == 4)
        assert t.opt.defaults['fused']
        assert torch.equal(t.m, made['plain, fp32'].m) and (t.inp[(t.m == 0).expand_as(t.inp)] == 0).all()
        assert t.out().dtype == torch.float32


@pytest.mark.parametrize('precision', ['fp32', 'bf16'])
def test_a_step_in_parts_is_the_whole_step(precision):
    torch.manual_seed(0)
    bank, faces = MaskBank.make(8, 32), torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    a = FastPConvUNet(3, 4)
    b = FastPConvUNet(3, 4)
    b.load_state_dict(a.state_dict())
    torch.manual_seed(1)
    m = bank.sample(2)
    torch.manual_seed(1)
    gt, loss = faces.float().div(255), InpaintLoss(random_features(width=2))
    took = step_in_parts(BenchTask(b, precision, gt, m, loss, adam(b)), bank, faces)
    BenchTask(a, precision, gt, m, loss, adam(a)).whole()
    for p, q in zip(a.state_dict().values(), b.state_dict().values()): assert_close(q, p, atol=1e-7, rtol=1e-5)
    assert set(took) == {'data', 'masks from the bank', 'encoder', 'decoder', 'loss', 'Adam', 'pixel terms'} and min(took.values()) > 0


@pytest.fixture
def record(light, peers, tmp_path, monkeypatch):
    monkeypatch.setattr(bench_module, 'import_seconds', lambda: .1)
    said = []
    made = bench(TINY, tmp_path/'speed.json', find_peers(peers), said.append)
    assert said[0].startswith("left out: naoto0804's net has width 64")
    return made


@pytest.mark.slow
def test_record(record, tmp_path):
    assert json.loads((tmp_path/'speed.json').read_text()) == json.loads(json.dumps(record)) and not (tmp_path/'speed.json.part').exists()
    assert str(tmp_path) not in (tmp_path/'speed.json').read_text()
    names = [(r['net'], r['precision']) for r in record['rows']]
    assert len(names) == len(set(names)) == 6*2 and record['peers'] == sorted(peers_module.PEERS) and max(record['check'].values()) < 1e-12
    for r in record['rows']:
        for c in ('forward', 'step', 'whole'): assert r[f'{c}_q1'] <= r[c] <= r[f'{c}_q3'] and r[f'{c}_s'] > 0
        if (r['net'], r['precision']) == ('plain', 'fp32'): assert all(r[c] == 1 for c in charts.BENCH_COLUMNS)
    step = record['times']['one thread']['step']
    assert len(step) == 2 and between(record, 'step', 'fast, fp32', 'readable, bf16', 'one thread') == compare(step, 'fast, fp32', 'readable, bf16')['ratio']
    assert set(record['details']) == {'decoder', 'kernels_twice', 'chunks', 'parts', 'masks', 'import'}
    assert [c['chunk'] for c in record['details']['chunks']] == [1, 2] and record['details']['chunks'][-1]['ratio'] == 1
    assert len(record['details']['decoder']) == 2*3 and min(record['details']['masks'].values()) > 0
    text = mode_table(record, 'one thread')
    assert len(text.splitlines()) == 13 and 'NVIDIA' in text
    assert len(chart(record, 'one thread').axes) == 5 and parts_chart(record).axes
    assert len(reached(record)) == len(charts.GOALS) and {r['met'] for r in reached(record)} <= {'yes', 'no', 'not measured'}


def test_goals_know_their_direction():
    record = dict(settings=dict(modes=['m']), memory={}, times={'m': {'step': [{'fast, fp32': 1., 'plain, fp32': 2., 'plain, same decoder, fp32': .5,
                                                                               "NVIDIA's layer, fp32": 3., "naoto0804's net, fp32": 2.}]}})
    met = {r['goal']: r['met'] for r in reached(record | dict(memory=dict(peak={}, whole_peak={})))}
    assert met['step / plain'] == 'yes' and met['step / plain, same decoder'] == 'no'
    assert met["step: NVIDIA's layer / ours"] == 'yes' and met["step: naoto0804's net / ours"] == 'no'
    assert met['forward / plain'] == met['peak of the step / plain'] == 'not measured'


def test_a_column_that_was_not_measured():
    row = dict(mode='m', net='n', precision='fp32', step=1., step_q1=.9, step_q3=1.1)
    assert mode_table(dict(rows=[row]), 'm').splitlines()[1].split() == ['n', 'fp32', '-', '1.000', '(0.900-1.100)', '-', '-', '-']
    assert len(chart(dict(rows=[row]), 'm').axes) == 1


@pytest.mark.slow
def test_a_stopped_run_goes_on(light, tmp_path, monkeypatch):
    monkeypatch.setattr(bench_module, 'measure_details', lambda state, keep, say: state.setdefault('details', {}))
    monkeypatch.setattr(bench_module, 'networks', lambda **config: {'plain': networks_module.PlainUNet(**config), 'fast': FastPConvUNet(**config)})
    out, said, tiny = tmp_path/'speed.json', [], TINY | dict(precisions=['fp32'])
    out.write_text('the record of last year')
    def stop(line):
        said.append(line)
        if line.startswith('one thread, step: round 1'): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): bench(tiny, out, say=stop)
    assert out.read_text() == 'the record of last year'
    before = json.loads((tmp_path/'speed.json.part').read_text())['times']['one thread']
    assert {k: len(v) for k, v in before.items()} == dict(forward=2, step=1)
    again = []
    times = bench(tiny, out, say=again.append)['times']['one thread']
    assert times['forward'] == before['forward'] and times['step'][:1] == before['step'] and len(times['step']) == 2
    assert again[0].startswith('going on') and not any('forward: round' in line for line in again)
    (tmp_path/'speed.json.part').write_text(json.dumps(dict(settings=tiny | dict(batch=3), peers=[], packages={}, times={'one thread': 1})))
    fresh = []
    bench(tiny, out, say=fresh.append)
    assert any('forward: round 1 of 2' in line for line in fresh)


@pytest.mark.slow
def test_compiled_networks_compute_the_same():
    "Left out with a line where there is no compiler; else the same weights and numbers."
    nets, _ = entrants(TINY | dict(compile=True))
    x, m = torch.rand(2, 3, 32, 32), (torch.rand(2, 1, 32, 32) < .7).float()
    for k in ('plain, same decoder', 'fast'):
        assert next(nets[f'{k}, compiled'].parameters()) is next(nets[k].parameters())
        with torch.no_grad(): assert_close(nets[f'{k}, compiled'].eval()(x*m, m), nets[k].eval()(x*m, m), atol=1e-5, rtol=1e-4)


def test_without_a_compiler(monkeypatch):
    said = []
    monkeypatch.setattr(bench_module.shutil, 'which', lambda name: None)
    assert list(entrants(TINY | dict(compile=True), say=said.append)[0]) == list(networks(depth=2, width=1)) and said[0].startswith('left out: torch.compile')


def test_everybody_takes_part_at_full_width(peers):
    nets, check = entrants(TINY | dict(depth=4, width=64), find_peers(peers))
    assert list(nets) == [*networks(depth=2, width=1), *peers_module.PEERS] and max(check.values()) < 1e-12


def test_whole_step_only_where_wanted(light):
    state = dict(settings=TINY | dict(precisions=['fp32']) | dict(modes=['one thread', 'all threads']) | dict(whole_modes=['all threads'], rounds=1), times={})
    measure_all(entrants(state['settings'])[0], state, say=lambda line: None)
    assert [list(v) for v in state['times'].values()] == [['forward', 'step'], ['forward', 'step', 'whole']]
    assert ['whole' in r for r in rows(state)] == [False]*5 + [True]*5


def test_options():
    assert bench_settings('cpu', False, 'both', {})['modes'] == ['one thread', 'all threads']
    assert bench_settings('cpu', False, 'both', {})['whole_modes'] == bench_settings('cpu', False, 'all', {})['modes'] == ['all threads']
    assert bench_settings('cpu', True, 'one', dict(batch=3, size=None))['batch'] == 3 and bench_settings('cpu', True, 'one', {})['size'] == 32
    for args in (('tpu', False, 'both'), ('cpu', False, 'two')):
        with pytest.raises(UsageError, match='use'): bench_settings(*args, {})
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match='no CUDA device'): bench_settings('cuda', False, 'both', {})


def test_vgg_shaped_is_a_vgg16():
    convs = [m for m in vgg_shaped().modules() if isinstance(m, torch.nn.Conv2d)]
    assert [tuple(c.weight.shape[:2]) for c in convs] == [(64, 3), (64, 64), (128, 64), (128, 128), (256, 128), (256, 256), (256, 256)]


@pytest.mark.parametrize('args,word', [(['--batch', '0'], '--batch is 0'), *(pytest.param(*o, marks=pytest.mark.slow) for o in [
    (['--peers', 'nowhere'], 'nowhere: no such folder'), (['--peers', '.'], 'holds neither'), (['--mode', 'three'], '--mode three'), (['--device', 'tpu'], '--device tpu')])])
def test_one_line_for_what_cannot_be_done(tmp_path, args, word):
    code, out, err = shell('lab bench', *args, cwd=tmp_path)
    assert code == 2 and out == '' and err.startswith('pconv lab bench: error: ') and word in err and len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_quick_from_a_shell(tmp_path):
    (tmp_path/'nbs'/'results').mkdir(parents=True)
    code, out, err = shell('lab bench', '--quick', '--mode', 'one', '--threads', '1', '--device', 'cpu', cwd=tmp_path)
    assert code == 0, err
    files = list(Path(tmp_path/'nbs'/'results').iterdir())
    assert len(files) == 1 and files[0].name.endswith('-quick.json') and out.rstrip().endswith(f'nbs/results/{files[0].name}')
    assert 'plain, loss at once' in out and json.loads(files[0].read_text())['settings']['size'] == 32
