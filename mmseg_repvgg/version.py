"""The one place the version is written; ``setup.py`` reads this file as text."""

__version__ = '0.2.0'
