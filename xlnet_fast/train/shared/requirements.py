"""The packages that training needs beyond those of the model: the extra ``train``."""

from __future__ import annotations

from importlib.util import find_spec

from xlnet_fast.errors import XLNetFastError

PACKAGES = {  # as it is imported: as pip calls it
    "accelerate": "accelerate",
    "datasets": "datasets",
    "matplotlib": "matplotlib",
    "scipy": "scipy",
    "sklearn": "scikit-learn",
    "tensorboard": "tensorboard",
}


def require_packages() -> None:
    """Look for what training imports, without importing it.

    Raises:
        XLNetFastError: names all that are missing, and what installs them.
    """
    missing = [name for module, name in PACKAGES.items() if find_spec(module) is None]
    if missing:
        raise XLNetFastError(
            f"training needs {', '.join(missing)}: pip install {' '.join(missing)}"
        )
