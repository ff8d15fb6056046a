"""Bytes of shards, local or remote: members of a tar, regions of a file, audio."""
