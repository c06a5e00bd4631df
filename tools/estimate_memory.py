"""The same as ``mmseg-repvgg estimate-memory``."""

from mmseg_repvgg.commands.estimate_memory import main

if __name__ == '__main__':
    main()
