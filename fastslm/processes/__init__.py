"""Processes and signals: what ends a command, and what its children do then."""
