"Contextual attention: the fast form against the loop, and what happens at the edges of its task."
import pytest
import torch
from torch.testing import assert_close

from pconv_course.base.attention import ContextualAttention, attend_loop, attention_weights, known_patches, paste_patches

torch.set_num_threads(1)


def example(h=6, w=5, rate=1, c=4, n=2, seed=0):
    "Features in float64 and a mask per picture: a hole inside of the first, one in a corner of the second."
    g = torch.Generator().manual_seed(seed)
    x, m = torch.randn(n, c, h*rate, w*rate, generator=g).double(), torch.ones(n, 1, h*rate, w*rate).double()
    m[0, :, rate:2*rate, rate + rate//2:2*rate] = 0
    m[1:, :, :1, :1] = 0
    return x, m


def value_and_gradient(f, x, m):
    x = x.clone().requires_grad_()
    y = f(x, m)
    return y, torch.autograd.grad((y*torch.arange(y.numel()).view_as(y).cos()).sum(), x)[0]


def by_hand(x, m, patch, rate, scale, fuse):
    "A third time, number by number, for one picture (C,H,W) and its mask (H,W): no convolution, no unfold."
    c, hh, ww = x.shape
    h, w, reach = hh//rate, ww//rate, max(1, rate//2)
    at = lambda v, y, x: v[:, min(max(y, 0), v.shape[1] - 1), min(max(x, 0), v.shape[2] - 1)]
    small, near = x[:, ::rate, ::rate], range(-(patch//2), patch//2 + 1)
    vector = {(y, v): torch.cat([at(small, y + i, v + j) for i in near for j in near]) for y in range(h) for v in range(w)}
    cos = {(p, q): float(vector[p] @ vector[q]/(vector[p].norm()*vector[q].norm())) for p in vector for q in vector}
    whole = lambda y, v: all(m[a, b] > 0 for a in range(rate*y, rate*y + rate) for b in range(rate*v, rate*v + rate))
    known = [p for p in vector if all(whole(p[0] + i, p[1] + j) for i in near for j in near if (p[0] + i, p[1] + j) in vector)]
    d = range(-(fuse//2), fuse//2 + 1)
    vote = {(p, q): sum(cos.get(((p[0] + i, p[1] + j), (q[0] + i, q[1] + j)), 0.) for i in d for j in d) for p in vector for q in known}
    total, count = torch.zeros(c, hh, ww).double(), torch.zeros(hh, ww).double()
    for p in vector:
        weight = torch.tensor([scale*vote[p, q] for q in known], dtype=torch.float64).softmax(0)
        for i in range(-reach, rate + reach):
            for j in range(-reach, rate + reach):
                y, v = rate*p[0] + i, rate*p[1] + j
                if not (0 <= y < hh and 0 <= v < ww): continue
                total[:, y, v] += sum(f*at(x, rate*q[0] + i, rate*q[1] + j) for f, q in zip(weight, known))
                count[y, v] += 1
    return total/count


@pytest.mark.parametrize('patch, fuse', [(3, 3), (3, 1), (1, 3), (3, 5)])
@pytest.mark.parametrize('rate', [1, 2, 3, 4])
def test_the_three_products_are_the_loop(rate, patch, fuse):
    x, m = example(rate=rate)
    args = dict(patch=patch, rate=rate, scale=3., fuse=fuse)
    fast, loop = (value_and_gradient(f, x, m) for f in (ContextualAttention(**args), lambda x, m: attend_loop(x, m, **args)))
    for a, b in zip(fast, loop): assert_close(a, b, rtol=1e-9, atol=1e-9)
    assert fast[1].abs().max() > 0.1


@pytest.mark.parametrize('rate, patch, fuse', [(1, 3, 3), (2, 3, 3), (3, 1, 1), (1, 3, 5)])
def test_the_loop_is_the_definition(rate, patch, fuse):
    x, m = example(rate=rate)
    want = torch.stack([by_hand(x[i], m[i, 0], patch, rate, 3., fuse) for i in range(2)])
    assert_close(attend_loop(x, m, patch, rate, 3., fuse), want, rtol=1e-9, atol=1e-9)


def test_gradients_are_those_of_finite_differences():
    x, m = example(4, 5, c=2)
    assert torch.autograd.gradcheck(lambda x: ContextualAttention(rate=1, scale=2.)(x, m), x.requires_grad_())


@pytest.mark.parametrize('f', [lambda x, m: ContextualAttention(rate=1, scale=100.)(x, m), lambda x, m: attend_loop(x, m, scale=100.)], ids=['fast', 'loop'])
def test_without_a_hole_each_place_finds_itself(f):
    x, m = example()
    assert_close(f(x, 0*m + 1), x, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('f', [lambda x, m: ContextualAttention(rate=1)(x, m), attend_loop], ids=['fast', 'loop'])
def test_without_a_known_patch_the_answer_is_nothing(f):
    "All hole, or known pixels that make no whole patch; the other picture of the batch isn't touched by it."
    x, m = example()
    for lost in (0*m[:1], m[:1]*(torch.arange(5) % 2)):
        out, slope = value_and_gradient(f, x, torch.cat([lost, m[1:]]))
        assert (out[0] == 0).all() and (slope[0] == 0).all() and slope.isfinite().all()
        assert_close(out[1:], f(x[1:], m[1:]))


def test_each_picture_has_its_own_mask():
    x, m = example()
    layer = ContextualAttention(rate=1)
    assert_close(layer(x, m), torch.cat([layer(a, b) for a, b in zip(x.split(1), m.split(1))]))
    assert not torch.allclose(layer(x, m)[1:], layer(x[1:], m[:1]))
    assert_close(layer(x, m[:1]), layer(x, m[:1].expand(2, -1, -1, -1)))
    assert_close(attend_loop(x, m[:1]), layer(x, m[:1]))


@pytest.mark.parametrize('rate', [1, 2])
def test_only_known_features_are_pasted(rate):
    x, m = example(rate=rate)
    out = ContextualAttention(rate=rate)(torch.where(m > 0, x, 1e3), m)
    for o, v, k in zip(out, x, m): assert v.masked_select(k > 0).min() <= o.min() and o.max() <= v.masked_select(k > 0).max()


def test_weights_are_shares():
    x, m = example()
    weight, known = attention_weights(x, m), known_patches(m)
    assert_close(weight.sum(2), torch.ones_like(weight[..., 0]))
    assert ((weight > 0).any(1) == (known.flatten(1) > 0)).all() and known[0].sum() == 30 - 9 and known[1].sum() == 30 - 4
    assert_close(paste_patches(torch.ones_like(x), weight), torch.ones_like(x))
    assert_close(paste_patches(x, torch.eye(30).double().expand(2, -1, -1)), x)


def test_a_darker_copy_is_as_good():
    "The cosine doesn't see how bright a patch is, and all-zero patches give a finite gradient."
    x, m = example()
    assert_close(attention_weights(x, m), attention_weights(.01*x, m), rtol=1e-6, atol=1e-9)
    out, slope = value_and_gradient(ContextualAttention(rate=1), 0*x, m)
    assert (out == 0).all() and slope.isfinite().all()


def test_patterns_go_on():
    "A column that is lost comes back from the next period, also where the guess alone would choose another."
    stripes = (torch.arange(16.) % 4 + 1).expand(1, 1, 6, 16)
    m = torch.ones(1, 1, 6, 16)
    m[..., 5] = 0
    for guess in (1., 1.5, 3.):
        out = ContextualAttention(rate=1, scale=100.)(torch.where(m > 0, stripes, guess), m)
        assert_close(out[0, 0, 2:4, 5], torch.full((2,), 2.), rtol=0, atol=.05)


def test_16_bits_around_it():
    x, m = (v.float() for v in example())
    layer = ContextualAttention(rate=1)
    with torch.autocast('cpu', torch.bfloat16): inside = layer(x, m)
    assert_close(inside, attend_loop(x, m), rtol=1e-4, atol=1e-5)
    assert layer(x.bfloat16(), m).dtype == torch.bfloat16
    assert_close(layer(x.bfloat16(), m).float(), layer(x.bfloat16().float(), m), rtol=.01, atol=.01)


@pytest.mark.parametrize('args', [dict(patch=2), dict(patch=0), dict(fuse=2), dict(rate=0)])
def test_what_it_refuses(args):
    with pytest.raises(ValueError, match='give odd numbers'): ContextualAttention(**args)
    with pytest.raises(ValueError, match='5x4 at rate=2: give multiples'): ContextualAttention()(torch.rand(1, 2, 5, 4), torch.ones(1, 1, 5, 4))
