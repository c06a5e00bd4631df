"""The same as ``mmseg-repvgg serve``."""

from mmseg_repvgg.commands.serve import main

if __name__ == '__main__':
    main()
