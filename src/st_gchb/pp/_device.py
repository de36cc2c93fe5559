"""Where torch computes, and what becomes of a batch that does not fit there."""

from __future__ import annotations

import torch

from st_gchb._errors import InputError
from st_gchb._logging import logger


def choose_device(device: str | torch.device) -> torch.device:
    """Turn ``"auto"`` or torch's name of a device into a device that is there.

    Raises
    ------
    InputError
        There is no such device here.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device={device!r} is not usable here ({error}); pass 'auto' or 'cpu'.") from error
    return chosen


def halved(size: int, what: str) -> int:
    """Half of a size for which the device's memory was too small, with a warning.

    Parameters
    ----------
    size
        How many were tried at once, at least 2.
    what
        What goes on with fewer, such as ``"embedding goes on with %d spots at once"``.
    """
    torch.cuda.empty_cache()
    logger.warning(f"The device ran out of memory: {what}.", size // 2)
    return size // 2
