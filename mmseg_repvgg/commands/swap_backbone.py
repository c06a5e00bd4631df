"""Put RepVGG into any mmseg config: ``mmseg-repvgg swap-backbone CONFIG OUT.py --arch B1g2``.

CONFIG is a config file, or a config of the installed mmseg by name: ``mmseg::pspnet/NAME.py``,
``pspnet/NAME.py`` or ``NAME``. OUT is a child config of a few lines. Exit code 0 means that it was
written and loads.
"""

import argparse

from mmseg_repvgg.command_line import user_errors
from mmseg_repvgg.models import ARCHS
from mmseg_repvgg.swap_backbone import swap_backbone
from mmseg_repvgg.swap_backbone.stages import VARIANTS


def main() -> None:
    """Parse the options, write the child config, and print what changed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config file, or name of a config that mmseg ships')
    parser.add_argument('out', help='config to write')
    parser.add_argument('--arch', required=True, choices=list(ARCHS))
    parser.add_argument(
        '--variant',
        choices=VARIANTS,
        help='dilation: full or fast as in the paper, or none; default: as in the config',
    )
    parser.add_argument(
        '--weights',
        default='published',
        help='ImageNet weights that training starts from, model.pretrained of OUT: a path or URL; '
        '"published", mmpretrain\'s of the architecture, which training downloads (default); '
        '"none", random weights',
    )
    args = parser.parse_args()
    with user_errors('swap_backbone'):
        print(swap_backbone(args.config, args.out, args.arch, args.variant, args.weights))
