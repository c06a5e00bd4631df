"""ImageNet weights for a backbone whose images have not three channels."""

import pytest
import torch
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import load_checkpoint

from mmseg_repvgg.checkpoint import CheckpointError, load_backbone, load_strictly
from mmseg_repvgg.checkpoint.input_channels import adapt_kernel
from mmseg_repvgg.checkpoint.loading import check_fit
from mmseg_repvgg.checkpoint.names import identify, translate
from mmseg_repvgg.models import VARIANTS, DilatedRepVGG
from mmseg_repvgg.models.deployed import deployed_config
from mmseg_repvgg.reparam import compare
from tests.checkpoint.parity import NAMES_OF_ALL
from tests.common import TINY, randomise_batchnorms, segmentor_cfg

EVEN = dict(TINY, num_blocks=(2, 2, 2, 1))
WITHOUT_FUSED_FORM = ('relu_in_branches', 'residual_reorg')


def source(block: str = 'repvgg', **settings) -> DilatedRepVGG:
    return randomise_batchnorms(DilatedRepVGG(EVEN, block=block, **settings))


# worked by hand for a kernel of red, green, blue = 2, 3, 7
@pytest.mark.parametrize(
    ('in_channels', 'expected'),
    [
        (1, [12.0]),
        (2, [3.0, 4.5]),
        (3, [2.0, 3.0, 7.0]),
        (4, [1.5, 2.25, 5.25, 1.5]),
        (6, [1.0, 1.5, 3.5, 1.0, 1.5, 3.5]),
    ],
)
@pytest.mark.parametrize('dtype', [torch.float16, torch.float32, torch.float64])
def test_kernels_worked_by_hand(in_channels, expected, dtype):
    kernel = torch.tensor([2.0, 3.0, 7.0], dtype=dtype).reshape(1, 3, 1, 1)
    adapted = adapt_kernel(kernel, in_channels)
    assert adapted.dtype == dtype
    assert adapted.flatten().tolist() == expected


@pytest.mark.parametrize('in_channels', [1, 2, 4, 5, 6, 13])
def test_kernels_are_timms(in_channels):
    timm = pytest.importorskip('timm.models')
    for size in (1, 3):
        kernel = torch.randn(8, 3, size, size)
        assert torch.equal(
            adapt_kernel(kernel, in_channels), timm.adapt_input_conv(in_channels, kernel)
        )


@pytest.mark.parametrize('in_channels', [1, 4])
@pytest.mark.parametrize('scheme', NAMES_OF_ALL)
@pytest.mark.parametrize('form', ['training', 'deploy'])
def test_pretrained_adapts_every_branch_of_the_stem_only(tmp_path, in_channels, scheme, form):
    given = source()
    if form == 'deploy':
        given.switch_to_deploy()
    state = given.state_dict()
    named = translate({f'backbone.{n}': t for n, t in state.items()}, scheme)
    torch.save(dict(state_dict=named), tmp_path / 'rgb.pth')
    model = DilatedRepVGG(
        EVEN,
        in_channels,
        deploy=form == 'deploy',
        pretrained=str(tmp_path / 'rgb.pth'),
    )
    model.init_weights()
    stem = {
        'training': ['stem.branch_3x3.conv.weight', 'stem.branch_1x1.conv.weight'],
        'deploy': ['stem.branch_reparam.weight'],
    }[form]
    for name, tensor in model.state_dict().items():
        if name in stem:
            assert torch.equal(tensor, adapt_kernel(state[name], in_channels))
        else:
            assert torch.equal(tensor, state[name]), name


def test_the_log_says_so_in_one_line(tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr(
        'mmseg_repvgg.models.backbone.print_log', lambda text, logger: lines.append(text)
    )
    torch.save(source().state_dict(), tmp_path / 'rgb.pth')
    for in_channels in (4, 3):
        DilatedRepVGG(EVEN, in_channels, pretrained=str(tmp_path / 'rgb.pth')).init_weights()
    adapted, plain = lines
    assert '\n' not in adapted
    assert adapted.startswith('111 of 111 tensors loaded from ')
    assert (
        'adapted to 4 input channels: stem.branch_3x3.conv.weight (8, 3, 3, 3) to (8, 4, 3, 3), '
        'stem.branch_1x1.conv.weight (8, 3, 1, 1) to (8, 4, 1, 1)'
    ) in adapted
    assert 'adapted' not in plain


@pytest.mark.parametrize('block', VARIANTS)
@pytest.mark.parametrize('in_channels', [1, 6])
def test_gray_images_give_the_same_features(block, in_channels):
    """All channels the same: the sum of the kernels over them is all that counts."""
    given = source(block)
    model = DilatedRepVGG(EVEN, in_channels, block=block).eval()
    gray = torch.randn(1, 1, 64, 64)
    features = [given(gray.expand(1, 3, 64, 64))[-1]]
    different = model(gray.expand(1, in_channels, 64, 64))[-1]
    assert not torch.allclose(different, features[0], rtol=1e-2)  # control: not before
    load_backbone(model, given.state_dict(), 'rgb.pth')
    features.append(model(gray.expand(1, in_channels, 64, 64))[-1])
    assert torch.allclose(*features, rtol=1e-4, atol=1e-5 * float(features[0].abs().max()))


@pytest.mark.parametrize('block', [name for name in VARIANTS if name not in WITHOUT_FUSED_FORM])
@pytest.mark.parametrize('in_channels', [1, 4])
def test_adapting_and_fusing_commute(block, in_channels):
    given = source(block)
    model = DilatedRepVGG(EVEN, in_channels, block=block)
    load_backbone(model, given.state_dict(), 'rgb.pth')
    built_fused = DilatedRepVGG(EVEN, in_channels, block=block, deploy=True)
    load_backbone(built_fused, given.state_dict(), 'rgb.pth')
    given.switch_to_deploy()
    expected = adapt_kernel(given.stem.branch_reparam.weight, in_channels)
    kernel, bias = model.stem.get_equivalent_kernel_bias()
    for found in (kernel.float(), built_fused.stem.branch_reparam.weight):
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-6)
        assert not torch.allclose(found, expected.roll(1, 0), rtol=1e-1)  # negative control
    assert torch.allclose(bias.float(), given.stem.branch_reparam.bias, rtol=1e-4, atol=1e-6)


def test_squeeze_excitation_in_the_stem_is_no_kernel_of_the_image():
    """Its convs have 3 channels here: stem_channels 12, ratio 4."""
    arch = dict(EVEN, width_factor=(0.5,) * 4, stem_channels=12, se_cfg=dict(ratio=4, divisor=1))
    given = randomise_batchnorms(DilatedRepVGG(arch))
    state = given.state_dict()
    name = 'stem.se_layer.conv2.conv.weight'
    assert state[name].shape == (12, 3, 1, 1)
    model = DilatedRepVGG(arch, in_channels=4)
    line = load_backbone(model, state, 'rgb.pth')
    assert torch.equal(model.state_dict()[name], state[name])
    assert 'se_layer' not in line


# Where nothing is adapted.


def segmentor(**changes):
    init_default_scope('mmseg')
    return segmentor_cfg(EVEN, (8, 8, 16, 32, 64), **changes)


def test_whole_checkpoints_are_not_adapted(tmp_path):
    """Not the user's own model: neither as it is nor fused, by no loader."""
    state = MODELS.build(segmentor()).state_dict()
    torch.save(dict(state_dict=state), tmp_path / 'rgb.pth')
    for cfg in (
        segmentor(in_channels=4),
        deployed_config(segmentor(in_channels=4), 'mmseg', ['branches']),
    ):
        model = MODELS.build(cfg)
        with pytest.raises(CheckpointError, match=r'images of 4 channels.*in_channels=3'):
            load_strictly(model, state, 'rgb.pth')
        with pytest.raises(RuntimeError, match=r'size mismatch|do not match exactly'):
            load_checkpoint(model, str(tmp_path / 'rgb.pth'), strict=True)


@pytest.mark.parametrize('required', [0.1, 1.0])
def test_fine_tuning_keeps_no_random_stem(required):
    """A part may be missing, as a head for other classes, but not the kernels of the stem."""
    state = MODELS.build(segmentor()).state_dict()
    with pytest.raises(CheckpointError, match=r'in_channels=3.*or start from .*model.pretrained'):
        check_fit(MODELS.build(segmentor(in_channels=4)), state, 'rgb.pth', required)
    assert 'loaded' in check_fit(MODELS.build(segmentor()), state, 'rgb.pth', required)


def test_only_weights_for_rgb_images_are_adapted():
    """Neither to RGB, nor between two other numbers, nor weights that are no floats."""
    for given, built in ((4, 3), (1, 3), (4, 1), (2, 4)):
        state = source(in_channels=given).state_dict()
        with pytest.raises(
            CheckpointError, match=f'of another shape .*model.backbone.in_channels={given}'
        ):
            load_backbone(DilatedRepVGG(EVEN, built), state, 'a.pth')
    state = {name: tensor.long() for name, tensor in source().state_dict().items()}
    with pytest.raises(CheckpointError, match='of another shape'):
        load_backbone(DilatedRepVGG(EVEN, 4), state, 'a.pth')


def test_other_mistakes_are_still_refused():
    state = source().state_dict()
    wide = DilatedRepVGG(dict(EVEN, width_factor=(0.25,) * 4), in_channels=4)
    with pytest.raises(CheckpointError, match='weights of the model.s architecture'):
        load_backbone(wide, state, 'a.pth')
    del state['stem.branch_1x1.conv.weight']
    with pytest.raises(CheckpointError, match='1 missing .stem.branch_1x1.conv.weight'):
        load_backbone(DilatedRepVGG(EVEN, 4), state, 'a.pth')


def test_other_channels_are_named():
    assert identify(source(in_channels=4).state_dict()).in_channels == 4
    assert 'images of 4 channels' in str(identify(source(in_channels=4).state_dict()))
    assert 'channels' not in str(identify(DilatedRepVGG('A0').state_dict()))


@pytest.mark.parametrize('in_channels', [1, 4])
def test_a_segmentor_trains_and_fuses_from_adapted_weights(tmp_path, in_channels):
    torch.save(source().state_dict(), tmp_path / 'rgb.pth')
    cfg = segmentor(in_channels=in_channels, pretrained=str(tmp_path / 'rgb.pth'))
    model = MODELS.build(cfg).train()
    model.init_weights()
    before = model.backbone.stem.branch_3x3.conv.weight.clone()
    out = model(torch.randn(2, in_channels, 64, 64), mode='tensor')
    out.square().mean().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert not torch.equal(before, model.backbone.stem.branch_3x3.conv.weight)
    deployed = MODELS.build(deployed_config(cfg, 'mmseg', ['branches']))
    load_strictly(deployed, model.state_dict(), 'own.pth')
    image = torch.randn(1, in_channels, 64, 64)
    assert compare(model.eval(), deployed, image).max_rel < 1e-5
