"""The same as ``mmseg-repvgg convert-masks``."""

from mmseg_repvgg.commands.convert_masks import main

if __name__ == '__main__':
    main()
