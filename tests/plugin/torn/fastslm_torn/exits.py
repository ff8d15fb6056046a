"""Thinks that it is a program."""

raise SystemExit("usage: exits FILE")
