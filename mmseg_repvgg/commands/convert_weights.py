"""Rename RepVGG weights: ``mmseg-repvgg convert-weights SOURCE OUT --to official``."""

import argparse

from mmseg_repvgg.checkpoint.naming_schemes import SCHEMES
from mmseg_repvgg.checkpoint.writing import convert_weights
from mmseg_repvgg.command_line import user_errors
from mmseg_repvgg.models import arch as arch  # fills the table that identifies the architecture


def main() -> None:
    """Parse the options and convert."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('source', help='checkpoint to read (.pth or .safetensors)')
    parser.add_argument('out', help='file to write (.pth or .safetensors)')
    parser.add_argument('--to', choices=list(SCHEMES), required=True, help='naming scheme to write')
    args = parser.parse_args()
    with user_errors('convert_weights'):
        print(convert_weights(args.source, args.out, args.to))
