"""Data sets: Cityscapes label images, and built-in street scenes to try everything with."""
