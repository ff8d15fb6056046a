"""Which releases of packages are installed, and those that no run may start with."""

from importlib.metadata import PackageNotFoundError, version

_MALICIOUS = "a malicious release: uninstall it and rotate the credentials of this machine"
#: (package, version, why): installed ones are errors.
KNOWN_BAD = tuple((name, bad, _MALICIOUS) for name in ("lightning", "pytorch-lightning") for bad in ("2.6.2", "2.6.3"))


def installed(package: str) -> str | None:
    """Return the version of a package, None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
