"""The same as ``mmseg-repvgg make-demo-scenes``."""

from mmseg_repvgg.commands.make_demo_scenes import main

if __name__ == '__main__':
    main()
