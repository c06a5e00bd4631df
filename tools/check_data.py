"""The same as ``mmseg-repvgg check-data``."""

from mmseg_repvgg.commands.check_data import main

if __name__ == '__main__':
    main()
