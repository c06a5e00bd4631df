"""tools/convert_weights.py's work."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch.hub import load_state_dict_from_url

from mmseg_repvgg.checkpoint import CheckpointError
from mmseg_repvgg.checkpoint.writing import convert_weights, publish_weights
from mmseg_repvgg.models import DilatedRepVGG
from tests.common import TINY


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_there_and_back_by_files(tmp_path, suffix):
    weights = {f'backbone.{k}': v for k, v in DilatedRepVGG(TINY).state_dict().items()}
    weights['head.fc.weight'] = torch.ones(3, 64)
    torch.save(dict(state_dict=weights, meta=dict(epoch=3)), tmp_path / 'a.pth')
    official, timm, back = (tmp_path / f'{name}{suffix}' for name in 'bcd')
    line = convert_weights(tmp_path / 'a.pth', official, 'official')
    assert line.startswith(f'{len(weights)} tensors')
    assert line.endswith(f'(ours) -> {official} (official)')
    convert_weights(official, timm, 'timm')
    convert_weights(timm, back, 'ours')
    if suffix == '.pth':
        loaded = torch.load(timm, weights_only=True)
        state, stamp = loaded['state_dict'], loaded['meta']['mmseg_repvgg']
        final = torch.load(back, weights_only=True)['state_dict']
    else:
        state, final = load_file(timm), load_file(back)
        with safe_open(timm, 'pt') as file:
            stamp = json.loads(file.metadata()['mmseg_repvgg'])
    assert (stamp['form'], stamp['scheme']) == ('training', 'timm')
    assert stamp['architecture'] == 'with num_blocks=[2, 3, 3, 1], channels=[8, 16, 32, 64]'
    assert stamp['source_sha256'] == hashlib.sha256(official.read_bytes()).hexdigest()
    assert set(stamp['versions']) == {'mmseg_repvgg', 'torch'}
    assert 'stages.0.1.identity.weight' in state
    assert set(final) == set(weights)
    assert all(torch.equal(final[k], v) for k, v in weights.items())


def test_wrong_files_are_refused_and_nothing_is_written(tmp_path):
    torch.save({'conv.weight': torch.ones(1)}, tmp_path / 'other.pth')
    with pytest.raises(CheckpointError, match='no RepVGG weights in the names of ours, official'):
        convert_weights(tmp_path / 'other.pth', tmp_path / 'out.pth', 'timm')
    with pytest.raises(ValueError, match=r'must end in .pth or .safetensors'):
        convert_weights(tmp_path / 'other.pth', tmp_path / 'out.onnx', 'timm')
    assert [p.name for p in tmp_path.iterdir()] == ['other.pth']


def test_published_weights_are_checked_by_their_name(tmp_path):
    model = DilatedRepVGG(TINY)
    classes = dict(classes=('road', 'sky'), palette=[[1, 2, 3], [4, 5, 6]])
    meta = dict(
        dataset_meta=dict(classes, root='/home/me'), cfg='root = "/home/me"', hostname='mine'
    )
    optimizer = torch.optim.Adam(model.parameters()).state_dict()
    source = tmp_path / 'iter_9.pth'
    torch.save(dict(meta=meta, state_dict=model.state_dict(), optimizer=optimizer), source)
    file = publish_weights(source, tmp_path, 'a0')
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert sorted(p.name for p in tmp_path.iterdir()) == [f'a0-{digest[:8]}.pth', 'iter_9.pth']
    loaded = load_state_dict_from_url(file.as_uri(), tmp_path / 'hub', check_hash=True)
    assert set(loaded) == {'meta', 'state_dict'}
    assert loaded['meta']['dataset_meta'] == classes
    assert loaded['meta']['mmseg_repvgg']['form'] == 'training'
    assert all(torch.equal(loaded['state_dict'][k], v) for k, v in model.state_dict().items())
    assert b'/home/me' not in file.read_bytes()
    source.write_bytes(b'no checkpoint')
    with pytest.raises(CheckpointError):
        publish_weights(source, tmp_path, 'b0')


def test_the_tool_names_the_architecture(tmp_path):
    """Which stands in the table of the models; reading and renaming need no models."""
    with torch.device('meta'):
        shapes = {n: t.shape for n, t in DilatedRepVGG('A0', deploy=True).state_dict().items()}
    state = {f'backbone.{name}': torch.zeros(shape) for name, shape in shapes.items()}
    torch.save(state, tmp_path / 'a.pth')
    arguments = [str(tmp_path / 'a.pth'), str(tmp_path / 'b.pth'), '--to', 'timm']
    tool = str(Path(__file__).parents[2] / 'tools' / 'convert_weights.py')
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, tool, *arguments], check=True, env=environment)
    stamp = torch.load(tmp_path / 'b.pth')['meta']['mmseg_repvgg']
    assert (stamp['architecture'], stamp['form']) == ('A0', 'deploy')


def test_checkpoint_imports_nothing_that_builds_on_it():
    code = """
import importlib, pkgutil, sys
import mmseg_repvgg.checkpoint as package
for module in pkgutil.iter_modules(package.__path__):
    importlib.import_module(package.__name__ + '.' + module.name)
above = {f'mmseg_repvgg.{name}' for name in ('models', 'accel', 'engine', 'deploy')}
sys.exit(', '.join(above & {*sys.modules}) or None)
"""
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, '-c', code], check=True, env=environment)
