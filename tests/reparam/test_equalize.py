"""Equalized networks give the same outputs bit for bit, and their ranges are balanced."""

import copy
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mmseg_repvgg.models import DilatedRepVGG
from mmseg_repvgg.models.deployed import deployed_config
from mmseg_repvgg.reparam import EquivalenceError, apply_rewrites, channel_scales, deployed_copy
from mmseg_repvgg.reparam.channel_scales import RULES, aten
from mmseg_repvgg.reparam.equalize import equalize
from mmseg_repvgg.reparam.equivalence import model_outputs
from mmseg_repvgg.reparam.rewrites import default_names
from tests.common import TINY, randomise_batchnorms, segmentor_cfg

WIDTHS = (8, 8, 16, 32, 64)
FUSED = ['branches', 'batchnorm']
HEAD = dict(channels=16, num_classes=19, norm_cfg=dict(type='BN'), align_corners=False)


def one_map(kind: str, **settings) -> dict:
    return dict(decode_head=dict(HEAD, type=kind, in_channels=64, in_index=3, **settings))


def many_maps(kind: str, channels, **settings) -> dict:
    indices = list(range(len(channels)))
    return dict(
        decode_head=dict(HEAD, type=kind, in_channels=channels, in_index=indices, **settings)
    )


CASCADE = dict(
    type='CascadeEncoderDecoder',
    num_stages=2,
    decode_head=[
        one_map('FCNHead', num_convs=1, concat_input=False)['decode_head'],
        one_map('OCRHead', ocr_channels=8)['decode_head'],
    ],
)
FPN = dict(type='FPN', in_channels=[8, 16, 32, 64], out_channels=16, num_outs=4)
SEGMENTORS = {
    'PSPNet': {},
    'FCN with concat': one_map('FCNHead', num_convs=2, concat_input=True),
    'DeepLabV3': one_map('ASPPHead', dilations=(1, 2, 3)),
    'DeepLabV3+': one_map(
        'DepthwiseSeparableASPPHead', dilations=(1, 2, 3), c1_in_channels=8, c1_channels=4
    ),
    'UPerNet': many_maps('UPerHead', [8, 16, 32, 64], pool_scales=(1, 2)),
    'SemanticFPN': dict(
        neck=FPN, **many_maps('FPNHead', [16] * 4, feature_strides=[4, 8, 16, 32]),
        auxiliary_head=None,
    ),
    'OCRNet': CASCADE,
}  # fmt: skip
BACKBONES = {
    'full dilation': dict(),
    'groups': dict(arch=dict(TINY, group_layer_map={3: 2, 5: 4, 7: 2, 9: 4})),
    'fast dilation': dict(dilations=(1, 1, (1, 2, 2), 4)),
    'no dilation': dict(strides=(2, 2, 2, 2), dilations=(1, 1, 1, 1)),
    'squeeze-excitation': dict(arch=dict(TINY, se_cfg=dict(ratio=2, divisor=1))),
}


def segmentor(changes: dict | None = None, **backbone) -> nn.Module:
    init_default_scope('mmseg')
    cfg = segmentor_cfg(backbone.pop('arch', TINY), WIDTHS, **backbone) | (changes or {})
    torch.manual_seed(0)
    return randomise_batchnorms(MODELS.build({k: v for k, v in cfg.items() if v is not None}))


def equalized(model: nn.Module) -> tuple[nn.Module, int]:
    after = copy.deepcopy(model)
    return after, equalize(after)


@torch.no_grad()
def are_same(before: nn.Module, after: nn.Module, size=(73, 90)) -> bool:
    """Whether all outputs are equal bit for bit."""
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    pairs = zip(model_outputs(before, x), model_outputs(after, x), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def scaled_convs(before: nn.Module, after: nn.Module) -> set[str]:
    state = after.state_dict()
    return {
        name for name, value in before.state_dict().items() if not torch.equal(value, state[name])
    }


def conv(weight, bias=None, **geometry) -> nn.Conv2d:
    """A 1x1 conv with this weight (C_out, C_in / groups)."""
    weight = torch.tensor(weight, dtype=torch.float32)
    in_channels = weight.shape[1] * geometry.get('groups', 1)
    made = nn.Conv2d(in_channels, len(weight), 1, bias=bias is not None, **geometry)
    made.weight.data = weight[:, :, None, None]
    if bias is not None:
        made.bias.data = torch.tensor(bias, dtype=torch.float32)
    return made


def test_two_convs_by_hand() -> None:
    # s = sqrt(r1 r2) / r2: sqrt(8 * 0.5) / 0.5 = 4; sqrt(0.5 * 2) / 2 = 1 / 2; sqrt(3 * 3) / 3 = 1;
    # sqrt(1 * 0.5) / 0.5 = 2^0.5, which is as near to 1 as to 2
    model = nn.Sequential(
        conv([[8], [-0.5], [3], [1]], [2, -0.25, 1, 1]), nn.ReLU(), conv([[0.5, 2, -3, 0.5]])
    )
    after, count = equalized(model)
    assert count == 2
    assert after[0].weight.flatten().tolist() == [2, -1, 3, 1]
    assert after[0].bias.tolist() == [0.5, -0.5, 1, 1]
    assert after[2].weight.flatten().tolist() == [2, 1, -3, 0.5]
    x = torch.randn(2, 1, 4, 5)
    assert torch.equal(model(x), after(x))


def test_groups_by_hand() -> None:
    # channel 0 is read by the first group only, with weights 1 and 4: sqrt(1 * 4) / 4 = 1 / 2;
    # channel 1 by the second, with 1 / 16 and 1 / 64: sqrt(1 / 16) * 16 = 4
    last = conv([[1], [4], [1 / 16], [1 / 64]], groups=2)
    model = nn.Sequential(conv([[1, 1, 0], [0, 0, 1]]), nn.LeakyReLU(0.25), last)
    after, count = equalized(model)
    assert count == 2
    assert after[0].weight.flatten(1).tolist() == [[2, 2, 0], [0, 0, 0.25]]
    assert after[2].weight.flatten().tolist() == [0.5, 2, 0.25, 1 / 16]


def test_a_channel_of_a_bias_only_stays_small() -> None:
    # 1e-30 would ask for 2^50; the bias counts 0.25 / 1 weight: sqrt(0.25 * 1) = 1 / 2
    model = nn.Sequential(conv([[1e-30]], [0.25]), nn.ReLU(), conv([[1]]))
    after, _ = equalized(model)
    assert (after[0].bias.item(), after[2].weight.item()) == (0.5, 0.5)
    # no weights to balance
    model = nn.Sequential(conv([[0], [2]]), nn.ReLU(), conv([[1, 0]]))
    assert equalize(model) == 0


PAIRS = [
    pytest.param(name, backbone, marks=() if usual else pytest.mark.slow)
    for name in SEGMENTORS
    for backbone in BACKBONES
    for usual in [name == 'PSPNet' or backbone == 'full dilation']
]


@pytest.mark.parametrize('rewrites', [FUSED, [*FUSED, 'dilation', 'pyramid']], ids=['fused', 'all'])
@pytest.mark.parametrize(('name', 'backbone'), PAIRS)
def test_segmentors_bit_for_bit(name, backbone, rewrites) -> None:
    model, _ = deployed_copy(segmentor(SEGMENTORS[name], **BACKBONES[backbone]), rewrites)
    after, count = equalized(model)
    assert count > 100
    assert are_same(model, after)
    assert are_same(model, after, size=(64, 64))  # where no padding is needed
    scaled = scaled_convs(model, after)
    assert any(name.startswith('decode_head') for name in scaled)
    assert equalize(after) == 0


def test_heads_are_rescaled_with_the_maps_that_they_read() -> None:
    """Negative control: the heads as they were do not fit the backbone any more."""
    model, _ = deployed_copy(segmentor(), FUSED)
    after, _ = equalized(model)
    x = torch.randn(1, 3, 65, 65)
    with torch.no_grad():
        maps = zip(model.extract_feat(x), after.extract_feat(x), strict=True)
    assert not any(torch.equal(a, b) for a, b in maps)
    for head in ('decode_head', 'auxiliary_head'):
        mixed = copy.deepcopy(after)
        setattr(mixed, head, getattr(model, head))
        assert not are_same(model, mixed)


def test_a_backbone_alone_keeps_its_maps() -> None:
    backbone = randomise_batchnorms(DilatedRepVGG(TINY))
    backbone.switch_to_deploy()
    after, count = equalized(backbone)
    assert count and are_same(backbone, after)
    scaled = scaled_convs(backbone, after)
    assert 'stage_3.0.branch_reparam.bias' in scaled
    assert (
        not {f'stage_{i}.{n}.branch_reparam.bias' for i, n in enumerate((1, 2, 2, 0), 1)} & scaled
    )


def channel_ranges(model: nn.Module) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Of each but the last of a chain of convs: log2 of its channels' ranges and their readers'."""
    weights = [m.weight.detach() for m in model.modules() if isinstance(m, nn.Conv2d)]
    return [
        (a.abs().amax((1, 2, 3)).log2(), b.abs().amax((0, 2, 3)).log2())
        for a, b in pairwise(weights)
    ]


def chain(depth: int = 6, channels: int = 12) -> nn.Sequential:
    torch.manual_seed(0)
    convs = [nn.Conv2d(3 if i == 0 else channels, channels, 3, padding=1) for i in range(depth)]
    return nn.Sequential(*(part for conv in convs for part in (conv, nn.ReLU())))


def test_ranges_are_balanced_again() -> None:
    """Channels scaled at random by 2^-5 to 2^5 come back to where they were."""
    model = chain()
    torch.manual_seed(1)
    scrambled = copy.deepcopy(model)
    convs = [m for m in scrambled if isinstance(m, nn.Conv2d)]
    with torch.no_grad():
        for first, second in pairwise(convs):
            s = 2.0 ** torch.randint(-5, 6, (len(first.weight),))
            first.weight *= s[:, None, None, None]
            first.bias *= s
            second.weight /= s[:, None, None]
    assert are_same(model, scrambled)
    after, count = equalized(scrambled)
    assert count > 40
    assert are_same(model, after)

    def spread(network) -> float:
        """Largest ratio of channel ranges in a layer, in powers of two."""
        return max((r.max() - r.min()).item() for r, _ in channel_ranges(network))

    assert spread(model) < 1
    assert spread(scrambled) > 8
    assert spread(after) < spread(model) + 1
    for given, read in channel_ranges(after):
        assert (given - read).abs().max() <= 1  # both ranges are equal to the nearest power of two


def test_ranges_of_a_fused_network_are_balanced() -> None:
    backbone = randomise_batchnorms(DilatedRepVGG(TINY, out_indices=(3,)))
    backbone.switch_to_deploy()
    before = max((given - read).abs().max() for given, read in channel_ranges(backbone))
    equalize(backbone)
    after = max((given - read).abs().max() for given, read in channel_ranges(backbone))
    assert before > 1.5 and after <= 1


@pytest.mark.parametrize(
    'act', [nn.GELU(), nn.SiLU(), nn.ReLU6(), nn.Hardswish(), nn.ELU(), nn.Sigmoid(), nn.Softplus()]
)
def test_activations_that_are_not_homogeneous_stop_it(act) -> None:
    model = nn.Sequential(conv([[8]] * 3), act, conv([[1] * 3]))
    assert equalize(model) == 0
    assert model[0].weight.flatten().tolist() == [8] * 3


@pytest.mark.parametrize(
    'between',
    [nn.Identity(), nn.ReLU(inplace=True), nn.LeakyReLU(), nn.PReLU(3), nn.Dropout2d(0.5)]
    + [nn.AvgPool2d(2), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(3), nn.AdaptiveAvgPool2d(1)]
    + [nn.Upsample(scale_factor=2, mode=m) for m in ('nearest', 'bilinear', 'bicubic')],
    ids=lambda m: type(m).__name__,
)
def test_homogeneous_layers_pass(between) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 3, 3), between, nn.Conv2d(3, 2, 1)).eval()
    model[0].weight.data *= 100
    after, count = equalized(model)
    assert count == 3
    assert are_same(model, after)


def test_squeeze_excitation_is_one_more_reader() -> None:
    """Its first conv reads the scaled channels; its gate, the output of a sigmoid, stays."""
    model, _ = deployed_copy(segmentor(**BACKBONES['squeeze-excitation']), FUSED)
    after, count = equalized(model)
    assert count > 100 and are_same(model, after)
    scaled = scaled_convs(model, after)
    assert 'backbone.stage_2.0.branch_reparam.bias' in scaled
    assert 'backbone.stage_2.0.se_layer.conv1.conv.weight' in scaled
    assert not {name for name in scaled if 'se_layer.conv2.conv.bias' in name}
    for block in after.backbone.stage_2:  # negative control
        block.se_layer = copy.deepcopy(model.backbone.stage_2[0].se_layer)
    assert not are_same(model, after)


class Wired(nn.Module):
    """Convs ``a`` (8 times too large), ``b`` and ``c`` of 4 channels, wired by a function."""

    def __init__(self, wire) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.a, self.b, self.c = (nn.Conv2d(n, 4, 1) for n in (3, 4, 4, 4))
        self.a.weight.data *= 64
        self.stem.weight.data *= 64
        self.wire = wire

    def forward(self, x):
        return self.wire(self, self.stem(x).relu())


def assigned(m, x):
    buffer = x.new_zeros(len(x), 8, *x.shape[2:])
    buffer[:, 2:6] = m.a(x)
    return m.b(buffer[:, 2:6]) + m.c(buffer[:, 4:])


def detached_statistic(m, x):
    return m.b(m.a(x)) * m.a(x).std()


WIRINGS = {
    'residual': lambda m, x: m.c(x + m.b(m.a(x).relu())),
    'a sum of convs': lambda m, x: m.c((m.a(x) + m.b(x)).relu()),
    'read twice': lambda m, x: m.b(m.a(x)) + m.c(m.a(x).relu()),
    'halves': lambda m, x: m.b(torch.cat(m.a(x).chunk(2, 1)[::-1], dim=1)),
    'twice': lambda m, x: m.c(m.a(m.a(x).relu()).relu()),
    'pixels to batch': lambda m, x: m.c(m.a(x).permute(2, 3, 0, 1).reshape(-1, 4, 1, 1)),
    'pixels to channels': lambda m, x: m.c(F.pixel_unshuffle(m.a(x)[:, :1, :72, :72], 2)),
    'padded by one': lambda m, x: m.c(F.pad(m.a(x), (1, 1, 1, 1), value=1.0)),
    'a constant added': lambda m, x: m.c(m.a(x) + 1),
    'channels mixed': lambda m, x: m.c(m.a(x).transpose(1, 2).reshape(x.shape)),
    'attention': lambda m, x: m.c(m.a(x) * m.b(x).sigmoid()),
    'a product of maps': lambda m, x: m.c(m.a(x) * m.a(x)),
    'assigned to a buffer': assigned,
    'a statistic': detached_statistic,
    'a weight read elsewhere': lambda m, x: m.b(m.a(x)) + m.a.weight.mean(),
    'a transposed weight': lambda m, x: m.b(m.a(x)) + F.conv2d(x, m.a.weight.transpose(0, 1)),
    'a weight with another bias': lambda m, x: m.b(m.a(x)) + F.conv2d(x, m.a.weight, m.c.bias),
    'a bias of two convs': lambda m, x: m.c(m.a(x)) + F.conv2d(x, m.b.weight, m.a.bias),
    'a normalized weight': lambda m, x: m.c(F.conv2d(x, m.a.weight / m.a.weight.norm())),
    'a transposed conv': lambda m, x: m.c(F.conv_transpose2d(m.a(x), m.b.weight)),
}


@pytest.mark.parametrize('name', WIRINGS)
def test_any_wiring(name) -> None:
    model = Wired(WIRINGS[name])
    after, _ = equalized(model)
    assert are_same(model, after)
    assert equalize(after) == 0


@pytest.mark.parametrize(
    ('name', 'scaled'),
    [
        ('read twice', {'stem', 'a', 'b', 'c'}),
        ('halves', {'stem', 'a', 'b'}),
        ('pixels to batch', {'stem', 'a', 'c'}),
        ('a sum of convs', {'stem', 'a', 'b', 'c'}),
        ('residual', {'stem', 'a', 'b', 'c'}),
        ('channels mixed', {'stem', 'a', 'c'}),  # all by the same factor
        ('a weight read elsewhere', set()),
        ('a weight with another bias', set()),
        ('a normalized weight', set()),
    ],
)
def test_what_is_scaled(name, scaled) -> None:
    model = Wired(WIRINGS[name])
    after, _ = equalized(model)
    assert {name.split('.')[0] for name in scaled_convs(model, after)} == scaled


def test_a_wrong_rule_is_seen_and_undone(monkeypatch) -> None:
    """Negative control: ReLU6 taken for homogeneous."""
    monkeypatch.setitem(RULES, aten.hardtanh, channel_scales._pointwise)
    model = nn.Sequential(conv([[8]] * 3, [4] * 3), nn.ReLU6(), conv([[1] * 3]))
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(EquivalenceError, match='equalize of Sequential: .* not equal'):
        equalize(model)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_channels_of_tiny_and_huge_weights_stay() -> None:
    """Their scaled weights would be denormal or infinite; the other channels are scaled."""
    model = nn.Sequential(
        conv([[8, 2e-38], [8, 1], [1, 1]]), nn.ReLU(), conv([[0.5, 0.5, 3e38], [1e-3, 1e-3, 1]])
    )
    model[2].weight.data[1, 2] = 1e-38  # next to 3e38
    after, count = equalized(model)
    assert count == 1
    assert after[0].weight.flatten(1).tolist()[1] == [2, 0.25]
    assert torch.equal(after[0].weight[[0, 2]], model[0].weight[[0, 2]])
    assert equalize(after) == 0


def test_a_network_that_is_not_fused_is_left_where_batchnorms_are() -> None:
    model = segmentor()
    after, count = equalized(model)
    assert count == 0 and not scaled_convs(model, after)
    apply_rewrites(model, ['batchnorm'])  # of the heads
    after, count = equalized(model)
    assert count and are_same(model, after)
    assert all(name.startswith(('decode_head', 'aux')) for name in scaled_convs(model, after))


def test_what_it_cannot_do_is_refused() -> None:
    with pytest.raises(ValueError, match='apply it to the model in float32 and call half'):
        equalize(chain().half())

    class Detector(nn.Module):
        data_preprocessor = None

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, points, images, mode): ...

    with pytest.raises(ValueError, match='images alone, which Detector cannot do'):
        equalize(Detector())
    assert equalize(nn.ReLU()) == 0


@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16])
def test_other_types(dtype) -> None:
    model = chain().to(dtype)
    after, count = equalized(model)
    x = torch.randn(1, 3, 20, 20, dtype=dtype)
    assert count and torch.equal(model(x), after(x))


def test_nothing_else_changes() -> None:
    model, _ = deployed_copy(segmentor(SEGMENTORS['OCRNet']), FUSED)
    model.decode_head[0].train()
    model.backbone.stem.branch_reparam.weight.requires_grad_(False)
    before = copy.deepcopy(model)
    state = torch.get_rng_state()
    assert equalize(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in model.modules()] == [m.training for m in before.modules()]
    assert [type(m) for m in model.modules()] == [type(m) for m in before.modules()]
    assert [vars(m).keys() for m in model.modules()] == [vars(m).keys() for m in before.modules()]
    for (name, old), (same, new) in zip(
        before.named_parameters(), model.named_parameters(), strict=True
    ):
        assert name == same and old.requires_grad == new.requires_grad and new.grad is None
        assert old.dtype == new.dtype and old.shape == new.shape


def test_it_is_named_and_off_by_default() -> None:
    model = segmentor()
    assert 'equalize' not in default_names(model, compared=True)
    after, counts = deployed_copy(model, ['equalize', 'dilation', *FUSED])
    assert list(counts) == [*FUSED, 'dilation', 'equalize'] and counts['equalize'] > 100
    # dilated or not, the same scales
    other, _ = deployed_copy(model, [*FUSED, 'equalize'])
    assert not scaled_convs(other, after)


def test_a_deployed_model_takes_equalized_and_training_weights() -> None:
    trained = segmentor()
    names = [*FUSED, 'equalize']
    fused, _ = deployed_copy(trained, names)
    for state in (fused.state_dict(), trained.state_dict()):
        cfg = segmentor_cfg(TINY, WIDTHS)
        deployed = MODELS.build(deployed_config(cfg, 'mmseg', names))
        assert not are_same(fused, deployed)
        deployed.load_state_dict({name: value.clone() for name, value in state.items()})
        assert not scaled_convs(fused, deployed)
        assert are_same(fused, deployed)


def test_ranges_of_maps_by_hand() -> None:
    """The image is 1 and 4, the channels after ReLU 8, 2 and 0.5; they are read with 2, 2 and 0.5.

    sqrt(8 * 2) / 2 = 2; sqrt(2 * 2) / 2 = 1; sqrt(0.5 * 0.5) / 0.5 = 1. The weights alone would ask
    for 1 / 2 in the last channel: sqrt(0.125 * 0.5) / 0.5.
    """
    model = nn.Sequential(
        conv([[2], [-2], [0.125]], [0, 4, 0]), nn.ReLU(), conv([[2, 2, 0.5], [-1, 1, 0]])
    )
    images = [torch.full((1, 1, 5, 5), value) for value in (1.0, 4.0)]
    after = copy.deepcopy(model)
    assert equalize(after, images) == 1
    assert after[0].weight.flatten().tolist() == [1, -2, 0.125]
    assert after[0].bias.tolist() == [0, 4, 0]
    assert after[2].weight.flatten(1).tolist() == [[4, 2, 0.5], [-2, 1, 0]]
    x = torch.randn(2, 1, 7, 9)
    assert torch.equal(model(x), after(x))
    assert equalize(after, images) == 0
    _, by_weights = equalized(model)
    assert by_weights > 0
