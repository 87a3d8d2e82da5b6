"""Training data: rows out of files, their formats as chat messages, and the bundled task."""
