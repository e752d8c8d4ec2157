"The networks to compare with: what they are, and that everything which takes a network takes them."
import copy
import json
import pickle
import warnings
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.testing import assert_close

from pconv_course import evaluation
from pconv_course.base.attention import attend_loop
from pconv_course.base.core import InputError, read_json
from pconv_course.fast import FastPConvUNet, flops
from pconv_course.networks import AttentionNet, FineUNet, MaskedUNet, PlainUNet, build_unet, halve
from pconv_course.inpainting import inpaint, open_model
from pconv_course.networks import GatedConv2d, GatedUNet
from pconv_course.training import begin_from
from pconv_course.weights import load_model
from pconv_course.recipe import Phase, Recipe, recipe_from, recipe_model, recipe_with, saved_before
from pconv_course.runs.train import train
from pconv_course.unet import PConvUNet, crop, pad_to_multiple

NETWORKS = ('partial', 'plain', 'masked', 'gated', 'attention', 'fine')
NEXT = dict(zip(NETWORKS, ('plain', 'masked', 'gated', 'attention', 'partial', 'partial')))  # another one for each
TINY = Recipe(name='tiny', size=32, n_faces=12, valid=.34, n_masks=8, depth=3, width=4, bs=4, min_steps=1, phases=(Phase(1e-3, epochs=2),))


def tiny(network, impl='fast', depth=3, width=4, seed=0):
    torch.manual_seed(seed)
    net = build_unet(dict(network=network, depth=depth, width=width), impl)
    if network == 'fine': nn.init.normal_(net.fine.dec[-1].conv.weight, std=.1)  # as if it had learnt something
    return net


def recipe_of(network, first='a finished run', **changes):
    return replace(TINY, network=network, **dict(start=str(first)) if network == 'fine' else {}, **changes)


def example(h=40, w=56, known=.4, n=2, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.rand(n, 3, h, w, generator=g), (torch.rand(n, 1, h, w, generator=g) < known).float()


@pytest.fixture(params=NETWORKS)
def network(request): return request.param


# The gated convolution

def test_gated_convolution_by_hand():
    layer = GatedConv2d(1, 1, 2, bias=False).double().requires_grad_(False)
    layer.weight.copy_(torch.tensor([[[[1., 2], [3, 4]]]]))
    layer.gate.weight.copy_(torch.tensor([[[[0., 0], [0, 1]]]]))
    layer.gate.bias.fill_(-2)
    x = torch.tensor([[[[1., 0], [2, 3]]]]).double()
    assert_close(layer(x).item(), (1 + 6 + 12)/(1 + np.exp(-(3 - 2))))
    assert_close(layer(-x, torch.relu).item(), 0.)  # phi acts on the features alone
    assert_close(layer(x, lambda y: y + 1).item(), (19 + 1)/(1 + np.exp(-1)))


def test_a_gate_of_ones_is_a_plain_convolution():
    torch.manual_seed(0)
    layer, x = GatedConv2d(4, 6, 3, stride=2, padding=1, groups=2), torch.randn(2, 4, 9, 8)
    plain = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)
    plain.load_state_dict({k: v for k, v in layer.state_dict().items() if 'gate' not in k})
    with torch.no_grad(): layer.gate.weight.zero_(), layer.gate.bias.fill_(40)
    assert torch.equal(layer(x), plain(x))
    with torch.no_grad(): layer.gate.bias.fill_(-200)
    assert torch.equal(layer(x), 0*plain(x))
    with torch.no_grad(): layer.gate.bias.zero_()
    assert_close(layer(x), plain(x)/2)


def test_gradient_of_the_gate():
    torch.manual_seed(0)
    layer, x = GatedConv2d(2, 3, 3, padding=1).double(), torch.randn(1, 2, 5, 4).double().requires_grad_()
    names, params = zip(*layer.named_parameters())
    f = lambda x, *p: torch.func.functional_call(layer, dict(zip(names, p)), (x, torch.tanh))
    assert torch.autograd.gradcheck(f, (x, *params))
    layer(x).sum().backward()
    assert layer.gate.weight.grad.abs().min() > 0


def test_gated_is_a_conv2d_with_a_gate():
    assert list(GatedConv2d(3, 4, 3, bias=False).state_dict()) == ['weight', 'gate.weight', 'gate.bias']
    layer = GatedConv2d(3, 4, (5, 3), stride=2, padding=(2, 1), dilation=2)
    assert isinstance(layer, nn.Conv2d) and layer.gate.weight.shape == layer.weight.shape == (4, 3, 5, 3)
    assert (layer.gate.stride, layer.gate.padding, layer.gate.dilation) == ((2, 2), (2, 1), (2, 2))


# The networks

def test_shapes_of_the_stages_are_the_paper_s():
    ours, gated = PConvUNet(5, 8), GatedUNet(5, 8)
    x, m = example(64, 64)
    feats = [f.shape for f in gated.eval().encode(x, m)[0]]
    assert feats == [(2, 4, 64, 64)] + [f.shape for f, _ in ours.eval().encode(x, m)[1:]]
    for a, b in zip([*ours.enc, *ours.dec], [*gated.enc, *gated.dec]):
        assert (a.conv.kernel_size, a.conv.stride, a.conv.out_channels) == (b.conv.kernel_size, b.conv.stride, b.conv.out_channels)
        assert type(a.bn) is type(b.bn) and type(a.act) is type(b.act) and isinstance(b.conv, GatedConv2d) == (b is not gated.dec[-1])
    assert gated.enc[0].conv.in_channels == 4 and gated.dec[-1].conv.in_channels == 8 + 3 + 1 and gated.dec[-1].conv.bias is not None


def test_gated_forward_written_a_second_time():
    net = tiny('gated', 'readable').double().eval().requires_grad_(False)
    for k, v in net.named_buffers():
        if v.is_floating_point(): v.uniform_(.5, 1.5)
    x, m = (v.double() for v in example())
    def stage(s, y, stride):
        c = s.conv
        f = F.conv2d(y, c.weight, None, stride, c.kernel_size[0]//2)
        if isinstance(s.bn, nn.BatchNorm2d): f = (f - s.bn.running_mean[:, None, None])/(s.bn.running_var[:, None, None] + 1e-5).sqrt()
        f = torch.where(f > 0, f, f*getattr(s.act, 'negative_slope', 0.))
        return f/(1 + torch.exp(-F.conv2d(y, c.gate.weight, c.gate.bias, stride, c.kernel_size[0]//2)))
    y = [torch.cat([x*m, m], 1)]
    for s in net.enc: y.append(stage(s, y[-1], 2))
    up = y.pop()
    for s in net.dec[:-1]: up = stage(s, torch.cat([up.repeat_interleave(2, 2).repeat_interleave(2, 3), y.pop()], 1), 1)
    last = net.dec[-1].conv
    want = F.conv2d(torch.cat([up.repeat_interleave(2, 2).repeat_interleave(2, 3), y.pop()], 1), last.weight, last.bias, padding=1)
    assert_close(net(x, m), want)


@pytest.mark.parametrize('training', [False, True])
def test_both_forms_are_the_same_function(network, training):
    readable = tiny(network, 'readable', 5, 4).double().train(training)
    fast = build_unet(readable.config).double().train(training)
    fast.load_state_dict(readable.state_dict())
    x, m = (v.double() for v in example(70, 45))
    if network == 'attention': m[:, :, 30:, 10:] = 1  # whole patches to paste
    results = []
    for net in (readable, fast):
        out = net(x.masked_fill(m == 0, torch.nan), m)
        trained = [p for p in net.parameters() if p.requires_grad]
        results.append([out, *torch.autograd.grad(out.sin().sum(), trained), *net.buffers()])
    for a, b in zip(*results, strict=True): assert_close(a, b, rtol=1e-9, atol=1e-9)
    assert all(g.abs().max() > 0 for g in results[0][1:1 + len(trained)])


def test_what_is_under_the_hole_does_not_matter(network):
    net, (x, m) = tiny(network), example()
    for state in (net.train(), net.eval()):
        want = copy.deepcopy(state)(x, m)
        for value in (torch.nan, torch.inf, 0, -7): assert torch.equal(copy.deepcopy(state)(x.masked_fill(m == 0, value), m), want)
    inp = x.clone().requires_grad_()
    net(inp, m).square().sum().backward()
    assert (inp.grad*(1 - m) == 0).all() and inp.grad.isfinite().all()


def test_any_size_one_mask_for_all_and_crops(network):
    net = tiny(network).eval().requires_grad_(False)
    for h, w in ((16, 16), (17, 31), (50, 23)):
        x, m = example(h, w)
        assert net(x, m).shape == x.shape
        padded = net(F.pad(x, (0, -w % 8, 0, -h % 8), value=9.), F.pad(m, (0, -w % 8, 0, -h % 8)))
        assert_close(net(x, m), padded[..., :h, :w])
        assert_close(net(x, m[:1]), net(x, m[:1].expand(2, -1, -1, -1)))
    for bad in ((torch.rand(1, 3, 8, 8), torch.ones(1, 1, 8, 8)), (torch.rand(1, 4, 32, 32), torch.ones(1, 1, 32, 32)), (torch.rand(1, 3, 32, 32), torch.ones(1, 3, 32, 32))):
        with pytest.raises(ValueError, match='give'): net(*bad)


def test_who_sees_the_mask():
    black, m = example()
    black = black*m
    told = {k: not torch.equal(net(black, m), net(black, 0*m + 1)) for k in NETWORKS for net in [tiny(k).eval()]}
    assert told == dict(partial=True, plain=False, masked=True, gated=True, attention=True, fine=True)


def test_frozen_encoder(network):
    net, (x, m) = tiny(network), example()
    net.freeze_encoder_bn()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    net.train()(x, m).square().mean().backward()
    after = net.state_dict()
    where = 'fine.' if network == 'fine' else ''
    assert all(torch.equal(before[k], after[k]) for k in before if k.startswith((where + 'enc', 'coarse')) or network == 'attention')
    if network == 'attention': assert not [k for k in before if 'running' in k]  # nothing that could be frozen
    else: assert any(not torch.equal(before[k], after[k]) for k in before if k.startswith(where + 'dec') and 'running' in k)
    assert all(s.bn.weight.grad is None for s in net.enc[1:]) and all(s.conv.weight.grad.abs().max() > 0 for s in net.enc)
    if network == 'gated': assert all(s.conv.gate.weight.grad.abs().max() > 0 for s in net.enc)
    net.freeze_encoder_bn(False)
    assert network == 'attention' or net.enc[1].bn.training


def test_copy_pickle_layout_and_16_bits(network):
    net, (x, m) = tiny(network).eval().requires_grad_(False), example()
    want = net(x, m)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), net.to(memory_format=torch.channels_last)): assert_close(other(x, m), want, rtol=1e-4, atol=1e-5)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast('cpu', dtype=dtype): y = net(x.masked_fill(m == 0, torch.nan), m)
        assert_close(y.float(), want, rtol=.1, atol=.1*want.abs().max().item())


def test_empty_and_whole_masks(network):
    net, (x, m) = tiny(network), example()
    for mask in (0*m, 0*m + 1):
        net.zero_grad()
        net(x, mask).square().sum().backward()
        assert all(p.grad.isfinite().all() for p in net.parameters() if p.requires_grad)


def test_a_gated_network_learns():
    "One batch is overfitted; gates included."
    net, (x, m) = tiny('gated', width=8), example(32, 32)
    opt, gates = torch.optim.Adam(net.parameters(), 1e-2), [s.conv.gate.weight.clone() for s in net.enc]
    losses = []
    for _ in range(60):
        opt.zero_grad()
        loss = (net(x, m) - x).abs().mean()
        loss.backward()
        opt.step()
        losses.append(loss.item())
    assert losses[-1] < .4*losses[0]
    assert all((s.conv.gate.weight - g).abs().max() > 1e-3 for s, g in zip(net.enc, gates))


def test_masked_is_plain_with_one_more_channel():
    plain, masked, (x, m) = tiny('plain').eval(), tiny('masked').eval(), example()
    for a, b in zip([*plain.enc, *plain.dec], [*masked.enc, *masked.dec]):
        assert type(a.bn) is type(b.bn) and type(b.conv) is nn.Conv2d and b.conv.in_channels - a.conv.in_channels == (b in (masked.enc[0], masked.dec[-1]))
    feats = masked.encode(x, m)[0]
    assert torch.equal(feats[0], torch.cat([x*m, m], 1)) and len(feats) == 4
    state = plain.state_dict()
    with torch.no_grad():
        for k, v in masked.state_dict().items():
            if v.shape == state[k].shape: v.copy_(state[k])
            else: v[:, -1] = 0; v[:, :-1] = state[k]  # blind to the mask
    assert_close(masked(x, m), plain(x, m), rtol=1e-4, atol=1e-5)


# Two stages

def test_attention_pads_to_what_it_says():
    net = build_unet(dict(network='attention', depth=5, width=8)).eval()
    x, m = torch.rand(1, 3, 40, 44), torch.ones(1, 1, 40, 44)
    m[..., 8:24, 8:24] = 0
    assert net.multiple == 8
    xp, mp = pad_to_multiple(x, m, net.multiple)
    with torch.no_grad(): assert_close(net(x, m), crop(net.decode(net.encode(xp, mp))[0], 40, 44))


def test_attention_is_as_large_as_the_compact_network():
    size = lambda net: sum(p.numel() for p in net.parameters())
    for depth, width in ((5, 32), (7, 64)):
        with torch.device('meta'): unet, net, larger = (build_unet(dict(depth=depth, width=width, **more)) for more in ({}, dict(network='attention'), dict(network='attention', channels=200)))
        assert .97 < size(net)/size(unet) <= 1 < size(larger)/size(unet)
    assert net.config['channels'] == 77 and build_unet(dict(network='attention', depth=3, width=4, channels=5)).config['channels'] == 5
    for bad in (dict(depth=1), dict(width=0)):
        with pytest.raises(ValueError, match='give depth >= 2'): build_unet(dict(network='attention', channels=2) | bad)


def two_stages(**kwargs):
    torch.manual_seed(0)
    return build_unet(dict(network='attention', depth=3, width=4, channels=4) | kwargs)


def test_attention_forward_written_a_second_time():
    net, (x, m) = two_stages().double().eval().requires_grad_(False), (v.double() for v in example())
    def run(seq, y):
        for c in [o for o in seq.modules() if isinstance(o, (nn.Conv2d, nn.Upsample))]:
            if isinstance(c, nn.Upsample): y = y.repeat_interleave(2, 2).repeat_interleave(2, 3)
            else:
                y = F.conv2d(y, c.weight, c.bias, c.stride, c.dilation[0]*(c.kernel_size[0]//2), c.dilation)
                if c.out_channels > 3: y = torch.where(y > 0, y, y.exp() - 1)
        return y
    centred = (2*x - 1)*m
    guess = run(net.coarse, torch.cat([centred, m], 1))
    filled = torch.cat([centred + guess*(1 - m), m], 1)
    quarter = (F.avg_pool2d(m, 4) == 1).double()
    pasted = run(net.seen, attend_loop(run(net.look, filled), quarter, rate=2))
    want = run(net.join, torch.cat([run(net.near, filled), pasted], 1))
    assert_close(net(x, m), (want + 1)/2)
    assert [c.dilation[0] for c in net.near[1].modules() if isinstance(c, nn.Conv2d)] == [2, 4]


def test_the_first_answer_is_kept_in_training_and_in_no_copy():
    net, (x, m) = two_stages(), example()
    net.eval()(x, m)
    assert net.guess is None
    net.train()(x, m)
    assert net.guess.shape == x.shape and net.guess.requires_grad
    assert copy.deepcopy(net).guess is None and pickle.loads(pickle.dumps(net)).guess is None and net.guess is not None
    assert not any('guess' in k for k in net.state_dict())
    assert all(g.abs().max() > 0 for g in torch.autograd.grad(net.guess.sum(), [*net.coarse.parameters()]))


def test_attention_sees_all_of_the_picture():
    "A change in a corner reaches the middle of a hole, farther than the convolutions of two dilations see."
    net, x, m = two_stages(depth=2).double().eval().requires_grad_(False), torch.rand(1, 3, 128, 128).double(), torch.ones(1, 1, 128, 128).double()
    m[..., 90:110, 90:110] = 0
    other = x.clone()
    other[..., 2:14, 2:14] = 1 - other[..., 2:14, 2:14]
    assert (net(x, m) - net(other, m))[..., 98:102, 98:102].abs().max() > 0
    with torch.no_grad():
        for o in net.seen[0]:
            if isinstance(o, nn.Conv2d): o.weight.zero_()
    assert (net(x, m) - net(other, m))[..., 98:102, 98:102].abs().max() == 0


# Half the size first

def test_halving_by_a_loop():
    x, m = example(6, 8, n=1)
    half, known = halve(x.masked_fill(m == 0, torch.nan), m)
    for i in range(3):
        for j in range(4):
            seen = [x[0, :, a, b] for a in (2*i, 2*i + 1) for b in (2*j, 2*j + 1) if m[0, 0, a, b]]
            assert_close(half[0, :, i, j], sum(seen)/len(seen) if seen else torch.zeros(3))
            assert known[0, 0, i, j] == bool(seen)


@pytest.mark.parametrize('doublings', [1, 2])
def test_coarse_to_fine_written_a_second_time(doublings):
    torch.manual_seed(0)
    net = build_unet(dict(network='fine', depth=3, width=8, doublings=doublings)).double().eval().requires_grad_(False)
    for o in net.modules():
        if isinstance(o, FineUNet): nn.init.normal_(o.fine.dec[-1].conv.weight)
    x, m = (v.double() for v in example(64, 32))
    def fill(net, x, m):
        if not isinstance(net, FineUNet): return net.decode(net.encode(x, m))[0]
        half, known = halve(x, m)
        small = half*known + fill(net.coarse, half, known)*(1 - known)
        seen = x*m + F.interpolate(small, scale_factor=2, mode='bilinear')*(1 - m)
        plain = net.fine.decode(([torch.cat([seen, m], 1), *MaskedUNet.encode(net.fine, seen, m)[0][1:]], m))[0]
        return seen + plain
    assert_close(net(x, m), fill(net, x, m))
    assert (net.multiple, len(net.enc)) == (8*2**doublings, 3)
    inside = x.clone()
    inside[m.expand_as(x) == 0] = torch.rand_like(inside)[m.expand_as(x) == 0]
    assert torch.equal(net(inside, m), net(x, m))


def test_the_first_network_stays_as_it_was(runs):
    first, net = (load_model(runs/k)[0].state_dict() for k in ('partial', 'fine'))
    assert all(torch.equal(v, net[f'coarse.{k}']) for k, v in first.items())
    assert net['fine.dec.2.conv.weight'].abs().max() > 0  # which began with zeros
    net = tiny('fine')
    assert not net.coarse.training and net.fine.training and not net.train().coarse.training
    assert {k.split('.')[0] for k, p in net.named_parameters() if p.requires_grad} == {'fine'}


def test_both_parts_learn_together(runs, tmp_path):
    "With `joint` the weights of the first network move at every depth of nesting, its batch norm's statistics don't; the average holds them, too."
    r = recipe_of('fine', runs/'fine', doublings=2, joint=True, ema=.5, phases=(Phase(1e-3),))
    before = recipe_model(r)
    begin_from(before, runs/'fine')
    train(r, out=tmp_path/'joint', progress=False, device='cpu')
    before, after = before.state_dict(), load_model(tmp_path/'joint')[0].state_dict()
    moved = {k for k, v in before.items() if not torch.equal(v, after[k])}
    for part in ('coarse.coarse.', 'coarse.fine.', 'fine.'): assert {k for k in before if k.startswith(part) and k.endswith('conv.weight')} <= moved
    assert not [k for k in moved if k.startswith('coarse.') and 'running' in k]


def test_size_is_doubled_once_more(runs, tmp_path):
    r = recipe_of('fine', runs/'fine', doublings=2, phases=(Phase(1e-3),))
    train(r, out=tmp_path/'twice', progress=False, device='cpu')
    first, net = load_model(runs/'fine')[0].state_dict(), load_model(tmp_path/'twice')[0]
    assert all(torch.equal(v, net.state_dict()[f'coarse.{k}']) for k, v in first.items()) and net.config['doublings'] == 2
    net = recipe_model(r)
    begin_from(net, runs/'fine')
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in first.items() if k.startswith('fine.')), 'details begin where those of half the size ended'
    with pytest.raises(InputError, match='network partial, here fine'): train(replace(r, start=str(runs/'partial')), out=tmp_path/'no', progress=False, device='cpu')
    with pytest.raises(ValueError, match='give 1 or more'): build_unet(dict(network='fine', doublings=0))


def test_costs():
    with torch.device('meta'):
        x, m = torch.rand(1, 3, 64, 64), torch.rand(1, 1, 64, 64)
        work = {k: flops(lambda: net(x, m)) for k in NETWORKS for net in [build_unet(dict(network=k, depth=5, width=16), 'fast' if k == 'attention' else 'readable').eval()]}
    assert work['partial'] == work['plain'] < work['masked'] < 1.1*work['plain'] and 1.9 < work['gated']/work['plain'] < 2.05


# build_unet

def test_build_unet_by_name(network):
    kind = dict(partial=(PConvUNet, FastPConvUNet), plain=(PlainUNet,)*2, masked=(MaskedUNet,)*2, gated=(GatedUNet,)*2, attention=(AttentionNet,)*2, fine=(FineUNet,)*2)[network]
    nets = [tiny(network, impl) for impl in ('readable', 'fast')]
    assert tuple(type(n) for n in nets) == kind and nets[0].config == nets[1].config
    assert list(nets[0].state_dict()) == list(nets[1].state_dict()) == list(build_unet(nets[0].config).state_dict())
    assert json.loads(json.dumps(nets[0].config)) == nets[0].config == build_unet(json.loads(json.dumps(nets[0].config))).config
    assert nets[0].config.get('network', 'partial') == network and ('network' in nets[0].config) == (network != 'partial')
    if network == 'attention': assert [n.attend.loop for n in nets] == [True, False]
    elif network != 'partial': assert [getattr(n, 'fine', n).decoder for n in nets] == ['concat', 'transposed']


def test_build_unet_refuses():
    for config, word in ((dict(network='dense'), 'dense'), (dict(network='gated', depth=1), 'depth'), (dict(network='gated', decoder='sum'), 'sum')):
        with pytest.raises((ValueError, TypeError), match=word): build_unet(config)
    with pytest.raises(ValueError, match='sum'): GatedUNet(2, 2, decoder='sum')
    with pytest.raises(ValueError, match='quick'): build_unet(dict(network='gated'), 'quick')


# Recipes, runs, commands

def test_recipe_names_its_network(network):
    net = recipe_model(recipe_of(network))
    assert net.config == tiny(network).config
    again = recipe_model(recipe_of(network))
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), again.state_dict().values()))


def test_recipes_that_make_no_sense():
    with pytest.raises(InputError, match='network=.dense.: give one of partial, plain, masked, gated, attention, fine'): replace(TINY, network='dense')
    for k in NETWORKS[1:]:
        with pytest.raises(InputError, match='is for partial convolutions'): replace(TINY, network=k, formula='raw')
    assert recipe_with(TINY, formula='raw').formula == 'raw'
    for changes, word in ((dict(network='fine'), 'give that one as start'), (dict(doublings=2), 'leave it 1'), (dict(joint=True), 'leave it False'), (dict(network='fine', start='x', doublings=0), 'doublings=0: give a whole number of 1')):
        with pytest.raises(InputError, match=word): replace(TINY, **changes)


def test_saved_recipes_of_before():
    d = asdict(TINY)
    old = {k: v for k, v in d.items() if k != 'network'}
    assert recipe_from(old) == TINY and recipe_from(old).network == 'partial'
    older = {k: v for k, v in old.items() if k not in ('impl', 'doublings', 'channels_last', 'accumulate', 'chunk', 'features_reduce', 'ema', 'start')}
    assert saved_before(older) and not saved_before(old)
    assert recipe_from(older).network == 'partial' and recipe_from(older).impl == 'readable'


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    "A finished run of each network."
    folder = tmp_path_factory.mktemp('runs')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', FutureWarning)
        for k in NETWORKS: train(recipe_of(k, folder/'partial'), out=folder/k, progress=False, device='cpu')
    return folder


def test_runs_are_loaded(runs, network):
    for impl in ('fast', 'readable'):
        net, config = load_model(runs/network, impl=impl)
        assert config['recipe']['network'] == network and config['model'] == net.config == tiny(network).config
    assert read_json(runs/network/'result.json')['finished']
    x, m = example(32, 32)
    fast, readable = (load_model(runs/network, impl=impl)[0] for impl in ('fast', 'readable'))
    with torch.no_grad(): assert_close(fast(x, m), readable(x, m), rtol=1e-4, atol=1e-4)


def test_interrupted_and_the_same(runs, network, tmp_path):
    from fastai.callback.core import Callback, CancelFitException

    class Stop(Callback):
        order = 90
        def before_epoch(self):
            if self.epoch == 1: raise CancelFitException
    recipe = recipe_of(network, runs/'partial')
    train(recipe, out=tmp_path/'run', progress=False, device='cpu', cbs=[Stop()])
    assert not read_json(tmp_path/'run'/'result.json')['finished']
    other = NEXT[network]
    with pytest.raises(InputError, match=f'network: {network} -> {other}'): train(replace(recipe, network=other), out=tmp_path/'run', resume=True, progress=False, device='cpu')
    train(None, out=tmp_path/'run', resume=True, progress=False, device='cpu')
    whole, parts = (load_model(d)[0].state_dict() for d in (runs/network, tmp_path/'run'))
    assert all(torch.equal(whole[k], parts[k]) for k in whole)


def test_a_run_begins_from_its_own_kind(runs, network, tmp_path):
    recipe = replace(TINY, phases=(Phase(1e-4, epochs=1),), start=str(runs/network))
    result = train(replace(recipe, network=network), out=tmp_path/'same', progress=False, device='cpu')
    assert result['start']['name'] == network
    for other in NETWORKS:
        if other == network or (network, other) == ('partial', 'fine'): continue
        with pytest.raises(InputError, match=f"network {network}, here {'partial' if other == 'fine' else other}"): train(replace(recipe, network=other), out=tmp_path/other, progress=False, device='cpu')


def test_other_impl_may_begin_from_it(runs, network, tmp_path):
    recipe = replace(TINY, network=network, impl='readable', phases=(Phase(1e-4, epochs=1),), start=str(runs/network))
    assert train(recipe, out=tmp_path/'run', progress=False, device='cpu')['finished']


def test_inpaint_and_evaluate_take_it(runs, network, tmp_path):
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 60, 3), np.uint8))
    mask = np.ones((48, 60), np.uint8)
    mask[10:30, 20:40] = 0
    out = np.asarray(inpaint(photo, mask, hole='black', model=open_model(runs/network)))
    assert out.shape == (48, 60, 3) and (out[mask == 1] == np.asarray(photo)[mask == 1]).all() and (out[mask == 0] != np.asarray(photo)[mask == 0]).any()
    method = evaluation.network(runs/network/'model.safetensors')
    assert method.sha256 != evaluation.network(runs/NEXT[network]/'model.safetensors').sha256


@pytest.mark.parametrize('network', [k if k in ('partial', 'plain', 'gated') else pytest.param(k, marks=pytest.mark.slow) for k in NETWORKS])
def test_onnx_takes_it(runs, network, tmp_path):
    pytest.importorskip('onnxruntime')
    pytest.importorskip('onnxscript')
    from pconv_course.tools.onnx import export_onnx, open_onnx, run_onnx, run_torch
    net, config = load_model(runs/network)
    assert export_onnx(net, tmp_path/'net.onnx', config)['worst'] <= 1
    g = np.random.default_rng(0)
    image, mask = g.integers(0, 256, (1, 45, 37, 3), np.uint8), (g.random((1, 45, 37)) < .5).astype(np.uint8)
    got = run_onnx(open_onnx(tmp_path/'net.onnx'), image, mask).astype(int)
    assert np.abs(got - run_torch(net, image, mask)).max() <= 1
