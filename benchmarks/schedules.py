"""How many patches a schedule of training encodes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

BATCH, INFOMAX_EPOCHS, JOINT_EPOCHS = 16, 50, 4
"""Of the published schedule: spots of a mini-batch; epochs of infomax on images (as many on expression); joint ones."""

# The page on the method says of DLPFC: "42 million patch encodings where 40,629 are needed". The ten slices that are
# not 151675 and 151676 have 40,629 spots. 4 joint epochs with a mini-batch for every 16 spots, and the whole slice
# encoded for each mini-batch, are 41.8 million encodings. So the figure counts the joint epochs alone. The 50 epochs of
# infomax on images see a slice a step and have its patches encoded, too, unless they are kept: 2.0 million more (43.8),
# which "42 million" leaves out; with a mini-batch of 16 a step they would be 521 million more. Infomax on expression
# encodes nothing. Both readings are given: joint epochs alone, and with a slice encoded in every step of infomax on
# images. On slices of 180 spots the second counts twice as many, since a slice has 12 mini-batches there, not 250.


@dataclass(frozen=True)
class Encodings:
    """Patches that go through the encoder.

    Parameters
    ----------
    needed
        Each spot's once.
    joint
        Of the published schedule's joint epochs.
    infomax
        Of its epochs of infomax on images, where these encode a slice a step.
    every_epoch
        Of a loop that encodes each spot once an epoch.
    """

    needed: int
    joint: int
    infomax: int
    every_epoch: int


def mini_batches(n_spots: int) -> int:
    """Mini-batches of a slice in an epoch of the published schedule."""
    return math.ceil(n_spots / BATCH)


def encodings(slices: Sequence[int], n_epochs: int = 20) -> Encodings:
    """Count the encodings of slices with so many spots; ``n_epochs`` are those of the plain loop."""
    needed = sum(slices)
    joint = JOINT_EPOCHS * sum(n * mini_batches(n) for n in slices)
    return Encodings(needed, joint, INFOMAX_EPOCHS * needed, n_epochs * needed)


@dataclass(frozen=True)
class Parts:
    """Seconds of what the schedules are made of.

    Parameters
    ----------
    forward
        The encoder over each slice.
    infomax, joint
        A step of the trainable layers on each slice, in either stage of the published schedule.
    plain
        A step of the plain loop.
    """

    forward: Sequence[float]
    infomax: Sequence[float]
    joint: Sequence[float]
    plain: float


def seconds(slices: Sequence[int], parts: Parts, n_epochs: int, plain_batch: int) -> dict[str, float]:
    """Seconds of whole schedules, by name: each part as often as the schedule has it.

    Parameters
    ----------
    slices
        Spots of each.
    parts
        What was measured.
    n_epochs, plain_batch
        Epochs of the plain loop, and spots of its steps.
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
