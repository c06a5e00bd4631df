"""The same as ``mmseg-repvgg export``."""

from mmseg_repvgg.commands.export import main

if __name__ == '__main__':
    main()
