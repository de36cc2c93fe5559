"""Numbers of patch encodings of training schedules, and their total time from the times of their parts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

BATCH, INFOMAX_EPOCHS, JOINT_EPOCHS = 16, 50, 4
"""Published schedule: spots per mini-batch, epochs of infomax on images (as many on expression), and joint epochs."""

# The page on the method states for DLPFC "42 million patch encodings where 40,629 are needed". The ten slices other
# than 151675 and 151676 have 40,629 spots. Four joint epochs, with one mini-batch per 16 spots and the whole slice
# encoded for each mini-batch, are 41.8 million encodings, so that figure counts the joint epochs alone. The 50 epochs
# of infomax on images process one slice per step and encode its patches too, unless features are stored: 2.0 million
# more (43.8), which "42 million" excludes; with mini-batches of 16 they would be 521 million more. Infomax on
# expression encodes nothing. Both counts are reported: joint epochs alone, and including one encoding of the slice per
# step of infomax on images. For slices of 180 spots the second is twice as large, because a slice then has 12 mini-
# batches instead of 250.


@dataclass(frozen=True)
class Encodings:
    """Numbers of patches that are encoded.

    Parameters
    ----------
    needed
        Encodings if each spot is encoded once.
    joint
        Encodings in the joint epochs of the published schedule.
    infomax
        Encodings in its epochs of infomax on images, if they encode one slice per step.
    every_epoch
        Encodings of a loop that encodes each spot once per epoch.
    """

    needed: int
    joint: int
    infomax: int
    every_epoch: int


def mini_batches(n_spots: int) -> int:
    """Count the mini-batches of a slice in an epoch of the published schedule."""
    return math.ceil(n_spots / BATCH)


def encodings(slices: Sequence[int], n_epochs: int = 20) -> Encodings:
    """Count the encodings of slices with these numbers of spots; ``n_epochs`` refers to the plain loop."""
    needed = sum(slices)
    joint = JOINT_EPOCHS * sum(n * mini_batches(n) for n in slices)
    return Encodings(needed, joint, INFOMAX_EPOCHS * needed, n_epochs * needed)


@dataclass(frozen=True)
class Parts:
    """Seconds of the parts of the schedules.

    Parameters
    ----------
    forward
        Forward pass of the encoder on each slice.
    infomax, joint
        Step of the trainable layers on each slice, in the two stages of the published schedule.
    plain
        Step of the plain loop.
    """

    forward: Sequence[float]
    infomax: Sequence[float]
    joint: Sequence[float]
    plain: float


def seconds(slices: Sequence[int], parts: Parts, n_epochs: int, plain_batch: int) -> dict[str, float]:
    """Compute the seconds of whole schedules from those of their parts.

    Parameters
    ----------
    slices
        Number of spots of each slice.
    parts
        Measured seconds of the parts.
    n_epochs, plain_batch
        Epochs of the plain loop, and spots per step.

    Returns
    -------
    dict
        Seconds of each schedule, by name.
    """
    every = range(len(slices))
    in_joint = [JOINT_EPOCHS * mini_batches(n) for n in slices]
    steps = sum(INFOMAX_EPOCHS * parts.infomax[i] + in_joint[i] * parts.joint[i] for i in every)
    encoding = sum(in_joint[i] * parts.forward[i] for i in every)
    once = sum(parts.forward)
    n_plain = n_epochs * max(1, round(sum(slices) / plain_batch))
    return {
        "published, encoding in joint epochs": encoding + steps,
        "published, encoding in infomax too": encoding + INFOMAX_EPOCHS * once + steps,
        "plain loop": n_epochs * once + n_plain * parts.plain,
    }
