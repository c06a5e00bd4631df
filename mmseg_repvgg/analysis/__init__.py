"""What models cost: time, and later parameters and operations."""
