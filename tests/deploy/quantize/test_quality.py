"""mIoU and the share of pixels that keep their class."""

import numpy as np
import pytest

from mmseg_repvgg.deploy.quantize.quality import Quality, mean_iou

TRUE = np.array([[0, 0, 1, 1, 255]])


def test_mean_iou_by_hand():
    # class 0: 1 of 2 pixels, none other: 1 / 2. Class 1: both, and one more: 2 / 3. Class 2, which
    # no label has, does not count, nor does the pixel without a label
    assert mean_iou([np.array([[0, 1, 1, 1, 2]])], [TRUE], 3) == pytest.approx(100 * 7 / 12)
    # class 0: 1 of 2; class 1: 1 of 2; what became class 2 is lost, but adds no class
    assert mean_iou([np.array([[0, 2, 2, 1, 0]])], [TRUE], 3) == pytest.approx(50)
    # over images pixels are added: class 0 1 of 4 and one wrong of 5; class 1 3 of 4 + ...
    found = [np.array([[0, 1, 1, 1, 2]]), np.array([[1, 1, 1, 0, 2]])]
    assert mean_iou(found, [TRUE, TRUE], 3) == pytest.approx(100 * (1 / 5 + 3 / 7) / 2)


def test_without_labels_there_is_no_mean():
    assert np.isnan(mean_iou([TRUE], [np.full_like(TRUE, 255)], 3))


def test_limits():
    found = Quality('onnxruntime', 'test', (0.98, 0.96), 'b.png', miou=(60.0, 59.4))
    assert found.agreement == pytest.approx(0.97)
    assert found.fits(0.969, 0.61) and not found.fits(0.971, 1) and not found.fits(0.9, 0.59)
    assert (
        'onnxruntime on 2 images of test: 97.00 % of the pixels keep their class (96.00 % on the '
        'worst, b.png), mIoU 59.40 % (float32: 60.00 %)'
    ) in str(found)
