"""The run's data: digits, image folders, CSV manifests, one's own."""
