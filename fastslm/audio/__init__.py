"""Audio files and streams to int16 samples at 16 kHz."""
