"""The versions of the installed packages; nothing is imported for them."""

import importlib.metadata


def version(package: str) -> str:
    """The installed version of a package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"  # resnet_jax itself, run from a checkout


def versions() -> str:
    """What --version prints."""
    return f"resnet_jax {version('resnet_jax')}, jax {version('jax')}"
