"""HardPixelSampler: the mean over hard pixels, as mmseg's loss of PIDNet and DDRNet takes it."""

import pytest
import torch
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import PixelData

from mmseg_repvgg.models.hard_pixels import HardPixelSampler

CLASSES, SIZE = 5, (24, 32)


def head_and_batch(sampler, void=0.1):
    """A head of mmseg with a sampler, logits (2, C, H, W), and labels (2, H, W), some void."""
    init_default_scope('mmseg')
    torch.manual_seed(0)
    head = MODELS.build(
        dict(
            type='FCNHead',
            in_channels=4,
            channels=4,
            num_convs=0,
            concat_input=False,
            num_classes=CLASSES,
            sampler=sampler,
        )
    )
    labels = torch.randint(0, CLASSES, (2, *SIZE))
    labels[torch.rand(labels.shape) < void] = 255
    logits = (3 * torch.randn(2, CLASSES, *SIZE)).requires_grad_()
    return head, logits, labels


def loss_of(sampler, **options):
    from mmseg.structures import SegDataSample

    head, logits, labels = head_and_batch(sampler, **options)
    samples = [SegDataSample(gt_sem_seg=PixelData(data=label[None])) for label in labels]
    loss = head.loss_by_feat(logits, samples)['loss_ce']
    loss.backward()
    return loss.item(), logits.grad


@pytest.mark.parametrize('thresh, min_kept', [(0.7, 20), (0.9, 20), (0.01, 300)])
def test_the_loss_is_that_of_mmsegs_ohem_cross_entropy(thresh, min_kept):
    """``OhemCrossEntropy`` counts the pixels of the batch, samplers those of an image."""
    settings = dict(thresh=thresh, min_kept=min_kept)
    loss, gradient = loss_of(dict(type='HardPixelSampler', **settings))
    head, logits, labels = head_and_batch(dict(type='HardPixelSampler', **settings))
    assert isinstance(head.sampler, HardPixelSampler)
    theirs = MODELS.build(dict(type='OhemCrossEntropy', thres=thresh, min_kept=2 * min_kept))
    expected = theirs(logits, labels)
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    assert torch.allclose(gradient, logits.grad, rtol=1e-4, atol=1e-9)
    # negative control: mmseg's sampler divides by all pixels
    other, _ = loss_of(dict(type='OHEMPixelSampler', **settings))
    assert other < 0.95 * loss


def test_without_a_threshold_the_mean_of_the_largest_losses_is_taken():
    loss, _ = loss_of(dict(type='HardPixelSampler', min_kept=50))
    _, logits, labels = head_and_batch(None)
    losses = torch.nn.functional.cross_entropy(logits, labels, reduction='none', ignore_index=255)
    assert loss == pytest.approx(losses.flatten().topk(100).values.mean().item(), rel=1e-5)


def test_a_batch_without_labels_has_a_loss_of_zero():
    loss, gradient = loss_of(dict(type='HardPixelSampler', thresh=0.7, min_kept=50), void=1.1)
    assert loss == 0
    assert not gradient.any()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_the_mean_weight_is_1_in_half_precision(dtype):
    """There are more pixels than float16 can count."""
    head, _, _ = head_and_batch(dict(type='HardPixelSampler', thresh=0.7, min_kept=2**15))
    logits = torch.zeros(2, CLASSES, 256, 256, dtype=dtype)
    logits[:, 0, :, :32] = 9  # an eighth is easy
    weights = head.sampler.sample(logits, torch.zeros(2, 1, 256, 256, dtype=torch.long))
    assert weights.dtype == dtype
    assert (weights == 0).float().mean() == 1 / 8
    assert weights.float().mean().item() == pytest.approx(1, rel=4e-3)
