"""tools/compare_exported.py's work: agreement with PyTorch over a test set."""

import sys

import pytest

from mmseg_repvgg.checkpoint import write_checkpoint
from mmseg_repvgg.commands import compare_exported as command
from mmseg_repvgg.deploy.compare_exported import compare_exported
from mmseg_repvgg.deploy.export import Options, export

SIZE = (49, 70)


@pytest.fixture(scope='module')
def onnx(segmentor, tmp_path_factory):
    cfg, _, checkpoint = segmentor
    out = tmp_path_factory.mktemp('agreement') / 'm.onnx'
    export(cfg, checkpoint, out, options=Options(SIZE))
    return out


def test_each_image_is_compared(segmentor, onnx, scenes):
    cfg, _, checkpoint = segmentor
    (found,) = compare_exported(cfg, checkpoint, [onnx], threads=1, count=3)
    count = len(list((scenes / 'leftImg8bit' / 'val').glob('*/*.png')))
    assert [match.image for match in found.matches] == [f'image {i}' for i in range(min(3, count))]
    assert found.mean > 0.999
    assert max(match.relative for match in found.matches) < 1e-5
    assert str(found).startswith('m.onnx in onnxruntime: argmax agreement 1')


def test_another_checkpoint_does_not_agree(segmentor, onnx, tmp_path):
    cfg, model, _ = segmentor
    state = {name: value.clone() for name, value in model.state_dict().items()}
    state['decode_head.conv_seg.weight'] = state['decode_head.conv_seg.weight'].flip(0)
    write_checkpoint(dict(state_dict=state), tmp_path / 'other.pth')
    (found,) = compare_exported(cfg, tmp_path / 'other.pth', [onnx], 'openvino', count=1)
    assert found.runtime == 'openvino'
    assert found.mean < 0.9


@pytest.mark.parametrize(
    ('count', 'data_root', 'text'),
    [(0, None, 'images=0 must be at least 1'), (1, 'nowhere', 'data_root of test_dataloader')],
)
def test_what_cannot_be_compared_is_said(segmentor, onnx, count, data_root, text):
    cfg, _, checkpoint = segmentor
    cfg = cfg.copy()
    if data_root:
        cfg.merge_from_dict({'test_dataloader.dataset.data_root': data_root})
    with pytest.raises((ValueError, FileNotFoundError), match=text):
        compare_exported(cfg, checkpoint, [onnx], count=count)


def test_the_device_reaches_the_runtime(segmentor, onnx, monkeypatch):
    cfg, _, checkpoint = segmentor
    monkeypatch.setattr(command.launch, 'load_config', lambda *_: cfg)
    words = ['compare_exported', 'c.py', str(checkpoint), str(onnx), '--device', 'tpu']
    monkeypatch.setattr(sys, 'argv', words)
    with pytest.raises(SystemExit, match="error: device='tpu' must be one of cpu, cuda"):
        command.main()
    (found,) = compare_exported(cfg, checkpoint, [onnx], count=1, device='cpu')
    assert str(found).startswith('m.onnx in onnxruntime, device=cpu: argmax agreement 1')
