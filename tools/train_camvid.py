"""The same as ``mmseg-repvgg train-camvid``."""

from mmseg_repvgg.commands.train_camvid import main

if __name__ == '__main__':
    main()
