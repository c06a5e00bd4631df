"""Fuse, export, evaluate and run trained models."""
