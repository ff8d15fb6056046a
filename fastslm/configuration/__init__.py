"""Finding configs, and messages about what is wrong in them."""
