"""model-index.yml: every config is in it, and what it says is right or quoted."""

import functools
import re
from pathlib import Path, PurePosixPath

import mmpretrain
import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from mmseg_repvgg.analysis.complexity import Complexity, count
from mmseg_repvgg.models import ARCHS
from tests.benchmark import camvid_index
from tests.test_configs import TABLE_8
from tests.test_imagenet_configs import PRINTED, QUOTED

PROJECT = Path(__file__).parents[1]
PAPER = 'https://arxiv.org/abs/2101.03697'
URL = re.compile(
    r'https://download\.openmmlab\.com/mmclassification/v0/repvgg/'
    r'repvgg-(?P<arch>\w+?)_\S+-(?P<hash>[0-9a-f]{8})\.pth'
)


def read(path):
    return yaml.safe_load((PROJECT / path).read_text(encoding='utf-8'))


ALL = [model for path in read('model-index.yml')['Import'] for model in read(path)['Models']]
CAMVID = [m for m in ALL if m['In Collection'] == camvid_index.COLLECTION['Name']]
INDEX = [m for m in ALL if m not in CAMVID]
CLASSIFIERS = [m for m in INDEX if m['In Collection'] == 'RepVGG']
SEGMENTORS = [m for m in INDEX if m['In Collection'] == 'PSPNet']
PUBLISHED = [m for m in INDEX if 'Weights' in m]


def name_of(model):
    return model['Name']


def every(models):
    return pytest.mark.parametrize('model', models, ids=name_of)


def arch_of(model):
    return arch_in(model['Config'])


@functools.cache
def arch_in(config):
    return Config.fromfile(PROJECT / config).model.backbone.arch


def mmpretrains_zoo():
    """mmpretrain's own entries, by architecture."""
    zoo = Path(mmpretrain.__file__).parent / '.mim' / 'configs' / 'repvgg' / 'metafile.yml'
    entries = yaml.safe_load(zoo.read_text(encoding='utf-8'))['Models']
    return {re.match(r'repvgg-(\w+?)_', e['Name'])[1]: e for e in entries}


def test_it_holds_every_config_once_and_nothing_else():
    configs = [f'configs/imagenet/{p.name}' for p in PROJECT.glob('configs/imagenet/*.py')]
    configs += [f'configs/{stem}.py' for stem in TABLE_8]
    assert sorted(m['Config'] for m in INDEX) == sorted(configs)
    assert all(name_of(m) == PurePosixPath(m['Config']).stem for m in INDEX)
    assert len(CLASSIFIERS) + len(SEGMENTORS) == len(INDEX)


def test_the_reader_of_openmmlabs_packages_finds_nothing_wrong():
    from modelindex.load_model_index import load

    index = load(str(PROJECT / 'model-index.yml'))
    index.build_models_with_collections()
    assert index.check(silent=True) == []
    assert [m.name for m in index.models] == [m['Name'] for m in ALL]
    assert index.models[0].full_model.paper['URL'] == PAPER
    results = [r.metrics for m in index.models for r in m.results or []]
    assert results == [r['Metrics'] for m in ALL for r in m.get('Results', [])]


def test_mmpretrain_builds_by_name_what_is_in_it(monkeypatch):
    from mmpretrain.apis import ModelHub, get_model

    monkeypatch.setattr(ModelHub, '_models_dict', {})  # given back after the test
    ModelHub.register_model_index(PROJECT / 'model-index.yml', config_prefix=PROJECT)
    model = get_model('repvgg_a0_120e', backbone=dict(arch='B0'))
    assert type(model.backbone).__name__ == 'DilatedRepVGG'
    assert [len(stage) for stage in model.backbone.stages] == [4, 6, 16, 1]
    assert ModelHub.get('repvgg_b3_200e').weights.endswith('-927a329a.pth')


def cost(model) -> Complexity:
    """Build what an entry's config describes in deployed form, without memory, and count it."""
    cfg = Config.fromfile(PROJECT / model['Config'])
    init_default_scope(cfg.default_scope)
    if cfg.model.backbone.type == 'DilatedRepVGG':
        cfg.model.backbone.deploy = True
    with torch.device('meta'):
        built = MODELS.build(cfg.model)
    return count(built, cfg.model.get('test_cfg', {}).get('crop_size', (224, 224)))


@every(INDEX)
def test_the_config_builds_and_costs_what_the_entry_says(model):
    found, written = cost(model), model['Metadata']
    assert (found.flops, found.params) == (written['FLOPs'], written['Parameters'])


def test_costs_agree_with_mmpretrains():
    """It has the same parameters, no classifier in its FLOPs, and every averaged number in them."""
    zoo = mmpretrains_zoo()
    for model in PUBLISHED:
        arch, ours = arch_of(model), model['Metadata']
        if arch == 'B0':  # FLOPs 15.8 billion, 3.4 million parameters: the paper has 3.1 and 14.33
            continue
        theirs = zoo[arch]['Metadata']
        assert ours['Parameters'] == theirs['Parameters']
        row = ARCHS[arch]
        averaged = row.widths[-1] * 7 * 7
        if row.se_cfg:  # one average a layer
            sizes = [112, 56, 28, 14, 7]
            layers = zip(row.widths, sizes, (1, *row.num_blocks), strict=True)
            averaged += sum(width * size**2 * depth for width, size, depth in layers)
        assert ours['FLOPs'] - row.widths[-1] * 1000 + averaged == theirs['FLOPs'], arch


@every(INDEX)
def test_everything_quoted_says_from_where(model):
    (result,) = model.get('Results') or [None]
    if model in PUBLISHED:
        assert result['Source'].startswith("quoted from mmpretrain's model zoo (")
        assert 'not the result of this config' in model['Note']
        return
    assert re.match('no weights (of this recipe )?are published', model['Note'])
    assert ('of this recipe' in model['Note']) == (
        model in CLASSIFIERS and arch_of(model) in [arch_of(m) for m in PUBLISHED]
    )
    if model in SEGMENTORS:
        miou, accuracy, _ = TABLE_8[name_of(model)]
        assert result['Metrics'] == {'mIoU': float(miou), 'Pixel Accuracy': float(accuracy)}
        assert result['Source'].startswith('quoted from the paper, Table 8')
    elif name_of(model) in PRINTED:
        assert result['Metrics'] == {'Top 1 Accuracy': float(PRINTED[name_of(model)])}
        table = 4 if name_of(model).endswith('_120e') else 5
        assert result['Source'] == f'quoted from the paper, Table {table}'
    elif name_of(model) in QUOTED:
        assert result['Metrics'] == {'Top 1 Accuracy': float(QUOTED[name_of(model)])}
        assert re.match('quoted from .* not the result of this config', result['Source'])
    else:
        assert result is None
        assert model['Note'].endswith('the paper prints no accuracy')


def test_the_published_weights_are_those_of_mmpretrains_zoo():
    zoo = mmpretrains_zoo()
    assert sorted(map(arch_of, PUBLISHED)) == sorted(zoo)
    for model in PUBLISHED:
        theirs = zoo[arch_of(model)]
        # the two families keep the same files on different hosts
        assert PurePosixPath(model['Weights']).name == PurePosixPath(theirs['Weights']).name
        (ours,) = model['Results']
        assert ours['Metrics'] == theirs['Results'][0]['Metrics']
        assert f'({theirs["Name"]})' in ours['Source']


@every(PUBLISHED)
def test_the_address_names_architecture_and_hash(model):
    parts = URL.fullmatch(model['Weights'])
    assert parts['arch'] == arch_of(model)
    assert parts['hash'] == model['SHA-256']


def shapes(module):
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


@every(PUBLISHED)
def test_published_weights_fit_by_name_and_shape(model):
    """Their names and shapes are those of the classifier that mmpretrain builds."""
    from mmpretrain.models import ImageClassifier

    ours = Config.fromfile(PROJECT / model['Config']).model
    theirs = dict(ours, backbone=dict(type='RepVGG', arch=ours.backbone.arch, out_indices=(3,)))
    theirs.pop('type')
    init_default_scope('mmpretrain')
    with torch.device('meta'):
        found, expected = shapes(MODELS.build(ours)), shapes(ImageClassifier(**theirs))
        assert found == expected
        # negative control: a neighbour of the same depth is another architecture
        other = 'B1g4' if ours.backbone.arch == 'B1' else 'B1'
        assert (
            shapes(ImageClassifier(**dict(theirs, backbone=dict(type='RepVGG', arch=other))))
            != expected
        )


def test_the_entries_of_camvid_are_the_records():
    assert camvid_index.INDEX.read_text(encoding='utf-8') == camvid_index.index_text()
    page = (PROJECT / 'docs' / 'camvid.md').read_text(encoding='utf-8')
    assert camvid_index.zoo_table() in page
    assert len(CAMVID) == len({m['SHA-256'] for m in CAMVID}) > 0


def test_costs_of_a_network_on_camvid_by_hand():
    """RepVGG-A0's classifier has the same convs; images of 360x480 are 3.44 times as large."""
    backbone = (1361451008 - 1280 * 1000) * 360 * 480 / 224**2
    assert 1.0 < camvid_index.cost('camvid/uafm_repvgg_a0.py').flops / backbone < 1.2
    assert camvid_index.cost('camvid/uafm_plain_a0.py') == camvid_index.cost(
        'camvid/uafm_repvgg_a0.py'
    )
    assert camvid_index.cost('camvid/uafm_mmpretrain_a0.py') == camvid_index.cost(
        'camvid/uafm_qarepvgg_a0.py'
    )
