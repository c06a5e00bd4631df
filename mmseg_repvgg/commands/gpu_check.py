"""Check one GPU in about ten minutes: ``mmseg-repvgg gpu-check > gpu.json``.

Prints one JSON: figures by section, and what is wrong under ``problems``; progress goes to stderr.
Exit code 0 means that nothing is wrong. ``--device cpu --quick`` tests the check itself.
"""

import argparse
import contextlib
import json
import sys

from mmseg_repvgg.command_line import user_errors
from mmseg_repvgg.gpu_check import SECTIONS, Check, run


def main() -> int:
    """Parse the options, run the sections, and print the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--device', default='cuda', choices=['cuda', 'cpu'])
    parser.add_argument('--quick', action='store_true', help='small networks')
    parser.add_argument('--only', nargs='+', metavar='SECTION', help=', '.join(SECTIONS))
    args = parser.parse_args()
    check = Check(args.device, args.quick)
    with user_errors('gpu_check'), contextlib.redirect_stdout(sys.stderr):
        result = run(check, args.only)
    print(json.dumps(result, indent=1))
    return int(bool(check.problems))
