"""How the small models in fastslm/demo were made; run from a checkout."""
