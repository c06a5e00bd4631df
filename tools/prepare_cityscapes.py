"""The same as ``mmseg-repvgg prepare-cityscapes``."""

from mmseg_repvgg.commands.prepare_cityscapes import main

if __name__ == '__main__':
    main()
