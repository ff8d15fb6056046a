"""The embedded corpus of spoken numbers: voices, recordings, tasks."""
