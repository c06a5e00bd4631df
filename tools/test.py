"""The same as ``mmseg-repvgg test``."""

from mmseg_repvgg.commands.test import main

if __name__ == '__main__':
    main()
