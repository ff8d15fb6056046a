"""Using a trained model: hours of audio in, text out; ``fastslm.load`` is the way in."""
