"The U-Net held to its promises, beyond what the chapter shows: sizes, modes, formulas, errors and undo."
import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch.testing import assert_close

from pconv_course.lab.fields import receptive_field
from pconv_course.unet import PConvUNet, masks_by_stage, pad_to_multiple, stages


def tiny(depth=3, width=4, seed=0, **kwargs):
    torch.manual_seed(seed)
    return PConvUNet(depth, width, **kwargs)


def example(*shape, known=.6, seed=0):
    g = torch.Generator().manual_seed(seed)
    b, h, w = shape
    return torch.rand(b, 3, h, w, generator=g), (torch.rand(b, 1, h, w, generator=g) < known).float()


def full_pconv(conv, x, m, formula):
    ones = torch.ones_like(conv.weight)
    m_sum = F.conv2d(m, ones, None, conv.stride, conv.padding)
    ratio = dict(paper=ones[0].numel()/m_sum.clamp(min=1), v1=1/m_sum.clamp(min=1), raw=torch.ones_like(m_sum))[formula]
    y = F.conv2d(torch.where(m > 0, x, 0), conv.weight, None, conv.stride, conv.padding)*ratio
    if conv.bias is not None: y = y + conv.bias.view(1, -1, 1, 1)
    return torch.where(m_sum > 0, y, 0), (m_sum > 0).to(x)


def full_unet(net, x, m):
    "The network with a mask of all channels everywhere and no function of the module under test in the way."
    formula, multiple, (h, w) = net.config['formula'], 2**net.config['depth'], x.shape[-2:]
    pad = 0, -w % multiple, 0, -h % multiple
    feats, up = [(F.pad(x, pad), F.pad(m, pad).expand(-1, x.shape[1], -1, -1))], lambda t: t.repeat_interleave(2, 2).repeat_interleave(2, 3)
    for s in net.enc:
        y, u = full_pconv(s.conv, *feats[-1], formula)
        feats.append((F.relu(s.bn(y)), u))
    y, u = feats.pop()
    for i, (s, (skip, m_skip)) in enumerate(zip(net.dec, feats[::-1])):
        y, u = full_pconv(s.conv, torch.cat([up(y), skip], 1), torch.cat([up(u), m_skip], 1), formula)
        if i < len(net.dec) - 1: y = F.leaky_relu(s.bn(y), .2)
    return y[..., :h, :w], u[:, :1, :h, :w]


@pytest.mark.parametrize('depth,count', [(7, 25_779_796), (8, 32_859_732)])
def test_parameters(depth, count):
    with torch.device('meta'): net = PConvUNet(depth)
    assert sum(p.numel() for p in net.parameters()) == count
    assert [n for n, _ in net.named_parameters() if n.endswith('conv.bias')] == [f'dec.{depth - 1}.conv.bias']
    assert sum(r['params'] for r in stages(depth)) == count


def test_state_dict_names():
    bn = ['weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked']
    expected = ['enc.0.conv.weight', *(f'enc.1.{n}' for n in ['conv.weight', *(f'bn.{b}' for b in bn)]),
                *(f'dec.0.{n}' for n in ['conv.weight', *(f'bn.{b}' for b in bn)]), 'dec.1.conv.weight', 'dec.1.conv.bias']
    assert list(tiny(2).state_dict()) == expected


@settings(max_examples=25, deadline=None)
@given(st.integers(16, 50), st.integers(16, 50), st.integers(2, 4), st.sampled_from([0, .02, .3, .9, 1]),
       st.sampled_from(['paper', 'v1', 'raw']), st.booleans(), st.integers(0, 99))
def test_equals_full_masks(h, w, depth, known, formula, training, seed):
    net = tiny(depth, 2, seed, formula=formula).double().train(training)
    x, m = (t.double() for t in example(2, h, w, known=known, seed=seed))
    x1, x2 = x.clone().requires_grad_(), x.clone().requires_grad_()
    out, (expected, u) = net(x1, m), full_unet(net, x2, m)
    assert_close(out, expected, atol=1e-10, rtol=1e-10)
    assert_close(masks_by_stage(net, m)[-1][..., :h, :w].double(), u)
    params = list(net.parameters())
    a, b = (torch.autograd.grad(o.square().sum(), [i, *params]) for o, i in ((out, x1), (expected, x2)))
    scale = max(g.abs().max().item() for g in b)
    for ga, gb in zip(a, b): assert_close(ga, gb, atol=1e-10*max(1, scale), rtol=1e-10)
    assert (a[0]*(1 - m) == 0).all()


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('fill', [float('nan'), float('inf'), -1e30])
def test_hole_values_never_matter(fill, training):
    (x, m), net = example(2, 40, 24), tiny().train(training)
    assert torch.equal(net(x*m, m), copy.deepcopy(net)(torch.where(m > 0, x, fill), m))


@pytest.mark.parametrize('h,w', [(16, 16), (17, 33), (100, 60), (256, 256)])
def test_any_size(h, w):
    net = tiny(4).eval()
    x, m = example(1, h, w)
    pad = 0, -w % 16, 0, -h % 16
    assert net(x, m).shape == x.shape
    assert torch.equal(net(x, m), net(F.pad(x, pad, value=float('nan')), F.pad(m, pad))[..., :h, :w])


def test_padding_is_hole_and_minimal():
    x, m = pad_to_multiple(torch.ones(1, 3, 17, 32), torch.ones(1, 1, 17, 32), 16)
    assert x.shape == (1, 3, 32, 32) and m.shape == (1, 1, 32, 32)
    assert m[..., :17, :].min() == 1 and m[..., 17:, :].max() == 0


def test_one_mask_for_the_batch():
    (x, m), net = example(3, 32, 32), tiny().eval()
    assert_close(net(x, m[:1]), net(x, m[:1].expand(3, -1, -1, -1)))
    assert_close(net(x, m[:1].bool()), net(x, m[:1]))


@pytest.mark.parametrize('known', [0., 1.])
@pytest.mark.parametrize('training', [True, False])
def test_all_hole_and_all_known(known, training):
    net = tiny().train(training)
    x, _ = example(2, 32, 32)
    out = net(x, torch.full((2, 1, 32, 32), known))
    out.square().mean().backward()
    assert out.isfinite().all() and all(p.grad.isfinite().all() for p in net.parameters())
    if known == 0: assert (out == 0).all()


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('known', [0., .01, .5, 1.])
def test_autocast_is_finite(dtype, known):
    (x, m), net = example(2, 64, 64, known=known), tiny(4, 16)
    with torch.autocast('cpu', dtype): out = net(x, m)
    out.float().abs().mean().backward()
    assert out.isfinite().all() and all(p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize('depth', [2, 3, 4, 5])
def test_receptive_field_by_gradient(depth):
    net, size = tiny(depth).double().eval(), 2**depth*12
    for p in net.parameters(): p.data.abs_()
    i = size//2 + depth
    x = torch.rand(1, 3, size, size, dtype=torch.float64, requires_grad=True)
    g = torch.autograd.grad(net(x, torch.ones(1, 1, size, size).double())[..., i, i].sum(), x)[0][0].sum(0)
    a, b = receptive_field(net, i)
    assert a >= 0 and b < size
    inside = torch.zeros(size, size, dtype=bool)
    inside[a:b + 1, a:b + 1] = True
    assert torch.equal(g > 0, inside)


def test_stages_are_those_of_the_forward():
    net, seen = tiny(4), []
    for s in [*net.enc, *net.dec]: s.register_forward_hook(lambda mod, args, res: seen.append((res[0].shape[1], res[0].shape[-1], res[1])))
    x, m = example(2, 50, 50, known=.01)
    net(x, m)
    assert [(r['out_channels'], r['size']) for r in stages(net, size=50)] == [o[:2] for o in seen]
    for mask, (_, _, u) in zip(masks_by_stage(net, m)[1:], seen, strict=True): assert_close(mask, u)


def test_he_initialisation():
    for (n, w) in [(n, w) for n, w in tiny(5, 32).named_parameters() if n.endswith('conv.weight')]:
        gain = 2 if n.startswith('enc') else 1 if n.startswith('dec.4') else 2/(1 + .2**2)
        assert w.var().item()*w[0].numel() == pytest.approx(gain, rel=5*(2/w.numel())**.5), n


@pytest.mark.parametrize('how', [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o)), lambda o: o.to(memory_format=torch.channels_last)])
def test_copies_and_layouts(how):
    (x, m), net = example(2, 32, 48), tiny().freeze_encoder_bn().eval()
    out = net(x, m)
    again = how(net)
    assert_close(again(x, m), out)
    assert again.train().enc[1].bn.training is False


def test_config_and_state_dict_round_trip():
    net = tiny(3, 4, in_channels=1, max_width=8, formula='v1')
    x, m = torch.rand(2, 1, 32, 32), torch.ones(2, 1, 32, 32)
    net(x, m)
    buf = io.BytesIO()
    torch.save(net.state_dict(), buf)
    buf.seek(0)
    again = PConvUNet(**net.config)
    again.load_state_dict(torch.load(buf, weights_only=True))
    assert torch.equal(again.eval()(x, m), net.eval()(x, m))
    assert [r['out_channels'] for r in stages(net)] == [4, 8, 8, 8, 4, 1]


def test_exports():
    (x, m), net = example(1, 32, 32), tiny().eval()
    assert_close(torch.export.export(net, (x, m)).module()(x, m), net(x, m))


def encoder_stats(net): return {k: v.clone() for k, v in net.state_dict().items() if k.startswith('enc') and '.bn.' in k}


def test_freeze_holds_over_epochs_and_undo():
    net, (x, m) = tiny(), example(4, 32, 32)
    opt = torch.optim.Adam(net.parameters(), 1e-2)
    for p in net.parameters(): p.grad = torch.ones_like(p)
    opt.step()
    def epochs(n):
        for _ in range(n):
            net.train()
            opt.zero_grad(set_to_none=False)
            net(x, m).square().mean().backward()
            opt.step()
            net.eval()
    net.freeze_encoder_bn()
    before, dec, weight = encoder_stats(net), net.dec[0].bn.running_mean.clone(), net.enc[1].conv.weight.detach().clone()
    epochs(2)
    for k, v in encoder_stats(net).items(): assert torch.equal(v, before[k]), k
    assert not torch.equal(net.dec[0].bn.running_mean, dec)
    assert not torch.equal(net.enc[1].conv.weight, weight)
    net.freeze_encoder_bn(False)
    assert all(p.requires_grad for p in net.parameters())
    epochs(1)
    for k, v in encoder_stats(net).items(): assert not torch.equal(v, before[k]), k


def test_freeze_while_training_takes_effect_at_once():
    net = tiny().train().freeze_encoder_bn()
    assert [s.bn.training for s in net.enc[1:]] == [False, False] and net.dec[0].bn.training
    net.freeze_encoder_bn(False)
    assert all(s.bn.training for s in net.enc[1:])
    net.eval().freeze_encoder_bn(False)
    assert not any(s.bn.training for s in net.enc[1:])
    torch.nn.Sequential(net.freeze_encoder_bn()).train()
    assert not any(s.bn.training for s in net.enc[1:])


@pytest.mark.parametrize('inp,m,message', [
    ((1, 3, 1, 1), (1, 1, 1, 1), '1x1 px'), ((1, 3, 15, 64), (1, 1, 15, 64), '16x16'), ((3, 32, 32), (1, 32, 32), 'inp has shape'),
    ((1, 4, 32, 32), (1, 1, 32, 32), 'inp has shape'), ((2, 3, 32, 32), (2, 3, 32, 32), 'm has shape'),
    ((2, 3, 32, 32), (3, 1, 32, 32), 'm has shape'), ((2, 3, 32, 32), (2, 1, 32, 16), 'm has shape')])
def test_wrong_input(inp, m, message):
    with pytest.raises(ValueError, match=message) as e: tiny()(torch.rand(inp), torch.ones(m))
    assert '\n' not in str(e.value)


def test_batch_norm_of_a_single_value():
    net, (x, m) = tiny(4), example(1, 16, 16)
    with pytest.raises(ValueError, match='single value'): net(x, m)
    assert net.freeze_encoder_bn()(x, m).isfinite().all()
    assert net.freeze_encoder_bn(False).eval()(x, m).isfinite().all()
    assert net.train()(*example(2, 16, 16)).isfinite().all()


@pytest.mark.parametrize('kwargs', [dict(depth=1), dict(width=0), dict(in_channels=0), dict(formula='v2')])
def test_wrong_arguments(kwargs):
    with pytest.raises(ValueError): PConvUNet(**dict(dict(depth=2, width=2), **kwargs))
