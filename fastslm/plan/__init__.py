"""What a configuration will cost, worked out before any weight is loaded: parameters, tokens, memory, lengths."""
