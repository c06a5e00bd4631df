"""What can be wrong with a checkpoint file."""


class CheckpointError(ValueError):
    """The file cannot be used as a checkpoint; the text says why and what to do."""


class UnsafeCheckpointError(CheckpointError):
    """The file asks for code outside the list of what a checkpoint may hold. None of it was run."""
