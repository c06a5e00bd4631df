"""The same as ``mmseg-repvgg benchmark``."""

from mmseg_repvgg.commands.benchmark import main

if __name__ == '__main__':
    main()
