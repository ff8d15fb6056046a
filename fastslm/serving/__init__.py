"""A small server of one model: the audio and chat API that OpenAI's clients speak, and a page."""
