"""The same as ``mmseg-repvgg serve-web``."""

from mmseg_repvgg.commands.serve_web import main

if __name__ == '__main__':
    main()
