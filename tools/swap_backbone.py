"""The same as ``mmseg-repvgg swap-backbone``."""

from mmseg_repvgg.commands.swap_backbone import main

if __name__ == '__main__':
    main()
