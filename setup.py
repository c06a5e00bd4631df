"""Packaging of mmseg_repvgg. Here stand the limits; the tested versions are in constraints.txt."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent


def read_version() -> str:
    """Take the version from the file's text: importing the package would need torch."""
    text = (HERE / 'mmseg_repvgg' / 'version.py').read_text(encoding='utf-8')
    match = re.search(r"^__version__ = '([^']+)'$", text, flags=re.MULTILINE)
    if match is None:
        raise RuntimeError("mmseg_repvgg/version.py must hold one line: __version__ = '<version>'")
    return match.group(1)


def read_readme() -> str:
    readme = HERE / 'README.md'
    return readme.read_text(encoding='utf-8') if readme.exists() else ''


setup(
    name='mmseg-repvgg',
    version=read_version(),
    description='RepVGG backbones for mmsegmentation: trained with branches, deployed as plain 3x3',
    long_description=read_readme(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.10',
    packages=find_packages(include=['mmseg_repvgg*']),
    package_data={'mmseg_repvgg': ['py.typed']},
    zip_safe=False,
    # No OpenMMLab distribution: mmcv and mmcv-lite, and the two families, own the same import
    # names, so that requiring one would overwrite what the user already has. Whoever has none yet
    # takes exactly one of the extras `openmmlab` and `onedl`. OpenCV comes with either, in the
    # variant it asks for; two variants in one environment overwrite each other.
    install_requires=[
        'torch>=2.6',  # the oldest that is tested, and the first whose torch.load is safe
        'torchvision',
        'numpy',
        'pillow',
        'tqdm',
        'safetensors',
        'cityscapesscripts',
    ],
    extras_require={
        'openmmlab': [
            'mmsegmentation>=1.2.2,<2',
            'mmengine>=0.10.7,<1',
            # mmsegmentation's own bounds. The full mmcv does as well, but has to be built for the
            # PyTorch at hand: who wants it installs it first and leaves this extra out.
            'mmcv-lite>=2.0.0,<2.2.0',
            'mmpretrain>=1.2.0,<2',
            # mmsegmentation imports these two without requiring them.
            'ftfy',
            'regex',
        ],
        'onedl': [
            'onedl-mmsegmentation>=1.4.2,<2',
            'onedl-mmengine>=0.10.12,<1',
            'onedl-mmcv>=2.3.6,<3',
            'onedl-mmpretrain>=1.3.6,<2',
        ],
        # What writes and runs exported models; each runtime is optional to a service.
        'deploy': [
            'onnx>=1.17',
            'onnxscript>=0.5',  # PyTorch's ONNX exporter
            'onnxruntime>=1.20',
            'openvino>=2025.0',
            'MNN>=3.2',
        ],
        'dev': [
            'pytest>=8',
            'pytest-xdist',
            'hypothesis',
            'ruff',
            'mypy',
            'codespell',
            'tomli; python_version < "3.11"',  # for codespell to read pyproject.toml
            'timm',  # what the parity tests compare with
        ],
    },
)
