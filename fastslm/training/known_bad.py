"""Releases of other packages that no run may start with."""

#: (package, version, why): installed ones are errors.
KNOWN_BAD = (
    ("lightning", "2.6.2", "a malicious release: uninstall it and rotate the credentials of this machine"),
    ("lightning", "2.6.3", "a malicious release: uninstall it and rotate the credentials of this machine"),
    ("pytorch-lightning", "2.6.2", "a malicious release: uninstall it and rotate the credentials of this machine"),
    ("pytorch-lightning", "2.6.3", "a malicious release: uninstall it and rotate the credentials of this machine"),
)
