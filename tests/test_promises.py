"""What other programs may do with a network: the table of chapter 08, line by line, on tiny networks."""
import copy
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.export import Dim
from torch.testing import assert_close

from pconv_course.networks import build_unet
from pconv_course.pconv import PartialConv2d

FORMS = dict(readable=({}, "readable"), fast=({}, "fast"), **{k: (dict(network=k), "fast") for k in ("plain", "masked", "gated", "attention", "fine")})
SIZES = [(32, 48), (40, 52), (33, 47), (17, 16)]
forms = pytest.mark.parametrize("form", FORMS)


def make(form):
    torch.manual_seed(0)
    return build_unet(dict(depth=2, width=2) | FORMS[form][0], FORMS[form][1]).eval()


def example(h, w, b=2):
    g = torch.Generator().manual_seed(h*w)
    return torch.rand(b, 3, h, w, generator=g), (torch.rand(b, 1, h, w, generator=g) < .5).float()


def same(f, net, sizes):
    for s in sizes: assert_close(f(*example(*s)), net(*example(*s)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form, dynamic", [("fast", None), *(pytest.param(*o, marks=pytest.mark.slow) for o in (("fast", True), ("readable", None)))])
def test_torch_compile_takes_several_sizes_in_turn(form, dynamic):
    torch._dynamo.reset()
    net = make(form)
    same(torch.compile(copy.deepcopy(net), backend="aot_eager", dynamic=dynamic, fullgraph=True), net, SIZES[:2])


@pytest.mark.slow
def test_torch_compile_with_its_default_backend():
    torch._dynamo.reset()
    net = make("fast")
    try: same(torch.compile(copy.deepcopy(net)), net, SIZES[:2])
    except torch._dynamo.exc.BackendCompilerFailed as e: pytest.skip(f"no compiler for C++ here: {str(e).splitlines()[0]}")


@forms
def test_torch_export_with_free_height_width_and_batch(form):
    net, free = make(form), {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    program = torch.export.export(net, example(32, 48), dynamic_shapes=(free, free), strict=False).module()
    same(program, net, [*SIZES, (70, 90, 3)])


@forms
def test_jit_trace_of_one_size(form):
    net = make(form)
    with warnings.catch_warnings(action="ignore"): traced = torch.jit.trace(net, example(32, 48))
    same(traced, net, [(32, 48)])


@forms
def test_data_parallel_and_its_replicas(form):
    net = make(form)
    same(torch.nn.DataParallel(net), net, [(32, 48)])
    with ThreadPoolExecutor(2) as pool: halves = list(pool.map(lambda n, x, m: n(x, m), [copy.deepcopy(net) for _ in range(2)], *(t.split(1) for t in example(32, 48))))
    assert_close(torch.cat(halves), net(*example(32, 48)), rtol=1e-4, atol=1e-5)


@forms
def test_a_deep_copy_after_a_step_is_independent(form):
    net = make(form).train()
    net(*example(32, 48)).sum().backward()
    again = copy.deepcopy(net)
    assert all((a.grad is not b.grad or not a.requires_grad) and a.data_ptr() != b.data_ptr() for a, b in zip(net.parameters(), again.parameters()))
    want = [p.detach().clone() for p in net.parameters()]
    with torch.no_grad():
        for p in again.parameters(): p.zero_()
    assert_close([p.detach() for p in net.parameters()], want)
    again = copy.deepcopy(net)
    same(again.eval(), net.eval(), [(33, 47)])


@forms
def test_vmap_over_images_over_networks_and_over_gradients(form):
    net, (x, m) = make(form), example(32, 48)
    assert_close(torch.func.vmap(lambda x, m: net(x[None], m[None])[0])(x, m), net(x, m), rtol=1e-4, atol=1e-5)
    nets = [copy.deepcopy(net) for _ in range(2)]
    params, buffers = torch.func.stack_module_state(nets)
    got = torch.func.vmap(lambda p, b: torch.func.functional_call(net, (p, b), (x, m)))(params, buffers)
    assert_close(got[1], net(x, m), rtol=1e-4, atol=1e-5)
    p = {k: v.detach() for k, v in net.named_parameters() if v.requires_grad}
    total = lambda p, x, m: torch.func.functional_call(net, p, (x[None], m[None])).square().sum()
    each = torch.func.vmap(torch.func.grad(total), (None, 0, 0))(p, x, m)
    net(x, m).square().sum().backward()
    for k, v in net.named_parameters():
        if k in p: assert_close(each[k].sum(0), v.grad, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("f, says", [
    (lambda: PartialConv2d(3, 2, 3)(torch.rand(1, 3, 8, 8), None), "m is None; give a mask"),
    (lambda: PartialConv2d(3, 2, 3)(torch.rand(1, 3, 8, 8), torch.ones(1, 3, 8, 8)), r"one channel is enough: m\[:, :1\]"),
    (lambda: PartialConv2d(3, 2, 3)(torch.ones(1, 3, 8, 8, dtype=torch.uint8), torch.ones(1, 1, 8, 8)), r"uint8.*x.float\(\)/255"),
    (lambda: make("fast")(torch.ones(1, 3, 16, 16, dtype=torch.uint8), torch.ones(1, 1, 16, 16)), r"uint8.*inp.float\(\)/255"),
    (lambda: make("fast")(torch.ones(1, 3, 16, 16), None), "m is None; give a mask"),
    (lambda: make("fast")(torch.ones(1, 3, 16, 16), torch.ones(1, 3, 16, 16)), r"m\[:, :1\]")])
def test_what_layer_and_network_refuse_they_say_how_to_mend(f, says):
    with pytest.raises(ValueError, match=says) as e: f()
    assert "\n" not in str(e.value)
