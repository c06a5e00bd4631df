"""Hooks and wrappers for mmengine's Runner, and functions that launch it."""

from mmseg_repvgg.engine.checkpoint_hook import SafeCheckpointHook
from mmseg_repvgg.engine.data_check_hook import DataCheckHook
from mmseg_repvgg.engine.deploy_hook import RepVGGDeployHook
from mmseg_repvgg.engine.distillation_hook import DistillationHook
from mmseg_repvgg.engine.distributed import CPUDistributedDataParallel
from mmseg_repvgg.engine.int8_training_hook import Int8TrainingHook
from mmseg_repvgg.engine.label_hook import LabelCheckHook
from mmseg_repvgg.engine.load_hook import LoadCheckHook
from mmseg_repvgg.engine.mixed_precision import CpuAmpOptimWrapper
from mmseg_repvgg.engine.pictures import PictureBackend
from mmseg_repvgg.engine.step_seed_hook import StepSeedHook

__all__ = [
    'CPUDistributedDataParallel',
    'CpuAmpOptimWrapper',
    'DataCheckHook',
    'DistillationHook',
    'Int8TrainingHook',
    'LabelCheckHook',
    'LoadCheckHook',
    'PictureBackend',
    'RepVGGDeployHook',
    'SafeCheckpointHook',
    'StepSeedHook',
]
