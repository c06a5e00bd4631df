"""What holds for every architecture, setting and size: hypothesis looks for a counterexample.

Examples are drawn repeatably (tests/conftest.py). Each property has a quick share of examples, and
a slow one five times as large. Every equality has its negative control.
"""

import copy
import functools
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mmseg_repvgg.accel import nnpack
from mmseg_repvgg.checkpoint import read_checkpoint, state_dict_of, write_checkpoint
from mmseg_repvgg.checkpoint.loading import load_backbone
from mmseg_repvgg.checkpoint.names import translate
from mmseg_repvgg.checkpoint.naming_schemes import scheme_of
from mmseg_repvgg.models import DilatedRepVGG
from mmseg_repvgg.models.arch import ARCHS
from mmseg_repvgg.reparam import REWRITES, apply_rewrites, compare, deployed_copy
from mmseg_repvgg.reparam.equivalence import tolerance_of
from tests.checkpoint.parity import NAMES_OF_ALL
from tests.common import TINY, randomise_batchnorms, segmentor_cfg
from tests.random_networks import (
    DTYPES,
    SEEDS,
    SIDES,
    architecture_rows,
    backbone_settings,
    build_backbone,
    conv_bn_chains,
    pyramid_heads,
)

SHARES = pytest.mark.parametrize('share', [0.5, pytest.param(5, marks=pytest.mark.slow)])
EXACT = 1e-10  # relative, float64


def look(examples: float, check: Callable[..., None], **drawn: st.SearchStrategy) -> None:
    """Call ``check`` with that many examples; ``pytest -rP`` shows how many there were."""
    run = 0

    @functools.wraps(check)
    def counted(**values):
        nonlocal run
        check(**values)
        run += 1

    quiet = settings(max_examples=round(examples), suppress_health_check=list(HealthCheck))
    quiet(given(**drawn)(counted))()
    print(f'{run} examples')
    assert run >= examples, run


def halved(length: int, strides: list[int]) -> list[int]:
    """Lengths of the maps: the stem's stride 2, then those of the stages, each rounded up."""
    lengths = []
    for stride in [2, *strides]:
        length = -(-length // stride)
        lengths.append(length)
    return lengths[1:]


@SHARES
def test_shapes_and_gradients(share):
    def check(config, size, batch, seed, dtype):
        torch.manual_seed(seed)
        model = DilatedRepVGG(**config).to(dtype).train()
        features = model(torch.randn(batch, 3, *size, dtype=dtype))
        rows, columns = (halved(length, config['strides']) for length in size)
        channels = [int(64 * 2**i * f) for i, f in enumerate(config['arch']['width_factor'])]
        expected = list(zip([batch] * len(rows), channels, rows, columns, strict=True))
        assert [tuple(f.shape) for f in features] == expected
        assert all(f.isfinite().all() and f.dtype == dtype for f in features)
        sum(f.square().mean() for f in features).backward()
        # PyTorch 2.14.1 itself, now and then, on maps one pixel wide or high in bfloat16: the
        # gradient of the kernel of a conv of stride 2 has numbers that were in memory before
        undefined = dtype == torch.bfloat16 and 1 in (*rows, *columns)
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, f'No gradient for {name}'
            if not (undefined and 'conv' in name):
                assert parameter.grad.isfinite().all(), f'NaN gradient for {name}'

    look(
        200 * share,
        check,
        config=backbone_settings(),
        size=st.tuples(SIDES, SIDES),
        batch=st.integers(2, 3),  # a BatchNorm needs two values
        seed=SEEDS,
        dtype=DTYPES,
    )


def spoil(model: nn.Module, seed: int) -> None:
    """Turn the kernel of one fused conv around, which no equality may survive."""
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    conv = convs[seed % len(convs)]
    conv.weight.data = -conv.weight.data.flip(2, 3)
    conv.bias.data = 1 - conv.bias.data


@SHARES
def test_branches_and_dilation_are_equal(share):
    def check(config, size, seed, dtype):
        model = build_backbone(config, seed, dtype)
        x = torch.randn(2, 3, *size, dtype=dtype)
        fused, _ = deployed_copy(model, ['branches'])
        undilated, counts = deployed_copy(fused, ['dilation'])
        found = [compare(model, fused, x), compare(fused, undilated, x)]
        assert max(f.max_rel for f in found) <= tolerance_of(model), found
        dilated = sum(b.dilation > 1 and b.stride == 1 for s in fused.stages for b in s)
        assert counts['dilation'] == dilated
        state = fused.state_dict()
        assert list(undilated.state_dict()) == list(state)
        assert all(torch.equal(t, state[n]) for n, t in undilated.state_dict().items())

    drawn = dict(config=backbone_settings(), size=st.tuples(SIDES, SIDES), seed=SEEDS, dtype=DTYPES)
    look(150 * share, check, **drawn)


@SHARES
def test_every_architecture_is_equal(share):
    """The rows of the table: their depths, groups and squeezing, at an eighth of the width."""

    def check(row, size, dtype, seed):
        arch = ARCHS[row['name']]
        model = build_backbone(row['settings'], seed, dtype)
        assert [len(stage) for stage in model.stages] == list(arch.num_blocks)
        blocks = [model.stem, *[block for stage in model.stages for block in stage]]
        assert [b.groups for b in blocks] == [arch.groups(layer) for layer in range(len(blocks))]
        state = {name: t.clone() for name, t in model.state_dict().items()}
        x = torch.randn(1, 3, *size, dtype=dtype)
        deployed, counts = deployed_copy(model, row['rewrites'])
        assert counts['branches'] == len(blocks)
        assert compare(model, deployed, x).max_rel <= tolerance_of(model)
        assert_same(model.state_dict(), state)  # the model itself is left

    look(
        50 * share,
        check,
        row=architecture_rows(),
        size=st.tuples(SIDES, SIDES),
        dtype=st.sampled_from([torch.float32, torch.float64]),
        seed=SEEDS,
    )


@pytest.mark.skipif(not nnpack.is_available(), reason='PyTorch without NNPACK')
@SHARES
def test_winograd_is_equal(share):
    """On maps of a size that it takes, in runs of dilated convs as well."""
    taken = []

    def check(channels, groups, dilation, depth, size, batch, seed):
        torch.manual_seed(seed)
        convs = [
            nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation, groups=groups)
            for _ in range(depth)
        ]
        chain = nn.Sequential(*[layer for conv in convs for layer in (conv, nn.ReLU())]).eval()
        names = ['dilation', 'winograd'] if dilation > 1 else ['winograd']
        fast, counts = deployed_copy(chain, names)
        taken.append(counts['winograd'])
        x = torch.randn(batch, channels, *size)
        exact = copy.deepcopy(chain).double()(x.double())
        with torch.no_grad():
            found = fast(x)
            assert (found - exact).abs().max() <= 1e-4 * exact.abs().max()
            last = next(m for m in reversed(list(fast.modules())) if isinstance(m, nn.Conv2d))
            last.weight.data = last.weight.data.flip(3)  # negative control
            assert (fast(x) - exact).abs().max() > 1e-3 * exact.abs().max()

    look(
        40 * share,
        check,
        channels=st.sampled_from([8, 16]),
        groups=st.sampled_from([1, 2, 4]),
        dilation=st.integers(1, 4),
        depth=st.integers(1, 3),
        size=st.tuples(st.integers(24, 49), st.integers(24, 49)),
        batch=st.integers(1, 2),
        seed=SEEDS,
    )
    assert min(taken) > 0


@SHARES
def test_wrong_kernels_are_not_equal(share):
    """Negative control: the same drawing, one fused kernel wrong, and no example may pass."""

    def check(config, size, seed):
        model = build_backbone(config, seed, torch.float64)
        undilated, _ = deployed_copy(model, ['branches', 'dilation'])
        x = torch.randn(2, 3, *size, dtype=torch.float64)
        assert compare(model, undilated, x).max_rel <= EXACT
        spoil(undilated, seed)
        assert compare(model, undilated, x).max_rel > 1e-6

    big = st.tuples(st.integers(20, 33), st.integers(20, 33))
    look(50 * share, check, config=backbone_settings(squeeze=False), size=big, seed=SEEDS)


@SHARES
def test_conv_bn_chains_are_equal(share):
    def check(chain, size):
        fused, counts = deployed_copy(chain, ['batchnorm'])
        norms = [m for m in chain.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        assert counts['batchnorm'] == len(norms)
        x = torch.randn(2, 4, *size, dtype=torch.float64)
        assert compare(chain, fused, x).max_rel <= EXACT
        *_, last = (m for m in fused.modules() if isinstance(m, nn.Conv2d))
        last.bias.data += 1e3  # negative control; no later ReLU can cut it off
        assert compare(chain, fused, x).max_rel > 1e-6

    look(150 * share, check, chain=conv_bn_chains(), size=st.tuples(SIDES, SIDES))


@SHARES
def test_pyramids_are_equal(share):
    def check(head, size, batch):
        for _, reduce in head.psp_modules:
            reduce.bn.bias.data += 5  # above what ReLU cuts off, or nothing wrong would show
        after, counts = deployed_copy(head, ['pyramid'])
        assert counts == dict(pyramid=1)
        x = torch.randn(batch, 6, *size, dtype=torch.float64)
        with torch.no_grad():
            expected = head([x])
            assert torch.allclose(after([x]), expected, rtol=0, atol=EXACT * expected.abs().max())
            after.bottleneck.spread[0].weight.data += 1e3  # negative control
            assert not torch.allclose(after([x]), expected, rtol=0, atol=1e-6)

    look(
        100 * share,
        check,
        head=pyramid_heads(),
        size=st.tuples(SIDES, SIDES),
        batch=st.integers(1, 2),
    )


@SHARES
def test_all_rewrites_of_a_segmentor_are_equal(share):
    init_default_scope('mmseg')
    segmentor = MODELS.build(segmentor_cfg(TINY, (8, 8, 16, 32, 64)))

    def check(size, seed, dtype, names):
        torch.manual_seed(seed)
        model = randomise_batchnorms(copy.deepcopy(segmentor), seed).to(dtype)
        deployed, _ = deployed_copy(model, names)
        x = torch.randn(1, 3, *size, dtype=dtype)
        assert compare(model, deployed, x).max_rel <= tolerance_of(model)

    look(
        40 * share,
        check,
        size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
        seed=SEEDS,
        dtype=st.sampled_from([torch.float32, torch.float64]),
        names=st.sets(st.sampled_from(list(REWRITES)), min_size=1),
    )


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]) and a[name].dtype == b[name].dtype, name


@SHARES
def test_weights_survive_every_naming_scheme_and_file(share):
    def check(config, seed, dtype, fused, scheme, suffix, prefixed):
        assume(scheme != 'super_gradients' or config['arch']['se_cfg'] is None)
        model = build_backbone(config, seed, dtype)
        if fused:
            apply_rewrites(model, ['branches'])
        head = {'head.fc.weight': torch.ones(2, 2), 'head.fc.bias': torch.zeros(2)}
        ours = {f'backbone.{name}': t for name, t in model.state_dict().items()} | head
        named = translate(ours, scheme)
        assert scheme_of(named) == scheme
        assert (named.keys() == ours.keys()) == (scheme == 'ours')
        assert_same(translate(named, 'ours'), ours)
        if prefixed and scheme != 'ours':
            named = {f'backbone.{name}': t for name, t in named.items()}
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f'x{suffix}'
            if suffix == '.safetensors':
                from safetensors.torch import save_file

                save_file({name: t.contiguous() for name, t in named.items()}, file)
            else:
                write_checkpoint(dict(state_dict=named), file)
            read = state_dict_of(read_checkpoint(file))
        assert_same(read, named)
        other = DilatedRepVGG(**config, deploy=fused).to(dtype)
        assert 'tensors loaded' in load_backbone(other, read, str(file))
        assert_same(other.state_dict(), model.state_dict())

    look(
        120 * share,
        check,
        config=backbone_settings(),
        seed=SEEDS,
        dtype=DTYPES,
        fused=st.booleans(),
        scheme=st.sampled_from(NAMES_OF_ALL),
        suffix=st.sampled_from(['.pth', '.safetensors']),
        prefixed=st.booleans(),
    )


@SHARES
def test_training_weights_load_fused(share):
    """What a fused backbone loads from training weights is what fusing them gives, bit for bit."""

    def check(config, seed, size):
        model = build_backbone(config, seed, torch.float32)
        fused = DilatedRepVGG(**config, deploy=True).eval()
        fused.load_state_dict(model.state_dict(), strict=True)
        expected, _ = deployed_copy(model, ['branches'])
        assert_same(fused.state_dict(), expected.state_dict())
        x = torch.randn(1, 3, *size)
        assert compare(model, fused, x).max_rel <= 1e-4

    look(60 * share, check, config=backbone_settings(), seed=SEEDS, size=st.tuples(SIDES, SIDES))
