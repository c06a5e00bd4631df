"""The same as ``mmseg-repvgg prepare-camvid``."""

from mmseg_repvgg.commands.prepare_camvid import main

if __name__ == '__main__':
    main()
