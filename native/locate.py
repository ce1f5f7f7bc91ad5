"""Print the paths of XLA's FFI headers, oneDNN's headers and oneDNN's library, as a CMake list."""

import os
from importlib.metadata import files

import jax.ffi


def installed(package: str, name: str) -> str:
    """Path of the file `name` of an installed package; wheels may put it under the prefix."""
    for file in files(package) or ():
        if file.name == name:
            return os.path.realpath(file.locate())
    raise SystemExit(f"{package} does not contain {name}; reinstall it: pip install --force-reinstall {package}")


header = installed("onednn-devel-cpu-gomp", "dnnl_common.hpp")  # the one in include/oneapi/dnnl
include = header.split("/oneapi/")[0]
print(jax.ffi.include_dir(), include, installed("onednn-cpu-gomp", "libdnnl.so.3"), sep=";")
