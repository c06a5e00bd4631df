"""The same as ``mmseg-repvgg demo``."""

from mmseg_repvgg.commands.demo import main

if __name__ == '__main__':
    main()
