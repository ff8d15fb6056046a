"""Speech encoders: log-mel windows to frames."""
