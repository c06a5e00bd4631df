"""Pictures of a training: curves, classes, and what the branches and their fusion do."""
