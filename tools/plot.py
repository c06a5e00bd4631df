"""The same as ``mmseg-repvgg plot``."""

from mmseg_repvgg.commands.plot import main

if __name__ == '__main__':
    main()
