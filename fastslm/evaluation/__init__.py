"""Scores of transcripts that others can compare: by Whisper's normaliser, by length, with intervals."""
