"""Configs that cannot be run."""

import copy

from mmengine.registry import MODELS

from mmseg_repvgg.checks import check_windows
from mmseg_repvgg.engine import launch
from tests.wrong_input.table import Table

CASES = Table()

# Configs.


def changed(given, **changes):
    cfg = copy.deepcopy(given.cfg)
    cfg.merge_from_dict(changes)
    return cfg


def without(given, *keys):
    cfg = copy.deepcopy(given.cfg)
    owner = cfg
    for key in keys[:-1]:
        owner = owner[key]
    owner.pop(keys[-1])
    return cfg


def resnet_cfg(given):
    cfg = copy.deepcopy(given.cfg)
    cfg.model.backbone = dict(type='ResNetV1c', depth=18)
    cfg.model.decode_head.in_channels, cfg.model.auxiliary_head.in_channels = 512, 256
    return cfg


def fuse_resnet(given):
    cfg = resnet_cfg(given)
    return given.fuse(MODELS.build(cfg.model).state_dict(), cfg)


def config_file(given, text, name='c.py'):
    return given.file(text.encode(), name)


def slide(**sizes):
    return check_windows(dict(mode='slide', **sizes))


ROOT = 'train_dataloader.dataset.data_root'
CROP = 'train_dataloader.dataset.pipeline.2.crop_size'
PIXELS = 'must be (height, width) in pixels, both at least 1'
for name, call, parts in [
    ('config without RepVGG', fuse_resnet, ('holds no RepVGG block', "leave 'branches' out")),
    ('config without model', lambda g: g.fuse(cfg=without(g, 'model')), ('has no model', 'whole')),
    ('config without backbone', lambda g: g.fuse(cfg=without(g, 'model', 'backbone')),
     ('no backbone', 'give the config of a segmentor')),
    ('config with an open bracket', lambda g: launch.load_config(config_file(g, 'a = (')),
     ('c.py cannot be read as a config', 'was never closed')),
    ('config on nothing', lambda g: launch.load_config(config_file(g, "_base_ = ['./no.py']")),
     ('c.py cannot be read as a config', 'no.py')),
    ('text as config', lambda g: launch.load_config(config_file(g, 'a', 'c.txt')),
     ('c.txt cannot',)),
    ('option for a number', lambda g: launch.load_config(config_file(g, 'a = 1'), {'a.b': 2}),
     ('--cfg-options do not fit',)),
    ('training without model', lambda g: launch.train(without(g, 'model')), ('has no model',)),
    ('training of a fused model',
     lambda g: launch.train(changed(g, **{'model.type': 'DeployedModel'})),
     ('config of a fused model', 'train with the config it was fused from')),
    ('windows of one number', lambda g: slide(crop_size=64, stride=(4, 4)),
     ('crop_size=64 ' + PIXELS,)),
    ('windows of no size', lambda g: slide(crop_size=(0, 8), stride=(4, 4)), ('(0, 8) ' + PIXELS,)),
    ('windows without stride', lambda g: slide(crop_size=(8, 8)), ('stride=None ' + PIXELS,)),
    ('windows with gaps', lambda g: slide(crop_size=(64, 64), stride=(65, 43)),
     ('stride=(65, 43) is larger than crop_size=(64, 64)', 'at most the crop size')),
    ('windows of no size on fusing',
     lambda g: g.fuse(cfg=changed(g, **{'model.test_cfg': dict(mode='slide', crop_size=(0, 0))})),
     ('(0, 0) ' + PIXELS,)),
    ('training crops of no size',
     lambda g: launch.train(changed(g, **{CROP: (0, 0)})),
     ('train_dataloader: crop_size of RandomCrop=(0, 0)', PIXELS)),
]:  # fmt: skip
    CASES.add(name, call, ValueError, *parts)
CASES.add('no config', lambda g: launch.load_config(g.folder / 'no.py'), FileNotFoundError,
          "no.py not found: neither a file nor one of the configs in")  # fmt: skip
CASES.add('no data', lambda g: launch.train(changed(g, **{ROOT: 'no'})), FileNotFoundError,
          "data_root 'no' is not a folder", '--cfg-options train_dataloader')  # fmt: skip
