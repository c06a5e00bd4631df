"""The commands of ``mmseg-repvgg``, a module each: the options, and one call."""
