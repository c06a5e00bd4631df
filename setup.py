"""Packaging of mmseg_repvgg. Version limits are here; constraints.txt has the tested versions."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent


def read_version() -> str:
    """Read the version from the file's text, without importing the package."""
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
    # No OpenMMLab distribution: mmcv and mmcv-lite, and the two families, have the same import
    # names, so requiring one would overwrite what the user already has. Users who have none choose
    # exactly one of the extras `openmmlab` and `onedl`. OpenCV comes with either, in the variant
    # that it requires; two variants in one environment overwrite each other.
    install_requires=[
        'torch>=2.6',  # the first whose torch.load is safe by default
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
            # mmsegmentation's own bounds. The full mmcv works as well, but has to be built for your
            # PyTorch: to use it, install it first and leave this extra out.
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
        # To write and run exported models; a service needs only one runtime.
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
            'timm',  # parity tests compare with it
        ],
    },
)
