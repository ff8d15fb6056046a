"""Where a compressor looks: attention weights recorded beside its forward pass, collected by window, and drawn."""
