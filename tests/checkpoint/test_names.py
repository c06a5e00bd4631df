"""Names of weights: three schemes, what wrappers add, and what names and shapes tell."""

import pytest
import torch
from torch import nn

from mmseg_repvgg.checkpoint import CheckpointError, state_dict_of
from mmseg_repvgg.checkpoint.loading import adapted, load_backbone, load_strictly
from mmseg_repvgg.checkpoint.names import (
    explain,
    identify,
    plain_names,
    rename,
    translate,
)
from mmseg_repvgg.checkpoint.naming_schemes import SCHEMES, scheme_of
from mmseg_repvgg.models import ARCHS, DilatedRepVGG
from tests.checkpoint.parity import NAMES_OF_ALL, WITH_SE
from tests.common import TINY, randomise_batchnorms

# the same tensor in four schemes, written out from the four code bases
ROWS = [
    ('backbone.stem.branch_3x3.conv.weight', 'stage0.rbr_dense.conv.weight',
     'stem.conv_kxk.conv.weight', 'stem.branch_3x3.conv.weight'),
    ('backbone.stage_2.0.branch_reparam.bias', 'stage2.0.rbr_reparam.bias',
     'stages.1.0.reparam_conv.bias', 'stage2.0.rbr_reparam.bias'),
    ('backbone.stage_1.0.branch_1x1.norm.running_var', 'stage1.0.rbr_1x1.bn.running_var',
     'stages.0.0.conv_1x1.bn.running_var', 'stage1.0.branch_1x1.bn.running_var'),
    ('backbone.stage_3.13.branch_norm.num_batches_tracked',
     'stage3.13.rbr_identity.num_batches_tracked', 'stages.2.13.identity.num_batches_tracked',
     'stage3.13.no_conv_branch.num_batches_tracked'),
    ('backbone.stage_4.0.se_layer.conv1.conv.weight', 'stage4.0.se.down.weight',
     'stages.3.0.attn.fc1.weight', None),
    ('backbone.stage_2.1.se_layer.conv2.conv.bias', 'stage2.1.se.up.bias',
     'stages.1.1.attn.fc2.bias', None),
    ('head.fc.weight', 'linear.weight', 'head.fc.weight', 'linear.weight'),
]  # fmt: skip


@pytest.mark.parametrize('source', NAMES_OF_ALL)
@pytest.mark.parametrize('target', NAMES_OF_ALL)
def test_names_written_out_by_hand(source, target):
    here, there = NAMES_OF_ALL.index(source), NAMES_OF_ALL.index(target)
    rows = [(i, row) for i, row in enumerate(ROWS) if row[here] and row[there]]
    state = {row[here]: torch.tensor(float(i)) for i, row in rows}
    assert scheme_of(state) == source
    expected = {row[there]: float(i) for i, row in rows}
    assert {k: float(v) for k, v in translate(state, target).items()} == expected


# of RepVGGplus-L2pse, written out from repvggplus.py: 8 + 14 + 12 + 12 + 1 blocks
PLUS_ROWS = {
    'stage0.rbr_dense.conv.weight': 'backbone.stem.branch_3x3.conv.weight',
    'stage1.blocks.7.rbr_1x1.bn.bias': 'backbone.stage_1.7.branch_1x1.norm.bias',
    'stage3_first.blocks.11.rbr_identity.weight': 'backbone.stage_3.11.branch_norm.weight',
    'stage3_second.blocks.0.rbr_identity.weight': 'backbone.stage_3.12.branch_norm.weight',
    'stage3_second.blocks.11.post_se.down.bias': 'backbone.stage_3.23.post_se.conv1.conv.bias',
    'stage4.blocks.0.post_se.up.weight': 'backbone.stage_4.0.post_se.conv2.conv.weight',
    'linear.bias': 'head.fc.bias',
}


@pytest.mark.parametrize('deploy', [False, True])
def test_names_of_repvggplus(deploy):
    with torch.device('meta'):
        model = DilatedRepVGG('L2pse', deploy=deploy)
    ours = {f'backbone.{k}': v for k, v in model.state_dict().items()}
    ours['head.fc.bias'] = torch.ones(1)
    plus = translate(ours, 'repvggplus')
    assert scheme_of(plus) == 'repvggplus'
    for theirs, name in PLUS_ROWS.items():
        if name in ours:
            assert plus[theirs] is ours[name]
    back = translate(plus, 'ours')
    assert list(back) == list(ours)
    assert identify(plus).arch == 'L2pse'
    # its auxiliary classifiers are no part of the backbone
    aux = {'stage1_aux.0.conv.weight': torch.ones(1), 'stage3_first_aux.3.bias': torch.ones(1)}
    assert set(translate(plus | aux, 'ours')) == set(ours) | set(aux)
    for scheme in ('official', 'timm', 'super_gradients'):
        with pytest.raises(ValueError, match=f"post_se.* and the scheme '{scheme}' has no name"):
            translate(ours, scheme)


def test_names_of_repvggplus_are_for_that_model_only():
    ours = {f'backbone.{k}': v for k, v in DilatedRepVGG(TINY).state_dict().items()}
    with pytest.raises(ValueError, match="'repvggplus' has names for RepVGGplus-L2pse only"):
        translate(ours, 'repvggplus')


def test_squeeze_excitation_has_no_name_in_super_gradients():
    arch = dict(TINY, se_cfg=dict(ratio=2))
    ours = {f'backbone.{k}': v for k, v in DilatedRepVGG(arch).state_dict().items()}
    with pytest.raises(ValueError, match="se_layer.* and the scheme 'super_gradients' has no name"):
        translate(ours, 'super_gradients')


@pytest.mark.parametrize('name', ['A0', 'B1g4', 'D2se'])
@pytest.mark.parametrize('deploy', [False, True])
def test_there_and_back_gives_the_same_names(name, deploy):
    with torch.device('meta'):
        model = DilatedRepVGG(name, deploy=deploy)
    ours = {f'backbone.{k}': v for k, v in model.state_dict().items()}
    for scheme in WITH_SE[1:] if name == 'D2se' else NAMES_OF_ALL[1:]:
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
    variants = {scheme: translate(ours, scheme) for scheme in NAMES_OF_ALL}
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
    with pytest.raises(CheckpointError, match=r'none of its 1 tensors .layer1.0'):
        load_backbone(model, {'layer1.0.conv1.weight': torch.zeros(1)}, 'r50.pth')
    with pytest.raises(CheckpointError) as error:
        load_backbone(model, {'layer1.0.conv1.weight': torch.zeros(1)}, 'r50.pth')
    assert 'prefix' not in str(error.value)
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


@pytest.mark.parametrize('prefix', ['model.', 'net.encoder.', 'module.'])
@pytest.mark.parametrize('scheme', NAMES_OF_ALL)
def test_a_prefix_that_is_needed_is_named_and_works(tmp_path, scheme, prefix):
    """Names with a prefix that not all have: Lightning's, next to those of a loss."""
    source = DilatedRepVGG(TINY)
    named = translate({f'backbone.{k}': v for k, v in source.state_dict().items()}, scheme)
    state = {prefix + name.removeprefix('backbone.'): value for name, value in named.items()}
    torch.save({'criterion.weight': torch.ones(3), **state}, tmp_path / 'a.pth')
    init_cfg = dict(type='Pretrained', checkpoint=tmp_path / 'a.pth', prefix='')
    with pytest.raises(CheckpointError, match=f"They are below '{prefix}': give it as the prefix"):
        DilatedRepVGG(TINY, init_cfg=init_cfg).init_weights()
    model = DilatedRepVGG(TINY, init_cfg=init_cfg | dict(prefix=prefix))
    model.init_weights()
    assert all(torch.equal(model.state_dict()[k], v) for k, v in source.state_dict().items())


@pytest.mark.parametrize(
    'prefix', ['teacher.backbone.', 'teacher.backbone', 'module.teacher.backbone']
)
def test_the_prefix_selects_one_of_two_models(tmp_path, prefix):
    """As mmengine's: its dot may be left out, and it is not passed over if it is misspelt."""
    models = {name: DilatedRepVGG(TINY).state_dict() for name in ('backbone', 'teacher.backbone')}
    state = {f'module.{m}.{n}': value for m, part in models.items() for n, value in part.items()}
    torch.save(state, tmp_path / 'a.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'a.pth'))
    for given, expected in ((prefix, 'teacher.backbone'), ('backbone', 'backbone')):
        model = DilatedRepVGG(TINY, init_cfg=dict(init_cfg, prefix=given))
        model.init_weights()
        for name, value in models[expected].items():
            assert torch.equal(model.state_dict()[name], value)
    with pytest.raises(CheckpointError, match="no weights below prefix='techer.backbone.'"):
        DilatedRepVGG(TINY, init_cfg=dict(init_cfg, prefix='techer.backbone.')).init_weights()


# What wrappers of a model add to names.


@pytest.mark.parametrize(
    ('given', 'plain'),
    [
        (['_orig_mod.a', '_orig_mod.b.c'], ['a', 'b.c']),
        (['backbone._orig_mod.a', 'head.b'], ['backbone.a', 'head.b']),
        (['module._orig_mod.a'], ['a']),
        (['_orig_mod.module.a', '_orig_mod.module.b'], ['a', 'b']),
        (['n_averaged', 'module.a', 'module.b'], ['a', 'b']),
        (['model.a', 'model.b'], ['a', 'b']),
        (['model.module.a'], ['a']),
        (['_fsdp_wrapped_module.a', '_fsdp_wrapped_module.b._fsdp_wrapped_module.c'], ['a', 'b.c']),
        (['a._checkpoint_wrapped_module.b', '_forward_module.c'], ['a.b', 'c']),
        (['my_orig_mod.a', '_orig_modular.b'], ['my_orig_mod.a', '_orig_modular.b']),
        (['model.a', 'loss.b'], ['model.a', 'loss.b']),
        (['a.weight', 'a.total_ops', 'a.total_params'], ['a.weight']),
        ([], []),
    ],
)
def test_plain_names(given, plain):
    assert list(plain_names(given).values()) == plain
    if given:
        state = {name: torch.ones(1) for name in given}
        assert list(state_dict_of(dict(state_dict=state))) == plain


def test_two_weights_never_become_one():
    one, two = torch.zeros(1), torch.ones(1)
    with pytest.raises(ValueError, match='x and y would both become z'):
        rename(dict(x=one, y=two), lambda name: 'z')
    with pytest.raises(CheckpointError, match='a and _orig_mod.a would both become a'):
        state_dict_of({'a': one, '_orig_mod.a': two})
    mixed = {'stage0.rbr_reparam.bias': one, 'backbone.stage0.rbr_reparam.bias': two}
    with pytest.raises(ValueError, match='weights of two models are mixed'):
        translate(mixed, 'ours')
    state = DilatedRepVGG(TINY).state_dict()
    both = state | {f'backbone.{name}': tensor for name, tensor in state.items()}
    with pytest.raises(CheckpointError, match=r'ab.pth cannot be loaded: .* both become .*stem'):
        load_backbone(DilatedRepVGG(TINY), both, 'ab.pth')


class Wrapper(nn.Module):
    """A model of which all names begin with that of its one part, or of a part within."""

    def __init__(self, name, part):
        super().__init__()
        self.add_module(name, part)


@pytest.mark.parametrize('name', ['model', 'module', '_orig_mod'])
@pytest.mark.parametrize('inner', [False, True])
def test_a_model_with_such_names_of_its_own_gets_them(name, inner):
    model = Wrapper(name, nn.Linear(2, 1))
    if inner:
        model = nn.ModuleDict(dict(backbone=model, head=nn.Linear(1, 1)))
    state = {key: torch.full_like(value, 7) for key, value in model.state_dict().items()}
    for given in (state_dict_of(state), state):
        load_strictly(model, given, 'a.pth')
        assert all((value == 7).all() for value in model.state_dict().values())
        model.load_state_dict({key: value * 0 for key, value in state.items()})


def test_a_model_with_official_names_of_its_own_keeps_them():
    """The official code's file, registered as a backbone."""
    ours = {f'backbone.{k}': v for k, v in DilatedRepVGG(TINY).state_dict().items()}
    official = {f'backbone.{k}': v for k, v in translate(ours, 'official').items()}
    model = nn.Module()
    for name, tensor in official.items():
        *path, last = name.split('.')
        place = model
        for part in path:
            if not hasattr(place, part):
                place.add_module(part, nn.Module())
            place = getattr(place, part)
        place.register_buffer(last, torch.zeros_like(tensor))
    assert set(adapted(model, official)) == set(official)
    load_strictly(model, official, 'official.pth')
    assert all(torch.equal(model.state_dict()[k], v) for k, v in official.items())


# What names and shapes tell.


def weights(arch: str, deploy: bool = False, classes: int | None = None) -> dict:
    with torch.device('meta'):
        state = DilatedRepVGG(arch, deploy=deploy).state_dict()
    named = {f'backbone.{name}': tensor for name, tensor in state.items()}
    if classes:
        named['head.fc.weight'] = torch.zeros(classes, 1)
    return named


NAMES_OF = {'D2se': WITH_SE, 'L2pse': ('ours', 'repvggplus')}
assert set().union(NAMES_OF_ALL, *NAMES_OF.values()) == set(SCHEMES)


@pytest.mark.parametrize('arch', ARCHS)
def test_every_architecture_is_known_in_both_forms_and_every_scheme(arch):
    for deploy in (False, True):
        state = weights(arch, deploy, classes=7)
        for scheme in NAMES_OF.get(arch, NAMES_OF_ALL):
            found = identify(translate(state, scheme))
            assert found.scheme == scheme
            assert found.form == ('deploy' if deploy else 'training')
            assert found.arch == arch
            assert found.classes == {'head': 7}


def test_other_weights_are_described():
    r18 = {'layer1.0.conv1.weight': torch.zeros(1), 'decode_head.conv_seg.weight': torch.zeros(5)}
    assert str(identify(r18)) == 'no RepVGG, 5 classes in decode_head'
    with torch.device('meta'):
        plain = dict(num_blocks=(8, 14, 24, 1), width_factor=(2.5, 2.5, 2.5, 5))
        found = identify(DilatedRepVGG(plain).state_dict())  # neither D2se nor L2pse
    assert found.arch == 'with num_blocks=[8, 14, 24, 1], channels=[160, 320, 640, 2560]'
    arch = dict(num_blocks=(2, 1), width_factor=(0.25, 0.25))
    custom = DilatedRepVGG(arch, strides=(1, 2), dilations=(1, 1), out_indices=(1,))
    assert identify(custom.state_dict()).arch == 'with num_blocks=[2, 1], channels=[16, 32]'


@pytest.mark.parametrize(
    ('model', 'found', 'text'),
    [
        (weights('A0'), weights('B1g2'), 'model.backbone.arch=B1g2'),
        (weights('A0'), weights('A0', deploy=True), 'model.backbone.deploy=True'),
        (weights('A0', deploy=True), weights('A0'), 'mmseg-repvgg fuse TRAINING'),
        (weights('A0', classes=19), weights('A0', classes=7), 'model.head.num_classes=7'),
        (weights('A0'), {'conv1.weight': torch.zeros(1)}, 'Give weights of a RepVGG'),
        ({'conv1.weight': torch.zeros(1)}, weights('A0'), 'the config that the weights were'),
    ],
)
def test_the_cause_names_its_command(model, found, text):
    said = explain(model, found)
    assert said.startswith(f'Found: {identify(found)}. Expected: {identify(model)}. ')
    assert text in said
