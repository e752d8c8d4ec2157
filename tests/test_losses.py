"""Losses: equality with loops, what each term may see, files that hold a VGG, and bad input."""
import copy
import os
import pickle
import re
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn
from torch.testing import assert_close

from pconv_course import losses
from pconv_course import objective
from pconv_course.base.core import InputError, sha256_of
from pconv_course.lab.clocks import chunk_times
from pconv_course.losses import (FeatureNet, gram, loss_hole, loss_perceptual, loss_style, loss_tv, loss_valid, open_features, random_features,
    vgg16_features, vgg19_features, vgg_features)
from pconv_course.objective import (FEATURE_TERMS, PAPER_WEIGHTS, PIXEL_WEIGHTS, ChunkedLoss, InpaintLoss, auto_chunk, check_weights, in_chunks, loss_terms,
    term_gradients)


def batch(b=2, h=16, w=16, seed=0, dtype=torch.float32, known=.6):
    g = torch.Generator().manual_seed(seed)
    out, gt = torch.rand(2, b, 3, h, w, generator=g, dtype=dtype)
    return out, gt, (torch.rand(b, 1, h, w, generator=g) < known).to(dtype)


def by_loops(out, gt, m, per):
    "valid, hole and tv of one image, pixel by pixel, as the paper writes them."
    c, h, w = gt.shape
    comp = [[[float(gt[k, i, j] if m[0, i, j] else out[k, i, j]) for j in range(w)] for i in range(h)] for k in range(c)]
    hole = {(i, j) for i in range(h) for j in range(w) if m[0, i, j] == 0}
    grown = {(i + a, j + b) for i, j in hole for a in (-1, 0, 1) for b in (-1, 0, 1) if 0 <= i + a < h and 0 <= j + b < w}
    valid = sum(abs(float(out[k, i, j] - gt[k, i, j])) for k in range(c) for i in range(h) for j in range(w) if (i, j) not in hole)
    in_hole = sum(abs(float(out[k, i, j] - gt[k, i, j])) for k in range(c) for i, j in hole)
    tv = sum(abs(comp[k][i][j] - comp[k][p][q]) for k in range(c) for i, j in grown for p, q in ((i + 1, j), (i, j + 1)) if (p, q) in grown)
    areas = (h*w - len(hole), len(hole), len(grown)) if per == 'hole' else (h*w,)*3
    return [v/max(c*n, 1) for v, n in zip((valid, in_hole, tv), areas)]


@settings(max_examples=40, deadline=None)
@given(h=st.integers(1, 7), w=st.integers(1, 7), b=st.integers(1, 3), known=st.sampled_from([0., .3, .8, .97, 1.]),
       per=st.sampled_from(['image', 'hole']), seed=st.integers(0, 99))
def test_pixel_terms_equal_loops(h, w, b, known, per, seed):
    out, gt, m = batch(b, h, w, seed, torch.float64, known)
    comp = torch.where(m > 0, gt, out)
    ours = torch.stack([loss_valid(out, gt, m, per), loss_hole(out, gt, m, per), loss_tv(comp, m, per)])
    assert_close(ours, torch.tensor([by_loops(*t, per) for t in zip(out, gt, m)], dtype=torch.float64).mean(0))


def test_total_equals_the_formula():
    "An independent reading of section 3.3, in float64, sums written out."
    out, gt, m = batch(1, 24, 16, dtype=torch.float64)
    net = random_features(width=4).double()
    comp = m*gt + (1 - m)*out
    want = PAPER_WEIGHTS['valid']*(m*(out - gt)).abs().sum()/gt.numel() + PAPER_WEIGHTS['hole']*((1 - m)*(out - gt)).abs().sum()/gt.numel()
    want += PAPER_WEIGHTS['tv']*loss_tv(comp, m)
    for i in (out, comp):
        for a, b in zip(net(i), net(gt)):
            _, c, h, w = a.shape
            want += .05*(a - b).abs().sum()/(c*h*w)
            ka, kb = (torch.einsum('bchw,bdhw->bcd', f, f)/(c*h*w) for f in (a, b))
            want += 120*(ka - kb).abs().sum()/(c*c)
    assert_close(InpaintLoss(net)(out, gt, m), want)


@pytest.mark.parametrize('per', ['image', 'hole'])
def test_a_batch_costs_the_mean_of_its_images(per):
    out, gt, m = batch(3)
    m[0], m[1, :, :8], m[2] = 1, 0, 0
    loss = InpaintLoss(random_features(width=4), per=per)
    loss(out, gt, m)
    whole = dict(loss.last)
    alone = []
    for i in range(3):
        loss(out[i:i+1], gt[i:i+1], m[i:i+1])
        alone.append(loss.last)
    for k in whole: assert_close(whole[k], torch.stack([a[k] for a in alone]).mean())


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_zero_at_the_truth_in_every_layout(layout):
    _, gt, m = batch(2, 33, 21)
    loss = InpaintLoss(random_features(width=4))
    loss(gt.contiguous(memory_format=layout), gt, m)
    assert all(loss.last[k] == 0 for k in PAPER_WEIGHTS if k != 'tv') and loss.last['tv'] > 0


def test_each_term_pulls_only_where_it_may():
    out, gt, m = batch(2, 32, 32)
    g = term_gradients(InpaintLoss(random_features(width=4)), out, gt, m)
    assert list(g) == list(PAPER_WEIGHTS)
    for k in ('hole', 'style_comp', 'tv'): assert (g[k]*m == 0).all() and g[k].abs().sum() > 0
    assert (g['valid']*(1 - m) == 0).all() and g['valid'].abs().sum() > 0
    for k in ('perceptual', 'style_out'): assert (g[k]*m).abs().sum() > 0 and (g[k]*(1 - m)).abs().sum() > 0


def test_gradients_against_finite_differences():
    "With per='hole'; the chapter checks per='image'."
    out, gt, m = batch(1, 8, 8, dtype=torch.float64)
    loss = InpaintLoss(random_features(width=2).double(), per='hole')
    assert torch.autograd.gradcheck(lambda o: loss(o, gt, m), out.requires_grad_())


def test_the_ruler_does_not_change():
    net = random_features(width=4).train()
    assert not net.training and not any(p.requires_grad for p in net.parameters())
    before = copy.deepcopy(net.state_dict())
    model = nn.Conv2d(3, 3, 3, padding=1)
    loss, (_, gt, m) = InpaintLoss(net).train(), batch()
    opt = torch.optim.SGD([*model.parameters(), *(p for p in loss.parameters() if p.requires_grad)], .1)
    loss(model(gt), gt, m).backward()
    opt.step()
    assert set(model.state_dict()) == {'weight', 'bias'} and model.weight.grad.abs().sum() > 0
    for k, v in net.state_dict().items(): assert_close(v, before[k], rtol=0, atol=0)
    assert not loss.features.training


@pytest.mark.parametrize('chunk', [None, 1])
def test_comp_may_stand_in_for_out(chunk):
    "Features then look at two pictures, and what the network makes of known pixels has a gradient of the valid term alone."
    (out, gt, m), net = batch(2, 16, 16, dtype=torch.float64), random_features(width=4).double()
    comp, seen = m*gt + (1 - m)*out, []
    net.register_forward_pre_hook(lambda *_: seen.append(1))
    whole, loss = InpaintLoss(net, chunk=chunk), InpaintLoss(net, chunk=chunk, own=False)
    whole(comp, gt, m), seen.clear(), loss(out, gt, m)
    assert len(seen) == 2*(2 if chunk else 1)
    for k in FEATURE_TERMS: assert_close(loss.last[k], whole.last[k])
    g = term_gradients(loss, out, gt, m)
    assert all((g[k]*m == 0).all() and g[k].any() for k in FEATURE_TERMS) and (g['valid']*m).any()
    assert_close(loss.last['valid'], loss_terms(out, gt, m)['valid'])


def test_three_images_are_normalised_alike_and_gt_has_no_graph():
    seen = []

    class Spy(FeatureNet):
        def forward(self, img):
            seen.append((img.requires_grad, torch.is_grad_enabled()))
            return super().forward(img)
    out, gt, m = batch()
    InpaintLoss(Spy([nn.Identity() for _ in range(3)]))(out.requires_grad_(), gt, m)
    assert sorted(seen) == [(False, False), (True, True), (True, True)]
    grey = torch.tensor(losses.IMAGENET_MEAN).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    assert_close(FeatureNet([nn.Identity()])(grey)[0], torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_and_autocast_change_nothing(dtype):
    out, gt, m = batch(1, 128, 128)
    loss, out = InpaintLoss(random_features(width=4)), out.to(dtype)
    with torch.autocast('cpu', dtype):
        total = loss(out, gt, m)
        big = gram(torch.full((1, 2, 128, 128), 30., dtype=dtype))
    assert total.dtype == torch.float32
    assert_close(total, loss(out.float(), gt, m), rtol=0, atol=0)
    assert_close(big, torch.full((1, 2, 2), 450.))


def test_last_is_for_logging():
    out, gt, m = batch()
    loss = InpaintLoss(random_features(width=4))
    total = loss(out.requires_grad_(), gt, m)
    assert list(loss.last) == [*PAPER_WEIGHTS, 'total'] and not any(v.requires_grad for v in loss.last.values())
    assert_close(loss.last['total'], total.detach())
    again = pickle.loads(pickle.dumps(loss))
    assert_close(again(out, gt, m), total)
    pixels = InpaintLoss.pixels()
    pixels(out, gt, m)
    assert all(pixels.last[k] == 0 for k in FEATURE_TERMS) and all(pixels.last[k] > 0 for k in PIXEL_WEIGHTS)


# a few images at a time

def value_and_grad(loss, out, gt, m):
    out = out.detach().clone().requires_grad_()
    return loss(out, gt, m), torch.autograd.grad(loss(out, gt, m), out)[0], dict(loss.last)


@settings(max_examples=25, deadline=None)
@given(b=st.integers(1, 5), chunk=st.integers(1, 6), h=st.integers(8, 17), w=st.integers(8, 17), known=st.sampled_from([0., .1, .6, 1.]),
       per=st.sampled_from(['image', 'hole']), term=st.sampled_from([*PAPER_WEIGHTS, None]), seed=st.integers(0, 99))
def test_chunks_equal_the_whole_batch(b, chunk, h, w, known, per, term, seed):
    "Value, gradient and every logged term, each term alone and all six, one hole all over or none at all among the others."
    out, gt, m = batch(b, h, w, seed, torch.float64, known)
    m[0] = seed % 2
    net, weights = random_features(width=2).double(), {term: 3.} if term else PAPER_WEIGHTS
    whole, pieces = (value_and_grad(InpaintLoss(net, weights, per, chunk=c), out, gt, m) for c in (None, chunk))
    assert_close(pieces[0], whole[0], rtol=1e-12, atol=1e-14)
    assert_close(pieces[1], whole[1], rtol=1e-12, atol=1e-15)
    assert list(pieces[2]) == list(whole[2])
    for k in whole[2]: assert_close(pieces[2][k], whole[2][k], rtol=1e-12, atol=1e-14)


def test_chunk_of_the_size_of_the_batch_is_the_whole_batch_to_the_bit():
    out, gt, m = batch(3, 16, 16)
    net = random_features(width=4)
    want = value_and_grad(InpaintLoss(net, chunk=None), out, gt, m)
    for chunk in (3, 7, 'auto'):
        for a, b in zip(value_and_grad(InpaintLoss(net, chunk=chunk), out, gt, m)[:2], want): assert torch.equal(a, b)


def test_pieces_are_as_large_as_asked_for():
    seen = []

    class Spy(FeatureNet):
        def forward(self, img):
            seen.append(len(img))
            return super().forward(img)
    net = Spy([nn.Identity() for _ in range(3)])
    out, gt, m = batch(5)
    InpaintLoss(net, chunk=2)(out.requires_grad_(), gt, m).backward()
    assert seen == [2]*6 + [1]*3
    seen.clear()
    with torch.no_grad(): InpaintLoss(net, chunk=2)(out, gt, m)
    assert seen == [2]*6 + [1]*3
    seen.clear()
    with patch.dict(objective.CHUNK_PIXELS, cpu=3*16*16): InpaintLoss(net)(out, gt, m)
    assert seen == [3]*3 + [2]*3


def test_auto_counts_pixels():
    assert [auto_chunk(torch.empty(9, 3, s, s)) for s in (64, 128, 256, 512)] == [16, 4, 1, 1]
    assert auto_chunk(torch.empty(9, 3, 64, 128)) == 8
    out, gt, m = batch(2, 300, 300)
    with patch.object(ChunkedLoss, 'apply', side_effect=AssertionError): InpaintLoss.pixels()(out.requires_grad_(), gt, m)


@pytest.mark.parametrize('bad', [0, -1, 1.5, 'all', True, '4'])
def test_impossible_chunks(bad):
    with pytest.raises(InputError, match='how many images'): InpaintLoss('random', chunk=bad)


def test_the_factor_of_the_backward_multiplies_the_gradient():
    "As the scaler of mixed precision does before the backward, and gradient accumulation by dividing in place."
    out, gt, m = batch(3)
    loss = InpaintLoss(random_features(width=4), chunk=2)
    _, want, last = value_and_grad(loss, out, gt, m)
    leaf = out.clone().requires_grad_()
    total = loss(leaf, gt, m)
    total /= 4
    (total*65536.).backward()
    assert_close(leaf.grad, want*16384)
    assert_close(loss.last['total'], last['total'])
    leaf.grad = None
    loss(leaf*2, gt, m).backward()
    assert_close(leaf.grad, 2*value_and_grad(loss, 2*out, gt, m)[1])
    for _ in range(2):
        leaf.grad = None
        total = loss(leaf, gt, m)
        total.backward(retain_graph=True)
        total.backward()
        assert_close(leaf.grad, 2*want)


@pytest.mark.parametrize('chunk', [None, 2])
def test_dividing_the_loss_in_place_leaves_the_log_alone(chunk):
    out, gt, m = batch(3)
    loss = InpaintLoss(random_features(width=4), chunk=chunk)
    total = loss(out.requires_grad_(), gt, m)
    before = loss.last['total'].clone()
    total /= 4
    assert_close(loss.last['total'], before)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_gradient_waits_for_the_scale_in_32_bits(dtype):
    out, gt, m = batch(4, 64, 64)
    loss, out = InpaintLoss(random_features(width=4), dict(tv=.001, style_out=1e-3), chunk=1), out.to(dtype)
    want = value_and_grad(loss, out.float(), gt, m)[1]*65536
    leaf = out.clone().requires_grad_()
    with torch.autocast('cpu', dtype): total = loss(leaf, gt, m)
    assert total.dtype == torch.float32
    (total*65536.).backward()
    assert leaf.grad.dtype == dtype
    assert_close(leaf.grad, want.to(dtype), rtol=0, atol=0)
    early = (want/65536).to(dtype).float()*65536
    if dtype == torch.float16: assert (early - want).norm() > 10*(leaf.grad.float() - want).norm()


def test_second_derivatives_are_refused_and_whole_batches_have_them():
    out, gt, m = batch(3, dtype=torch.float64)
    net = random_features(width=2).double()
    out.requires_grad_()
    with pytest.raises(InputError, match='chunk=None') as e: torch.autograd.grad(InpaintLoss(net, chunk=1)(out, gt, m), out, create_graph=True)
    assert '\n' not in str(e.value)
    g, = torch.autograd.grad(InpaintLoss(net, chunk=None)(out, gt, m), out, create_graph=True)
    assert torch.autograd.grad(g.square().sum(), out)[0].abs().sum() > 0


def test_a_gradient_in_gt_or_m_is_refused():
    out, gt, m = batch(3)
    loss = InpaintLoss(random_features(width=2), chunk=2)
    with pytest.raises(InputError, match='detach gt and m'): loss(out, gt.requires_grad_(), m)
    with pytest.raises(InputError, match='detach gt and m'): loss(out, gt.detach(), m.requires_grad_())
    with torch.no_grad(): assert loss(out, gt, m).isfinite()


def test_validation_in_chunks_keeps_no_graph():
    out, gt, m = batch(3)
    whole, pieces = InpaintLoss(random_features(width=4), chunk=None), InpaintLoss(random_features(width=4), chunk=2)
    for o in (out, out.clone().requires_grad_()):
        with torch.no_grad(): total = pieces(o, gt, m)
        assert not total.requires_grad
        assert_close(total, whole(o, gt, m).detach())
    assert not pieces(out, gt, m).requires_grad and not any(v.requires_grad for v in pieces.last.values())


def test_memory_is_that_of_one_piece():
    "Bytes that autograd keeps at one time, counted; nothing of a piece is alive when the next begins."
    class Kept:
        alive = peak = 0
        def __init__(self, t):
            self.t = t
            Kept.alive += t.nbytes
            Kept.peak = max(Kept.peak, Kept.alive)
        def __del__(self): Kept.alive -= self.t.nbytes

    def peak(chunk, b):
        Kept.alive = Kept.peak = 0
        out, gt, m = batch(b, 32, 32)
        loss = InpaintLoss(random_features(width=8), chunk=chunk)
        with torch.autograd.graph.saved_tensors_hooks(Kept, lambda k: k.t): total = loss(out.requires_grad_(), gt, m)
        total.backward()
        return Kept.peak
    one = peak(None, 1)
    assert peak(None, 8) > 6*one
    assert peak(1, 8) < 1.2*one and peak(2, 8) < 2.2*one


def test_chunk_times_measures_every_chunk():
    rows = chunk_times(InpaintLoss(random_features(width=2)), size=16, bs=4, chunks=(1, 3, 4), rounds=3)
    assert [r['chunk'] for r in rows] == [1, 3, 4] and rows[-1]['ratio'] == [1, 1, 1] and all(r['seconds'] >= 0 for r in rows)


def test_features_in_16_bits_when_asked():
    out, gt, m = batch(2, 32, 32)
    net = random_features(width=8)
    exact = value_and_grad(InpaintLoss(net), out, gt, m)
    net.half = torch.bfloat16
    assert {f.dtype for f in net(gt)} == {torch.bfloat16} and {p.dtype for p in net.parameters()} == {torch.float32}
    for chunk in (None, 1):
        total, grad, last = value_and_grad(InpaintLoss(net, chunk=chunk), out, gt, m)
        assert total.dtype == torch.float32 and all(v.dtype == torch.float32 for v in last.values())
        assert_close(total, exact[0], rtol=.02, atol=0)
        assert 1e-4 < (grad - exact[1]).norm()/exact[1].norm() < .15
    net.half = None
    assert torch.equal(value_and_grad(InpaintLoss(net), out, gt, m)[1], exact[1])


def test_the_loss_runs_where_there_is_no_autocast():
    net = copy.deepcopy(random_features(width=2)).to('meta')
    out, gt, m = (t.to('meta') for t in batch(3))
    total = InpaintLoss(net, chunk=2)(out.requires_grad_(), gt, m)
    total.backward()
    assert out.grad.shape == gt.shape and in_chunks(lambda o, g, k: (o - g).mean().view(1), 1, out, gt, m)[0].ndim == 0


def test_features_that_no_weight_asks_for_are_not_computed():
    class Never(FeatureNet):
        def forward(self, img): raise AssertionError
    InpaintLoss(Never([nn.Identity()]*3), PIXEL_WEIGHTS)(*batch())


def test_random_features_are_the_same_everywhere_and_leave_the_generator_alone():
    torch.manual_seed(3)
    state = torch.get_rng_state()
    net, vgg = random_features(), vgg_features(torchvision_like())
    assert torch.equal(torch.get_rng_state(), state) and not vgg.training
    bits = b''.join(p.numpy().tobytes() for n, p in net.named_parameters() if n.endswith('weight'))
    assert sha256_of(bits)[:16] == '6c7f29b8baf05b2e'
    assert not torch.equal(net.blocks[0][0].weight, random_features(1).blocks[0][0].weight)
    for b in net.blocks: assert b[0].weight.sum((2, 3)).abs().max() < 1e-5


def test_random_features_order_errors_usefully():
    "At equal mean absolute error: brightness is cheap, a blurred edge is dear."
    y, x = torch.meshgrid(torch.arange(64.), torch.arange(64.), indexing='ij')
    img = (((x - 30)**2 + (y - 34)**2 < 300).float()*.5 + .2).expand(1, 3, 64, 64)
    blurred = F.avg_pool2d(F.pad(img, (4,)*4, mode='reflect'), 9, 1)
    for seed in range(3):
        net = random_features(seed)
        err = {k: (f - img)*(.02/(f - img).abs().mean()) for k, f in dict(blur=blurred, bright=img + 1).items()}
        d = {k: loss_perceptual(net(img + e), net(img + e), net(img)) for k, e in err.items()}
        assert d['blur'] > 3*d['bright']


# files

def torchvision_like(third=3, prefix='features.'):
    "State dict with the names of torchvision's vgg16 (third=3) or vgg19 (4), random values, up to the third pool and a little more."
    g, state, i, c_in = torch.Generator().manual_seed(0), {}, 0, 3
    for c, n in ((64, 2), (128, 2), (256, third), (512, 1)):
        for _ in range(n):
            state[f'{prefix}{i}.weight'] = torch.randn(c, c_in, 3, 3, generator=g)*(2/(9*c_in))**.5
            state[f'{prefix}{i}.bias'] = torch.randn(c, generator=g)*.1
            i, c_in = i + 2, c
        i += 1
    return state


def run_torchvision_like(state, img, third=3):
    x, maps, w = (img - torch.tensor(losses.IMAGENET_MEAN).view(1, 3, 1, 1))/torch.tensor(losses.IMAGENET_STD).view(1, 3, 1, 1), [], iter(state.values())
    for n in (2, 2, third):
        for _ in range(n): x = F.relu(F.conv2d(x, next(w), next(w), padding=1))
        maps.append(x := F.max_pool2d(x, 2))
    return maps


@pytest.mark.parametrize('third', [3, 4])
@pytest.mark.parametrize('kind', ['whole', 'features only', 'wrapped', 'data parallel', 'safetensors'])
def test_vgg_files_of_torchvision(tmp_path, kind, third):
    state = torchvision_like(third, '' if kind == 'features only' else 'module.features.' if kind == 'data parallel' else 'features.')
    want = run_torchvision_like(state, img := batch(1, 24, 17)[1], third)
    if kind == 'whole': state = {'classifier.0.weight': torch.zeros(7, 5), 'classifier.0.bias': torch.zeros(7), **state}
    if kind == 'safetensors': save_file(state, path := tmp_path/'v.safetensors')
    else: torch.save({'state_dict': state, 'epoch': 3} if kind == 'wrapped' else state, path := tmp_path/'v.pth')
    for net in (open_features(path), open_features(str(path)), (vgg16_features if third == 3 else vgg19_features)(path)):
        for a, b in zip(net(img), want, strict=True): assert_close(a, b)
    assert InpaintLoss(str(path))(*batch()).isfinite()


def test_vgg19_with_its_own_input_layer(tmp_path):
    "The layout of style-transfer encoders: a 1x1 convolution first, mirrored borders, the end at conv3_1, other numbers in the names."
    torch.manual_seed(0)
    conv = lambda a, b: [nn.ReflectionPad2d(1), nn.Conv2d(a, b, 3), nn.ReLU()]
    enc = nn.Sequential(nn.Conv2d(3, 3, 1), *conv(3, 64), *conv(64, 64), nn.MaxPool2d(2), *conv(64, 128), *conv(128, 128), nn.MaxPool2d(2),
                        *conv(128, 256))
    torch.save(enc.state_dict(), path := tmp_path/'vgg19.pth')
    assert [int(k.split('.')[0]) for k in list(enc.state_dict())[::2]] == [0, 2, 5, 9, 12, 16]
    img = batch(1, 24, 16)[1]
    with torch.no_grad(): want = [enc[:8](img), enc[:15](img), enc(img)]
    for net in (vgg19_features(path), open_features(path)):
        for a, b in zip(net(img), want, strict=True): assert_close(a, b)
    with pytest.raises(InputError, match='expected 3x3 ones'): vgg16_features(path)
    assert open_features(path)(torch.rand(1, 3, 8, 8))[2].shape == (1, 256, 2, 2)


class Evil:
    def __reduce__(self): return os.mkdir, (str(Evil.path),)


def test_files_that_hold_no_vgg(tmp_path):
    Evil.path = tmp_path/'executed'
    good = torchvision_like()
    bad = dict(empty=b'', text=b'not weights\n', cut=None, code=None, tensor=torch.zeros(3), none={}, bn={**good, 'features.1.running_mean': torch.zeros(64)},
               resnet={'conv1.weight': torch.zeros(64, 3, 7, 7)}, no_bias={k: v for k, v in good.items() if 'bias' not in k},
               gap={k: v for k, v in good.items() if not k.startswith('features.5.')},
               unchained={**good, 'features.2.weight': torch.zeros(64, 32, 3, 3)},
               big_kernels={k: F.pad(v, (1,)*4) if v.ndim == 4 else v for k, v in good.items()})
    for name, content in bad.items():
        path = tmp_path/f'{name}.pth'
        if name == 'code': torch.save({'features.0.weight': Evil()}, path)
        elif name == 'cut':
            torch.save(good, path)
            path.write_bytes(path.read_bytes()[:5000])
        elif isinstance(content, bytes): path.write_bytes(content)
        else: torch.save(content, path)
        with pytest.raises(InputError) as e: open_features(path)
        assert '\n' not in str(e.value) and len(str(e.value)) < 300, name
    (tmp_path/'v.safetensors').write_bytes(b'xxxxxxxxxxxxx')
    with pytest.raises(InputError, match='not a readable'): open_features(tmp_path/'v.safetensors')
    for call in (open_features, vgg16_features, vgg19_features):
        with pytest.raises(InputError, match='no such file'): call(tmp_path/'missing.pth')
        with pytest.raises(InputError, match='no such file'): call(tmp_path)
    assert not Evil.path.exists()


@pytest.mark.parametrize('error', [OSError('name resolution failed'), RuntimeError('invalid hash value'), TimeoutError('timed out')])
def test_no_network(error):
    with patch('torch.hub.load_state_dict_from_url', side_effect=error), pytest.raises(InputError) as e: open_features('vgg16')
    assert re.search(r'cannot download.*https://\S+vgg16\S+\.pth.*give the file', str(e.value)) and '\n' not in str(e.value)


def test_torchvision_weights_are_used_when_there_is_a_network():
    state = torchvision_like()
    with patch('torch.hub.load_state_dict_from_url', return_value=state) as load: net = open_features('vgg16')
    assert load.call_args.kwargs['check_hash'] and load.call_args.kwargs['weights_only']
    img = batch(1, 16, 16)[1]
    assert_close(net(img)[2], run_torchvision_like(state, img)[2])


# bad input

def test_shapes():
    out, gt, m = batch()
    loss = InpaintLoss.pixels()
    for bad in ((out, gt, m.expand(2, 3, 16, 16)), (out, gt, m[:1]), (out, gt, m[..., :15]), (out, gt, m[:, 0]), (out, gt[:, :1], m),
                (out[..., :15], gt, m), (out[0], gt[0], m[0])):
        for f in (loss, loss_terms, loss_valid, loss_hole):
            with pytest.raises(InputError, match='give'): f(*bad)
    with pytest.raises(InputError, match='give one channel'): loss_tv(gt, m.expand(2, 3, 16, 16))
    with pytest.raises(InputError, match='at least 8 pixels'): InpaintLoss('random')(out[..., :7], gt[..., :7], m[..., :7])
    with pytest.raises(InputError, match=r'\(B,3,H,W\)'): random_features()(m)
    with pytest.raises(ValueError): loss_style(random_features()(gt)[:2], random_features()(gt))


def test_weights_and_options():
    with pytest.raises(InputError, match="unknown loss terms .'style'"): InpaintLoss('random', dict(valid=1, style=120))
    for v in (-1, float('nan'), float('inf'), 'much', None):
        with pytest.raises(InputError, match='give a number'): check_weights(dict(hole=v))
    with pytest.raises(InputError, match='need features'): InpaintLoss()
    with pytest.raises(InputError, match='need features'): InpaintLoss('none', dict(style_comp=1))
    with pytest.raises(InputError, match="use 'image'"): InpaintLoss.pixels(per='pixel')
    with pytest.raises(InputError, match="give 'vgg16', 'random'"): open_features('vgg-16')
    assert open_features('none') is None and open_features(None) is None
    assert InpaintLoss(None, dict(hole=2)).weights == dict(valid=0, hole=2, perceptual=0, style_out=0, style_comp=0, tv=0)
    assert PAPER_WEIGHTS == dict(valid=1, hole=6, perceptual=.05, style_out=120, style_comp=120, tv=.1)
    assert PIXEL_WEIGHTS == {k: PAPER_WEIGHTS[k] for k in ('valid', 'hole', 'tv')}
    assert list(check_weights(dict(tv=1, valid=1))) == list(PAPER_WEIGHTS)
    assert vgg_features(torchvision_like(4))(torch.rand(1, 3, 8, 8))[2].shape == (1, 256, 1, 1)
