"""What the embedded default ships: a small speech encoder, a small LLM and its tokenizer."""
