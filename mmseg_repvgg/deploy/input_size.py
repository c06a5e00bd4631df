"""The size of an exported network's input, and how it differs from what the config tests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mmengine.config import Config

from mmseg_repvgg.checks import check_size
from mmseg_repvgg.deploy.image_pipeline import Preparation, Sample
from mmseg_repvgg.deploy.load_segmentor import settings_of_preprocessor
from mmseg_repvgg.deploy.model_description import SMALLEST_OF_ANY, ModelDescription
from mmseg_repvgg.deploy.tiling import SMALLEST


def odd_size(size: tuple[int, int]) -> tuple[int, int]:
    """Half of a size, rounded to odd numbers, to check sizes that no stride divides."""
    height, width = size
    return max(height // 2, SMALLEST) | 1, max(width // 2, SMALLEST) | 1


def check_chosen_size(cfg: Config, size: Sequence[int] | None, dynamic: bool = False) -> None:
    """Check the chosen size before anything is loaded."""
    if size is not None:
        check_size('size', size)
    elif not (dynamic or slides(cfg)):
        raise ValueError(
            f'{cfg.filename} tests whole images and sets no size: give --size HEIGHT WIDTH, or '
            '--dynamic-size for images of all sizes'
        )


def slides(cfg: Config) -> bool:
    """Whether the config tests sliding windows."""
    test_cfg = (cfg.get('model') or {}).get('test_cfg') or {}
    return test_cfg.get('mode') == 'slide'


def size_and_stride(
    cfg: Config, size: Sequence[int] | None, sample: Sample, dynamic: bool = False
) -> tuple[tuple[int, int], tuple[int, int] | None]:
    """Size of the input, and stride of sliding windows of that size (None: whole images).

    Args:
        cfg: The config.
        size: Height and width; None: of the config's windows, shrunk to the test images as
            by mmseg.
        sample: A test image.
        dynamic: Whether the network takes all sizes: windows are shrunk to each image later on, and
            for whole images the size is one to be checked.
    """
    test_cfg, tested, smallest = cfg.model.get('test_cfg') or {}, sample.tested_size, SMALLEST
    if dynamic:
        smallest = SMALLEST_OF_ANY
        if size is None and not slides(cfg):
            rows, columns = tested or sample.image.shape[:2]
            size = max(rows, smallest), max(columns, smallest)
        tested = None
    if size is None:
        size = tuple(map(min, test_cfg['crop_size'], tested or test_cfg['crop_size']))
    if min(size) < smallest:
        raise ValueError(f'size={tuple(size)} must be height and width of at least {smallest}')
    height, width = map(int, size)
    if not slides(cfg):
        return (height, width), None
    # windows leave no gaps
    return (height, width), (min(height, test_cfg['stride'][0]), min(width, test_cfg['stride'][1]))


def differences(
    cfg: Config,
    chosen: Sequence[int] | None,
    preparation: Preparation,
    sample: Sample,
    info: ModelDescription,
) -> Iterator[str]:
    """Say how the file differs from what the config tests."""
    size, dynamic = info.size, info.dynamic_size
    test_cfg = cfg.model.get('test_cfg') or {}
    tested, windows = sample.tested_size, slides(cfg)
    if windows and chosen is None and size != tuple(test_cfg['crop_size']):
        yield (
            f'windows are {size[0]}x{size[1]}, not {test_cfg["crop_size"]}: the test images are '
            'smaller than the crop_size of the config, and mmseg shrinks windows to the image'
        )
    if not (windows or dynamic) and tested is not None and tested != size:
        yield (
            f'the config tests images at {tested[0]}x{tested[1]} or other sizes; the exported '
            f'model resizes all to {size[0]}x{size[1]}'
        )
    padding = (settings_of_preprocessor(cfg) or {}).get('test_cfg')
    if padding:
        yield f'the config pads test images ({dict(padding)}); the exported model does not'
    if preparation.augmented:
        yield 'the test-time augmentation of the pipeline is left out'
    if preparation.left_out:
        yield f'left to the caller: {", ".join(preparation.left_out)} of the test pipeline'
