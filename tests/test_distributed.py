"One batch in pieces, one run in several processes: the same images, masks, weights and scores as one process computing whole batches."
import json
import os
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fastai.callback.progress import ProgressCallback
from forking import forks
from safetensors.torch import load_file
from torch import nn
from torch.testing import assert_close

from pconv_course.base.core import InputError
from pconv_course.data import face_dls
from pconv_course.fast import FastPConvUNet
from pconv_course.step import PartDL, Parts, every_nth, part_of, parts_callbacks
from pconv_course.runs import team
from pconv_course.runs.checkpoint import latest_checkpoint
from pconv_course.recipe import Phase, Recipe, recipe_learner
from pconv_course.weights import load_model

torch.set_num_threads(1)
# 45 faces: 32 or so to train, in batches of 6, and nine to score in two batches, of which each of two processes has one
RECIPE = Recipe(name='shared', size=32, n_faces=45, valid=0.2, masks='stroke', n_masks=20, depth=3, width=6, bs=6, min_steps=1, warmup=3, ema=0.5,
                phases=(Phase(2e-3, epochs=1, schedule='cosine'), Phase(6e-4, epochs=1, freeze_bn=True)))


def job(out, recipe=RECIPE, **more): return dict(recipe=recipe and asdict(recipe), out=str(out), **more)


def scores(out): return json.loads((Path(out)/'result.json').read_text())['scores']


def close(a, b, rtol=1e-4):
    "The same run up to rounding: scores and averaged weights. Adam divides by the size of a gradient, so rounding in tiny ones is seen."
    keys = [k for k in scores(a)[0] if k.startswith(('train_', 'valid_'))]
    for x, y in zip(scores(a), scores(b), strict=True): assert_close([x[k] for k in keys], [y[k] for k in keys], rtol=rtol, atol=0)
    assert [(x['step'], x['images'], x['lr']) for x in scores(a)] == [(y['step'], y['images'], y['lr']) for y in scores(b)]
    assert_close(*(load_file(Path(o)/'model.safetensors') for o in (a, b)), rtol=1e-3, atol=1e-4)


def same(a, b):
    for name in ('model', 'checkpoint'): assert_close(*(load_file(Path(o)/f'{name}.safetensors') for o in (a, b)), rtol=0, atol=0)


def seen(probe):
    "{step: gt and m of the whole batch, its parts in order}, and how many parts."
    parts = {tuple(map(int, p.name.split('-'))): load_file(p) for p in Path(probe).iterdir()}
    return {s: {k: torch.cat([parts[p][k] for p in sorted(parts) if p[0] == s]) for k in ('gt', 'm')} for s in {p[0] for p in parts}}, len(parts)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    "One process, whole batches, batch norm as in evaluation; with what it saw."
    out = tmp_path_factory.mktemp('whole')
    (out/'probe').mkdir()
    assert forks().run(job(out/'run', probe=out/'probe', bn_eval=True)) == [(0, '')]
    return out


# which images

def test_parts_make_the_batch():
    "Over all processes and pieces, every batch is there once, in order; skipped batches are skipped in all parts."
    dl = face_dls('drawn', size=16, bs=12, n=45, valid=0.1, device='cpu', flip=True).train
    dl.set_epoch(3)
    batches = torch.stack([b[0] for b in dl])
    for world, pieces in ((2, 1), (1, 3), (2, 3), (3, 2), (4, 1)):
        n = 12//world//pieces
        for skip in (0, 1, 2):
            parts = [part_of(dl, r, world, pieces) for r in range(world)]
            for p in parts: p.set_epoch(3, skip*pieces)
            got = torch.stack([torch.stack([b[0] for b in p]) for p in parts], 1)
            assert_close(got.reshape(-1, 12, 3, 16, 16), batches[skip:], rtol=0, atol=0)
            assert [len(p) for p in parts] == [len(batches)*pieces]*world and parts[0].bs == n


def test_batches_that_cannot_be_shared():
    dl = face_dls('drawn', size=16, bs=12, n=45, valid=0.1, device='cpu').train
    with pytest.raises(InputError, match='12 faces cannot be cut into 5 equal parts'): part_of(dl, world=5)
    few = face_dls('drawn', size=16, bs=60, n=45, valid=0.1, device='cpu').train
    with pytest.raises(InputError, match='fewer than a batch of 60'): part_of(few, pieces=2)


def test_held_out_batches_are_shared():
    dl = face_dls('drawn', size=16, bs=2, n=40, valid=0.2, device='cpu').valid
    batches = [b[0] for b in dl]
    for world in (1, 2, 3, len(batches) + 1):
        for rank in range(world): assert_close([b[0] for b in every_nth(dl, rank, world)], batches[rank::world], rtol=0, atol=0)


# pieces, one after the other

@pytest.mark.parametrize('precision', ['fp32', 'fp16'])
def test_pieces_are_the_batch(whole, tmp_path, precision):
    "Gradients of three pieces add up to that of the batch; steps, schedule, averaged weights and log count whole batches."
    (tmp_path/'probe').mkdir()
    r = replace(RECIPE, accumulate=3, precision=precision)
    assert forks().run(job(tmp_path/'run', r, probe=tmp_path/'probe', bn_eval=True, log_every=1)) == [(0, '')]
    (a, n), (b, m) = seen(whole/'probe'), seen(tmp_path/'probe')
    assert_close(a, b, rtol=0, atol=0)
    assert m == 3*n
    if precision == 'fp32': close(whole/'run', tmp_path/'run')
    steps = [json.loads(o)['step'] for o in (tmp_path/'run'/'log.jsonl').read_text().splitlines() if '"kind": "step"' in o]
    assert steps == list(range(1, n + 1))


# several processes

def test_two_processes_are_one(whole, tmp_path):
    "Same images, same masks, different ones in each process, the same result; the second process writes nothing."
    (tmp_path/'probe').mkdir()
    jobs = [job(tmp_path/f'run{r}', probe=tmp_path/'probe', bn_eval=True) for r in range(2)]
    assert forks().run(*jobs, together=True) == [(0, ''), (0, '')]
    (a, n), (b, m) = seen(whole/'probe'), seen(tmp_path/'probe')
    assert_close(a, b, rtol=0, atol=0)
    assert m == 2*n
    for o in b.values(): assert not torch.equal(o['m'][:3], o['m'][3:])
    close(whole/'run', tmp_path/'run0')
    assert not (tmp_path/'run1').exists()
    assert json.loads((tmp_path/'run0'/'result.json').read_text())['provenance']['processes'] == 2


def test_two_processes_with_pieces(whole, tmp_path):
    assert [o[0] for o in forks().run(*[job(tmp_path/'run', replace(RECIPE, accumulate=3), bn_eval=True)]*2, together=True)] == [0, 0]
    close(whole/'run', tmp_path/'run')


def test_signal_to_one_stops_both_and_both_resume(tmp_path):
    "With batch norm as it is (each process normalises its part, the first one's statistics count): the same bits as without the stop."
    assert forks().run(*[job(tmp_path/'whole')]*2, together=True) == [(0, '')]*2
    stopped = forks().run(*[job(tmp_path/'cut', at=7, do=['SIGTERM'], only=1)]*2, together=True)
    assert [code for code, _ in stopped] == [130, 130] and stopped[1][1] == ''
    assert stopped[0][1].count('\n') == 1 and 'pconv train --resume' in stopped[0][1]
    assert latest_checkpoint(tmp_path/'cut')[0]['position']['step'] == 8
    assert forks().run(*[job(tmp_path/'cut', None)]*2, together=True) == [(0, '')]*2
    same(tmp_path/'whole', tmp_path/'cut')


@pytest.mark.parametrize('who', [0, 1])
def test_one_dies_and_all_end(tmp_path, who):
    "kill -9: the others end within seconds, with a line that says why and how to go on; one process alone can go on."
    ended = forks().run(*[job(tmp_path/'run', save_minutes=0, at=7, do=['SIGKILL'], only=who)]*2, together=True, timeout=60)
    assert ended[who] == (-9, '')
    code, line = ended[1 - who]
    line = [o for o in line.splitlines() if o.startswith('pconv train: ')]
    assert code == 2 and len(line) == 1 and 'another process of this run has ended' in line[0] and 'pconv train --resume' in line[0]
    assert latest_checkpoint(tmp_path/'run')[0]['position']['step'] in (6, 7)
    assert forks().run(job(tmp_path/'run', None)) == [(0, '')]


def test_nan_in_one_is_told_once(tmp_path):
    ended = forks().run(*[job(tmp_path/'run', at=7, do=['nan'], only=1)]*2, together=True, timeout=60)
    assert [code for code, _ in ended] == [2, 2] and ended[0][1] == ''
    assert ended[1][1].count('\n') == 1 and 'face 0 of the batch' in ended[1][1]
    assert load_file(tmp_path/'run'/'batch.safetensors')['gt'].shape[0] == 3
    assert all(v.isfinite().all() for v in load_model(tmp_path/'run')[0].state_dict().values())


def test_complaints_before_the_start_are_told_once(tmp_path):
    ended = forks().run(*[job(tmp_path/'run', replace(RECIPE, bs=7))]*2, together=True, timeout=60)
    assert [code for code, _ in ended] == [2, 2] and sorted(text.count('\n') for _, text in ended) == [0, 1]
    assert 'cannot be cut into 2 equal parts' in ended[0][1]
    (tmp_path/'mine').mkdir()
    (tmp_path/'mine'/'a').touch()
    ended = forks().run(*[job(tmp_path/'mine')]*2, together=True, timeout=60)
    assert [code for code, _ in ended] == [2, 2] and sorted(text.count('\n') for _, text in ended) == [0, 1]


@pytest.mark.slow
def test_launcher(tmp_path):
    "accelerate launch, with the command (its --cpu starts one process, or many through MPI; --multi_gpu starts them on CPUs as well)."
    launch = [sys.executable, '-W', 'ignore', '-m', 'accelerate.commands.launch', '--multi_gpu', '--num_processes', '2', '--num_machines', '1',
              '--mixed_precision', 'no', '--dynamo_backend', 'no', '--main_process_port', '0']
    command = ['--module', 'pconv_course', 'train', '--device', 'cpu', '--out', 'run', '--size', '32', '--bs', '8', '--minutes', '0.02', '--accumulate', '2']
    r = subprocess.run([*launch, *command], cwd=tmp_path, capture_output=True, text=True, timeout=300,
                       env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONWARNINGS': 'ignore', 'CUDA_VISIBLE_DEVICES': ''})
    assert r.returncode == 0, r.stderr
    assert r.stdout.count('the network is in run/model.safetensors') == 1
    assert json.loads((tmp_path/'run'/'result.json').read_text())['provenance']['processes'] == 2


# what GPUs do differently

def test_synchronised_batch_norm_is_seen_as_batch_norm():
    "distrib_ctx converts batch norm on GPUs. In evaluation the result must stay, also with statistics that are not the first ones."
    torch.manual_seed(0)
    net = FastPConvUNet(depth=3, width=6)
    gt, m = torch.rand(2, 3, 32, 32), (torch.rand(2, 1, 32, 32) > .3).float()
    for _ in range(3): net(gt*m, m)
    want = net.eval()(gt*m, m)
    got = nn.SyncBatchNorm.convert_sync_batchnorm(net).eval()(gt*m, m)
    assert_close(got, want)


def test_distrib_ctx_of_a_plain_learner_needs_no_run():
    "Outside a launcher fastai's context changes nothing."
    import fastai.distributed  # noqa: F401
    from pconv_course.learner import pconv_learner
    from pconv_course.masks import MaskBank
    learn = pconv_learner(face_dls('drawn', size=32, bs=4, n=20, device='cpu'), MaskBank.make(5, size=32, kind='stroke'), FastPConvUNet(depth=3, width=4))
    with learn.distrib_ctx(), learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert not isinstance(learn.dls.train, PartDL) and not [cb for cb in learn.cbs if type(cb).__module__.endswith('parallel')]


@pytest.mark.parametrize('rank', [0, 1])
def test_detached_it_has_the_callbacks_of_before(rank, monkeypatch):
    "Also the `Parts` of a recipe that accumulates, and the bar that only the first process shows."
    monkeypatch.setattr(team, 'rank_distrib', lambda: rank)
    for accumulate in (1, 2):
        recipe = replace(RECIPE, accumulate=accumulate)
        learn = recipe_learner(recipe, device='cpu', cbs=parts_callbacks(recipe))
        before = {*learn.cbs}
        learn.to_distributed()
        assert {*learn.cbs} - before and [cb for cb in learn.cbs if isinstance(cb, Parts)] and (not rank or not [cb for cb in learn.cbs if isinstance(cb, ProgressCallback)])
        assert {*learn.detach_distributed().cbs} == before


def test_whose_fault_it_was():
    "Another process that ended is told with its words; a fault of this one stays what it is."
    class Learn:
        @contextmanager
        def distrib_ctx(self): yield
    two = SimpleNamespace(world=2)
    with pytest.raises(InputError, match=r'another process .* \(Connection closed by peer\)'):
        with team.in_team(Learn(), two): raise RuntimeError('Connection closed by peer')
    for words in ('CUDA error: the launch timed out and was terminated', 'DataLoader timed out after 5 seconds'):
        with pytest.raises(RuntimeError, match=words):
            with team.in_team(Learn(), two): raise RuntimeError(words)


