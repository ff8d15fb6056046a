"""One file for each command that is not LightningCLI's; ``fastslm/cli.py`` says which is which."""
