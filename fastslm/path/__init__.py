"""The path: batch, windows, encoder frames, speech tokens, splice, LLM; ``model.py`` is its one forward."""
