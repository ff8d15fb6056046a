"""``fastslm shards``: corpora to tar shards, and shards indexed, checked, counted and resharded."""
