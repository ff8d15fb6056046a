"""What an exported folder runs: these files, and every file of the package that they import, flat beside each other."""
