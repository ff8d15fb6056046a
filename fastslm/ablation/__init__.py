"""``fastslm ablate``: variants of one configuration, trained side by side over seeds, and the report about them."""
