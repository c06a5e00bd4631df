"""The same as ``mmseg-repvgg compare-exported``."""

from mmseg_repvgg.commands.compare_exported import main

if __name__ == '__main__':
    main()
