"""Where configs/ lies: beside the code of a clone, or where an installation has put it."""

import sys
from pathlib import Path


def shipped(folder: str) -> Path | None:
    """Return configs/`folder` of the clone this package was imported from, or of its environment; None: in neither."""
    roots = (Path(__file__).resolve().parents[2], Path(sys.prefix) / "share" / "m3ae_scale")
    return next((root / "configs" / folder for root in roots if (root / "configs" / folder).is_dir()), None)
