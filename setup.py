"""Packaging of mmseg_repvgg. Version limits are here; constraints.txt has the tested versions."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
REPOSITORY = ''
"""Address of the repository, for links on the index page; without one, they become plain text."""


def read_version() -> str:
    """Read the version from the file's text, without importing the package."""
    text = (HERE / 'mmseg_repvgg' / 'version.py').read_text(encoding='utf-8')
    match = re.search(r"^__version__ = '([^']+)'$", text, flags=re.MULTILINE)
    if match is None:
        raise RuntimeError("mmseg_repvgg/version.py must hold one line: __version__ = '<version>'")
    return match.group(1)


def index_page(readme: str, repository: str) -> str:
    """The README for a package index, which does not have the files that it links to."""

    def absolute(match: re.Match) -> str:
        is_picture, text, path = match.groups()
        if repository:
            kind = 'raw' if is_picture else 'blob'
            return f'{is_picture}[{text}]({repository}/{kind}/v{read_version()}/{path})'
        return '' if is_picture else f'`{path}`' if text == path else text

    return re.sub(r'(!?)\[([^\]]*)\]\((?![a-z]+:|#)([^)\s]+)\)', absolute, readme)


class BuildWithShippedFiles(build_py):
    """Also puts configs, tools and model index where mim and mmengine look for them."""

    def run(self) -> None:
        super().run()
        if getattr(self, 'editable_mode', False):
            return  # they are next to the package
        target = Path(self.build_lib) / 'mmseg_repvgg' / '.mim'
        shutil.rmtree(target, ignore_errors=True)  # left by an earlier build
        skip = shutil.ignore_patterns('__pycache__', '*.pyc')
        for name in ('configs', 'tools'):
            shutil.copytree(HERE / name, target / name, ignore=skip)
        shutil.copy2(HERE / 'model-index.yml', target)


# OpenMMLab's distributions are required by extras only: mmcv and mmcv-lite, and the two families,
# have the same import names, so requiring one would overwrite what the user already has. PyTorch is
# in extras as well: a service that runs exported models needs neither. OpenCV comes with a family
# in the variant that it requires; two variants in one environment overwrite each other.
TRAIN = [
    'torch>=2.6',  # the first whose torch.load is safe by default
    'torchvision',
    'pillow',
    'safetensors',
    'cityscapesscripts',
]
RUNTIMES = {
    'onnxruntime': 'onnxruntime>=1.20',
    'openvino': 'openvino>=2025.0',
    'mnn': 'MNN>=3.2',
}
SERVE = ['fastapi', 'uvicorn', 'prometheus-client']

setup(
    name='mmseg-repvgg',
    version=read_version(),
    description='RepVGG backbones for mmsegmentation: trained with branches, deployed as plain 3x3',
    long_description=index_page((HERE / 'README.md').read_text(encoding='utf-8'), REPOSITORY),
    long_description_content_type='text/markdown',
    author='The mmseg_repvgg authors',
    license='Apache-2.0',
    license_files=['LICENSE'],
    keywords=(
        'repvgg, structural re-parameterization, semantic segmentation, mmsegmentation, openmmlab, '
        'pytorch, onnx, openvino, mnn, deployment'
    ),
    classifiers=[
        'Development Status :: 4 - Beta',
        'Environment :: Console',
        'Intended Audience :: Developers',
        'Intended Audience :: Science/Research',
        'Operating System :: OS Independent',
        'Programming Language :: Python :: 3',
        'Programming Language :: Python :: 3 :: Only',
        'Programming Language :: Python :: 3.10',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Programming Language :: Python :: 3.13',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
        'Topic :: Scientific/Engineering :: Image Recognition',
        'Typing :: Typed',
    ],
    project_urls={
        'Paper': 'https://arxiv.org/abs/2101.03697',
        'mmsegmentation': 'https://github.com/open-mmlab/mmsegmentation',
        **({'Source': REPOSITORY, 'Issues': f'{REPOSITORY}/issues'} if REPOSITORY else {}),
    },
    python_requires='>=3.10',
    packages=find_packages(include=['mmseg_repvgg*']),
    package_data={'mmseg_repvgg': ['py.typed', 'deploy/web_page/*']},
    cmdclass={'build_py': BuildWithShippedFiles},
    entry_points={'console_scripts': ['mmseg-repvgg = mmseg_repvgg.cli:main']},
    zip_safe=False,
    install_requires=['numpy', 'tqdm'],
    extras_require={
        # To train with an mmsegmentation that is installed already.
        'train': TRAIN,
        'openmmlab': [
            *TRAIN,
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
            *TRAIN,
            'onedl-mmsegmentation>=1.4.2,<2',
            'onedl-mmengine>=0.10.12,<1',
            'onedl-mmcv>=2.3.6,<3',
            'onedl-mmpretrain>=1.3.6,<2',
        ],
        # To write and run exported models, next to a family.
        'deploy': [
            'onnx>=1.17',
            'onnxscript>=0.5',  # PyTorch's ONNX exporter
            *RUNTIMES.values(),
        ],
        # To quantize OpenVINO and PyTorch files, next to deploy. ONNX Runtime quantizes ONNX files
        # itself.
        'int8': ['nncf>=3.4', 'torchao>=0.18'],
        # A service: one runtime, OpenCV without a window, and Pillow, which writes label maps.
        **{n: ['opencv-python-headless', 'pillow', package] for n, package in RUNTIMES.items()},
        'serve': SERVE,  # the HTTP service, next to one of these runtimes
        'ray': ['ray[data]', 'pyarrow'],  # predict --engine ray, next to one of these or to deploy
        'dev': [
            *SERVE,
            'pytest>=8',
            'pytest-xdist',
            'hypothesis',
            'ruff',
            'mypy',
            'codespell',
            'tomli; python_version < "3.11"',  # for codespell to read pyproject.toml
            'timm',  # parity tests compare with it
        ],
        'docs': ['mkdocs-material', 'mkdocstrings[python]'],
    },
)
