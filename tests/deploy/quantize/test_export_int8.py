"""mmseg-repvgg export --int8: what is written, what is refused, and what is recorded."""

import sys

import cv2
import numpy as np
import onnx
import pytest
import torch
from mmengine.config import Config

from mmseg_repvgg.commands import export as command
from mmseg_repvgg.deploy.export import Options, export
from mmseg_repvgg.deploy.model_description import ModelDescription
from mmseg_repvgg.deploy.quantize.options import Int8Options
from mmseg_repvgg.deploy.runtimes import load_runtime
from mmseg_repvgg.reparam import EquivalenceError
from tests.deploy.conftest import MEAN, STD

SIZE = (64, 128)
FEW = dict(images=3, check_images=3)
LOOSE = dict(FEW, agreement=0.5, miou_drop=50)


@pytest.fixture(scope='module')
def exported(segmentor, tmp_path_factory):
    cfg, _, checkpoint = segmentor
    out = tmp_path_factory.mktemp('int8') / 'm.onnx'
    return export(cfg, checkpoint, out, options=Options(SIZE, int8=Int8Options(**LOOSE)))


@torch.no_grad()
def test_logits_change_as_much_as_simulated(segmentor, exported, scenes):
    """Two implementations: the runtimes run the file, and PyTorch rounds what convs read.

    The file also rounds what convs compute, and sums.
    """
    record = exported.info.quantization
    simulated = record['simulated'][record['equalized']]
    errors = {'onnxruntime': [], 'openvino': []}
    for path in sorted((scenes / 'leftImg8bit' / 'train').glob('*/*.png'))[:3]:
        rgb = cv2.imread(str(path))[..., ::-1].astype(np.float64)
        images = ((rgb - MEAN) / STD).astype(np.float32).transpose(2, 0, 1)[None]
        metas = [dict(img_shape=SIZE, ori_shape=SIZE)]
        expected = segmentor[1].inference(torch.from_numpy(images), metas).numpy()
        for runtime, found in errors.items():
            change = load_runtime(exported.path, runtime)(images) - expected
            found.append(np.linalg.norm(change) / np.linalg.norm(expected))
    for found in errors.values():
        assert simulated / 2 < np.mean(found) < 4 * simulated


def test_the_file(exported):
    graph = onnx.load(str(exported.path)).graph
    dilations = {
        tuple(a.ints)
        for node in graph.node
        if node.op_type == 'Conv'
        for a in node.attribute
        if a.name == 'dilations'
    }
    assert dilations == {(1, 1), (2, 2), (4, 4)}  # sub-maps are slower in int8
    assert 'dilation' not in exported.info.rewrites
    kinds = {t.name: t.data_type for t in graph.initializer}
    for name in ('backbone.stem.branch_reparam', 'decode_head.bottleneck.conv'):
        assert kinds[f'model.{name}.weight_quantized'] == onnx.TensorProto.INT8
    assert kinds['model.decode_head.conv_seg.weight'] == onnx.TensorProto.FLOAT
    assert {path.name for path in exported.path.parent.iterdir()} == {'m.onnx', 'm.onnx.json'}


def test_the_description(exported):
    info = exported.info
    assert ModelDescription.read(exported.path) == info
    assert info.precision == 'int8'
    record = info.quantization
    assert set(record['simulated']) == {'none', 'weights', 'maps'}
    assert record['equalized'] == min(record['simulated'], key=record['simulated'].get)
    assert ('equalize' in info.rewrites) == (record['equalized'] != 'none')
    assert record['library'].startswith('onnxruntime ')
    assert (record['calibrator'], record['seed'], record['weight_bits']) == ('min-max', 0, 8)
    assert record['calibration']['source'] == 'train' and record['check']['source'] == 'test'
    assert len(set(record['calibration']['images'])) == 3
    assert all(name.endswith('_leftImg8bit.png') for name in record['calibration']['images'])
    assert record['in_float'] == ['decode_head.conv_seg']
    for result in exported.converted:
        quality = record['quality'][result.runtime]
        assert quality['agreement'] == result.agreement > 0.5
        assert quality['miou'] == result.miou[1]
    assert {r.runtime for r in exported.converted} == {'onnxruntime', 'openvino'}
    text = str(exported)
    assert 'slows int8 down' not in text
    assert 'onnxruntime on 3 images of test: ' in text and 'mIoU' in text
    assert f'wrote {exported.path} in int8 for images of 64x128' in text


@pytest.mark.slow
def test_too_great_a_loss_is_refused_with_advice(segmentor, tmp_path):
    cfg, _, checkpoint = segmentor
    (tmp_path / 'm.onnx').write_text('old')
    options = Int8Options(**FEW, agreement=1)
    with pytest.raises(EquivalenceError) as caught:
        export(cfg, checkpoint, tmp_path / 'm.onnx', options=Options(SIZE, int8=options))
    text = str(caught.value)
    assert 'int8 loses too much: onnxruntime on 3 images of test' in text
    assert 'At least 100 % must keep their class (--agreement)' in text
    assert 'The layers that lose most, each quantized alone:\n' in text
    assert text.count('% of the logits') == 5
    assert 'Try --keep-float auto' in text and '--calibrator percentile' in text
    assert [path.name for path in tmp_path.iterdir()] == ['m.onnx']
    assert (tmp_path / 'm.onnx').read_text() == 'old'


@pytest.mark.slow
def test_dilation_can_be_rewritten_with_a_note(segmentor, tmp_path):
    cfg, _, checkpoint = segmentor
    rewrites = ('branches', 'batchnorm', 'dilation', 'pyramid')
    options = Options(SIZE, rewrites=rewrites, int8=Int8Options(**LOOSE))
    report = export(cfg, checkpoint, tmp_path / 'm.onnx', options=options)
    assert 'dilation' in report.info.rewrites
    assert 'note: the rewrite dilation slows int8 down in ONNX Runtime' in str(report)


@pytest.mark.slow
def test_the_worst_layers_stay_in_float(segmentor, tmp_path):
    cfg, _, checkpoint = segmentor
    options = Int8Options(**LOOSE, keep_float=2, sensitivity=str(tmp_path / 's.png'))
    report = export(cfg, checkpoint, tmp_path / 'm.onnx', options=Options(SIZE, int8=options))
    record = report.info.quantization
    errors = [layer['error'] for layer in record['sensitivity']]
    assert errors == sorted(errors, reverse=True) and errors[-1] > 0
    worst = [layer['name'] for layer in record['sensitivity'][:2]]
    assert record['in_float'] == [*worst, 'decode_head.conv_seg']
    kinds = {t.name: t.data_type for t in onnx.load(str(report.path)).graph.initializer}
    for layer in worst:
        assert kinds[f'model.{layer}.weight'] == onnx.TensorProto.FLOAT
    assert (tmp_path / 's.png').read_bytes().startswith(b'\x89PNG')


@pytest.mark.parametrize(
    ('options', 'text'),
    [
        (dict(calibrator='best'), 'must be one of min-max, percentile, entropy'),
        (dict(weight_bits=4), 'weight_bits=4 must be 7 or 8'),
        (dict(images=0), 'images=0 must be an integer, at least 1'),
        (dict(keep_float='all'), "keep_float='all' must be a number of layers or 'auto'"),
        (dict(agreement=97), 'agreement=97 must be from 0 to 1'),
        (dict(miou_drop=float('nan')), 'miou_drop=nan must be from 0 to 100'),
        (dict(sensitivity='a.txt'), "'a.txt' must end in .png or .svg"),
    ],
)
def test_a_wrong_option_is_named(options, text):
    with pytest.raises(ValueError, match=text):
        Int8Options(**options)


def test_mistakes_are_found_before_the_checkpoint_is_read(segmentor, tmp_path):
    cfg, nowhere = segmentor[0], tmp_path / 'nowhere.pth'

    def refused(out, error, text, **changes):
        with pytest.raises(error, match=text):
            export(cfg, nowhere, tmp_path / out, options=Options(SIZE, **changes))

    refused('m.mnn', ValueError, 'int8 is not written as mnn', int8=Int8Options())
    refused('m.xml', ValueError, 'use min-max or perc', int8=Int8Options(calibrator='entropy'))
    refused('m.xml', ValueError, 'leave the option out', int8=Int8Options(symmetric=True))
    refused('m.onnx', ValueError, 'cannot be combined', int8=Int8Options(), fp16=True)
    missing = Int8Options(calibration='no/where')
    refused('m.onnx', FileNotFoundError, "folder 'no/where': give --calibration", int8=missing)


@pytest.mark.slow
def test_without_a_test_set_the_check_says_so(segmentor, tmp_path):
    cfg = Config(segmentor[0].to_dict())
    cfg.test_dataloader = None
    options = Options(SIZE, int8=Int8Options(**LOOSE))
    report = export(cfg, segmentor[2], tmp_path / 'm.onnx', options=options)
    assert report.converted[0].source == 'train'
    assert any('no other images for the check' in note for note in report.notes)


@pytest.mark.parametrize(
    ('given', 'expected'),
    [
        (['--int8'], Int8Options()),
        (['--int8', '--agreement', '0.9'], Int8Options(agreement=0.9)),
        (
            ['--int8', '--calibration', 'images/', '--calibration-images', '9', '--seed', '3'],
            Int8Options(calibration='images/', images=9, seed=3),
        ),
        (
            ['--int8', '--per-tensor', '--weight-bits', '7', '--symmetric', '--no-equalize'],
            Int8Options(per_tensor=True, weight_bits=7, symmetric=True, equalize=False),
        ),
        (
            ['--int8', '--keep-float', 'auto', '--calibrator', 'entropy', '--miou-drop', '1'],
            Int8Options(keep_float='auto', calibrator='entropy', miou_drop=1),
        ),
        (['--fp16'], None),
    ],
)
def test_the_command(monkeypatch, given, expected):
    found = []
    monkeypatch.setattr(command, 'export', lambda *args: found.append(args[4]))
    monkeypatch.setattr(command.launch, 'load_config', lambda *_: None)
    monkeypatch.setattr(sys, 'argv', ['export', 'c.py', 'a.pth', 'm.onnx', *given])
    command.main()
    assert found[0].int8 == expected
    assert found[0].fp16 == (given == ['--fp16'])


def test_options_of_int8_alone_are_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['export', 'c.py', 'a.pth', 'm.onnx', '--per-tensor'])
    with pytest.raises(SystemExit):
        command.main()
    assert 'per_tensor have no effect without --int8' in capsys.readouterr().err
