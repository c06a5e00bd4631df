"""Weights of the block's variants: loaded where they fit, refused where they do not."""

import pytest
import torch

from mmseg_repvgg.checkpoint import CheckpointError
from mmseg_repvgg.checkpoint.loading import load_backbone
from mmseg_repvgg.checkpoint.names import is_fused, translate
from mmseg_repvgg.models import VARIANTS, DilatedRepVGG
from tests.common import TINY

EVEN = dict(TINY, num_blocks=(2, 2, 2, 1))


def build(block: str, **settings) -> DilatedRepVGG:
    return DilatedRepVGG(EVEN, block=block, **settings)


@pytest.mark.parametrize('block', VARIANTS)
@pytest.mark.parametrize('prefix', ['', 'backbone.'])
def test_weights_of_every_variant_load_into_their_own_kind(block, prefix, tmp_path):
    source = build(block)
    state = {prefix + name: tensor for name, tensor in source.state_dict().items()}
    torch.save(dict(state_dict=state | {'head.fc.weight': torch.ones(2, 2)}), tmp_path / 'a.pth')
    model = build(block, pretrained=str(tmp_path / 'a.pth'))
    model.init_weights()
    for name, tensor in source.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    line = load_backbone(build(block), state | {'head.fc.weight': torch.ones(2, 2)}, 'a.pth')
    count = len(source.state_dict())
    assert line.startswith(f'{count} of {count} tensors loaded from a.pth')
    assert 'not loaded: 1 (head.fc.weight)' in line


# relu_in_branches has the parameters of the full block: names cannot tell the two apart
@pytest.mark.parametrize(
    'block', [name for name in VARIANTS if name not in ('repvgg', 'relu_in_branches')]
)
def test_weights_of_another_kind_are_refused(block):
    for given, built in ((block, 'repvgg'), ('repvgg', block)):
        refusal = "'block' and 'branches' that it|does not fit|holds no RepVGG weights"
        with pytest.raises(CheckpointError, match=refusal):
            load_backbone(build(built), build(given).state_dict(), 'a.pth')


def test_branches_are_never_left_out_silently():
    full = build('repvgg').state_dict()
    with pytest.raises(CheckpointError, match='tensors that the blocks of the model do not have'):
        load_backbone(build('repvgg', branches=('3x3',)), full, 'a.pth')
    with pytest.raises(CheckpointError, match='does not fit the model'):
        load_backbone(build('repvgg'), build('repvgg', branches=('3x3',)).state_dict(), 'a.pth')
    # weights of stages that were not built are none of its blocks
    part = DilatedRepVGG(EVEN, num_stages=1, strides=(2,), dilations=(1,), out_indices=(0,))
    assert 'not loaded: ' in load_backbone(part, full, 'a.pth')


@pytest.mark.parametrize('block', VARIANTS)
def test_the_form_is_told_by_the_fused_conv(block):
    model = build(block)
    assert not is_fused(model.state_dict())
    if block not in ('relu_in_branches', 'residual_reorg'):
        assert 'loaded' in load_backbone(build(block, deploy=True), model.state_dict(), 'a.pth')
        model.switch_to_deploy()
        assert is_fused(model.state_dict())
        with pytest.raises(CheckpointError, match='Fused weights have no branches'):
            load_backbone(build(block), model.state_dict(), 'a.pth')
        assert 'loaded' in load_backbone(build('acb', deploy=True), model.state_dict(), 'a.pth')


def test_other_naming_schemes_have_no_name_for_a_variants_weights():
    for block in ('post_addition_bn', 'acb', 'diracnet'):
        model = build(block)
        with pytest.raises(
            ValueError, match="variant of the RepVGG block, .* 'official' has no name"
        ):
            translate(model.state_dict(), 'official')
        model.switch_to_deploy()
        assert 'stage0.rbr_reparam.weight' in translate(model.state_dict(), 'official')
