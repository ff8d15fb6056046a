"""What a shard holds and where: the index beside each tar, and the lengths of its texts in ids."""
