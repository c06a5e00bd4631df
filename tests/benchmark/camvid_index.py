"""Writes configs/camvid/metafile.yml from the records of benchmarks/camvid.

Command: python -m tests.benchmark.camvid_index
"""

from pathlib import Path

import torch
import yaml
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from mmseg_repvgg.analysis.complexity import Complexity, count
from mmseg_repvgg.benchmark.camvid import SIZE
from mmseg_repvgg.benchmark.camvid_trainings import Training
from mmseg_repvgg.markdown import markdown_table

PROJECT = Path(__file__).parents[2]
RECORDS, INDEX = PROJECT / 'benchmarks' / 'camvid', PROJECT / 'configs' / 'camvid' / 'metafile.yml'
HEAD = """\
# Networks that this project trained on CamVid, in OpenMMLab's model-index format; written from the
# records in benchmarks/camvid by `python -m tests.benchmark.camvid_index`. Their weights are not
# published: the command of an entry makes them, and the record has their SHA-256. A repeated
# training gives other weights on another CPU.
#
# FLOPs: multiply-adds for one image of 360x480; Parameters: kernels and one bias a channel; both of
# the deployed form, without auxiliary heads, which run in training only
# (mmseg_repvgg.analysis.complexity.count).

"""
COLLECTION = dict(
    Name='Light networks on CamVid',
    Metadata={'Training Data': ['CamVid']},
    Paper=dict(
        URL='https://arxiv.org/abs/2101.03697',
        Title='RepVGG: Making VGG-style ConvNets Great Again',
    ),
    Frameworks=['PyTorch'],
    License='Apache License 2.0',
)


def cost(config: str) -> Complexity:
    """Build a network in deployed form, without memory, and count it."""
    cfg = Config.fromfile(PROJECT / 'configs' / config)
    init_default_scope(cfg.default_scope)
    if 'RepVGG' in cfg.model.backbone.type:
        cfg.model.backbone.deploy = True
    with torch.device('meta'):
        return count(MODELS.build(cfg.model), SIZE)


def entry(path: Path) -> dict:
    """The entry of a record."""
    run = Training.read(path)
    costs = cost(run.config)
    return {
        'Name': f'camvid_{path.stem}',
        'In Collection': COLLECTION['Name'],
        'Config': f'configs/{run.config}',
        'Metadata': {
            'Training Data': 'CamVid',
            'Training Resources': f'CPU ({run.machine["processor"]})',
            'Batch Size': run.images // run.iterations,
            'Iterations': run.iterations,
            'FLOPs': int(costs.flops),
            'Parameters': int(costs.params),
        },
        'Results': [
            {
                'Task': 'Semantic Segmentation',
                'Dataset': 'CamVid val',
                'Metrics': {
                    'mIoU': round(run.miou, 2),
                    'Pixel Accuracy': round(run.pixel_accuracy, 2),
                },
            }
        ],
        'SHA-256': run.weights['sha256'],
        'Command': run.command,
        'Training Log': path.relative_to(PROJECT).as_posix(),
        'Note': 'no weights are published; the command makes them',
    }


def index_text() -> str:
    """The whole file."""
    entries = [entry(path) for path in sorted(RECORDS.glob('*_seed*.json'))]
    body = dict(Collections=[COLLECTION], Models=entries)
    return HEAD + yaml.safe_dump(body, sort_keys=False, width=1000, allow_unicode=True)


def zoo_table() -> str:
    """The same for docs/camvid.md."""
    rows = []
    for path in sorted(RECORDS.glob('*_seed*.json'), key=lambda p: -Training.read(p).miou):
        run = Training.read(path)
        weights = run.weights
        size = f'{weights["bytes"] / 1e6:.1f} MB'
        name = f'[{run.name}, seed {run.seed}](../{path.relative_to(PROJECT).as_posix()})'
        rows.append([name, f'{run.miou:.2f}', f'`{weights["file"]}`', size])
    return markdown_table(['network and record', 'mIoU, %', 'weights', 'size'], rows)


if __name__ == '__main__':
    INDEX.write_text(index_text(), encoding='utf-8')
    print(zoo_table())
