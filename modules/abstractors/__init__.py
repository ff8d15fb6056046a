"""Abstractors: the frames of a window to fewer LLM tokens, one compressor in each file."""
