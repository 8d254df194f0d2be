"""What starts the ranks: one file per kind of place."""
