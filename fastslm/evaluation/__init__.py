"""Scores of transcripts that others can compare: the Open ASR Leaderboard's, by length, with intervals."""
