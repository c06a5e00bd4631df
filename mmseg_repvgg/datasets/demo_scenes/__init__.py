"""Built-in street scenes: drawn from a seed, in Cityscapes' folder layout, names and label ids.

Each scene is a small three-dimensional street that is projected and painted polygon by polygon; the
same polygons are its annotation, from which cityscapesscripts makes the label images as it does for
the real data set.
"""

from mmseg_repvgg.datasets.demo_scenes.dataset import DEMO_CLASSES, make_demo_scenes
from mmseg_repvgg.datasets.demo_scenes.scene import compose_scene

__all__ = ['DEMO_CLASSES', 'compose_scene', 'make_demo_scenes']
