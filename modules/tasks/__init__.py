"""Tasks: what can be asked of audio, one to a file."""
