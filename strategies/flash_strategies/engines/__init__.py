"""How ranks hold the model: one file per way, each able to rebuild itself for a new phase."""
