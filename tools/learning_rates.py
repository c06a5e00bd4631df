"""The same as ``mmseg-repvgg learning-rates``."""

from mmseg_repvgg.commands.learning_rates import main

if __name__ == '__main__':
    main()
