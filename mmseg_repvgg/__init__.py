"""RepVGG backbones for mmsegmentation; importing the package registers everything it brings."""

from mmseg_repvgg import compat
from mmseg_repvgg.version import __version__

compat.install()

from mmseg_repvgg import engine, models, reparam  # noqa: E402

__all__ = ['__version__', 'engine', 'models', 'reparam']
