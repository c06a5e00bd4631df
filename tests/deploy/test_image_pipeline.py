"""What a model was tested with is what is exported, or the transform is named."""

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, TRANSFORMS, init_default_scope

from mmseg_repvgg.deploy.evaluate import test_exported as evaluate  # pytest would collect it
from mmseg_repvgg.deploy.export import Options, export
from mmseg_repvgg.deploy.image_pipeline import Preparation, read_test_pipeline
from mmseg_repvgg.deploy.segmenter import Segmenter
from mmseg_repvgg.engine import launch
from tests.common import randomise_batchnorms
from tests.deploy.conftest import MEAN, STD

SIZE = (64, 128)  # of the scenes
LOAD, PACK = dict(type='LoadImageFromFile'), dict(type='PackSegInputs')
NORMALIZE = dict(type='Normalize', mean=MEAN, std=STD, to_rgb=True)


def configured(cfg, *pipeline, **changes):
    """A copy with another test pipeline and dotted settings."""
    cfg = Config(cfg.to_dict())
    cfg.test_dataloader.dataset.pipeline = list(pipeline)
    cfg.merge_from_dict(changes)
    return cfg


def test_the_pipeline_of_mmsegs_configs_is_read(segmentor):
    resize = dict(type='mmseg.Resize', scale=(2048, 512), keep_ratio=True)
    flip, labels = dict(type='RandomFlip', prob=0.0), dict(type='LoadAnnotations')
    cfg = configured(segmentor[0], LOAD, resize, flip, labels, PACK)
    assert read_test_pipeline(cfg) == Preparation(resize=(2048, 512), keep_ratio=True)
    wrapped = Config(cfg.to_dict())
    inner = wrapped.test_dataloader.dataset.to_dict()
    wrapped.test_dataloader.dataset = dict(type='ConcatDataset', datasets=[inner])
    assert read_test_pipeline(wrapped).resize == (2048, 512)
    assert read_test_pipeline(Config(dict(model=dict()))) == Preparation()


@pytest.mark.parametrize(
    ('transforms', 'name'),
    [
        ([LOAD, dict(type='CLAHE')], 'transform CLAHE'),
        ([LOAD, dict(type='PhotoMetricDistortion')], 'transform PhotoMetricDistortion'),
        ([LOAD, dict(type='RandomFlip', prob=0.5)], r'RandomFlip\(prob=0.5\)'),
        ([dict(LOAD, imdecode_backend='pillow')], "LoadImageFromFile.imdecode_backend='pillow'"),
        ([LOAD, dict(type='Resize', scale_factor=0.5)], r'Resize\(scale_factor=0.5\)'),
        (
            [LOAD, dict(type='Resize', scale=(8, 8), interpolation='nearest')],
            'Resize.interpolation=',
        ),
        ([LOAD, dict(type='InvertedImage')], 'transform InvertedImage'),
    ],
)
def test_what_cannot_be_repeated_is_named(segmentor, tmp_path, transforms, name):
    @TRANSFORMS.register_module(force=True)
    class InvertedImage:
        """The user's own."""

    cfg = configured(segmentor[0], *transforms, PACK)
    with pytest.raises(ValueError, match=rf'the {name}.* changes what .* --leave-out') as error:
        export(cfg, segmentor[2], tmp_path / 'm.pt2', options=Options(SIZE))
    left_out = str(error.value).split()[-1]
    assert read_test_pipeline(cfg, [left_out]).left_out == (left_out,)


def by_mmseg(cfg, model, path):
    """The label map of mmseg's own test pipeline and test step."""
    dataset = launch.Runner.build_dataloader(cfg.test_dataloader).dataset
    data = dataset.pipeline(dict(img_path=str(path), seg_fields=[], reduce_zero_label=False))
    data = dict(inputs=[data['inputs']], data_samples=[data['data_samples']])
    return model.test_step(data)[0].pred_sem_seg.data[0].numpy()


def labels_by_both(cfg, segmentor, report, folder):
    """The path of an image, and its label maps by the exported model and by mmseg."""
    model = MODELS.build(cfg.model)
    model.load_state_dict(segmentor[1].state_dict())
    model.eval()
    image = folder / 'image.png'
    cv2.imwrite(str(image), patches())
    return image, Segmenter(report.path)(image), by_mmseg(cfg, model, image)


def rotated(path, image):
    """Write a JPEG whose camera was on its side."""
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(image[..., ::-1]).save(path, exif=exif.tobytes(), quality=98)


def patches(channels=3, dtype=np.uint8):
    image = np.random.default_rng(0).integers(0, 256, (4, 8, channels)).repeat(16, 0).repeat(16, 1)
    return image.astype(dtype)


WAYS = {
    'plain': ([LOAD], {}, 'png'),
    'Normalize': ([LOAD, NORMALIZE], {}, 'png'),
    'one mean': ([LOAD], dict(mean=[127.5], std=[60.0]), 'png'),
    'orientation': ([dict(LOAD, color_type='color_ignore_orientation')], {}, 'jpg'),
    '16 bits': (
        [dict(LOAD, color_type='unchanged', to_float32=True)],
        dict(mean=[31000.0] * 3, std=[15000.0] * 3),
        '16',
    ),
    'grey': ([dict(LOAD, color_type='grayscale')], dict(mean=[100.0], std=[50.0]), 'png'),
    'alpha': (
        [dict(LOAD, color_type='unchanged')],
        dict(mean=[100.0], std=[50.0], bgr_to_rgb=False),
        'alpha',
    ),
}


QUICK = ('Normalize', '16 bits')


@pytest.mark.parametrize(
    'way', [pytest.param(w, marks=[pytest.mark.slow] * (w not in QUICK)) for w in WAYS]
)
def test_segmenter_and_mmseg_give_the_same_labels(segmentor, tmp_path, way):
    loading, preprocessor, kind = WAYS[way]
    changes = {f'model.data_preprocessor.{k}': v for k, v in preprocessor.items()}
    channels = {'grey': 1, 'alpha': 4}.get(way, 3)
    cfg = configured(segmentor[0], *loading, PACK, **changes)
    cfg.model.backbone.in_channels = channels
    if way == 'Normalize':
        cfg.model.data_preprocessor = dict(type='SegDataPreProcessor')
    init_default_scope('mmseg')
    model, checkpoint = segmentor[1], segmentor[2]
    if channels != 3:
        torch.manual_seed(0)
        model = randomise_batchnorms(MODELS.build(cfg.model))
        model.decode_head.conv_seg.weight.data.normal_()
        checkpoint = tmp_path / 'other.pth'
        torch.save(dict(state_dict=model.state_dict()), checkpoint)
    else:
        state = model.state_dict()
        model = MODELS.build(cfg.model)
        model.load_state_dict(state)
        model.eval()
    image = tmp_path / ('image.jpg' if kind == 'jpg' else 'image.png')
    if kind == 'jpg':
        rotated(image, patches())
    else:
        written = patches(4 if kind == 'alpha' else 3)
        cv2.imwrite(str(image), written.astype(np.uint16) * 257 if kind == '16' else written)

    exported = export(cfg, checkpoint, tmp_path / 'm.onnx', options=Options(SIZE))
    labels, expected = Segmenter(exported.path)(image), by_mmseg(cfg, model, image)
    assert labels.shape == expected.shape == SIZE
    assert len(np.unique(expected)) > 2
    assert (labels == expected).mean() > 0.999
    wrong = cv2.imread(str(image), cv2.IMREAD_UNCHANGED)[::-1]
    assert (Segmenter(exported.path)(np.ascontiguousarray(wrong)) == expected).mean() < 0.99


def test_normalised_twice_is_refused(segmentor, tmp_path):
    cfg = configured(segmentor[0], LOAD, NORMALIZE, PACK)
    with pytest.raises(ValueError, match='normalised twice: by Normalize of the test pipel'):
        export(cfg, segmentor[2], tmp_path / 'm.pt2', options=Options(SIZE))
    cfg = configured(segmentor[0], LOAD, dict(NORMALIZE, mean=[1.0, 2.0], std=[1.0, 2.0]), PACK)
    cfg.model.data_preprocessor = dict(type='SegDataPreProcessor')
    with pytest.raises(ValueError, match='by 2 means and 2 standard .* the backbone takes 3 chan'):
        export(cfg, segmentor[2], tmp_path / 'm.pt2', options=Options(SIZE))


def test_test_time_augmentation_is_left_out_and_said(segmentor, tmp_path):
    views = [
        [dict(type='Resize', scale_factor=f, keep_ratio=True) for f in (0.5, 1.0)],
        [dict(type='RandomFlip', prob=p, direction='horizontal') for p in (0.0, 1.0)],
        [dict(type='LoadAnnotations')],
        [PACK],
    ]
    cfg = configured(segmentor[0], LOAD, dict(type='TestTimeAug', transforms=views))
    report = export(cfg, segmentor[2], tmp_path / 'm.pt2', options=Options(SIZE))
    assert 'note: the test-time augmentation of the pipeline is left out' in str(report)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('crop', 'size'),
    [
        ((100, 100), (64, 100)),
        ((48, 200), (48, 128)),
    ],
)
def test_windows_shrink_to_the_test_images_as_mmsegs_do(segmentor, tmp_path, crop, size):
    cfg = configured(segmentor[0], LOAD, PACK)
    cfg.model.test_cfg = dict(mode='slide', crop_size=crop, stride=(40, 60))
    report = export(cfg, segmentor[2], tmp_path / 'm.onnx')
    assert report.info.size == size
    assert f'note: windows are {size[0]}x{size[1]}, not {crop}' in str(report)
    image, labels, expected = labels_by_both(cfg, segmentor, report, tmp_path)
    assert (labels == expected).mean() > 0.999
    large = Options(crop if crop[0] < 100 else (100, 128))  # negative control: padded instead
    padded = export(cfg, segmentor[2], tmp_path / 'large.onnx', options=large).path
    assert (Segmenter(padded, pad_small_images=True)(image) == expected).mean() < 0.99
    cfg.work_dir, cfg.visualizer.name = str(tmp_path / 'w'), str(tmp_path)
    with pytest.raises(ValueError, match='the image of 64x128 pixels is smaller than the windows'):
        evaluate(cfg, padded, 'onnxruntime')


def test_the_window_follows_the_resize_of_the_pipeline(segmentor, tmp_path):
    resize = dict(type='Resize', scale=(96, 48), keep_ratio=True)
    cfg = configured(segmentor[0], LOAD, resize, PACK)
    cfg.model.test_cfg = dict(mode='slide', crop_size=(48, 64), stride=(32, 32))
    report = export(cfg, segmentor[2], tmp_path / 'm.onnx')
    assert (report.info.size, report.info.resize) == ((48, 64), (96, 48))
    _, labels, expected = labels_by_both(cfg, segmentor, report, tmp_path)
    assert labels.shape == expected.shape == SIZE
    assert (labels == expected).mean() > 0.999


def test_labels_of_the_test_set_are_not_needed(segmentor, scenes, tmp_path):
    folder = tmp_path / 'leftImg8bit' / 'val' / 'a'
    folder.mkdir(parents=True)
    source = next((scenes / 'leftImg8bit' / 'val').rglob('*.png'))
    (folder / 'a_leftImg8bit.png').write_bytes(b'damaged')
    cfg = configured(segmentor[0], LOAD, dict(type='LoadAnnotations'), PACK)
    cfg.test_dataloader.dataset.data_root = str(tmp_path)
    report = export(cfg, segmentor[2], tmp_path / 'm.pt2', options=Options(SIZE))
    assert report.matches[0].image == 'a demo scene'
    (folder / 'b_leftImg8bit.png').write_bytes(source.read_bytes())
    report = export(cfg, segmentor[2], tmp_path / 'm.pt2', options=Options(SIZE))
    assert report.matches[0].image == 'test image 1'
