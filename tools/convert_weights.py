"""The same as ``mmseg-repvgg convert-weights``."""

from mmseg_repvgg.commands.convert_weights import main

if __name__ == '__main__':
    main()
