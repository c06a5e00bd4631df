"""Show what works here and how to fix the rest: ``mmseg-repvgg doctor``."""

from mmseg_repvgg.doctor import main as main
