"""The same as ``mmseg-repvgg train``."""

from mmseg_repvgg.commands.train import main

if __name__ == '__main__':
    main()
