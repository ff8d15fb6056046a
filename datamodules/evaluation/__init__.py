"""``fastslm evaluate``: a model, or transcripts of other systems, on recordings in shards."""
