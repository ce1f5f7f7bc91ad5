"""The versions of the installed packages; nothing is imported for them."""

import importlib.metadata


def installed(package: str) -> str | None:
    """The version of a package; None if it is not installed, as resnet_jax itself when it is run from a checkout."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def version(package: str) -> str:
    """The version of a package in words."""
    return installed(package) or "not installed"


def versions() -> str:
    """What --version prints."""
    return f"resnet_jax {version('resnet_jax')}, jax {version('jax')}"
