"""The same as ``mmseg-repvgg gpu-check``."""

import sys

from mmseg_repvgg.commands.gpu_check import main

if __name__ == '__main__':
    sys.exit(main())
