"""tools/test.py --runtime's work: mIoU of exported models, by mmseg's own Runner."""

from dataclasses import replace

import pytest
from mmengine.config import Config

from mmseg_repvgg.deploy.evaluate import test_exported as evaluate  # pytest would collect it
from mmseg_repvgg.deploy.export import Options, export
from mmseg_repvgg.deploy.model_description import ModelDescription
from mmseg_repvgg.engine import launch

SIZE = (64, 128)  # of the scenes
SLIDE = dict(mode='slide', crop_size=(49, 70), stride=(33, 40))
FILES = [('torch', 'm.pt2'), ('onnxruntime', 'm.onnx'), ('openvino', 'm.xml'), ('mnn', 'm.mnn')]
ALLOWED = 0.05  # percent: 0.0005 mIoU


def configured(cfg, work_dir, **test_cfg):
    cfg = Config(cfg.to_dict())
    cfg.data_preprocessor = cfg.model.data_preprocessor  # where mmseg's own configs have it too
    cfg.model.test_cfg = test_cfg or dict(mode='whole')
    cfg.work_dir = str(work_dir)
    cfg.visualizer.name = str(work_dir)
    return cfg


@pytest.fixture(scope='module')
def pytorch_miou(segmentor, tmp_path_factory):
    """What PyTorch gives, once per way of testing."""
    cfg, _, checkpoint = segmentor
    folder, known = tmp_path_factory.mktemp('pytorch'), {}

    def get(**test_cfg):
        mode = test_cfg.get('mode', 'whole')
        if mode not in known:
            settings = configured(cfg, folder / mode, **test_cfg)
            known[mode] = launch.test(settings, str(checkpoint))['mIoU']
        assert known[mode] > 0.5  # more than nothing is right
        return known[mode]

    return get


@pytest.mark.parametrize(
    ('runtime', 'file'), [FILES[0], *(pytest.param(*f, marks=pytest.mark.slow) for f in FILES[1:])]
)
def test_whole_images_give_pytorchs_miou(segmentor, tmp_path, pytorch_miou, runtime, file):
    cfg, _, checkpoint = segmentor
    whole = configured(cfg, tmp_path / runtime)
    path = export(whole, checkpoint, tmp_path / file, options=Options(SIZE)).path
    miou = evaluate(whole, path, runtime)['mIoU']
    assert abs(miou - pytorch_miou()) < ALLOWED


@pytest.mark.parametrize(
    ('runtime', 'file', 'preprocessing'),
    [
        pytest.param(*FILES[0], False, marks=pytest.mark.slow),
        pytest.param(*FILES[1], True, marks=pytest.mark.slow),
        pytest.param(*FILES[3], True, marks=pytest.mark.slow),
    ],
)
def test_batched_windows_give_pytorchs_miou(
    segmentor, tmp_path, pytorch_miou, runtime, file, preprocessing
):
    cfg, _, checkpoint = segmentor
    slide = configured(cfg, tmp_path / 'slide', **SLIDE)
    options = Options(preprocessing=preprocessing, dynamic_batch=True)
    path = export(slide, checkpoint, tmp_path / file, options=options).path
    expected = pytorch_miou(**SLIDE)
    miou = evaluate(configured(cfg, tmp_path / 'a', **SLIDE), path, runtime)['mIoU']
    assert abs(miou - expected) < ALLOWED
    if not preprocessing:  # negative control: a description of another channel order
        replace(ModelDescription.read(path), to_rgb=False).write(path)
        wrong = evaluate(configured(cfg, tmp_path / 'b', **SLIDE), path, runtime)['mIoU']
        assert abs(wrong - expected) > ALLOWED


@pytest.mark.slow
def test_labels_are_evaluated_on_whole_images_only(segmentor, tmp_path, pytorch_miou):
    cfg, _, checkpoint = segmentor
    whole = configured(cfg, tmp_path / 'whole')
    options = Options(SIZE, argmax=True, preprocessing=True)
    path = export(whole, checkpoint, tmp_path / 'm.pt2', options=options).path
    miou = evaluate(configured(cfg, tmp_path / 'a'), path, 'torch')['mIoU']
    assert abs(miou - pytorch_miou()) < ALLOWED

    info = ModelDescription.read(path)
    padding = configured(cfg, tmp_path / 'b')
    padding.model.data_preprocessor.test_cfg = dict(size=(80, 130))
    with pytest.raises(ValueError, match='the config pads normalised images'):
        evaluate(padding, path, 'torch')
    replace(info, stride=(10, 10)).write(path)
    with pytest.raises(ValueError, match='labels, which cannot be averaged .* without --argmax'):
        evaluate(configured(cfg, tmp_path / 'c'), path, 'torch')
    replace(info, size=(32, 32)).write(path)
    with pytest.raises(ValueError, match=r'shape \(1, 3, 64, 128\) do not fit .* 3, 32, 32\)'):
        evaluate(configured(cfg, tmp_path / 'd'), path, 'torch')


@pytest.mark.parametrize('options', [dict(tta=True), dict(launcher='pytorch')])
def test_what_an_exported_model_cannot_do_is_refused(segmentor, tmp_path, options):
    with pytest.raises(ValueError, match='--runtime cannot be combined with --tta or --launcher'):
        evaluate(configured(segmentor[0], tmp_path), tmp_path / 'm.onnx', 'onnxruntime', **options)


@pytest.mark.slow
def test_images_that_the_pipeline_normalises(segmentor, tmp_path, pytorch_miou):
    cfg = configured(segmentor[0], tmp_path / 'n')
    given = cfg.model.data_preprocessor
    cfg.data_preprocessor = cfg.model.data_preprocessor = dict(type='SegDataPreProcessor')
    pipeline = cfg.test_dataloader.dataset.pipeline
    normalize = dict(type='Normalize', mean=given.mean, std=given.std, to_rgb=True)
    cfg.test_dataloader.dataset.pipeline = [*pipeline[:-1], normalize, pipeline[-1]]
    pixels = Options(SIZE, preprocessing=True)
    inside = export(cfg, segmentor[2], tmp_path / 'p.pt2', options=pixels).path
    path = export(cfg, segmentor[2], tmp_path / 'm.pt2', options=Options(SIZE)).path
    with pytest.raises(ValueError, match='the config normalises images in the test pipeline; exp'):
        evaluate(Config(cfg.to_dict()), inside, 'torch')
    assert abs(evaluate(cfg, path, 'torch')['mIoU'] - pytorch_miou()) < ALLOWED


def test_data_that_do_not_fit_the_exported_model_are_refused(segmentor, tmp_path):
    """As for a checkpoint: names of other classes, and another void."""
    cfg, _, checkpoint = segmentor
    path = export(
        configured(cfg, tmp_path), checkpoint, tmp_path / 'm.pt2', options=Options(SIZE)
    ).path
    other = configured(cfg, tmp_path)
    other.test_dataloader.dataset.metainfo = dict(classes=('road', 'sidewalk'))
    with pytest.raises(ValueError, match='num_classes=19, test_dataloader has 2 class names'):
        evaluate(other, path, 'torch')
    other = configured(cfg, tmp_path)
    other.test_evaluator.ignore_index = 20
    with pytest.raises(ValueError, match='has the ids 255; IoUMetric has the classes 0 to 18, and'):
        evaluate(other, path, 'torch')
