"Networks of others: the layouts under which they come, their forward pass written a second time, and naoto0804's own code where it is."
import copy
import json
import os
import pickle
import subprocess
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.testing import assert_close

from calling import MODULE, pconv
from pconv_course.lab.peers import find_peers, run_file
from pconv_course.runs import checkpoint
from pconv_course.networks import Adopted, AdoptedFastUNet, AdoptedUNet
from pconv_course.tools.convert import (CHECKPOINT_LAYOUTS, convert, convert_state, find_layout, flip_colours, mmagic_name, naoto_name, read_checkpoint, rename)
from pconv_course.base.core import InputError
from pconv_course.networks import build_unet
from pconv_course.weights import load_model
from pconv_course.unet import PConvUNet

IMAGENET = torch.tensor([.485, .456, .406]).double()[:, None, None], torch.tensor([.229, .224, .225]).double()[:, None, None]

# What the others compute, written down from the description of their layers


class TheirConv(nn.Module):
    "A partial convolution with a mask of all channels; names, bias and formula as in one of the two layouts."
    def __init__(self, layout, c_in, c_out, k, stride, bias):
        super().__init__()
        self.layout, conv = layout, nn.Conv2d(c_in, c_out, k, stride, k//2, bias=bias)
        if layout == 'naoto':
            self.input_conv, self.mask_conv = conv, nn.Conv2d(c_in, c_out, k, stride, k//2, bias=False)
            nn.init.ones_(self.mask_conv.weight)
        else:
            self.weight, self.bias = conv.weight, conv.bias
            self.register_buffer('weight_mask_updater', torch.ones_like(conv.weight))
        self.how = dict(stride=stride, padding=k//2)

    def forward(self, x, m):
        naoto = self.layout == 'naoto'
        own, ones = (self.input_conv, self.mask_conv.weight) if naoto else (self, self.weight_mask_updater)
        count, y = F.conv2d(m, ones, **self.how), F.conv2d(x*m, own.weight, **self.how)
        factor = torch.where(count == 0, 0., 1/count) if naoto else own.weight[0].numel()/(count + 1e-8)*count.clamp(0, 1)
        y = y*factor
        if own.bias is not None: y = y + own.bias[:, None, None]*(count > 0)
        return y, (count > 0).to(m.dtype)


class TheirStage(nn.Module):
    def __init__(self, layout, c_in, c_out, k, stride, bn=True, bias=False):
        super().__init__()
        self.conv = TheirConv(layout, c_in, c_out, k, stride, bias)
        if bn: self.bn = nn.BatchNorm2d(c_out)

    def forward(self, x, m, slope):
        y, m = self.conv(x, m)
        if hasattr(self, 'bn'): y = self.bn(y)
        return (y if slope is None else F.leaky_relu(y, slope)), m


class TheirNet(nn.Module):
    "Either network, with whatever depth and width; its forward pass takes colours of 0 to 1, red first, like ours."
    def __init__(self, layout, depth=5, width=8):
        super().__init__()
        self.layout, self.depth = layout, depth
        ch = [3] + [width*min(2**i, 8) for i in range(depth)]
        enc, dec = (nn.Module(), nn.Module()) if layout == 'mmagic' else (self, self)
        if layout == 'mmagic': self.encoder, self.decoder = enc, dec
        word = '_' if layout == 'naoto' else ''
        for i in range(1, depth + 1):
            k = (7, 5, 5, 3)[min(i - 1, 3)]
            enc.add_module(f'enc{word}{i}', TheirStage(layout, ch[i-1], ch[i], k, 2, i > 1, layout == 'mmagic' and i == 1))
            dec.add_module(f'dec{word}{i}', TheirStage(layout, ch[i] + ch[i-1], ch[i-1], 3, 1, i > 1, i == 1))
        self.enc_stages = [[getattr(enc, f'enc{word}{i}') for i in range(1, depth + 1)]]
        self.dec_stages = [[getattr(dec, f'dec{word}{i}') for i in range(depth, 0, -1)]]

    def forward(self, x, m):
        (mean, std), flip = (IMAGENET, False) if self.layout == 'naoto' else ((.5, .5), True)
        if flip: x = x.flip(1)
        x, m = (x - mean)/std*m, m.expand_as(x)
        feats = [(x, m)]
        for s in self.enc_stages[0]: feats.append(s(*feats[-1], 0.))
        y, m = feats.pop()
        for i, s in enumerate(self.dec_stages[0], 1):
            skip, m_skip = feats.pop()
            y, m = torch.cat([F.interpolate(y, scale_factor=2), skip], 1), torch.cat([F.interpolate(m, scale_factor=2), m_skip], 1)
            y, m = s(y, m, .2 if i < self.depth else None)
        y = y*std + mean
        return y.flip(1) if flip else y


def stir(net, seed=0):
    "Random weights, biases and statistics, but for what counts pixels."
    g = torch.Generator().manual_seed(seed)
    for k, v in net.state_dict().items():
        if not v.is_floating_point() or 'mask_' in k: continue
        if k.endswith('running_var'): v.copy_(torch.rand(v.shape, generator=g)*.5 + .1)
        elif '.bn.' in k or k.endswith('bias'): v.copy_(torch.rand(v.shape, generator=g)*.6 - .2)
        else: v.copy_(torch.randn(v.shape, generator=g)*v[0].numel()**(.5 if 'input_conv' in k else -.5)*1.5)  # naoto0804's divides by sum(M)
    net.eval()  # naoto0804's returns nothing
    return net.requires_grad_(False)


def pictures(known, h=32, w=64, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.rand(2, 3, h, w, generator=g).double(), (torch.rand(2, 1, h, w, generator=g) < known).double()


def wrapped(layout, state):
    "As their training loops store it."
    return dict(n_iter=9, model=state) if layout == 'naoto' else dict(meta=dict(iter=9, config='text'), state_dict={
        **{f'generator.{k}': v for k, v in state.items()}, 'loss_percep.vgg.vgg_layers.0.weight': torch.ones(3)})


@pytest.fixture(params=['naoto', 'mmagic'])
def layout(request): return request.param


@pytest.fixture
def file(layout, tmp_path):
    torch.save(wrapped(layout, stir(TheirNet(layout)).state_dict()), tmp_path/'theirs.pth')
    return tmp_path/'theirs.pth'


@pytest.mark.parametrize('depth,width', [(2, 4), (5, 8), (7, 2)])
@pytest.mark.parametrize('impl', ['fast', 'readable'])
def test_their_numbers(layout, depth, width, impl):
    theirs = stir(TheirNet(layout, depth, width), depth).double()
    net, found = convert_state(theirs.state_dict())
    assert found == layout and not net.training and net.config['depth'] == depth and net.config['width'] == width
    ours = build_unet(net.config, impl).double().eval().requires_grad_(False)
    ours.load_state_dict(rename(theirs.state_dict(), net, layout))
    assert type(ours) is (AdoptedFastUNet if impl == 'fast' else AdoptedUNet)
    for known in (1, .4, .02, 0):
        x, m = pictures(known, max(16, 2**depth), max(16, 2**(depth + 1)))
        want = theirs(x, m)
        assert want.std() > 1e-3 or known == 0
        scale = max(1., want.abs().max().item())
        # the epsilon that mmagic adds to whole counts, 1e-8 of them, passes through every stage; naoto's has none
        assert_close(ours(x.masked_fill(m == 0, torch.nan), m), want, rtol=0, atol=scale*(1e-10 if layout == 'naoto' else 2e-6))


def test_mmagic_without_its_epsilon_is_exact(monkeypatch):
    theirs = stir(TheirNet('mmagic', 4, 4)).double()
    forward = TheirConv.forward
    def exact(self, x, m):
        count = F.conv2d(m, self.weight_mask_updater, **self.how)
        y = F.conv2d(x*m, self.weight, **self.how)*torch.where(count == 0, 0., self.weight[0].numel()/count)
        return y + (0 if self.bias is None else self.bias[:, None, None]*(count > 0)), (count > 0).double()
    x, m = pictures(.3)
    before = forward(theirs.enc_stages[0][0].conv, x, m.expand_as(x))[0]
    monkeypatch.setattr(TheirConv, 'forward', exact)
    assert_close(theirs.enc_stages[0][0].conv(x, m.expand_as(x))[0], before, rtol=0, atol=1e-6)
    net, _ = convert_state(theirs.state_dict())
    net = net.double()
    net.load_state_dict(rename(theirs.state_dict(), net, 'mmagic'))
    assert_close(net(x, m), theirs(x, m), rtol=0, atol=1e-10)


@pytest.mark.parametrize('habit', ['range', 'formula', 'colours', 'bias', 'batch norm'])
def test_a_forgotten_habit_shows(layout, habit):
    theirs = stir(TheirNet(layout, 3, 4)).double()
    state, kind = dict(theirs.state_dict()), CHECKPOINT_LAYOUTS[layout]
    net, _ = convert_state(state)
    config, mine = dict(net.config), net.state_dict()
    x, m = (v.float() for v in pictures(.4))
    def off(net): return (net(x, m) - theirs(x.double(), m.double())).abs().mean().item()
    assert off(net) < 1e-5
    if habit == 'range': config |= dict(mean=[0.], std=[1.])
    if habit == 'formula': config |= dict(formula=dict(v1='paper', paper='v1')[config['formula']])
    if habit == 'colours': mine = flip_colours(mine)
    if habit == 'bias': mine = {k: 0*v if k in ('enc.0.bn.bias', 'dec.2.conv.bias') else v for k, v in mine.items()}
    if habit == 'batch norm': mine = {k: v + .1 if 'running_mean' in k else v for k, v in mine.items()}
    other = build_unet(config).eval().requires_grad_(False)
    other.load_state_dict(mine)
    assert off(other) > 1e-3, kind


def test_shift_cannot_move_into_the_bias():
    "With all known, inside, the folded network is the same; at the rim of a hole it isn't."
    torch.manual_seed(0)
    w = torch.randn(4, 3, 3, 3).double()
    from pconv_course.pconv import partial_conv2d
    x, whole = torch.rand(1, 3, 9, 9).double(), torch.ones(1, 1, 9, 9).double()
    holed = whole.clone()
    holed[..., 4:, 4:] = 0
    def both(m): return partial_conv2d(2*x - 1, m, w)[0], partial_conv2d(x, m, 2*w, -w.sum((1, 2, 3)))[0]
    assert_close(*both(whole))
    with pytest.raises(AssertionError): assert_close(*both(holed), rtol=.1, atol=.1)


# naoto0804's own code

@pytest.mark.parametrize('depth', [5, 7])
def test_naoto_s_own_network(depth, tmp_path):
    folder = os.environ.get('PCONV_PEERS')
    if not folder: pytest.skip('PCONV_PEERS=DIR, the folder of a checkout of naoto0804/pytorch-inpainting-with-partial-conv, is not set')
    file = find_peers(folder).get("naoto0804's net")
    if file is None: pytest.skip(f'no checkout of naoto0804/pytorch-inpainting-with-partial-conv in {folder}')
    theirs = stir(run_file(file).PConvUNet(layer_size=depth), depth)
    torch.save(dict(n_iter=1, model=theirs.state_dict()), tmp_path/'1.pth')
    config = convert(tmp_path/'1.pth', tmp_path/'out')
    assert config['model']['depth'] == depth and config['model']['formula'] == 'v1'
    mean, std = IMAGENET
    for known in (.5, .02):
        x, m = pictures(known, 2**depth, 2**(depth + 1))
        m3 = m.expand_as(x).contiguous()
        single, _ = load_model(tmp_path/'out')
        with torch.no_grad(): got = single(x.float(), m.float())
        want = theirs.double()(((x - mean)/std)*m3, m3)[0]*std + mean
        assert want.std() > 1e-3
        double = copy.deepcopy(single).double()
        double.mean, double.std = mean, std  # the constants at the precision of the test, not of the file
        with torch.no_grad(): assert_close(double(x, m), want, rtol=0, atol=1e-10)
        assert_close(got.double(), want, rtol=0, atol=1e-5*max(1., want.abs().max().item()))
    readable = load_model(tmp_path/'out', impl='readable')[0]
    with torch.no_grad(): assert_close(readable(x.float(), m.float()), got, rtol=1e-4, atol=1e-4)


# The folder

def test_convert_makes_a_folder_like_a_run_s(layout, file, tmp_path):
    config = convert(file, tmp_path/'new'/'out')
    assert sorted(p.name for p in (tmp_path/'new'/'out').iterdir()) == ['config.json', 'model.safetensors']
    net, again = load_model(tmp_path/'new'/'out')
    stored = json.loads((tmp_path/'new'/'out'/'config.json').read_text())
    assert again == config and stored['model'] == net.config and stored['source'] | dict(sha256=0) == dict(name='theirs.pth', layout=layout, sha256=0)
    assert not net.training and str(tmp_path) not in json.dumps(stored)
    x, m = pictures(.4)
    with torch.no_grad(): assert_close(net(x.float(), m.float()).double(), stir(TheirNet(layout)).double()(x, m), rtol=1e-4, atol=1e-4)
    assert set(load_file(tmp_path/'new'/'out'/'model.safetensors')) == set(net.state_dict())


def test_one_command_compares_a_checkpoint_on_the_same_pairs(layout, file, tmp_path, monkeypatch, capsys):
    "`pconv evaluate --model x.pth`: as the converted folder, and no folder stays behind."
    import tempfile
    from pconv_course import cli
    (tmp_path/'tmp').mkdir()
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path/'tmp'))
    convert(file, tmp_path/'folder')
    cli.main(['evaluate', '--model', f'theirs={file}', f'ours={tmp_path/"folder"}', '--size', '32', '--limit', '4', '--lpips', 'none', '--out', str(tmp_path/'scores.json')])
    record = json.loads((tmp_path/'scores.json').read_text())
    assert record['methods']['theirs']['sha256'] == record['methods']['ours']['sha256'] and record['methods']['theirs']['config']['source']['name'] == file.name
    assert record['rows'][0]['methods']['theirs'] == record['rows'][0]['methods']['ours']
    assert not list((tmp_path/'tmp').glob('*/*.safetensors')) and not list((tmp_path/'tmp').glob('*/theirs'))
    with pytest.raises(SystemExit) as e: cli.main(['evaluate', '--model', str(tmp_path/'none.pth'), '--out', str(tmp_path/'x.json')])
    assert e.value.code == 2 and 'none.pth' in capsys.readouterr().err.splitlines()[-1]


def test_wrappers_are_peeled_off(layout, tmp_path):
    state = stir(TheirNet(layout)).state_dict()
    bare = {k.removeprefix('generator.'): v for k, v in state.items()}
    for i, form in enumerate([state, dict(model=state), dict(state_dict=dict(state)), {f'module.{k}': v for k, v in state.items()}, wrapped(layout, state)]):
        torch.save(form, tmp_path/f'{i}.pth', _use_new_zipfile_serialization=i % 2 == 0)
        got = read_checkpoint(tmp_path/f'{i}.pth')
        assert list(got) == list(bare) and all(torch.equal(got[k], v) for k, v in bare.items())


def test_old_files_have_no_counter_of_batches(layout, file, tmp_path):
    state = {k: v for k, v in read_checkpoint(file).items() if 'num_batches' not in k}
    assert_close(convert_state(state)[0].state_dict(), convert_state(read_checkpoint(file))[0].state_dict())


def test_half_precision_weights_become_single(layout, file):
    state = {k: v.half() if v.is_floating_point() else v for k, v in read_checkpoint(file).items()}
    assert {v.dtype for v in convert_state(state)[0].parameters()} == {torch.float32}


def test_a_network_that_is_adopted_lives_like_others(layout, file, tmp_path):
    convert(file, tmp_path/'out')
    net, _ = load_model(tmp_path/'out')
    twin = pickle.loads(pickle.dumps(net))
    x, m = (v.float() for v in pictures(.4, 45, 37))
    with torch.no_grad():
        want = net(x, m)
        assert want.shape == x.shape and torch.equal(twin(x, m), want) and torch.equal(copy.deepcopy(net)(x, m), want)
        assert_close(net(x.masked_fill(m == 0, torch.inf), m), want)
        assert_close(net.to(memory_format=torch.channels_last)(x, m), want, rtol=1e-4, atol=1e-4)
    again = build_unet(net.config)
    assert again.config == net.config and list(again.state_dict()) == list(net.state_dict())
    before = [p.clone() for p in net.enc[1].bn.buffers()]
    net.train().freeze_encoder_bn()
    net(x, m).square().mean().backward()
    assert all(torch.equal(a, b) for a, b in zip(before, net.enc[1].bn.buffers())) and net.enc[1].bn.weight.grad is None
    assert net.enc[0].conv.weight.grad.isfinite().all() and net.enc[0].conv.weight.grad.abs().sum() > 0
    with torch.autocast('cpu', dtype=torch.bfloat16), torch.no_grad(): assert net.eval()(x, m).isfinite().all()


def test_first_bias_is_equation_1_s():
    torch.manual_seed(0)
    net = AdoptedUNet(depth=2, width=4, first_bias=True).double().requires_grad_(False)
    net.enc[0].bn.bias.copy_(torch.randn(4))
    assert isinstance(net, Adopted) and 'enc.0.bn.bias' in net.state_dict()
    x, m = pictures(.05)
    from pconv_course.pconv import pconv_reference
    want, known = pconv_reference(x[:1, :, :16, :16], m[:1, :, :16, :16], net.enc[0].conv.weight, net.enc[0].bn.bias, 2, 3)
    got, known_too = net.enc[0](x[:1, :, :16, :16], m[:1, :, :16, :16])
    assert_close((got*known), want.relu())
    assert_close(known_too, known)
    fast = AdoptedFastUNet(**{k: v for k, v in net.config.items() if k != 'network'}).double()
    fast.load_state_dict(net.state_dict())
    assert_close(fast.encode(x[:1, :, :16, :16], m[:1, :, :16, :16])[0][1], want.relu())


def test_colours_are_turned_in_and_out():
    torch.manual_seed(0)
    net = stir(PConvUNet(3, 4))
    other = copy.deepcopy(net)
    other.load_state_dict(flip_colours(net.state_dict()))
    x, m = (v.float() for v in pictures(.4))
    assert_close(other(x.flip(1), m).flip(1), net(x, m))
    assert all(torch.equal(a, b) for a, b in zip(flip_colours(other.state_dict()).values(), net.state_dict().values()))


# Names

def test_every_tensor_of_theirs_is_used_once(layout):
    theirs, kind = TheirNet(layout, 6, 2).state_dict(), CHECKPOINT_LAYOUTS[layout]
    net = build_unet(dict(network='adopted', depth=6, width=2) | kind.config)
    names = [kind.name(k, 6) for k in net.state_dict()]
    counters = [k for k in theirs if 'mask' in k]
    assert len(set(names)) == len(names) and set(names) | set(counters) == set(theirs) and not set(names) & set(counters)


def test_names_by_hand():
    assert naoto_name('enc.6.bn.running_mean', 7) == 'enc_7.bn.running_mean'
    assert naoto_name('dec.0.conv.weight', 7) == 'dec_7.conv.input_conv.weight' and naoto_name('dec.6.conv.bias', 7) == 'dec_1.conv.input_conv.bias'
    assert mmagic_name('enc.0.bn.bias', 7) == 'encoder.enc1.conv.bias' and mmagic_name('enc.1.bn.bias', 7) == 'encoder.enc2.bn.bias'
    assert mmagic_name('dec.6.conv.bias', 7) == 'decoder.dec1.conv.bias'


# What doesn't fit

def changed(state, **changes): return {k: v for k, v in (state | changes).items() if v is not None}


@pytest.mark.parametrize('change,words', [
    ({'enc_3.conv.input_conv.weight': None}, ['enc_5.bn', 'has no place']),
    ({'dec_2.bn.running_var': None}, ['dec_2.bn.running_var', 'missing', 'dec.3.bn.running_var']),
    ({'enc_1.conv.input_conv.weight': None}, ['enc_1.conv.input_conv.weight', 'missing']),
    ({'dec_1.conv.input_conv.bias': torch.ones(4)}, ['dec_1.conv.input_conv.bias', '(4,)', '(3,)', 'dec.4.conv.bias']),
    ({'enc_2.conv.input_conv.weight': torch.ones(16, 8, 3, 3)}, ['(16, 8, 3, 3)', '(16, 8, 5, 5)']),
    ({'enc_2.conv.mask_conv.weight': torch.zeros(16, 8, 5, 5)}, ['enc_2.conv.mask_conv.weight', 'ones']),
    ({'enc_2.conv.input_conv.bias': torch.ones(16)}, ['enc_2.conv.input_conv.bias', 'no place']),
    ({'enc_2.bn.weight': torch.full((16,), torch.nan)}, ['enc_2.bn.weight', 'nan'])])
def test_what_does_not_fit_is_named(change, words, tmp_path):
    torch.save(changed(TheirNet('naoto').state_dict(), **change), tmp_path/'odd.pth')
    with pytest.raises(InputError) as e: convert(tmp_path/'odd.pth', tmp_path/'out')
    assert not (tmp_path/'out').exists() and '\n' not in str(e.value) and str(e.value).startswith(str(tmp_path/'odd.pth'))
    if change != {'enc_3.conv.input_conv.weight': None}: assert all(w in str(e.value) for w in words), str(e.value)
    else: assert 'enc_' in str(e.value) or 'dec_' in str(e.value)


def test_layout_is_found_or_checked(layout, file):
    state, other = read_checkpoint(file), dict(naoto='mmagic', mmagic='naoto')[layout]
    assert find_layout(state) == find_layout(state, layout) == (layout, 5, 8)
    with pytest.raises(InputError, match=CHECKPOINT_LAYOUTS[other].home): find_layout(state, other)
    with pytest.raises(InputError, match='unknown'): find_layout(state, 'keras')
    with pytest.raises(InputError, match="convert can.t read this network"): find_layout({'conv1.weight': torch.ones(2, 2), 'b': torch.ones(1)})


class Code:
    def __reduce__(self): return os.mkdir, ('executed',)


@pytest.mark.parametrize('legacy', [False, True])
def test_code_in_a_file_is_not_run(legacy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(dict(model=TheirNet('naoto').state_dict(), meta=Code()), 'trap.pth', _use_new_zipfile_serialization=not legacy)
    with pytest.raises(InputError, match=r'mkdir\), which is not run'): read_checkpoint('trap.pth')
    assert not Path('executed').exists()


def broken_files(folder):
    torch.save(dict(a=torch.ones(9)), folder/'whole.pth')
    whole = (folder/'whole.pth').read_bytes()
    torch.save(dict(a=torch.ones(9)), folder/'old.pth', _use_new_zipfile_serialization=False)
    old = (folder/'old.pth').read_bytes()
    for name, content in dict(cut=whole[:len(whole)//2], text=b'<html>404</html>', empty=b'', old_cut=old[:-8], zeros=bytes(100)).items():
        (folder/f'{name}.pth').write_bytes(content)
    for name, obj in dict(numbers=[1, 2], strings=dict(a='b'), nothing={}, nested=dict(model=dict(model=3)), tensor=torch.ones(3)).items():
        torch.save(obj, folder/f'{name}.pth')


def test_files_that_are_none(tmp_path):
    broken_files(tmp_path)
    for name in ('cut', 'text', 'empty', 'old_cut', 'zeros'):
        with pytest.raises(InputError, match='damaged; fetch it again'): read_checkpoint(tmp_path/f'{name}.pth')
    for name in ('numbers', 'strings', 'nothing', 'nested', 'tensor'):
        with pytest.raises(InputError, match='no state dict'): read_checkpoint(tmp_path/f'{name}.pth')
    for name in ('gone.pth', '.'):
        with pytest.raises(InputError, match='no such file'): read_checkpoint(tmp_path/name)
    (tmp_path/'model.safetensors').write_bytes(b'x')
    with pytest.raises(InputError, match='needs no conversion'): read_checkpoint(tmp_path/'model.safetensors')


def test_nothing_is_overwritten(file, tmp_path):
    (tmp_path/'full').mkdir()
    (tmp_path/'full'/'notes.txt').write_text('mine')
    for out in (tmp_path/'full', file):
        with pytest.raises(InputError, match='exists and is not an empty folder'): convert(file, out)
    assert (tmp_path/'full'/'notes.txt').read_text() == 'mine' and len(list((tmp_path/'full').iterdir())) == 1
    (tmp_path/'empty').mkdir()
    convert(file, tmp_path/'empty')
    with pytest.raises(InputError, match='exists and is not'): convert(file, tmp_path/'empty')


def test_a_full_disk_is_one_line(file, tmp_path, monkeypatch):
    def full(*args, **kwargs): raise SafetensorError('I/O error: No space left on device (os error 28)')
    monkeypatch.setattr(checkpoint, 'save_file', full)
    with pytest.raises(InputError, match='No space left on device'): convert(file, tmp_path/'out')


# The command

def run(*args, cwd=None): return subprocess.run([*MODULE, 'lab', 'convert', *args], cwd=cwd, capture_output=True, text=True)


def test_command(tmp_path):
    torch.save(dict(model=stir(TheirNet('naoto', 3, 4)).state_dict()), tmp_path/'theirs.pth')
    done = run('theirs.pth', '-o', 'mine', cwd=tmp_path)
    assert done.returncode == 0 and 'naoto0804' in done.stdout and "formula 'v1'" in done.stdout and 'mine/model.safetensors' in done.stdout and not done.stderr
    assert load_model(tmp_path/'mine')[0].config['depth'] == 3
    failed = run('gone.pth', '-o', 'x', cwd=tmp_path)
    assert failed.returncode == 2 and failed.stderr == 'pconv lab convert: error: gone.pth: no such file; give the checkpoint that you have downloaded\n'
    assert not (tmp_path/'x').exists()


def test_command_in_this_process(file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pconv('lab convert', 'theirs.pth', o='mine')
    for args, word in ((dict(file='theirs.pth', o='mine'), 'another one with -o'), (dict(file='theirs.pth'), '-o FOLDER'), (dict(file='theirs.pth', o='x', layout='keras'), 'keras')):
        with pytest.raises(SystemExit) as e: pconv('lab convert', **args)
        err = capsys.readouterr().err
        assert e.value.code == 2 and word in err and err.count('\n') == 1 and err.startswith('pconv lab convert: error: ')
    assert not (tmp_path/'x').exists()


@pytest.mark.slow
def test_onnx_takes_it(layout, file, tmp_path):
    for module in ('onnx', 'onnxscript', 'onnxruntime'): pytest.importorskip(module)
    from pconv_course.tools.onnx import export_onnx
    convert(file, tmp_path/'out')
    assert export_onnx(*load_model(tmp_path/'out')[:1], tmp_path/'net.onnx', load_model(tmp_path/'out')[1])['worst'] <= 1
