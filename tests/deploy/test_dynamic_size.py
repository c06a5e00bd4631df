"""Files for images of all sizes: equal to PyTorch at each, or not written.

Exports with open sizes take long; the quick tests of their parts are in tests/reparam.
"""

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS

from mmseg_repvgg.deploy import dynamic_size
from mmseg_repvgg.deploy.dynamic_size import odd_sizes
from mmseg_repvgg.deploy.evaluate import test_exported as evaluate  # pytest would collect it
from mmseg_repvgg.deploy.export import Options, export
from mmseg_repvgg.deploy.fuse import fuse_checkpoint
from mmseg_repvgg.deploy.model_description import FORMATS, ModelDescription
from mmseg_repvgg.deploy.runtimes import load_runtime
from mmseg_repvgg.deploy.segmenter import Segmenter
from mmseg_repvgg.deploy.tiling import fit_windows
from mmseg_repvgg.deploy.verify_export import verify
from mmseg_repvgg.engine import launch
from mmseg_repvgg.reparam import EquivalenceError, pyramid
from tests.common import randomise_batchnorms
from tests.deploy.networks import FOUR, FakeNetwork, by_position, draw
from tests.deploy.test_evaluate import ALLOWED, configured
from tests.deploy.test_export import RUNTIMES_OF, relative
from tests.deploy.test_segmenter_exported import by_pytorch

SIZES = [(64, 64), (65, 131), (150, 71)]  # even, odd, portrait; none is traced or checked
DYNAMIC = Options(dynamic_size=True)


@pytest.fixture(scope='module')
def exported(segmentor, tmp_path_factory):
    """A report by format, each written once."""
    folder, made = tmp_path_factory.mktemp('dynamic'), {}

    def get(model_format):
        if model_format not in made:
            out = folder / f'm{FORMATS[model_format]}'
            made[model_format] = export(segmentor[0], segmentor[2], out, options=DYNAMIC)
        return made[model_format]

    return get


def patches(height, width, seed=0):
    """An image of coloured patches: (height, width, 3) uint8."""
    shape = -(-height // 16), -(-width // 16), 3
    colours = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    return colours.repeat(16, 0).repeat(16, 1)[:height, :width]


@pytest.mark.slow
@pytest.mark.parametrize('model_format', list(FORMATS))
def test_logits_of_every_size_are_pytorchs(segmentor, exported, model_format):
    path, model = exported(model_format).path, segmentor[1]
    for runtime in RUNTIMES_OF[model_format]:
        loaded = load_runtime(path, runtime, threads=1)
        tolerance = 1e-3 if runtime == 'mnn' else 1e-5  # large Winograd tiles
        for count, size in enumerate(SIZES, start=1):
            images = np.random.default_rng(0).normal(size=(count, 3, *size)).astype(np.float32)
            metas = [dict(img_shape=size, ori_shape=size)] * count
            with torch.no_grad():
                expected = model.inference(torch.from_numpy(images), metas).numpy()
            assert relative(loaded(images), expected) < tolerance
            assert relative(loaded(-images), expected) > tolerance  # negative control


@pytest.mark.slow
def test_the_report_names_the_sizes(exported):
    report = exported('onnx')
    sizes = [(64, 128), *odd_sizes((64, 128))]  # the test images', then five odd ones
    assert [m.size for m in report.matches] == [size for size in sizes for _ in range(2)]
    assert all(height % 2 and width % 2 for height, width in sizes[1:])
    assert len({(h % 8, w % 8) for h, w in sizes[1:]}) > 2
    info = ModelDescription.read(report.path)
    assert info == report.info
    assert (info.dynamic_size, info.dynamic_batch, info.stride) == (True, True, None)
    assert info.rewrites == ('branches', 'batchnorm', 'pyramid')
    assert 'for images of any size from 64x64, any batch' in str(report)
    assert not report.notes


@pytest.mark.slow
def test_whole_images_are_not_resized(segmentor, exported):
    segmenter, model = Segmenter(exported('onnx').path), segmentor[1]
    for size in SIZES:
        image = patches(*size)
        labels, expected = segmenter(image), by_pytorch(model, image)
        assert labels.shape == size
        assert len(np.unique(expected)) > 2
        assert (labels == expected).mean() > 0.9995
        assert (segmenter(image[..., ::-1]) == expected).mean() < 0.995  # negative control


@pytest.mark.slow
def test_images_that_are_too_small(exported):
    path = exported('onnx').path
    with pytest.raises(ValueError, match='40x80 pixels is smaller than 64x64, .* all sizes takes'):
        Segmenter(path)(patches(40, 80))
    assert Segmenter(path, pad_small_images=True)(patches(40, 80)).shape == (40, 80)
    with pytest.raises(ValueError, match=r'takes \(N, 3, H, W\), H and W at least 64, N at least'):
        load_runtime(path)(np.zeros((1, 3, 64, 63), np.float32))


@pytest.mark.slow
@pytest.mark.parametrize('mode', ['whole', 'slide'])
def test_images_of_several_sizes_give_pytorchs_miou(segmentor, tmp_path, mode, monkeypatch):
    """By windows that are larger than some images, which mmseg shrinks."""
    cfg, _, checkpoint = segmentor
    test_cfg = dict(mode='slide', crop_size=(96, 100), stride=(64, 70)) if mode == 'slide' else {}
    cfg = configured(cfg, tmp_path / 'a', **test_cfg)
    pipeline = cfg.test_dataloader.dataset.pipeline
    sizes = dict(type='RandomChoiceResize', scales=[(130, 65), (200, 140)], keep_ratio=False)
    cfg.test_dataloader.dataset.pipeline = [pipeline[0], sizes, *pipeline[1:]]
    options = Options(dynamic_size=True, leave_out=('RandomChoiceResize',))
    path = export(cfg, checkpoint, tmp_path / 'm.pt2', options=options).path
    used = set()
    monkeypatch.setattr('mmcv.transforms.RandomChoiceResize.transform', resizing(used))
    expected = launch.test(cfg, str(checkpoint))['mIoU']
    cfg.work_dir = str(tmp_path / 'b')
    assert abs(evaluate(cfg, path, 'torch')['mIoU'] - expected) < ALLOWED
    assert used == {0, 1}
    if mode == 'slide':
        assert ModelDescription.read(path).size == (96, 100)


def resizing(used):
    """A size for each image by its name, instead of a random one."""

    def transform(self, results):
        index = sum(results['img_path'].encode()) % 2
        used.add(index)
        self.resize.scale = self.scales[index]
        return self.resize(results)

    return transform


def test_windows_shrink_to_the_image():
    windows = dict(size=(96, 100), stride=(64, 70), dynamic_size=True)
    network = FakeNetwork(by_position, **FOUR, **windows)
    assert fit_windows((200, 200), network.info) == ((96, 100), (64, 70))
    assert fit_windows((80, 300), network.info) == ((80, 100), (64, 70))
    assert fit_windows((64, 65), network.info) == ((64, 65), (64, 65))  # no gaps between windows
    labels = Segmenter(network)(draw(80, 120))
    assert [images.shape for images in network.inputs] == [(2, 3, 80, 100)]
    assert labels.shape == (80, 120)


@pytest.mark.slow
def test_a_fused_checkpoint_gives_the_same(segmentor, tmp_path):
    """Its dilated convs on sub-maps become dilated convs again."""
    cfg, model, checkpoint = segmentor
    rewrites = ('branches', 'batchnorm', 'dilation', 'pyramid', 'winograd')
    fused = fuse_checkpoint(cfg, checkpoint, tmp_path / 'fused.pth', rewrites, num_images=0)
    out = tmp_path / 'm.pt2'
    report = export(Config.fromfile(fused.config), fused.checkpoint, out, options=DYNAMIC)
    assert report.info.rewrites == ('branches', 'batchnorm', 'pyramid')
    images = torch.randn(1, 3, 97, 70)
    with torch.no_grad():
        expected = model.inference(images, [dict(img_shape=(97, 70), ori_shape=(97, 70))]).numpy()
    assert relative(load_runtime(out)(images.numpy()), expected) < 1e-5


@pytest.mark.slow
def test_another_network_is_refused(segmentor, exported):
    """Negative control: the check runs at every size."""
    path, image = exported('onnx').path, patches(64, 128)
    other = randomise_batchnorms(MODELS.build(segmentor[0].model), seed=1)
    assert len(verify(path, segmentor[1], image, 'patches')) == 12
    with pytest.raises(EquivalenceError, match='not equal to PyTorch: onnxruntime on patches, 64x'):
        verify(path, other, image, 'patches')


@pytest.mark.slow
def test_a_graph_that_is_right_for_one_size_is_refused(segmentor, tmp_path, monkeypatch):
    """Negative control: windows of the pooling that are wrong where they do not divide the map."""
    right = pyramid.pooling_matrix

    def wrong(length, scale, options=pyramid.EXACT):
        if not isinstance(length, torch.SymInt):
            return right(length, scale, options)
        pixel, window = torch.arange(length), torch.arange(scale)[:, None]
        inside = (pixel * scale >= window * length) & (pixel * scale < (window + 1) * length)
        return inside.float() / inside.float().sum(1, keepdim=True)

    monkeypatch.setattr(pyramid, 'pooling_matrix', wrong)
    with pytest.raises(EquivalenceError, match='not equal to PyTorch: torch on the first test im'):
        export(segmentor[0], segmentor[2], tmp_path / 'm.pt2', options=DYNAMIC)
    assert not list(tmp_path.iterdir())


def test_what_depends_on_the_size_is_refused(segmentor, tmp_path, monkeypatch):
    cfg, _, checkpoint = segmentor
    with pytest.raises(ValueError, match="'dilation' pads maps by their size, .* choose from bran"):
        options = Options(dynamic_size=True, rewrites=('branches', 'dilation'))
        export(cfg, checkpoint, tmp_path / 'm.pt2', options=options)
    with pytest.raises(
        ValueError, match=r'size=\(64, 50\) must be height and width of at least 64'
    ):
        options = Options((64, 50), dynamic_size=True)
        export(cfg, checkpoint, tmp_path / 'm.pt2', options=options)
    with pytest.raises(ValueError, match='the network cannot be exported for all sizes, .* witho'):
        dynamic_size.trace_any_size(OfOneSize(), 3)
    assert not list(tmp_path.iterdir())


class OfOneSize(torch.nn.Module):
    """Has a position for each pixel, as vision transformers do."""

    def __init__(self):
        super().__init__()
        self.places = torch.nn.Parameter(torch.zeros(1, 3, *dynamic_size.TRACED))

    def forward(self, x):
        return x + self.places


@pytest.mark.slow
def test_mmsegs_functions_are_restored(exported):
    exported('onnx')
    assert dynamic_size.resize.__defaults__[-1] is True
    assert dynamic_size.Upsample.forward is not dynamic_size._upsample


FPN = dict(
    neck=dict(type='FPN', in_channels=[8, 16, 32, 64], out_channels=8, num_outs=4),
    decode_head=dict(
        type='FPNHead',
        in_channels=[8] * 4,
        in_index=[0, 1, 2, 3],
        feature_strides=[4, 8, 16, 32],
        channels=8,
        num_classes=19,
        norm_cfg=dict(type='BN'),
        align_corners=False,
    ),
)
UPERNET = dict(
    decode_head=dict(
        type='UPerHead',
        in_channels=[8, 16, 32, 64],
        in_index=[0, 1, 2, 3],
        channels=8,
        num_classes=19,
        norm_cfg=dict(type='BN'),
        align_corners=False,
    )
)

UAFM = dict(
    decode_head=dict(
        type='UAFMHead',
        in_channels=[16, 32, 64],
        in_index=[1, 2, 3],
        fusion_channels=[8, 8, 8],
        channels=8,
        num_classes=19,
        norm_cfg=dict(type='BN'),
    )
)


@pytest.mark.slow
@pytest.mark.parametrize('head', [FPN, UPERNET, UAFM], ids=['fpn', 'uper', 'uafm'])
@pytest.mark.parametrize('out', ['m.onnx', 'm.mnn'])
def test_heads_at_stride_32(segmentor, tmp_path, head, out):
    cfg = Config(segmentor[0].to_dict())
    cfg.model.pop('decode_head')
    cfg.model.update(head, auxiliary_head=None)
    cfg.model.backbone.update(strides=(2, 2, 2, 2), dilations=(1, 1, 1, 1))
    model = randomise_batchnorms(MODELS.build(cfg.model))
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'trained.pth')
    report = export(cfg, tmp_path / 'trained.pth', tmp_path / out, options=DYNAMIC)
    assert len({match.size for match in report.matches}) == 6
