"""The report of a run: read into a description, drawn from it as a page and as a picture."""
