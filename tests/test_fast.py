"The fast U-Net held to the readable one: numbers, gradients, masks, training, compilers; and the costs that no clock is needed for."
import copy
import io

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch.testing import assert_close

from pconv_course.fast import FastPConvUNet, flops, kernels, plan_masks, saved_bytes, split_conv, up_cat_conv, up_kernel
from pconv_course.lab.phases import phase_conv
from pconv_course.networks import PlainUNet, build_unet
from pconv_course.unet import PConvUNet, masks_by_stage, pad_to_multiple


def pair(depth=3, width=4, seed=0, dtype=torch.float32, **kwargs):
    "The readable and the fast network with equal weights and used batch norms."
    torch.manual_seed(seed)
    readable = PConvUNet(depth, width, **kwargs).to(dtype)
    for s in readable.enc[1:]:
        s.bn.running_mean.normal_(), s.bn.running_var.uniform_(.5, 2)
        with torch.no_grad(): s.bn.weight.uniform_(-1, 2), s.bn.bias.normal_()
    fast = FastPConvUNet(**readable.config).to(dtype)
    fast.load_state_dict(readable.state_dict())
    return readable, fast


def example(*shape, known=.6, seed=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    b, h, w = shape
    return torch.rand(b, 3, h, w, generator=g, dtype=dtype), (torch.rand(b, 1, h, w, generator=g) < known).to(dtype)


def gradients(net, x, m):
    x = x.clone().requires_grad_()
    out = net(x, m)
    return out, torch.autograd.grad((out*out.detach().cos()).sum(), [x, *net.parameters()], allow_unused=True)


def worst(got, want):
    "Largest difference, relative to the largest value of each tensor."
    return max(((g - w).abs().max()/w.abs().max().clamp(min=1e-6)).item() for g, w in zip(got, want, strict=True))


@settings(max_examples=40, deadline=None)
@given(st.integers(16, 70), st.integers(16, 70), st.integers(1, 3), st.integers(2, 4), st.integers(1, 3),
       st.sampled_from([0, .01, .3, .9, 1]), st.sampled_from(['paper', 'v1', 'raw']), st.booleans(), st.integers(0, 99))
def test_equals_readable_in_float64(h, w, b, depth, width, known, formula, training, seed):
    readable, fast = pair(depth, width, seed, torch.float64, formula=formula, max_width=5)
    (x, m), alone = example(b, h, w, known=known, seed=seed, dtype=torch.float64), b == 1 and max(h, w) <= 2**depth
    out, grads = gradients(readable.train(training and not alone), x, m)
    fast_out, fast_grads = gradients(fast.train(training and not alone), x.masked_fill(m == 0, float('nan')), m)
    assert_close(fast_out, out, atol=1e-10, rtol=1e-10)
    scale = max(1., *(g.abs().max().item() for g in grads))
    for g, want in zip(fast_grads, grads): assert_close(g, want, atol=1e-10*scale, rtol=1e-10)
    assert (fast_grads[0]*(1 - m) == 0).all()
    for k, v in readable.state_dict().items(): assert_close(fast.state_dict()[k], v, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('known', [0., .02, .5, 1.])
def test_equals_readable_in_float32(training, known):
    readable, fast = pair(5, 8)
    x, m = example(2, 96, 130, known=known)
    (out, grads), (fast_out, fast_grads) = gradients(readable.train(training), x, m), gradients(fast.train(training), x, m)
    assert worst([fast_out, *fast_grads], [out, *grads]) < 1e-4


@settings(max_examples=30, deadline=None)
@given(st.integers(16, 200), st.integers(16, 200), st.integers(2, 6), st.floats(0, 1), st.sampled_from(['paper', 'v1', 'raw']))
def test_masks_and_ratios_by_stage(h, w, depth, known, formula):
    net = FastPConvUNet(depth, 2, formula=formula)
    _, m = example(2, h, w, known=known**4)
    enc, dec = plan_masks(net, pad_to_multiple(m, m, 2**depth)[1])
    for (ratio, u), want in zip([*enc, *dec], masks_by_stage(net, m)[1:], strict=True):
        assert torch.equal(u, want) and torch.equal(ratio > 0, u > 0)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.integers(0, 99))
def test_up_kernel_is_exact_to_the_border(h, w, c_up, c_skip, c_out, seed):
    torch.manual_seed(seed)
    x, skip = torch.randn(2, c_up, h, w).double().requires_grad_(), torch.randn(2, c_skip, 2*h, 2*w).double().requires_grad_()
    weight = torch.randn(c_out, c_up + c_skip, 3, 3).double().requires_grad_()
    want = F.conv2d(torch.cat([F.interpolate(x, scale_factor=2), skip], 1), weight, padding=1)
    w_up, w_skip = weight.split([c_up, c_skip], 1)
    got = F.conv_transpose2d(x, up_kernel(w_up), stride=2, padding=1) + F.conv2d(skip, w_skip, padding=1)
    assert_close(got, want, atol=1e-12, rtol=1e-12)
    for f in (up_cat_conv, split_conv, phase_conv): assert_close(f(x, skip, weight), want, atol=1e-12, rtol=1e-12)
    g = torch.randn_like(want)
    for a, b in zip(torch.autograd.grad(got, (x, skip, weight), g), torch.autograd.grad(want, (x, skip, weight), g)):
        assert_close(a, b, atol=1e-11, rtol=1e-11)


def test_state_dict_key_for_key():
    readable, fast = pair(5)
    for net in (fast, PlainUNet(5, 4), PlainUNet(5, 4, decoder='transposed')):
        assert list(net.state_dict()) == list(readable.state_dict())
        assert [p.shape for p in net.parameters()] == [p.shape for p in readable.parameters()]
        net.load_state_dict(readable.state_dict())
    assert fast.config == readable.config
    torch.manual_seed(3)
    a = PConvUNet(3, 4)
    torch.manual_seed(3)
    for p, q in zip(a.parameters(), FastPConvUNet(3, 4).parameters()): assert torch.equal(p, q)


def train(net, steps=20):
    opt, losses = torch.optim.Adam(net.train().parameters(), 2e-4), []
    for i in range(steps):
        x, m = example(4, 64, 64, known=.5, seed=i)
        loss = F.l1_loss(net(x, m), x)
        opt.zero_grad()
        loss.backward()
        opt.step()
        losses.append(loss.item())
    return losses


def test_twenty_steps_of_training():
    readable, fast = pair(4, 8)
    a, b = train(readable), train(fast)
    assert max(abs(p - q) for p, q in zip(a, b)) < 1e-4
    assert a[-1] < a[0]


@pytest.mark.parametrize('training', [True, False])
def test_frozen_batch_norm(training):
    readable, fast = (n.freeze_encoder_bn().train(training) for n in pair(4, dtype=torch.float64))
    x, m = example(2, 48, 48, known=.3, dtype=torch.float64)
    for n in (readable, fast): n(x, m).square().mean().backward()
    for (k, p), q in zip(readable.named_parameters(), fast.parameters()):
        if p.grad is None: assert q.grad is None and k.startswith('enc') and '.bn.' in k
        else: assert_close(q.grad, p.grad, atol=1e-10, rtol=1e-10)
    assert_close(fast.state_dict(), readable.state_dict(), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('known', [0., .01, .5, 1.])
def test_autocast(dtype, known):
    readable, fast = pair(4, 16)
    x, m = example(2, 64, 64, known=known)
    want, grads = gradients(readable, x, m)
    for net in (fast, fast.to(memory_format=torch.channels_last)):
        with torch.autocast('cpu', dtype): out = net(x, m)
        out.float().square().mean().backward()
        assert out.dtype == dtype and all(p.grad.isfinite().all() for p in net.parameters())
        assert worst([out.float()], [want]) < (.1 if dtype == torch.bfloat16 else .02)


def test_channels_last_stays_channels_last():
    _, fast = pair(4, 16)
    x, m = example(2, 64, 64)
    want, fast = gradients(fast, x, m), fast.to(memory_format=torch.channels_last)
    with torch.no_grad(): feats, _ = copy.deepcopy(fast).encode(x.contiguous(memory_format=torch.channels_last), m)
    assert all(f.is_contiguous(memory_format=torch.channels_last) for f in feats)
    got = gradients(fast.eval(), *example(1, 64, 64)), gradients(fast.train(), x, m)
    assert worst([got[1][0], *got[1][1]], [want[0], *want[1]]) < 1e-4


@pytest.mark.parametrize('training', [True, False])
def test_compiles(training):
    torch._dynamo.reset()
    _, fast = pair(4, 8)
    x, m = example(2, 48, 80, known=.4)
    again = copy.deepcopy(fast.train(training))
    out, grads = gradients(torch.compile(again, backend='aot_eager', fullgraph=True), x, m)
    want, want_grads = gradients(fast, x, m)
    assert worst([out, *grads], [want, *want_grads]) < 1e-5


@pytest.mark.parametrize('training', [True, False])
def test_exports(training):
    (x, m), (_, net) = example(2, 40, 32), pair()
    program = torch.export.export(net.train(training), (x, m))
    want = net(x, m)
    assert_close(program.module()(x, m), want)


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('fill', [float('nan'), float('inf'), -1e30])
def test_hole_values_never_matter(fill, training):
    (x, m), (_, net) = example(2, 40, 24), pair()
    net.train(training)
    assert torch.equal(copy.deepcopy(net)(x, m), net(torch.where(m > 0, x, fill), m))


def test_one_image_one_mask_no_gradient():
    readable, fast = (n.eval() for n in pair(4))
    x, m = example(3, 33, 61)
    before = x.clone(), m.clone()
    with torch.inference_mode(): assert_close(fast(x[:1], m[:1]), readable(x[:1], m[:1]))
    assert_close(fast(x, m[:1]), readable(x, m[:1].expand(3, -1, -1, -1)))
    assert_close(fast(x, m.bool()), readable(x, m))
    assert torch.equal(x, before[0]) and torch.equal(m, before[1])


def test_backward_twice_and_gradient_accumulation():
    _, fast = pair(4)
    x, m = example(2, 64, 64)
    loss = fast(x, m).square().mean()
    loss.backward(retain_graph=True)
    once = [p.grad.clone() for p in fast.parameters()]
    loss.backward()
    for p, g in zip(fast.parameters(), once): assert_close(p.grad, 2*g)


def test_copies_freeze_and_pickle():
    (x, m), (_, net) = example(2, 32, 48), pair()
    net.freeze_encoder_bn().eval()
    buf = io.BytesIO()
    torch.save(net, buf)
    buf.seek(0)
    for again in (copy.deepcopy(net), torch.load(buf, weights_only=False)): assert_close(again(x, m), net(x, m))


def test_errors_are_those_of_the_readable():
    _, fast = pair(4)
    for args, message in (((torch.rand(1, 3, 16, 16), torch.ones(1, 1, 16, 16)), 'single value'),
                          ((torch.rand(2, 3, 32, 32), torch.ones(2, 3, 32, 32)), 'm has shape')):
        with pytest.raises(ValueError, match=message): fast(*args)
    with pytest.raises(ValueError, match='quick'): build_unet(impl='quick')
    with pytest.raises(ValueError, match='sum'): PlainUNet(2, 2, decoder='sum')


def test_build_unet():
    config = dict(depth=3, width=4, in_channels=1, max_width=None, formula='v1')
    assert type(build_unet(config)) is FastPConvUNet and type(build_unet(config, 'readable')) is PConvUNet
    assert build_unet(config).config == config


@pytest.mark.parametrize('training', [True, False])
def test_plain_decoders_are_equal(training):
    torch.manual_seed(0)
    a, b = PlainUNet(5, 4).double(), PlainUNet(5, 4, decoder='transposed').double()
    b.load_state_dict(a.state_dict())
    x, m = example(2, 70, 40, dtype=torch.float64)
    (out, grads), (out_b, grads_b) = gradients(a.train(training), x, m), gradients(b.train(training), x.masked_fill(m == 0, 7.), m)
    assert worst([out_b, *grads_b], [out, *grads]) < 1e-10


def test_plain_is_a_plain_network():
    "Built of nn.Conv2d here, with nothing of the library: the base line must not be a straw man."
    net = PlainUNet(4, 4).eval()
    x, m = example(2, 64, 64)
    feats = [x*m]
    for s in net.enc: feats.append(F.relu(s.bn(F.conv2d(feats[-1], s.conv.weight, stride=2, padding=s.conv.weight.shape[-1]//2))))
    y = feats.pop()
    for s in net.dec:
        y = F.conv2d(torch.cat([F.interpolate(y, scale_factor=2), feats.pop()], 1), s.conv.weight, s.conv.bias, padding=1)
        if len(feats): y = F.leaky_relu(s.bn(y), .2)
    assert_close(net(x, m), y)
    assert {type(s.conv) for s in [*net.enc, *net.dec]} == {torch.nn.Conv2d}


def step(net, x, m):
    def run():
        net(x, m).abs().mean().backward()
        net.zero_grad()
    return run


def test_costs_at_full_size():
    "FLOP and saved bytes of the 25.8 M network at 256 px, counted on the meta device."
    counts = {}
    with torch.device('meta'):
        x, m = torch.rand(4, 3, 256, 256), torch.rand(4, 1, 256, 256)
        for name, net in dict(plain=PlainUNet(), same=PlainUNet(decoder='transposed'), readable=PConvUNet(), fast=FastPConvUNet()).items():
            counts[name] = flops(lambda: net(x, m)), flops(step(net, x, m))
    assert counts['fast'] == counts['same'] and counts['readable'] == counts['plain']
    for fast, plain in zip(counts['fast'], counts['plain']): assert .74 < fast/plain < .76


def test_saved_bytes():
    (x, m), nets = example(8, 128, 128), dict(plain=PlainUNet(5, 16), same=PlainUNet(5, 16, decoder='transposed'),
                                               readable=PConvUNet(5, 16), fast=FastPConvUNet(5, 16))
    n = {k: saved_bytes(lambda: net(x, m), net) for k, net in nets.items()}
    assert n['fast'] < .5*n['plain'] < .5*n['readable'] and n['fast'] < 1.15*n['same']


def test_no_convolution_is_computed_twice():
    "The checkpoint in the decoder makes the kernel again, and stops before the convolution."
    (x, m), net = example(2, 128, 128), FastPConvUNet(4, 8)
    whole, forward = flops(step(net, x, m)), flops(lambda: net(x, m))
    first = flops(lambda: net.enc[0](x.masked_fill(m == 0, 0), m))
    assert whole < 3*forward - first + 2*64*sum(p.numel() for p in net.parameters())


def test_saved_bytes_counts_each_block_once():
    a = torch.ones(10, requires_grad=True)
    assert saved_bytes(lambda: (a*2).exp()) == 40
    assert saved_bytes(lambda: a*a) == 40
    lin = torch.nn.Linear(4, 4)
    assert saved_bytes(lambda: lin(torch.ones(2, 4)), lin) == 32


def test_kernels():
    a = torch.ones(4, 4)
    assert kernels(lambda: a.add(1).view(16).mul(2)) == 2
