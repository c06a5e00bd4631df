"""What runs in mmengine's Runner, and the launching of it."""

from mmseg_repvgg.engine.deploy_hook import RepVGGDeployHook

__all__ = ['RepVGGDeployHook']
