"""The same as ``mmseg-repvgg fuse``."""

from mmseg_repvgg.commands.fuse import main

if __name__ == '__main__':
    main()
