"""Weights in the names of mmpretrain, the official code and timm."""

import pytest
import torch

from mmseg_repvgg.checkpoint import CheckpointError
from mmseg_repvgg.checkpoint.loading import load_backbone
from mmseg_repvgg.checkpoint.names import SCHEMES, scheme_of, translate
from mmseg_repvgg.models import DilatedRepVGG
from tests.common import TINY, randomise_batchnorms

# the same tensor in the three schemes, written out from the three code bases
ROWS = [
    ('backbone.stem.branch_3x3.conv.weight', 'stage0.rbr_dense.conv.weight',
     'stem.conv_kxk.conv.weight'),
    ('backbone.stem.branch_reparam.bias', 'stage0.rbr_reparam.bias', 'stem.reparam_conv.bias'),
    ('backbone.stage_1.0.branch_1x1.norm.running_var', 'stage1.0.rbr_1x1.bn.running_var',
     'stages.0.0.conv_1x1.bn.running_var'),
    ('backbone.stage_3.13.branch_norm.num_batches_tracked',
     'stage3.13.rbr_identity.num_batches_tracked', 'stages.2.13.identity.num_batches_tracked'),
    ('backbone.stage_4.0.se_layer.conv1.conv.weight', 'stage4.0.se.down.weight',
     'stages.3.0.attn.fc1.weight'),
    ('backbone.stage_2.1.se_layer.conv2.conv.bias', 'stage2.1.se.up.bias',
     'stages.1.1.attn.fc2.bias'),
    ('head.fc.weight', 'linear.weight', 'head.fc.weight'),
]  # fmt: skip


@pytest.mark.parametrize('source', SCHEMES)
@pytest.mark.parametrize('target', SCHEMES)
def test_names_written_out_by_hand(source, target):
    here, there = list(SCHEMES).index(source), list(SCHEMES).index(target)
    state = {row[here]: torch.tensor(float(i)) for i, row in enumerate(ROWS)}
    assert scheme_of(state) == source
    expected = {row[there]: float(i) for i, row in enumerate(ROWS)}
    assert {k: float(v) for k, v in translate(state, target).items()} == expected


@pytest.mark.parametrize('name', ['A0', 'B1g4', 'D2se'])
@pytest.mark.parametrize('deploy', [False, True])
def test_there_and_back_gives_the_same_names(name, deploy):
    with torch.device('meta'):
        model = DilatedRepVGG(name, deploy=deploy)
    ours = {f'backbone.{k}': v for k, v in model.state_dict().items()}
    for scheme in ('official', 'timm'):
        other = translate(ours, scheme)
        assert not set(other) & set(ours)
        assert scheme_of(other) == scheme
        back = translate(other, 'ours')
        assert list(back) == list(ours)
        assert all(back[k] is ours[k] for k in ours)


def test_pretrained_takes_every_scheme_with_or_without_prefix(tmp_path, caplog):
    source = DilatedRepVGG(TINY)
    randomise_batchnorms(source)
    ours = {f'backbone.{k}': v for k, v in source.state_dict().items()}
    variants = {scheme: translate(ours, scheme) for scheme in SCHEMES}
    variants['bare'] = source.state_dict()
    variants['student'] = {f'student.{k}': v for k, v in ours.items()}
    for name, state in variants.items():
        file = tmp_path / f'{name}.pth'
        torch.save(dict(state_dict=state), file)
        prefix = 'student.backbone.' if name == 'student' else 'backbone.'
        model = DilatedRepVGG(
            TINY,
            init_cfg=dict(
                type='Pretrained', checkpoint=str(tmp_path / f'{name}.pth'), prefix=prefix
            ),
        )
        model.init_weights()
        assert all(torch.equal(model.state_dict()[k], v) for k, v in source.state_dict().items())


def test_what_does_not_fill_the_backbone_is_refused():
    model = DilatedRepVGG(TINY)
    state = translate({f'backbone.{k}': v for k, v in model.state_dict().items()}, 'official')
    with pytest.raises(CheckpointError, match=r'holds no RepVGG weights: of 1 tensors, layer1.0'):
        load_backbone(model, {'layer1.0.conv1.weight': torch.zeros(1)}, 'r50.pth')
    half = {k: v for k, v in state.items() if not k.startswith('stage3')}
    with pytest.raises(CheckpointError, match=r'a.pth does not fit the model: .* missing'):
        load_backbone(model, half, 'a.pth')
    fused = DilatedRepVGG(TINY, deploy=True)
    with pytest.raises(CheckpointError, match='Fused weights have no branches to train'):
        load_backbone(model, fused.state_dict(), 'a.pth')
    with pytest.raises(CheckpointError, match='of another shape'):
        load_backbone(DilatedRepVGG(dict(TINY, width_factor=(0.25,) * 4)), state, 'a.pth')
    with pytest.raises(ValueError, match="unknown naming scheme 'keras'"):
        translate(state, 'keras')
    with pytest.raises(ValueError, match='in none of the schemes'):
        translate({'a': torch.zeros(1)}, 'ours')
