"The partial convolution: against its definition over many shapes, its promises, its manners as a module, its complaints."
import pickle, subprocess, sys
from copy import deepcopy
import pytest, torch
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close
from pconv_course import pconv
from pconv_course.pconv import FORMULAS, PartialConv2d, check_mask, partial_conv2d, pconv_reference, pconv_window, window_ratio, window_sum

quick = settings(max_examples=60, deadline=None, derandomize=True)
EXACT = dict(rtol=0, atol=1e-10)

@st.composite
def cases(draw, groups=True):
    "Arguments of a layer, and an input size that its window fits into."
    pair = lambda lo, hi: st.tuples(st.integers(lo, hi), st.integers(lo, hi))
    k, d = draw(pair(1, 4)), draw(pair(1, 2))
    g = draw(st.sampled_from([1, 1, 2, 3] if groups else [1]))
    same = draw(st.sampled_from([False, False, True]))
    stride = 1 if same else draw(st.one_of(st.integers(1, 3), pair(1, 3)))
    padding = draw(st.sampled_from(['same', 'valid'])) if same else draw(st.one_of(st.integers(0, 3), pair(0, 3)))
    size = tuple(b*(a - 1) + draw(st.integers(1, 4)) for a, b in zip(k, d))
    kw = dict(kernel_size=k[0] if k[0] == k[1] else k, stride=stride, padding=padding, dilation=d, groups=g,
              bias=draw(st.booleans()), formula=draw(st.sampled_from(FORMULAS)))
    return dict(c_in=g*draw(st.integers(1, 2)), c_out=g*draw(st.integers(1, 2)), size=size, batch=draw(st.integers(1, 2)),
                share=draw(st.sampled_from([0., .15, .5, 1.])), one_mask=draw(st.booleans()), seed=draw(st.integers(0, 2**16)), kw=kw)

def build(c):
    "Layer, features and mask in float64."
    torch.manual_seed(c['seed'])
    layer = PartialConv2d(c['c_in'], c['c_out'], **c['kw']).double()
    x = torch.randn(c['batch'], c['c_in'], *c['size'], dtype=torch.float64)
    m = (torch.rand(1 if c['one_mask'] else c['batch'], 1, *c['size']) < c['share']).double()
    return layer, x, m

def reference(layer, x, m):
    return pconv_reference(x, m.expand(len(x), -1, -1, -1), layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups, layer.formula)

def grads(x_out, leaves):
    weights = torch.randn(x_out.shape, dtype=x_out.dtype, generator=torch.Generator().manual_seed(0))
    return torch.autograd.grad((x_out*weights).sum(), leaves, allow_unused=True, materialize_grads=True)

# Against the definition

@pytest.mark.filterwarnings("ignore:Using padding='same'")
@settings(quick, max_examples=150)
@given(cases())
def test_layer_equals_the_definition(c):
    layer, x, m = build(c)
    leaves = [x.requires_grad_(), *layer.parameters()]
    (x_out, m_out), (x_ref, m_ref) = layer(x, m), reference(layer, x, m)
    assert_close(x_out, x_ref, **EXACT)
    assert_close(m_out.expand_as(m_ref), m_ref, rtol=0, atol=0)
    for a, b in zip(grads(x_out, leaves), grads(x_ref, leaves)): assert_close(a, b, **EXACT)

@quick
@given(cases(groups=False), st.data())
def test_masks_in_pairs_equal_one_mask_per_channel(c, data):
    layer, x, m = build(c | dict(c_in=data.draw(st.integers(2, 4))))
    left = data.draw(st.integers(1, x.shape[1] - 1))
    other = (torch.rand(len(x), 1, *x.shape[2:]) < .3).double()
    full = torch.cat([m.expand(len(x), left, -1, -1), other.expand(-1, x.shape[1] - left, -1, -1)], 1)
    leaves = [x.requires_grad_(), *layer.parameters()]
    (x_out, m_out), (x_ref, m_ref) = layer(x, [(m, left), (other, x.shape[1] - left)]), reference(layer, x, full)
    assert_close((x_out, m_out), (x_ref, m_ref), **EXACT)
    for a, b in zip(grads(x_out, leaves), grads(x_ref, leaves)): assert_close(a, b, **EXACT)

@quick
@given(cases())
def test_window_sum_is_a_convolution_with_ones(c):
    layer, _, m = build(c)
    geometry = dict(stride=layer.stride, padding=layer.padding, dilation=layer.dilation)
    got = window_sum(m.bool(), layer.kernel_size, **geometry)
    assert got.dtype == torch.float32
    assert_close(got, F.conv2d(m.float(), torch.ones(1, 1, *layer.kernel_size), **geometry), rtol=0, atol=0)

def test_gradcheck():
    torch.manual_seed(0)
    m = (torch.rand(1, 1, 5, 5) < .4).double()
    leaves = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((1, 2, 5, 5), (2, 2, 3, 2), (2,))]
    assert torch.autograd.gradcheck(lambda *a: partial_conv2d(a[0], m, *a[1:], stride=2, padding=1)[0], leaves)
    assert torch.autograd.gradgradcheck(lambda *a: partial_conv2d(a[0], m, *a[1:], stride=2, padding=1)[0], leaves)

def test_window_by_hand():
    x, m, w = torch.tensor([[2., 4], [6, 8]]), torch.tensor([[1., 0], [1, 0]]), torch.tensor([[1., 10], [2, 20]])
    assert pconv_window(x, m, w, 5.) == (2*1 + 6*2)*4/2 + 5
    assert pconv_window(x, m, w, 5., formula='v1') == (2*1 + 6*2)/2 + 5
    assert pconv_window(x, m, w, 5., formula='raw') == 2*1 + 6*2 + 5
    assert pconv_window(x, 0*m, w, 5., formula='raw') == 0
    assert pconv_window(x, 0*m, w, 5.) == 0
    assert pconv_window(x.masked_fill(m == 0, float('nan')), m, w, 5.) == pconv_window(x, m, w, 5.)

# Promises

def is_conv_inside(layer, x):
    "With nothing hidden: nn.Conv2d, at every place whose window lies inside the image."
    ones = torch.ones(len(x), 1, *x.shape[2:], dtype=x.dtype)
    full = window_sum(ones, layer.kernel_size, layer.stride, layer.padding, layer.dilation) == layer.kernel_size[0]*layer.kernel_size[1]
    assert_close(layer(x, ones)[0]*full, layer._conv_forward(x, layer.weight, layer.bias)*full, **EXACT)

@quick
@given(cases())
def test_all_known_is_conv2d_inside(c):
    layer, x, _ = build(c)
    layer.formula = 'paper'
    is_conv_inside(layer, x)

@quick
@given(cases(), st.sampled_from([float('nan'), float('inf'), -float('inf'), 1e300, -3.]))
def test_nothing_under_the_hole_matters(c, value):
    layer, x, m = build(c)
    spoilt = x.masked_fill(m == 0, value)
    keep = spoilt.clone(), m.clone()
    leaves = [spoilt.requires_grad_(), *layer.parameters()]
    (a, ma), (b, mb) = layer(x, m), layer(spoilt, m)
    assert torch.equal(a, b) and torch.equal(ma, mb)
    g = grads(b, leaves)
    assert all(t.isfinite().all() for t in g) and (g[0].masked_select(m == 0) == 0).all()
    assert_close((spoilt.detach(), m), keep, equal_nan=True, rtol=0, atol=0)

def flat_stays_flat(m, k=3):
    c = 3
    x, w = torch.full((len(m), c, *m.shape[2:]), 6., dtype=torch.float64), torch.full((2, c, k, k), 1/(c*k*k), dtype=torch.float64)
    x_out, m_out = partial_conv2d(x, m, w, padding=k//2)
    assert_close(x_out, 6*m_out.expand_as(x_out), **EXACT)
    assert_close(m_out, F.max_pool2d(m, k, 1, k//2), rtol=0, atol=0)

@quick
@given(st.integers(0, 10**6), st.floats(0, 1), st.sampled_from([1, 3, 5]))
def test_flat_image_stays_flat(seed, share, k):
    flat_stays_flat((torch.rand(2, 1, 9, 11, generator=torch.Generator().manual_seed(seed)) < share).double(), k)

@pytest.mark.parametrize('formula', FORMULAS)
def test_empty_windows_are_zero_with_finite_gradients(formula):
    layer, x = PartialConv2d(2, 3, 3, padding=1, formula=formula), torch.randn(1, 2, 6, 6, requires_grad=True)
    x_out, m_out = layer(x, torch.zeros(1, 1, 6, 6))
    x_out.sum().backward()
    assert all((t == 0).all() for t in (x_out, m_out, x.grad, layer.weight.grad, layer.bias.grad))

@pytest.mark.parametrize('k', [3, 5, 7])
@pytest.mark.parametrize('size', [1, 2, 9, 14])
@pytest.mark.parametrize('border', [False, True])
def test_holes_close_at_the_predicted_depth(k, size, border):
    m = torch.ones(1, 1, 41, 41)
    at = slice(0, size) if border else slice(12, 12 + size)
    m[..., at, at] = 0
    layer, reach, depth = PartialConv2d(1, 1, k, padding=k//2), k//2, 0
    while (m == 0).any():
        m, depth = layer(torch.zeros_like(m), m)[1], depth + 1
        side = max(0, size - depth*reach*(1 if border else 2))
        assert int((m == 0).sum()) == side**2
    assert depth == -(-size//(reach if border else 2*reach))

def test_v1_is_the_paper_with_weights_over_n_win():
    torch.manual_seed(0)
    layer, x, m = PartialConv2d(4, 6, 3, padding=1).double(), torch.randn(2, 4, 8, 8).double(), (torch.rand(2, 1, 8, 8) < .3).double()
    want = layer(x, m)
    layer.formula, layer.weight.data = 'v1', layer.weight.data*36
    assert_close(layer(x, m), want, **EXACT)

def test_raw_is_a_convolution_with_black_holes():
    torch.manual_seed(0)
    layer, x, m = PartialConv2d(4, 6, 3, padding=1, formula='raw').double(), torch.randn(2, 4, 8, 8).double(), (torch.rand(2, 1, 8, 8) < .2).double()
    y, m_out = layer(x.masked_fill(m == 0, float('nan')), m)
    assert_close(y, layer._conv_forward(x*m, layer.weight, layer.bias)*m_out, **EXACT)
    layer.formula = 'paper'
    assert torch.equal(layer(x, m)[1], m_out) and (m_out == 0).any() and not torch.allclose(layer(x, m)[0], y)

# Wrong versions must not get through

@pytest.mark.parametrize('wrong', ['no n_win', 'no factor', 'padding is known', 'count off by one'])
def test_wrong_versions_are_caught(wrong, monkeypatch):
    ratio, count = window_ratio, window_sum
    swaps = {'no n_win': ('window_ratio', lambda s, n, f: ratio(s, 1, f)), 'no factor': ('window_ratio', lambda s, n, f: (s > 0).to(s.dtype)),
             'padding is known': ('window_sum', lambda m, k, *a: count(torch.ones_like(m), k, 1, 0).amax()*torch.ones(len(m), 1, 1, 1) + 0*count(m, k, *a)),
             'count off by one': ('window_sum', lambda m, *a: count(m, *a) + 1)}
    torch.manual_seed(0)
    layer, x, m = PartialConv2d(3, 2, 3, padding=1).double(), torch.randn(2, 3, 7, 7).double(), (torch.rand(2, 1, 7, 7) < .3).double()
    flat_stays_flat(m)
    monkeypatch.setattr(pconv, *swaps[wrong])
    with pytest.raises(AssertionError): flat_stays_flat(m)
    with pytest.raises(AssertionError): assert_close(layer(x, m)[0], reference(layer, x, m)[0], **EXACT)

# Precision

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('formula', FORMULAS)
def test_autocast_leaves_no_nan(dtype, formula):
    torch.manual_seed(0)
    layers = nn.ModuleList([PartialConv2d(c, 64, k, stride=2, padding=k//2, formula=formula) for c, k in ((3, 7), (64, 5), (64, 3))])
    x, m = torch.rand(2, 3, 64, 64), torch.zeros(2, 1, 64, 64)
    m[..., :9, :9] = 1
    def run(x, m):
        masks = []
        for l in layers: x, m = l(x, m); masks.append(m)
        return x, masks
    want, want_m = run(x, m)
    with torch.autocast('cpu', dtype=dtype): y, masks = run(x.masked_fill(m == 0, float('nan')), m)
    y.float().sum().backward()
    assert y.dtype == dtype and y.isfinite().all() and (y[(masks[-1] == 0).expand_as(y)] == 0).all()
    assert all(torch.equal(a, b) for a, b in zip(masks, want_m)) and (masks[-1] == 0).any()
    assert all(p.grad.isfinite().all() for p in layers.parameters())
    assert_close(y.float(), want, rtol=.05, atol=.02)

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize('mask_dtype', [torch.bool, torch.uint8, torch.float32, None])
def test_whole_layer_in_other_dtypes(dtype, mask_dtype):
    torch.manual_seed(0)
    layer, x, m = PartialConv2d(3, 4, 3, padding=1), torch.rand(1, 3, 8, 8), (torch.rand(1, 1, 8, 8) < .3)
    y, m_out = deepcopy(layer).to(dtype)(x.to(dtype), m.to(mask_dtype or dtype))
    assert y.dtype == dtype and m_out.dtype == (mask_dtype or dtype)
    assert_close(y.float(), layer(x, m)[0], rtol=.02, atol=.02)

def test_counts_stay_exact_in_wide_layers():
    s = window_sum(torch.ones(1, 1, 5, 5, dtype=torch.bfloat16), 3, padding=1)*1024
    assert s.dtype == torch.float32 and s[0, 0, 2, 2] == 9216 and s[0, 0, 0, 0] == 4096
    with torch.autocast('cpu', dtype=torch.bfloat16): assert window_sum(torch.ones(1, 1, 33, 33), 33).item() == 1089

def test_ratio_needs_no_epsilon():
    s = torch.tensor([0., 1, 9])
    assert_close(window_ratio(s, 9), torch.tensor([0., 9, 1]))
    assert_close(window_ratio(s, 9, 'v1'), torch.tensor([0, 1, 1/9]))
    assert window_ratio(s, 9, 'raw').tolist() == [0, 1, 1]
    assert window_ratio(s.half(), 9).isfinite().all()

# Manners of a module

def test_state_dict_is_conv2d_s():
    layer, plain = PartialConv2d(4, 6, 3, groups=2), nn.Conv2d(4, 6, 3, groups=2)
    assert list(layer.state_dict()) == ['weight', 'bias'] and not list(layer.buffers())
    assert list(PartialConv2d(4, 6, 3, bias=False).state_dict()) == ['weight']
    layer.load_state_dict(plain.state_dict())
    x, ones = torch.randn(1, 4, 8, 8), torch.ones(1, 1, 8, 8)
    assert_close(layer(x, ones)[0], plain(x))
    assert isinstance(layer, nn.Conv2d)

def test_same_start_as_conv2d():
    torch.manual_seed(0); a = PartialConv2d(3, 5, 3)
    torch.manual_seed(0); b = nn.Conv2d(3, 5, 3)
    assert torch.equal(a.weight, b.weight) and torch.equal(a.bias, b.bias)

def test_copy_pickle_channels_last_meta():
    layer = PartialConv2d(3, 8, 3, padding=1, formula='v1')
    x, m = torch.rand(2, 3, 8, 8), (torch.rand(2, 1, 8, 8) < .5).float()
    want = layer(x, m)
    for other in (deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert other.formula == 'v1'
        assert_close(other(x, m), want)
    y = deepcopy(layer).to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last), m)[0]
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert_close(y, want[0])
    assert PartialConv2d(3, 8, 3, device='meta', dtype=torch.float16).weight.is_meta

def test_repr_shows_the_formula():
    assert "formula='v1'" in repr(PartialConv2d(3, 8, 3, formula='v1')) and "formula='paper'" in repr(PartialConv2d(3, 8, 3))

@pytest.mark.parametrize('pairs', [False, True])
def test_export_with_free_sizes(pairs):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = PartialConv2d(3, 8, 5, stride=2, padding=2), PartialConv2d(8, 4, 3, padding='same')
        def forward(self, x, m):
            x, m = self.a(x, m)
            return self.b(x.relu(), [(m, 5), (m, 3)] if pairs else m)
    net, auto = Net().eval(), torch.export.Dim.AUTO
    data = lambda b, h, w: (torch.randn(b, 3, h, w), (torch.rand(b, 1, h, w) < .5).float())
    graph = torch.export.export(net, data(2, 32, 32), dynamic_shapes=({0: auto, 2: auto, 3: auto},)*2).module()
    for size in ((2, 32, 32), (3, 48, 20)):
        args = data(*size)
        assert_close(graph(*args), net(*args))

def test_empty_batch_and_single_pixel():
    layer = PartialConv2d(3, 4, 3, padding=1)
    assert layer(torch.zeros(0, 3, 5, 5), torch.zeros(0, 1, 5, 5))[0].shape == (0, 4, 5, 5)
    assert_close(layer(torch.ones(1, 3, 1, 1), torch.ones(1, 1, 1, 1))[0][0, :, 0, 0], 9*layer.weight[:, :, 1, 1].sum(1) + layer.bias)

def test_mask_takes_no_gradient():
    m = torch.ones(1, 1, 5, 5, requires_grad=True)
    x_out, m_out = PartialConv2d(1, 1, 3)(torch.ones(1, 1, 5, 5), m)
    x_out.sum().backward()
    assert m.grad is None and not m_out.requires_grad

# Complaints

X, M = torch.zeros(2, 4, 8, 8), torch.ones(2, 1, 8, 8)

@pytest.mark.parametrize('x, m, why', [
    (X[0], M[0], 'batch axis'), (X, M[0], 'must be'), (X, M[..., :7], 'must be'), (X, M.expand(-1, 4, -1, -1), 'must be'),
    (torch.zeros(3, 4, 8, 8), M, 'must be'), (X[:, :3], M, 'takes 4 channels, x has 3'), (X, [(M, 2), (M, 3)], 'stand for 5'),
    (X, [M, M], 'pairs'), (X, [], 'stand for 0')])
def test_bad_input_is_one_clear_line(x, m, why):
    with pytest.raises(ValueError, match=why) as e: PartialConv2d(4, 2, 3)(x, m)
    assert '\n' not in str(e.value)

def test_bad_arguments():
    with pytest.raises(ValueError, match='padding is hole'): PartialConv2d(3, 4, 3, padding=1, padding_mode='reflect')
    with pytest.raises(ValueError, match="'v2' is unknown"): PartialConv2d(3, 4, 3, formula='v2')
    with pytest.raises(ValueError, match="'v2' is unknown"): window_ratio(torch.ones(1), 9, 'v2')
    with pytest.raises(ValueError, match='groups > 1 takes one mask'): PartialConv2d(4, 4, 3, groups=2)(X, [(M, 2), (M, 2)])

def test_check_mask():
    assert check_mask(M) is M and check_mask(M.bool()) is not None
    for bad, why in ((M*.5, '128 differ, such as 0.5'), (M*255, '255'), (M*float('nan'), 'nan'), (X, 'must be'), (M[0], 'must be')):
        with pytest.raises(ValueError, match=why): check_mask(bad)

def test_import_is_light():
    code = ("import sys, time, torch; t = time.perf_counter(); import pconv_course.pconv; took = time.perf_counter() - t\n"
            "print([n for n in ('fastai', 'fastcore', 'matplotlib', 'PIL', 'cv2', 'pandas', 'IPython', 'pconv_course.base.core') if n in sys.modules], took < 1)")
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == '[] True'
