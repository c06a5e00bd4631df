"""Convs by Winograd under PyTorch's transforms, modes, threads and processes."""

import copy
import os
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from mmseg_repvgg.accel import nnpack
from mmseg_repvgg.accel.winograd import winograd_conv3x3
from mmseg_repvgg.models import DilatedRepVGG
from mmseg_repvgg.reparam import deployed_copy
from tests.accel.by_winograd import ROUNDING, gap, needs_nnpack, use
from tests.common import TINY, randomise_batchnorms

pytestmark = needs_nnpack

OP = torch.ops.mmseg_repvgg.winograd_conv3x3.default


@pytest.fixture(params=['conv', 'backbone'])
def nets(request):
    """A network, the same by Winograd, and an image; the backbone has dilated runs."""
    torch.manual_seed(0)
    if request.param == 'conv':
        net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1)).eval()
        return net, use(copy.deepcopy(net)), torch.randn(1, 3, 40, 41)
    model = DilatedRepVGG(TINY, strides=(2, 2, 1, 1), dilations=(1, 1, 2, 4), out_indices=(3,))
    model = randomise_batchnorms(model)
    net, _ = deployed_copy(model, ['branches'])
    fast, _ = deployed_copy(model, ['branches', 'dilation', 'winograd'])
    return nn.Sequential(net, Only()), nn.Sequential(fast, Only()), torch.randn(1, 3, 209, 233)


class Only(nn.Module):
    """The one map of a backbone."""

    def forward(self, maps):
        return maps[0]


@pytest.mark.parametrize('mode', [torch.no_grad, torch.inference_mode])
def test_plainly(nets, calls, mode):
    net, fast, x = nets
    with mode():
        assert gap(fast(x), net(x)) < ROUNDING
    assert calls
    calls.clear()
    assert gap(fast(x), net(x)) < ROUNDING  # gradients are enabled
    assert not calls


def graph_of_make_fx(net, x):
    return make_fx(net)(x)


def symbolic_trace(net, x):
    return torch.fx.symbolic_trace(net)


def jit_trace(net, x):
    return torch.jit.trace(net, x)


def compiled(net, x):
    return torch.compile(net, backend='eager', fullgraph=True)


def compiled_by_aot(net, x):
    return torch.compile(net, backend='aot_eager', fullgraph=True)


def exported(net, x):
    return torch.export.export(net, (x,)).module()


def exported_strictly(net, x):
    return torch.export.export(net, (x,), strict=True).module()


@pytest.mark.parametrize(
    'trace',
    [
        graph_of_make_fx,
        symbolic_trace,
        jit_trace,
        compiled,
        compiled_by_aot,
        exported,
        exported_strictly,
    ],
)
@pytest.mark.parametrize('enabled', [False, True], ids=['no_grad', 'grad'])
@pytest.mark.filterwarnings(
    'ignore::DeprecationWarning', 'ignore::FutureWarning', 'ignore::torch.jit.TracerWarning'
)
def test_traced(nets, trace, enabled):
    net, fast, x = nets
    with torch.set_grad_enabled(enabled):
        graph = trace(fast, x)
        y = 2 * x
        assert gap(graph(y), net(y)) < ROUNDING
        if trace is graph_of_make_fx:  # graphs hold no transformed kernels
            for parameter in (p for m in (net, fast) for p in m.parameters()):
                parameter.data.mul_(1.5)
            assert gap(graph(y), net(y)) < ROUNDING
    if isinstance(graph, torch.fx.GraphModule):  # other runtimes know nothing of the operator
        has_operator = any('winograd' in str(node.target) for node in graph.graph.nodes)
        assert has_operator == (trace is graph_of_make_fx and not enabled)


@pytest.mark.parametrize('enabled', [False, True], ids=['no_grad', 'grad'])
class TestTransforms:
    @pytest.fixture(autouse=True)
    def _gradients(self, enabled):
        with torch.set_grad_enabled(enabled):
            yield

    def test_forward_mode(self, nets):
        net, fast, x = nets
        tangents = []
        for each in (fast, net):
            with forward_ad.dual_level():
                out = each(forward_ad.make_dual(x, x.flip(3)))
                tangents.append(forward_ad.unpack_dual(out).tangent.clone())
        assert gap(*tangents) < ROUNDING
        found, expected = (torch.func.jvp(each, (x,), (x.flip(3),)) for each in (fast, net))
        assert gap(found[0], expected[0]) < ROUNDING and gap(found[1], expected[1]) < ROUNDING

    def test_reverse_mode(self, nets):
        net, fast, x = nets
        found, expected = (
            torch.func.grad(lambda x, each=each: each(x).square().sum())(x) for each in (fast, net)
        )
        assert gap(found, expected) < ROUNDING

    def test_vmap(self, nets):
        net, fast, x = nets
        images = torch.stack([x, x.flip(2), x.flip(3)], dim=1)
        found, expected = (torch.vmap(n, in_dims=1, out_dims=2)(images) for n in (fast, net))
        assert found.shape == expected.shape and gap(found, expected) < ROUNDING

    def test_fake_tensors(self, nets):
        net, fast, x = nets
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            fakes = [each(mode.from_tensor(x)) for each in (net, fast)]
        assert fakes[0].shape == fakes[1].shape
        on_meta = [each.to('meta')(x.to('meta')) for each in (net, fast)]
        assert on_meta[0].shape == on_meta[1].shape

    def test_flops(self):
        net = use(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1)))
        nnpack.is_available.cache_clear()  # its check does not count
        with FlopCounterMode(display=False) as counter:
            net(torch.randn(1, 3, 40, 41))
        # 40 x 41 pixels, 4 x 3 kernels of 9, a multiplication and an addition
        assert counter.get_total_flops() == 40 * 41 * 4 * 3 * 9 * 2


@pytest.mark.parametrize('groups', [1, 2])
@pytest.mark.parametrize('batch', [0, 1, 3])
def test_flops_of_the_operator_are_those_of_the_conv(groups, batch):
    x, weight = torch.randn(batch, 4, 20, 21), torch.randn(6, 4 // groups, 3, 3)
    for given in (x, x[0]) if batch else (x,):
        with FlopCounterMode(display=False) as expected:
            F.conv2d(given, weight, padding=1, groups=groups)
        with FlopCounterMode(display=False) as found:
            winograd_conv3x3(given, weight, None, groups)
        assert found.get_total_flops() == expected.get_total_flops()
        assert given.dim() == 3 or found.get_total_flops() == batch * 420 * 24 // groups * 9 * 2


@pytest.mark.parametrize('x', [(2, 4, 20, 21), (0, 4, 20, 21), (4, 20, 21), (1, 4, 5, 5)])
@pytest.mark.parametrize('groups', [1, 2])
def test_the_operator_passes_pytorch_s_own_check(x, groups):
    for memory_format in (torch.contiguous_format, torch.channels_last)[: len(x) - 2]:
        image = torch.randn(x).contiguous(memory_format=memory_format)
        weight = torch.randn(6, 4 // groups, 3, 3)
        for bias in (None, torch.randn(6)):
            torch.library.opcheck(OP, (image, weight, bias, groups, True))


def test_the_operator_refuses_gradients():
    weight = torch.randn(4, 4, 3, 3, requires_grad=True)
    out = winograd_conv3x3(torch.randn(1, 4, 20, 20), weight)
    with pytest.raises(RuntimeError, match='no autograd formula'):
        out.sum().backward()


class Marked(torch.Tensor):
    """A tensor of a class of its own; what it gives is of that class, too."""


def test_tensors_of_other_classes_go_by_the_plain_conv(nets, calls):
    net, fast, x = nets
    with torch.no_grad():
        out = fast(x.as_subclass(Marked))
        assert type(out) is Marked
        assert gap(out.as_subclass(torch.Tensor), net(x)) < ROUNDING
    assert not calls


@pytest.mark.parametrize('device', ['meta', 'cpu'])
def test_default_device_and_dtype(nets, calls, device):
    net, fast, x = nets
    with torch.no_grad():
        expected = net(x)
        nnpack.is_available.cache_clear()  # its check runs again under these defaults
        torch.set_default_device(device)
        torch.set_default_dtype(torch.float64)
        try:
            found = fast(x)
        finally:
            torch.set_default_device(None)
            torch.set_default_dtype(torch.float32)
    assert found.device.type == 'cpu' and found.dtype == torch.float32
    assert gap(found, expected) < ROUNDING
    assert calls


def test_other_numbers_of_threads(nets, calls):
    net, fast, x = nets
    before = torch.get_num_threads()
    try:
        for threads in (1, 3, 2):
            torch.set_num_threads(threads)
            with torch.no_grad():
                assert gap(fast(x), net(x)) < ROUNDING
    finally:
        torch.set_num_threads(before)
    assert calls


def test_threads_that_call_one_network_at_once(nets, calls):
    """From the first call on, with images of several sizes."""
    net, fast, x = nets
    images = [x[..., i : x.shape[2] - i, 2 * i :] * (i + 1) for i in range(4)]
    with torch.no_grad():
        expected = [net(image) for image in images]
    start, seen = threading.Barrier(len(images)), set()

    def run(i):
        start.wait()
        seen.add(threading.get_ident())
        with torch.no_grad():
            return [gap(fast(images[i]), expected[i]) for _ in range(5)]

    with ThreadPoolExecutor(len(images)) as pool:
        gaps = [value for values in pool.map(run, range(len(images))) for value in values]
    assert len(seen) == len(images) and len(gaps) == 5 * len(images)
    assert max(gaps) < ROUNDING
    assert calls


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='no fork')
@pytest.mark.filterwarnings('ignore:.*fork.*:DeprecationWarning')
def test_a_fork_has_threads_of_its_own(nets):
    net, fast, x = nets
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # for PyTorch's own: OpenMP does not outlive a fork
    try:
        with torch.no_grad():
            expected = net(x)
            assert gap(fast(x), expected) < ROUNDING
        child = os.fork()
        if child == 0:
            status = 1
            try:
                with torch.no_grad():
                    right = gap(fast(x), expected) < ROUNDING
                    next(fast.parameters()).data.mul_(2)  # kernels are made anew
                    moved = gap(fast(x), expected) > 1e-2
                status = 0 if right and moved else 2
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        with torch.no_grad():
            assert gap(fast(x), expected) < ROUNDING
    finally:
        torch.set_num_threads(threads)


def test_what_nnpack_refuses_is_an_error():
    kernel = nnpack.transform_kernel(torch.randn(4, 4, 3, 3))
    with pytest.raises(nnpack.NnpackError, match=r'refused a convolution of \(0, 4\) channels'):
        nnpack._call(nnpack.REUSE, (0, 4), (20, 20), kernel)
