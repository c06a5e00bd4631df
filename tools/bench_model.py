"""The same as ``mmseg-repvgg bench-model``."""

from mmseg_repvgg.commands.bench_model import main

if __name__ == '__main__':
    main()
