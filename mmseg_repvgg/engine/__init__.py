"""What runs in mmengine's Runner, and the launching of it."""

from mmseg_repvgg.engine.cpu_amp import CpuAmpOptimWrapper
from mmseg_repvgg.engine.deploy_hook import RepVGGDeployHook
from mmseg_repvgg.engine.label_hook import LabelCheckHook
from mmseg_repvgg.engine.load_hook import LoadCheckHook

__all__ = ['CpuAmpOptimWrapper', 'LabelCheckHook', 'LoadCheckHook', 'RepVGGDeployHook']
