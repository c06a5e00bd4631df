"""``python -m mmseg_repvgg COMMAND ...``, as ``mmseg-repvgg COMMAND ...``."""

import sys

from mmseg_repvgg.cli import main

if __name__ == '__main__':
    sys.exit(main())
