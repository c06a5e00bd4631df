"""Arguments of the backbone, the rewrites, the hooks and the tools."""

from mmseg_repvgg.analysis.time_in_turn import time_in_turn
from mmseg_repvgg.checkpoint.writing import convert_weights
from mmseg_repvgg.datasets.demo_scenes import make_demo_scenes
from mmseg_repvgg.deploy.fuse import fuse_checkpoint
from mmseg_repvgg.deploy.runtimes import load_runtime
from mmseg_repvgg.engine import LoadCheckHook, RepVGGDeployHook
from mmseg_repvgg.models import DilatedRepVGG
from tests.common import TINY
from tests.deploy.networks import described
from tests.wrong_input.table import Table

NAN, INF = float('nan'), float('inf')

CASES = Table()

# Arguments of the backbone.

SEQUENCE, WHOLE = (
    'must be a list or a tuple',
    'of a RepVGG block must be an integer, at least 1',
)
for name, kwargs, parts in [
    ('unknown arch', dict(arch='B4'), ("unknown RepVGG arch 'B4'", 'choose from A0, A1')),
    ('arch of another kind', dict(arch=5), ('a name or a dictionary, not int',)),
    ('arch with unknown keys', dict(arch=dict(TINY, depth=3)), ("['depth']", 'has the keys num_b')),
    ('arch without widths', dict(arch=dict(num_blocks=(1,))), ("missing: ['width_factor']",)),
    ('arch of no depth', dict(arch=dict(TINY, num_blocks=4)), ('num_blocks=4 ' + SEQUENCE,)),
    ('arch of half a block', dict(arch=dict(TINY, num_blocks=(1.5, 1, 1, 1))), ('(1.5, 1, 1, 1)',)),
    ('arch of NaN width', dict(arch=dict(TINY, width_factor=(NAN, 1, 1, 1))), ('(nan, 1, 1, 1)',)),
    ('arch of no width', dict(arch=dict(TINY, width_factor=(0.001, 1, 1, 1))),
     ('stages of (0, 128, 256, 512) channels', 'every stage needs at least one')),
    ('groups that do not divide', dict(arch=dict(TINY, group_layer_map={2: 3})),
     ('groups=3 must divide the channels of the block, 8 and 8',)),
    ('groups of a layer that is not there', dict(arch=dict(TINY, group_layer_map={10: 2})),
     ('names layer 10', 'are 1..9')),
    ('groups as a list', dict(arch=dict(TINY, group_layer_map=[2])), ('[2] must be a dictionary',)),
    ('unknown squeeze setting', dict(arch=dict(TINY, se_cfg=dict(r=2))), ('ratio and divisor',)),
    ('squeeze by 0', dict(arch=dict(TINY, se_cfg=dict(ratio=0))), ("{'ratio': 0}", 'at least 1')),
    ('unknown block', dict(block='resnet'), ("unknown block 'resnet'", 'choose from repvgg')),
    ('one stride', dict(strides=2), ('strides=2 ' + SEQUENCE,)),
    ('three strides', dict(strides=(2, 2, 1)), ('strides=(2, 2, 1) has 3 values', '4 stages')),
    ('stride 0', dict(strides=(2, 2, 0, 1)), ('stride=0 ' + WHOLE,)),
    ('stride 1.5', dict(strides=(2, 2, 1.5, 1)), ('stride=1.5 ' + WHOLE,)),
    ('stride as text', dict(strides=('2', 2, 1, 1)), ("stride='2' " + WHOLE,)),
    ('one dilation', dict(dilations=2), ('dilations=2 ' + SEQUENCE,)),
    ('five dilations', dict(dilations=(1,) * 5), ('has 5 values; 4 stages need 4',)),
    ('dilations of some layers', dict(dilations=(1, (1, 2), 1, 1)),
     ('dilations[1]=(1, 2) has 2 values', 'stage_2 has 3 layers', 'one per layer')),
    ('dilation -2', dict(dilations=(1, 1, -2, 1)), ('dilation=-2 ' + WHOLE,)),
    ('dilation 2.0', dict(dilations=(1, 1, 2.0, 4)), ('dilations[2]=2.0 ' + SEQUENCE,)),
    ('dilation 2.5 of a layer', dict(dilations=(1, 1, (1, 2.5, 1), 4)), ('dilation=2.5 ' + WHOLE,)),
    ('one out index', dict(out_indices=3), ('out_indices=3 ' + SEQUENCE,)),
    ('out index past the end', dict(out_indices=(0, 4)), ('(0, 4) must', 'numbers from 0 to 3')),
    ('out index as text', dict(out_indices=('3',)), ("('3',) must be increasing stage numbers",)),
    ('out indices that repeat', dict(out_indices=(3, 3)), ('stage numbers from 0 to 3',)),
    ('stages without effect', dict(out_indices=(0, 1)), ('without effect; give num_stages=2',)),
    ('stages as text', dict(num_stages='4'), ("num_stages='4' must be in 1..4",)),
    ('images of no channels', dict(in_channels=0), ('in_channels=0 must be', 'at least 1')),
    ('frozen stage 7', dict(frozen_stages=7), ('frozen_stages=7 must lie in -1..4',)),
    ('no norm', dict(norm_cfg=None), ('norm_cfg=None must be a dict', "dict(type='BN')")),
    ('unknown norm', dict(norm_cfg=dict(type='BNx')), ("'BNx' is unknown; use 'BN' or 'SyncBN'",)),
    ('norm that cannot be fused', dict(norm_cfg=dict(type='GN', num_groups=2)), ("use 'BN' or",)),
    ('no activation', dict(act_cfg=None), ('act_cfg=None must be a dict', "dict(type='ReLU')")),
    ('frozen and fused', dict(deploy=True, frozen_stages=1), ('no effect', 'leave them out')),
    ('two sources of weights', dict(pretrained='a', init_cfg={}), ('both given; keep one',)),
]:  # fmt: skip
    call = lambda g, kwargs=kwargs: DilatedRepVGG(**{'arch': TINY, **kwargs})  # noqa: E731
    CASES.add(name, call, ValueError, *parts)
CASES.add('unknown branch', lambda g: DilatedRepVGG(TINY, branches=('3x3', '5x5')), ValueError,
          "branches=('3x3', '5x5')", "must hold '3x3' and may hold '1x1', 'identity'")  # fmt: skip

# Rewrites and settings of hooks and tools.

NAMES = 'branches, batchnorm, dilation, pyramid'
for name, call, parts in [
    ('unknown rewrite', lambda g: g.fuse(rewrites=['fold']), ("rewrites=['fold']", NAMES)),
    ('rewrite as text', lambda g: RepVGGDeployHook('branches'), ("rewrites='branches'", 'a list')),
    ('no rewrite', lambda g: RepVGGDeployHook([]), ('rewrites=[]', 'at least one of ' + NAMES)),
    ('negative tolerance', lambda g: g.fuse(tolerance=-1.0), ('tolerance=-1.0 must be', 'as 1e-4')),
    ('tolerance NaN', lambda g: RepVGGDeployHook(tolerance=NAN), ('tolerance=nan must be',)),
    ('tolerance for all', lambda g: RepVGGDeployHook(tolerance=INF), ('positive and finite',)),
    ('tolerance as text', lambda g: RepVGGDeployHook(tolerance='1'), ("tolerance='1' must be",)),
    ('images below 0', lambda g: g.fuse(num_images=-3), ('num_images=-3', 'at least 0')),
    ('share above 1', lambda g: LoadCheckHook(1.5), ('required=1.5 must be a share',)),
    ('fused checkpoint as .onnx', lambda g: g.fuse(out='f.onnx'), ('f.onnx', 'must end in .pth')),
    ('fused over training', lambda g: fuse_checkpoint(g.cfg, g.saved({}), g.folder / 'x.pth'),
     ('is the training checkpoint itself; give another name',)),
    ('names of nobody', lambda g: convert_weights(g.saved(g.state), g.folder / 'o.pth', 'keras'),
     ("'keras'", 'choose from ours, official, timm')),
    ('weights as .h5', lambda g: convert_weights(g.saved(g.state), g.folder / 'o.h5', 'timm'),
     ('o.h5', 'must end in .pth or .safetensors')),
    ('weights over themselves',
     lambda g: convert_weights(g.saved(g.state), g.folder / 'x.pth', 'timm'),
     ('is SOURCE itself; give another name',)),
    ('scenes of one number', lambda g: make_demo_scenes(g.folder, size=99),
     ('size=99', 'at least 64')),
    ('scenes too small', lambda g: make_demo_scenes(g.folder, size=(64, 9)), ('size=(64, 9)',)),
    ('no scenes', lambda g: make_demo_scenes(g.folder, 0, 0), ('num_train=0, num_val=0',)),
    ('no workers', lambda g: make_demo_scenes(g.folder, 1, 1, workers=0), ('workers is 0',)),
    ('nothing to time', lambda g: time_in_turn({}), ('need calls and repeats',)),
]:  # fmt: skip
    CASES.add(name, call, ValueError, *parts)

# Runtimes of exported models. For one of another version see tests/deploy/test_runtimes.py.

for name, call, parts in [
    ('unknown runtime', lambda g: load_runtime(described(g.folder), 'tflite'),
     ("runtime='tflite' is not known", 'use one of onnxruntime, openvino, mnn, torch')),
    ('runtime for another format', lambda g: load_runtime(described(g.folder), 'mnn'),
     ("mnn cannot read", "format 'onnx'", 'use onnxruntime or openvino', 'OUT.mnn')),
    ('unknown format', lambda g: load_runtime(described(g.folder, format='caffe')),
     ("has the format 'caffe'", 'knows onnx, openvino, mnn, torch', 'export it again')),
    ('no threads', lambda g: load_runtime(described(g.folder), threads=0),
     ('threads=0 must be at least 1',)),
    ('exported model cut short', lambda g: load_runtime(described(g.folder), 'onnxruntime'),
     ('onnxruntime cannot read', 'The file is damaged', 'export it again')),
]:  # fmt: skip
    CASES.add(name, call, ValueError, *parts)
