"""docs/migration.md: its snippets run as they are, and its names are those of the other code."""

import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from mmseg_repvgg import cli
from mmseg_repvgg.checkpoint import identify, load_backbone, read_checkpoint, state_dict_of
from mmseg_repvgg.checkpoint.naming_schemes import SCHEMES
from mmseg_repvgg.models import DilatedRepVGG
from tests.checkpoint.official import features, random_state
from tests.common import randomise_batchnorms

TEXT = (Path(__file__).parents[1] / 'docs/migration.md').read_text('utf-8')
MMPRETRAIN, CONFIG, OFFICIAL, TIMM = re.findall(r'```python\n(.*?)```', TEXT, re.DOTALL)
COMMANDS = re.findall(r'^mmseg-repvgg (.+)$', TEXT, re.MULTILINE)


def run(snippet):
    names: dict = {}
    exec(snippet, names)
    return names


@pytest.mark.parametrize(
    'scheme, column', [('ours', -5), ('official', -4), ('timm', -3), ('super_gradients', -2)]
)
def test_the_table_of_names(scheme, column):
    rows = TEXT.partition('| 3x3 conv')[2].splitlines()[:6]
    names = re.findall(r'`(.+?)`', ' '.join(row.split('|')[column] for row in rows))
    parts = [part for part in SCHEMES[scheme].parts[:8] if part]
    assert names == [*parts, SCHEMES[scheme].classifier]


def test_state_dicts_of_mmpretrain():
    assert run(MMPRETRAIN)['found'].max_abs == 0


def test_a_config_of_mmpretrain():
    mmpretrain = pytest.importorskip('mmpretrain')
    folder = Path(mmpretrain.__path__[0]) / '.mim/configs/repvgg'
    cfg = Config.fromfile(folder / 'repvgg-A0_8xb32_in1k.py')
    init_default_scope('mmpretrain')
    old = MODELS.build(cfg.model)
    cfg.merge_from_dict({'model': run(CONFIG)['model']})
    new = MODELS.build(cfg.model)
    assert isinstance(new.backbone, DilatedRepVGG)
    new.load_state_dict(old.state_dict())


@torch.no_grad()
def test_official_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state, image = random_state('A0'), torch.randn(1, 3, 64, 64)
    torch.save(state, 'RepVGG-A0-train.pth')
    maps = run(OFFICIAL)['backbone'].eval()(image)
    for ours, theirs in zip(maps, features(state, image), strict=True):
        assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max()
    schemes = []
    for command in COMMANDS:
        monkeypatch.setattr('sys.argv', [])
        cli.main(command.split())
        written = state_dict_of(read_checkpoint(command.split()[2]))
        schemes.append(identify(written).scheme)
    assert schemes == ['ours', 'timm', 'official']
    assert written.keys() == state.keys()
    assert all(torch.equal(written[name], tensor) for name, tensor in state.items())


def test_weights_and_model_of_timm():
    pytest.importorskip('timm')
    names = run(TIMM)
    assert names['counts'] == {'branches': 22}  # 1 + 2 + 4 + 14 + 1
    assert names['found'].max_rel < 1e-4


PAPER = dict(strides=(2, 2, 1, 1), dilations=(1, 1, 2, 4))


@torch.no_grad()
def test_the_output_stride_of_timm():
    timm = pytest.importorskip('timm')
    old = randomise_batchnorms(timm.create_model('repvgg_a0', output_stride=8))
    image = torch.randn(1, 3, 64, 64)
    (as_timm,) = re.findall(r'`(strides=.+?)` for A0', TEXT)
    for settings, is_equal in ((eval(f'dict({as_timm})'), True), (PAPER, False)):
        new = DilatedRepVGG('A0', **settings).eval()
        load_backbone(new, old.state_dict(), 'timm')
        assert torch.allclose(new(image)[-1], old.forward_features(image)) == is_equal
