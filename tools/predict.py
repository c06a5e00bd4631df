"""The same as ``mmseg-repvgg predict``."""

from mmseg_repvgg.commands.predict import main

if __name__ == '__main__':
    main()
