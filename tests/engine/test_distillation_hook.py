"""DistillationHook: the loss by hand, a training with it, and what is refused."""

import copy
import math

import pytest
import torch
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner

from mmseg_repvgg.engine import launch
from mmseg_repvgg.engine.distillation_hook import DistillationHook, channel_wise_loss
from tests.common import randomise_batchnorms, runner_cfg


def test_the_loss_by_hand():
    """Two pixels: with the teacher's shares 3/4, 1/4 and the student's 1/2, 1/2."""
    teacher = torch.tensor([math.log(3.0), 0.0]).view(1, 1, 1, 2)
    student = torch.zeros(1, 1, 1, 2)
    divergence = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert channel_wise_loss(student, teacher, 1.0).item() == pytest.approx(divergence)
    # temperature 2 divides logits by 2, and multiplies the loss by 4
    hot = channel_wise_loss(2 * student, 2 * teacher, 2.0)
    assert hot.item() == pytest.approx(4 * divergence)
    both = channel_wise_loss(
        torch.cat([student, teacher], 1).repeat(3, 1, 1, 1),
        torch.cat([teacher, teacher], 1).repeat(3, 1, 1, 1),
        1.0,
    )
    assert both.item() == pytest.approx(divergence / 2)  # the mean of one channel and of 0


def test_a_constant_added_to_a_channel_changes_nothing_but_other_pixels_do():
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4, 5)
    shifted = logits + torch.randn(2, 3, 1, 1)
    assert channel_wise_loss(shifted, logits).item() == pytest.approx(0, abs=1e-5)
    assert channel_wise_loss(logits.flip(3), logits).item() > 0.1


def write_teacher(scenes, tmp_path, classes=19):
    """Write the config file and the checkpoint of a trained segmentor."""
    init_default_scope('mmseg')
    cfg = runner_cfg(scenes, str(tmp_path / 'teacher'))
    for head in (cfg.model.decode_head, cfg.model.auxiliary_head):
        head.num_classes = classes
    torch.manual_seed(1)
    model = randomise_batchnorms(MODELS.build(cfg.model))
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'teacher.pth')
    cfg.dump(tmp_path / 'teacher.py')
    return dict(config=str(tmp_path / 'teacher.py'), checkpoint=str(tmp_path / 'teacher.pth'))


@pytest.fixture
def teacher(scenes, tmp_path):
    return write_teacher(scenes, tmp_path)


def student_cfg(scenes, folder, teacher, *more, **changes):
    hooks = [dict(type='DistillationHook', **teacher), *more]
    return runner_cfg(scenes, folder, custom_hooks=hooks, **changes)


def test_a_training_learns_from_the_teacher_and_leaves_no_trace_of_it(scenes, tmp_path, teacher):
    more = dict(type='RepVGGDeployHook'), dict(type='EMAHook')
    runner = launch.train(
        student_cfg(scenes, str(tmp_path / 'work'), teacher, *more), str(tmp_path / 'work')
    )
    (hook,) = (h for h in runner.hooks if isinstance(h, DistillationHook))
    assert hook.teacher is None
    assert 'loss' not in vars(runner.model)
    assert not runner.model.decode_head.conv_seg._forward_hooks
    logged = runner.message_hub.log_scalars['train/loss_distillation']
    assert logged.statistics('max') > 0
    plain = MODELS.build(runner_cfg(scenes, 'x').model)
    saved = torch.load(tmp_path / 'work/iter_4.pth', weights_only=False)['state_dict']
    assert saved.keys() == plain.state_dict().keys()


def test_the_loss_is_that_of_the_teacher_in_training_form(scenes, tmp_path, teacher):
    """Fused in the hook, it gives what the unfused one gives, and the student gets gradients."""
    runner = Runner.from_cfg(
        student_cfg(scenes, str(tmp_path / 'work'), dict(teacher, loss_weight=2.0))
    )
    (hook,) = (h for h in runner.hooks if isinstance(h, DistillationHook))
    student = runner.model
    hook.before_train(runner)
    data = student.data_preprocessor(next(iter(runner.train_dataloader)), training=True)
    unfused = MODELS.build(runner_cfg(scenes, 'x').model).eval()
    unfused.load_state_dict(torch.load(teacher['checkpoint'])['state_dict'])
    student.decode_head.dropout_ratio = 0
    student.decode_head.dropout.p = 0
    for norm in student.modules():
        if hasattr(norm, 'momentum'):
            norm.momentum = 0
    student.train()
    before = copy.deepcopy(student)
    loss = student(**data, mode='loss')['loss_distillation']
    with torch.no_grad():
        expected = channel_wise_loss(
            before(data['inputs'], mode='tensor'), unfused(data['inputs'], mode='tensor')
        )
    assert loss.item() == pytest.approx(2 * expected.item(), rel=1e-4)
    hook.before_train(runner)  # as after a training that broke off: not twice
    again = student(**data, mode='loss')['loss_distillation']
    assert again.item() == pytest.approx(loss.item(), rel=1e-4)
    loss.backward()
    assert student.backbone.stem.branch_3x3.conv.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in hook.teacher.parameters())


def test_other_classes_and_other_normalisation_are_refused(scenes, tmp_path, teacher):
    cfg = student_cfg(scenes, str(tmp_path / 'work'), teacher)
    cfg.model.data_preprocessor.mean = [1.0, 2.0, 3.0]
    cfg.model.data_preprocessor.std = [1.0, 1.0, 1.0]
    with pytest.raises(
        ValueError, match=r'the student has mean \[1.0, 2.0, 3.0\], but the teacher'
    ):
        launch.train(cfg, str(tmp_path / 'work'))
    other = write_teacher(scenes, tmp_path, classes=7)
    with pytest.raises(
        ValueError, match='has out_channels 19, but the teacher of teacher.py has 7'
    ):
        launch.train(student_cfg(scenes, str(tmp_path / 'work'), other), str(tmp_path / 'work'))
    with pytest.raises(ValueError, match='temperature=0 must be a positive number'):
        DistillationHook('a.py', 'a.pth', temperature=0)
