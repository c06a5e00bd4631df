"""The same as ``mmseg-repvgg paper-tables``."""

from mmseg_repvgg.commands.paper_tables import main

if __name__ == '__main__':
    main()
