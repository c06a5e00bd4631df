"""Files that are no checkpoint, checkpoints of something else, damaged values."""

from pathlib import Path

import torch
from mmengine.registry import MODELS, init_default_scope

from mmseg_repvgg.checkpoint import CheckpointError, UnsafeCheckpointError, read_checkpoint
from mmseg_repvgg.checkpoint.loading import load_backbone, load_strictly
from mmseg_repvgg.models import DilatedRepVGG, RepVGGBlock
from mmseg_repvgg.reparam import apply_rewrites, deployed_copy
from tests.common import TINY
from tests.wrong_input.table import Table

NAN, INF = float('nan'), float('inf')

CASES = Table()

# Files that are no checkpoint.


def whole_checkpoint(given) -> bytes:
    return given.saved(given.state).read_bytes()


def cut(given, share: float) -> Path:
    content = whole_checkpoint(given)
    return given.file(content[: int(len(content) * share)])


DAMAGED = 'Delete it and download or copy it again'
for name, make, parts in [
    ('empty file', lambda g: g.file(b''), ('an empty file', DAMAGED)),
    ('checkpoint cut in half', lambda g: cut(g, 0.5), ('cut short after', DAMAGED)),
    ('checkpoint less its end', lambda g: cut(g, 0.999), ('cut short after', DAMAGED)),
    ('text', lambda g: g.file(b'Not found\n'), ("text, beginning 'Not found", DAMAGED)),
    ('web page', lambda g: g.file(b'<html>404</html>'), ('a web page', 'The download failed')),
    ('lfs pointer', lambda g: g.file(b'version https://git-lfs.github.com/spec/v1\n'),
     ('a git-lfs pointer', "Run 'git lfs pull'")),
    ('image as checkpoint', lambda g: g.file(b'\x89PNG\r\n\x1a\n' + bytes(64)),
     ('cannot be read', 'Expected a checkpoint written by torch.save')),
    ('folder as checkpoint', lambda g: g.folder, ('is a folder', 'Give the file inside it')),
    ('cut safetensors', lambda g: g.file(b'\x40' + bytes(7) + b'{"a":', 'x.safetensors'),
     ('cannot be read', DAMAGED)),
    ('list', lambda g: g.saved([1]), ('type list', 'Save model.state_dict() instead')),
]:  # fmt: skip
    CASES.add(name, lambda g, make=make: read_checkpoint(make(g)), CheckpointError, *parts)
CASES.add('no such checkpoint', lambda g: read_checkpoint(g.folder / 'no.pth'), FileNotFoundError,
          'no.pth does not exist', 'Check the path')  # fmt: skip
CASES.add('pickled model', lambda g: read_checkpoint(g.saved(dict(model=RepVGGBlock(2, 2)))),
          UnsafeCheckpointError, 'RepVGGBlock', 'It was not run', 'as a state dict')  # fmt: skip

# Checkpoints of something else.


def of_resnet(given):
    return {'conv1.weight': torch.ones(64, 3, 7, 7), 'fc.weight': torch.ones(1000, 512)}


def with_classes(given, count):
    return {
        n: t[:count] if n.startswith('decode_head.conv_seg') else t for n, t in given.state.items()
    }


def of_wider(given):
    wide = dict(TINY, width_factor=(0.25,) * 4)
    other = DilatedRepVGG(wide, strides=(2, 2, 1, 1), dilations=(1, 1, 2, 4))
    return {f'backbone.{n}': t for n, t in other.state_dict().items()}


def fused_state(given):
    init_default_scope('mmseg')
    model = MODELS.build(given.cfg.model)
    return deployed_copy(model, ['branches', 'batchnorm'])[0].state_dict()


def only(given, start):
    return {n: t for n, t in given.state.items() if n.startswith(start)}


def as_integers(given):
    name = 'decode_head.conv_seg.bias'
    return given.state | {name: given.state[name].long()}


for name, make, parts in [
    ('no weights', lambda g: dict(epoch=3), ('no weights found', 'the keys epoch')),
    ('of a ResNet', of_resnet, ('of 185 tensors 0 fit', 'Found: no RepVGG', 'Give weights of a')),
    ('other width', of_wider,
     ('channels=[16, 32, 64, 128]', "weights of the model's architecture")),
    ('other classes', lambda g: with_classes(g, 7),
     ('decode_head.conv_seg.bias (7,) for (19,)', 'model.decode_head.num_classes=7')),
    ('fused already', fused_state, ('is fused already', 'give the training config')),
    ('backbone without heads', lambda g: only(g, 'backbone.'),
     ('34 missing (decode_head.conv_seg.weight', 'Give the config')),
    ('heads without backbone', lambda g: only(g, 'decode_head.'), ('Found: no RepVGG',)),
    ('integer weights', as_integers,
     ('1 of another kind', 'decode_head.conv_seg.bias torch.int64 for torch.float32')),
]:  # fmt: skip
    CASES.add(name, lambda g, make=make: g.fuse(make(g)), CheckpointError, *parts)

# Values that no trained network has.

KERNEL = 'backbone.stage_1.0.branch_3x3.conv.weight'
VARIANCE = 'backbone.stage_1.1.branch_norm.running_var'
HEAD = 'decode_head.bottleneck.bn.running_var'


def with_value(given, name, value):
    tensor = given.state[name].clone()
    tensor.view(-1)[1] = value
    return given.state | {name: tensor}


for name, tensor, value, parts in [
    ('NaN weight', KERNEL, NAN, ('1 of 576 values NaN or infinite',)),
    ('infinite weight', KERNEL, -INF, ('1 of 576 values NaN or infinite',)),
    ('NaN in a head', 'auxiliary_head.conv_seg.weight', NAN, ('NaN or infinite',)),
    ('infinite bias', 'decode_head.conv_seg.bias', INF, ('1 of 19 values',)),
    ('NaN mean', VARIANCE.replace('var', 'mean'), NAN, ('1 of 8 values',)),
    ('NaN variance', VARIANCE, NAN, ('1 of 8 values',)),
    ('infinite variance', VARIANCE, INF, ('1 of 8 values',)),
    ('negative variance', VARIANCE, -1.0, ('a variance of -1, which cannot be negative',)),
    ('variance below zero by less than eps', VARIANCE, -1e-6, ('a variance of -1e-06',)),
    ('negative variance in a head', HEAD, -0.5, ('a variance of -0.5',)),
]:
    text = (tensor, *parts, 'training diverged', 'take an earlier checkpoint')
    call = lambda g, tensor=tensor, value=value: g.fuse(with_value(g, tensor, value))  # noqa: E731
    CASES.add(name, call, CheckpointError, 'holds values that no trained network has', *text)


def diverged_model():
    model = DilatedRepVGG(TINY)
    model.stage_2[1].branch_1x1.conv.weight.data[0] = NAN
    return model


def without_eps():
    block = RepVGGBlock(4, 4)
    norm = block.branch_norm
    norm.eps, norm.running_var[0] = 0.0, 0.0
    return block


CASES.add('complex weights', lambda g: g.fuse(g.state | {KERNEL: g.state[KERNEL].cfloat()}),
          CheckpointError, KERNEL, 'complex numbers')  # fmt: skip
CASES.add('diverged model', lambda g: deployed_copy(diverged_model(), ['branches']), ValueError,
          'DilatedRepVGG cannot be fused', 'stage_2.1.branch_1x1.conv.weight (16 of 256 values',
          'lower learning rate or a longer warm-up')  # fmt: skip
CASES.add('no variance and no eps', lambda g: apply_rewrites(without_eps(), ['branches']),
          ValueError, 'running_var + eps', 'must be positive')  # fmt: skip
CASES.add('NaN in pretrained weights',
          lambda g: load_backbone(DilatedRepVGG(TINY), with_value(g, KERNEL, NAN), 'b.pth'),
          CheckpointError, 'b.pth holds values', KERNEL)  # fmt: skip
CASES.add('pretrained weights of nothing known',
          lambda g: load_backbone(DilatedRepVGG(TINY), of_resnet(g), 'r.pth'), CheckpointError,
          'r.pth holds no RepVGG weights', 'is named as in ours, official')  # fmt: skip
CASES.add('a variance made negative on its way into a fused model',
          lambda g: load_strictly(DilatedRepVGG(TINY, deploy=True).eval(),
                                  with_value(g, VARIANCE, -1.0), 'b.pth'),
          CheckpointError, VARIANCE)  # fmt: skip
