"""Language models: embeddings to logits and text."""
