"""tools/export.py's work: files that every runtime runs as PyTorch does, or nothing at all."""

import hashlib
import sys

import cv2
import numpy as np
import onnx
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS

from mmseg_repvgg.checkpoint import CheckpointError
from mmseg_repvgg.commands import export as command
from mmseg_repvgg.deploy import export as export_module
from mmseg_repvgg.deploy import verify_export as verify_module
from mmseg_repvgg.deploy.export import Options, export, odd_size
from mmseg_repvgg.deploy.fuse import fuse_checkpoint
from mmseg_repvgg.deploy.image_pipeline import Preparation, Sample
from mmseg_repvgg.deploy.images import resize_image
from mmseg_repvgg.deploy.model_description import FORMATS, ModelDescription
from mmseg_repvgg.deploy.runtimes import load_runtime
from mmseg_repvgg.reparam import REWRITES, EquivalenceError
from tests.common import randomise_batchnorms
from tests.deploy.conftest import MEAN, STD
from tests.reparam.test_other_families import MOBILEONE, segmentor_of

SIZE = (49, 70)  # 7 x 9 on the map of stride 8: neither dilation divides it
RUNTIMES_OF = dict(
    onnx=('onnxruntime', 'openvino'), openvino=('openvino',), mnn=('mnn',), torch=('torch',)
)


def slow(value):
    return pytest.param(value, marks=pytest.mark.slow)


@pytest.fixture(scope='module')
def exported(segmentor, tmp_path_factory):
    """Exported once per format and set of options."""
    cfg, _, checkpoint = segmentor
    folder, made = tmp_path_factory.mktemp('exported'), {}

    def get(model_format, **options):
        key = (model_format, *sorted(options))
        if key not in made:
            out = folder / ('_'.join(key) + FORMATS[model_format])
            made[key] = export(cfg, checkpoint, out, options=Options(SIZE, **options))
        return made[key]

    return get


def pixels(scenes, count=1):
    """Scenes (count, H, W, 3) uint8 in BGR, of SIZE."""
    paths = sorted((scenes / 'leftImg8bit' / 'train').glob('*/*.png'))[:count]
    return np.stack([cv2.resize(cv2.imread(str(p)), SIZE[::-1]) for p in paths])


def normalise(images):
    """By the formula of the description, not by mmseg's code: (N, 3, H, W) in RGB."""
    rgb = images[..., ::-1].astype(np.float64)
    return ((rgb - MEAN) / STD).astype(np.float32).transpose(0, 3, 1, 2)


def logits(model, normalised):
    """Of mmseg's own whole-image inference."""
    with torch.no_grad():
        inputs = torch.from_numpy(normalised)
        metas = [dict(img_shape=SIZE, ori_shape=SIZE)] * len(inputs)
        return model.inference(inputs, metas).numpy()


def relative(actual, expected):
    return np.abs(actual - expected).max() / np.abs(expected).max()


@pytest.mark.slow
@pytest.mark.parametrize('model_format', ['onnx', 'mnn', 'openvino', 'torch'])
def test_logits_with_a_fixed_batch_are_pytorchs(segmentor, exported, scenes, model_format):
    check_logits(segmentor, exported(model_format), scenes)


@pytest.mark.parametrize('model_format', ['onnx', 'mnn', 'torch', slow('openvino')])
def test_logits_with_any_batch_are_pytorchs(segmentor, exported, scenes, model_format):
    check_logits(segmentor, exported(model_format, dynamic_batch=True), scenes)


def check_logits(segmentor, report, scenes):
    _, model, checkpoint = segmentor
    images = normalise(pixels(scenes, 3))
    expected = logits(model, images)
    assert len(np.unique(expected.argmax(1))) > 3  # a network that has something to say
    for runtime in RUNTIMES_OF[report.info.format]:
        loaded = load_runtime(report.path, runtime, threads=1)
        tolerance = 1e-3 if runtime == 'mnn' else 1e-5  # large Winograd tiles
        for count in (3, 1):  # any batch, whatever the file's
            output = loaded(images[:count])
            assert output.shape == (count, 19, *SIZE)
            assert relative(output, expected[:count]) < tolerance
        assert relative(loaded(-images[:1]), expected[:1]) > tolerance  # negative control
        assert loaded.info == report.info
    assert report.info.source_sha256 == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert report.info.classes[0] == 'road'  # of the test set's class
    assert report.info.rewrites == ('branches', 'batchnorm', 'dilation', 'pyramid')


@pytest.mark.parametrize('model_format', ['onnx', *(slow(f) for f in ('openvino', 'mnn', 'torch'))])
def test_preprocessing_and_argmax_inside(segmentor, exported, scenes, model_format):
    report = exported(model_format, preprocessing=True, argmax=True)
    images = pixels(scenes, 2)
    expected = logits(segmentor[1], normalise(images)).argmax(1)
    bgr = images.transpose(0, 3, 1, 2).astype(np.float32)
    for runtime in RUNTIMES_OF[model_format]:
        loaded = load_runtime(report.path, runtime)
        output = loaded(bgr)
        assert output.dtype.kind == 'i'
        assert output.shape == (2, *SIZE)
        assert (output == expected).mean() > 0.998
        assert (loaded(bgr[:, ::-1]) == expected).mean() < 0.998  # negative control: RGB


def test_the_report_says_what_was_compared(exported):
    report = exported('onnx')
    assert report.counts == {'branches': 10, 'batchnorm': 6, 'dilation': 4, 'pyramid': 1}
    compared = [(match.runtime, match.size) for match in report.matches]
    odd = odd_size(SIZE)
    assert odd == (33, 35)
    assert compared == [
        ('onnxruntime', SIZE),
        ('openvino', SIZE),
        ('onnxruntime', odd),
        ('openvino', odd),
    ]
    assert 'onnxruntime on the first test image, 49x70: logits differ by' in str(report)
    assert f'wrote {report.path} for images of 49x70, batch 1' in str(report)


def test_an_onnx_file_stands_alone_without_pooling(exported):
    report = exported('onnx')
    files = {path.name for path in report.path.parent.glob('onnx.*')}
    assert files == {'onnx.onnx', 'onnx.onnx.json'}
    model = onnx.load(str(report.path))
    onnx.checker.check_model(model, full_check=True)
    operators = {node.op_type for node in model.graph.node}
    assert not [name for name in operators if 'Pool' in name or 'Scatter' in name]
    assert [(o.version, o.domain) for o in model.opset_import] == [(18, '')]


@pytest.mark.parametrize(
    ('before', 'counts'),
    [(('branches', 'batchnorm'), {'dilation': 4, 'pyramid': 1}), (tuple(REWRITES), {})],
)
def test_a_fused_checkpoint_gives_the_same(segmentor, tmp_path, scenes, before, counts):
    cfg, model, checkpoint = segmentor
    fused = fuse_checkpoint(cfg, checkpoint, tmp_path / 'fused.pth', before, num_images=0)
    report = export(
        Config.fromfile(fused.config),
        fused.checkpoint,
        tmp_path / 'out' / 'fused.pt2',
        options=Options(SIZE),
    )
    assert report.counts == counts
    assert report.info.rewrites == ('branches', 'batchnorm', 'dilation', 'pyramid')
    images = normalise(pixels(scenes))
    assert relative(load_runtime(report.path)(images), logits(model, images)) < 1e-5


def test_blocks_of_other_families_are_fused_by_default(segmentor, tmp_path, monkeypatch):
    cfg = Config(dict(segmentor[0], model=segmentor_of(MOBILEONE)))
    cfg.model.update(data_preprocessor=segmentor[0].model.data_preprocessor)
    cfg.model.decode_head.num_classes = 19
    model = randomise_batchnorms(MODELS.build(cfg.model))
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'mobileone.pth')
    monkeypatch.setattr(export_module, 'verify', lambda *args, **options: [])
    report = export(cfg, tmp_path / 'mobileone.pth', tmp_path / 'm.pt2', options=Options(SIZE))
    assert report.counts['branches'] == 13
    assert report.info.rewrites == ('branches', 'batchnorm')
    images = np.random.default_rng(0).normal(size=(1, 3, *SIZE)).astype(np.float32)
    assert relative(load_runtime(report.path)(images), logits(model, images)) < 1e-5


def test_windows_give_the_default_size_and_stride(segmentor, tmp_path, monkeypatch):
    cfg, _, checkpoint = segmentor
    cfg = Config(cfg.to_dict())
    cfg.model.test_cfg = dict(mode='slide', crop_size=(33, 41), stride=(40, 20))
    monkeypatch.setattr(export_module, 'verify', lambda *args, **options: [])
    info = export(cfg, checkpoint, tmp_path / 'm.pt2').info
    assert (info.size, info.stride) == ((33, 41), (33, 20))  # no gaps between windows


@pytest.mark.parametrize('argmax', [False, True])
def test_a_wrong_graph_is_refused_and_the_old_file_stays(segmentor, tmp_path, monkeypatch, argmax):
    """Negative control: the exported network has one damaged kernel."""
    cfg, _, checkpoint = segmentor
    (tmp_path / 'm.onnx').write_text('old')
    (tmp_path / 'm.onnx.json').write_text('old description')
    right = export_module.deployed_copy

    def wrong(*args):
        model, counts = right(*args)
        model.backbone.stage_2[1].branch_reparam.weight.data.mul_(-1)
        return model, counts

    monkeypatch.setattr(export_module, 'deployed_copy', wrong)
    with pytest.raises(EquivalenceError, match='not equal to PyTorch: onnxruntime on the first t'):
        export(cfg, checkpoint, tmp_path / 'm.onnx', options=Options(SIZE, argmax=argmax))
    assert {path.name for path in tmp_path.iterdir()} == {'m.onnx', 'm.onnx.json'}
    assert (tmp_path / 'm.onnx').read_text() == 'old'
    assert (tmp_path / 'm.onnx.json').read_text() == 'old description'


def test_damage_to_any_format_is_caught(segmentor, exported):
    """Negative control: the file of another network under the same description."""
    cfg, model, _ = segmentor
    image = np.zeros((*SIZE, 3), np.uint8) + 90
    other = randomise_batchnorms(MODELS.build(cfg.model), seed=1)
    for model_format in ('onnx', 'mnn', 'torch'):
        runtimes = RUNTIMES_OF[model_format]
        path = exported(model_format, dynamic_batch=True).path
        matches = verify_module.verify(path, model, image, 'grey')
        assert [match.runtime for match in matches] == list(runtimes)
        with pytest.raises(EquivalenceError, match=f'not equal to PyTorch: {runtimes[0]} on grey'):
            verify_module.verify(path, other, image, 'grey')


def test_a_stricter_tolerance_is_obeyed(segmentor, tmp_path):
    cfg, _, checkpoint = segmentor
    options = Options(SIZE, tolerance=1e-12)
    with pytest.raises(EquivalenceError, match='may differ by at most 1e-12 of'):
        export(cfg, checkpoint, tmp_path / 'm.pt2', options=options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('changes', [dict(test_dataloader=None), dict(data_root='nowhere')])
def test_without_data_a_demo_scene_is_used(segmentor, changes):
    cfg = Config(segmentor[0].to_dict())
    cfg.test_dataloader.dataset.data_root = changes.pop('data_root', None)
    cfg.update(changes)
    sample = Sample.of(cfg, Preparation(), 3)
    assert (sample.image.dtype, sample.name, sample.tested_size) == (np.uint8, 'a demo scene', None)
    assert resize_image(sample.image, (40, 60)).shape == (40, 60, 3)
    assert sample.image.std() > 10


@pytest.mark.parametrize(
    ('out', 'options', 'text'),
    [
        ('m.bin', Options(SIZE), 'must end in .onnx for onnx, .xml for openvino'),
        ('m.onnx', Options(), 'give --size HEIGHT WIDTH'),
        ('m.onnx', Options((64.5, 64)), r'size=\(64.5, 64\) must be \(height, width\) in pixels'),
        ('m.onnx', Options(('64', '64')), 'must be .height, width. in pixels, both at least 1'),
        ('m.onnx', Options((64,)), r'size=\(64,\) must be \(height, width\) in pixels'),
        ('.', Options(SIZE), 'does not have the suffix of any format'),
        ('m.onnx', Options((8, 64)), r'size=\(8, 64\) must be height and width of at least 32'),
        ('m.onnx', Options(SIZE, rewrites=('pyramids',)), 'name at least one of branches'),
        (
            'm.onnx',
            Options(SIZE, rewrites=('branches',)),
            r"adaptive pooling to \(2, 2\), \(3, 3\), \(6, 6\), .* rewrite 'pyramid' removes",
        ),
    ],
)
def test_a_wrong_argument_is_named(segmentor, tmp_path, out, options, text):
    cfg, _, checkpoint = segmentor
    with pytest.raises(ValueError, match=text):
        export(cfg, checkpoint, tmp_path / out, options=options)
    assert not list(tmp_path.iterdir())


def test_mistakes_are_found_before_the_checkpoint_is_read(segmentor, tmp_path):
    cfg, nowhere = segmentor[0], tmp_path / 'nowhere.pth'
    with pytest.raises(ValueError, match='give --size HEIGHT WIDTH'):
        export(cfg, nowhere, tmp_path / 'm.onnx')
    (tmp_path / 'folder.onnx').mkdir()
    with pytest.raises(ValueError, match=r"folder\.onnx' is a folder; give the file to write"):
        export(cfg, nowhere, tmp_path / 'folder.onnx', options=Options(SIZE))
    with pytest.raises(ValueError, match='the model of the config has no backbone: give the conf'):
        export(Config(dict()), segmentor[2], tmp_path / 'm.onnx', options=Options(SIZE))


def test_a_network_that_cannot_be_exported_is_named(segmentor, tmp_path, monkeypatch):
    cfg, _, checkpoint = segmentor
    with pytest.raises(ValueError, match='have the suffix of mnn; it must end in .* .mnn for'):
        export(cfg, checkpoint, tmp_path / 'm.onnx', 'mnn', Options(SIZE))
    other = Config(cfg.to_dict())
    other.model.backbone.arch = 'A0'
    with pytest.raises(CheckpointError, match='does not fit the model'):
        export(other, checkpoint, tmp_path / 'm.onnx', options=Options(SIZE))
    plain = Config(cfg.to_dict())
    plain.model.data_preprocessor = dict(type='mmengine.BaseDataPreprocessor')
    with pytest.raises(ValueError, match='data_preprocessor BaseDataPreprocessor is unknown'):
        export(plain, checkpoint, tmp_path / 'm.onnx', options=Options(SIZE))
    monkeypatch.setattr('mmseg_repvgg.deploy.write_formats.find_spec', lambda name: None)
    with pytest.raises(RuntimeError, match=r"needs onnx and onnxscript: pip install 'mmseg-rep"):
        export(cfg, checkpoint, tmp_path / 'm.onnx', options=Options(SIZE))
    assert not list(tmp_path.iterdir())


def test_the_description_survives_a_round_trip(exported):
    report = exported('onnx')
    assert ModelDescription.read(report.path) == report.info
    assert report.info.mean == pytest.approx(MEAN)
    assert report.info.std == pytest.approx(STD)
    assert report.info.to_rgb


@pytest.mark.parametrize('option', ['--format', '--runtime'])
def test_the_format_by_its_option_and_by_the_old_name(monkeypatch, option):
    formats = []
    monkeypatch.setattr(command, 'export', lambda *args: formats.append(args[3]))
    monkeypatch.setattr(command.launch, 'load_config', lambda *_: None)
    monkeypatch.setattr(sys, 'argv', ['export', 'c.py', 'a.pth', 'm.mnn', option, 'mnn'])
    command.main()
    assert formats == ['mnn']
