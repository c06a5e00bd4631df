"""Classes, colours and the threshold of an exported model."""

import json

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from mmseg_repvgg.deploy.evaluate import test_exported as evaluate  # pytest would collect it
from mmseg_repvgg.deploy.export import Options, export
from mmseg_repvgg.deploy.model_description import ModelDescription, description_path
from mmseg_repvgg.deploy.runtimes import load_runtime
from mmseg_repvgg.deploy.segmenter import Segmenter
from mmseg_repvgg.engine import launch
from tests.common import randomise_batchnorms
from tests.deploy.networks import described

SIZE = (64, 128)
NAMES = tuple(f'part {i}' for i in range(19))
COLOURS = [[i, 2 * i, 255 - i] for i in range(19)]


@pytest.fixture
def own(segmentor):
    """A config with a data set of the user's own, and the weights alone."""
    cfg = Config(segmentor[0].to_dict())
    dataset = cfg.test_dataloader.dataset
    dataset.type, dataset.img_suffix = 'BaseSegDataset', '.png'
    return cfg


def info_of(cfg, checkpoint, tmp_path):
    return export(cfg, checkpoint, tmp_path / 'm.pt2', options=Options(SIZE)).info


def test_names_without_colours_survive(own, segmentor, tmp_path):
    own.test_dataloader.dataset.metainfo = dict(classes=NAMES)
    info = info_of(own, segmentor[2], tmp_path)
    assert info.classes == NAMES
    assert len(set(info.palette)) == 19


def test_names_in_a_wrapper_of_data_sets_survive(own, segmentor, tmp_path):
    inner = dict(own.test_dataloader.dataset, metainfo=dict(classes=NAMES, palette=COLOURS))
    own.test_dataloader.dataset = dict(type='ConcatDataset', datasets=[inner, inner])
    info = info_of(own, segmentor[2], tmp_path)
    assert info.classes == NAMES
    assert info.palette == tuple(map(tuple, COLOURS))


def test_the_config_comes_before_the_checkpoint_and_that_before_the_class(own, segmentor, tmp_path):
    state = torch.load(segmentor[2])['state_dict']
    checkpoint = tmp_path / 'named.pth'
    meta = dict(dataset_meta=dict(classes=NAMES, palette=COLOURS))
    torch.save(dict(state_dict=state, meta=meta), checkpoint)
    assert info_of(segmentor[0], checkpoint, tmp_path).classes == NAMES
    own.test_dataloader.dataset.metainfo = dict(classes=[f'own {i}' for i in range(19)])
    assert info_of(own, checkpoint, tmp_path).classes[0] == 'own 0'
    own.test_dataloader.dataset.pop('metainfo')
    assert info_of(own, segmentor[2], tmp_path).classes[0] == 'class 0'  # nothing names them


@pytest.mark.parametrize('where', ['metainfo of test_dataloader', 'dataset_meta of the checkpoi'])
def test_names_for_another_number_of_classes_are_refused(own, segmentor, tmp_path, where):
    checkpoint, few = segmentor[2], dict(classes=('sky', 'road'), palette=[[0, 0, 0], [1, 1, 1]])
    if where.startswith('metainfo'):
        own.test_dataloader.dataset.metainfo = few
    else:
        checkpoint = tmp_path / 'named.pth'
        state = torch.load(segmentor[2])['state_dict']
        torch.save(dict(state_dict=state, meta=dict(dataset_meta=few)), checkpoint)
    with pytest.raises(ValueError, match=f'num_classes=19, but {where}.* names 2 classes: sky, ro'):
        info_of(own, checkpoint, tmp_path)


@pytest.mark.parametrize('num_classes', [1, pytest.param(2, marks=pytest.mark.slow)])
def test_one_channel_with_a_threshold(segmentor, scenes, tmp_path, num_classes):
    """mmseg's own test step and mIoU against the file's; labels 0 and 1."""
    init_default_scope('mmseg')
    cfg = Config(segmentor[0].to_dict())
    for head in (cfg.model.decode_head, cfg.model.auxiliary_head):
        loss = dict(type='CrossEntropyLoss', use_sigmoid=True)
        head.update(num_classes=num_classes, out_channels=1, threshold=0.4, loss_decode=loss)
    names = ('vehicle',) if num_classes == 1 else ('other', 'vehicle')
    colours = [[9, 9, 9], [0, 0, 142]][-num_classes:]
    dataset = cfg.test_dataloader.dataset
    dataset.type, dataset.metainfo = 'BaseSegDataset', dict(classes=names, palette=colours)
    dataset.img_suffix = '.png'
    model = randomise_batchnorms(MODELS.build(cfg.model))
    model.decode_head.conv_seg.weight.data.normal_()
    pixels = torch.from_numpy(_image(scenes).transpose(2, 0, 1).copy())
    (result,) = model.test_step(dict(inputs=[pixels]))
    middle = result.seg_logits.data.logit().median()  # mmseg keeps the sigmoid
    model.decode_head.conv_seg.bias.data.sub_(middle)
    checkpoint = tmp_path / 'binary.pth'
    torch.save(dict(state_dict=model.state_dict()), checkpoint)
    (result,) = model.test_step(dict(inputs=[pixels]))
    expected = result.pred_sem_seg.data[0].numpy()
    assert 0.05 < expected.mean() < 0.95

    for argmax in (False, True):
        options = Options(SIZE, argmax=argmax, preprocessing=argmax)
        report = export(cfg, checkpoint, tmp_path / 'm.onnx', options=options)
        assert report.info.threshold == 0.4
        assert report.info.classes == ('background', *names)[-2:]
        segmenter = Segmenter(report.path)
        labels = segmenter(_image(scenes))
        assert (labels == expected).mean() > 0.999
        segmenter.overlay(_image(scenes), labels)
        logits = load_runtime(report.path)(pixels[None].float().numpy())
        assert logits.shape == ((1, *SIZE) if argmax else (1, 1, *SIZE))


def _image(scenes):
    import cv2

    return cv2.imread(str(next((scenes / 'leftImg8bit' / 'val').rglob('*.png'))))


@pytest.mark.slow
def test_a_threshold_is_evaluated_as_by_mmseg(segmentor, tmp_path):
    cfg = Config(segmentor[0].to_dict())
    for head in (cfg.model.decode_head, cfg.model.auxiliary_head):
        loss = dict(type='CrossEntropyLoss', use_sigmoid=True)
        head.update(num_classes=2, out_channels=1, threshold=0.4, loss_decode=loss)
    dataset = cfg.test_dataloader.dataset
    dataset.metainfo = dict(classes=('road', 'sidewalk'))  # the others are ignored
    model = randomise_batchnorms(MODELS.build(cfg.model))
    model.decode_head.conv_seg.weight.data.normal_()
    checkpoint = str(tmp_path / 'binary.pth')
    torch.save(dict(state_dict=model.state_dict()), checkpoint)

    def named(name):
        copy = Config(cfg.to_dict())
        copy.work_dir, copy.visualizer.name = str(tmp_path / name), str(tmp_path / name)
        return copy

    expected = launch.test(named('mmseg'), checkpoint)
    assert 5 < expected['mIoU'] < 95
    for argmax in (False, True):
        options = Options(SIZE, argmax=argmax)
        path = export(cfg, checkpoint, tmp_path / f'{argmax}.onnx', options=options).path
        found = evaluate(named(f'onnx{argmax}'), path, 'onnxruntime')
        assert abs(found['mIoU'] - expected['mIoU']) < 0.05


def test_another_model_under_the_description_is_noticed(tmp_path):
    path = described(tmp_path)
    path.write_bytes(b'another model')
    with pytest.raises(ValueError, match=r'describes another model .* remove model_sha256 from'):
        ModelDescription.read(path)
    values = json.loads(description_path(path).read_text())
    description_path(path).write_text(json.dumps(dict(values, model_sha256='')))
    assert ModelDescription.read(path).size == (8, 12)


@pytest.mark.parametrize(('model', 'weights'), [('m.xml', 'm.bin'), ('m.onnx', 'm.onnx.data')])
def test_other_weights_of_the_model_are_noticed(tmp_path, model, weights):
    made = ModelDescription.read(described(tmp_path))
    for name in (model, weights):
        (tmp_path / name).write_bytes(b'x')
    made.write(tmp_path / model)
    assert ModelDescription.read(tmp_path / model).classes == made.classes
    (tmp_path / weights).write_bytes(b'other')
    with pytest.raises(ValueError, match='describes another model'):
        ModelDescription.read(tmp_path / model)


def test_a_description_of_an_older_version_is_read(tmp_path):
    """As the first version wrote it, without the fields that came later."""
    path = tmp_path / 'old.onnx'
    path.write_bytes(b'x')
    old = dict(
        format='onnx', size=[8, 12], dynamic_batch=True, preprocessing_inside=True,
        argmax_inside=False, mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375],
        to_rgb=True, classes=['a', 'b'], palette=[[0, 0, 0], [1, 1, 1]], stride=None, rewrites=[],
        source_sha256='0', version='0.1.0',
    )  # fmt: skip
    description_path(path).write_text(json.dumps(old))
    info = ModelDescription.read(path)
    assert (info.channels, info.threshold, info.align_corners) == (3, None, False)
    assert (info.color_type, info.resize, info.left_out) == ('color', None, ())
