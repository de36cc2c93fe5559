"""Record golden values from the code as it is: ``python tests/golden/record.py [--stores] [SCENE ...]``.

To be run where a change of behavior is meant, and named in its commit. ``--stores`` also writes anew the inputs, the
saved model, the checkpoint, the folder of receipts, the folder of runs and the cached features, which stand for files
that users have: these are to stay as they are, so that every later version is seen to read them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

import st_gchb
from golden import scenes
from golden.scenes import INPUTS, QUIET, SLICES, STORES, UM_PER_PX
from golden.values import write, write_machine
from st_gchb._logging import logger

OF_EARLIER = "checkpoint"
"""Store that versions wrote which compared log-normalized expression; it cannot be recorded anew."""


def record_inputs() -> None:
    """Draw the sections, and keep pixels, counts, positions and features."""
    shutil.rmtree(INPUTS, ignore_errors=True)
    INPUTS.mkdir(parents=True)
    adata = st_gchb.datasets.synthetic_tissue(3, n_rows=7, n_cols=7, n_genes=40, seed=3, um_per_px=UM_PER_PX)
    for name in SLICES:
        Image.fromarray(adata.uns["spatial"][name]["images"]["hires"]).save(INPUTS / f"{name}.png", optimize=True)
    np.savez_compressed(
        INPUTS / "sections.npz",
        counts=adata.X.toarray().astype(np.uint16),
        spatial=adata.obsm["spatial"],
        spots=np.array(adata.obs_names, dtype=str),
        genes=np.array(adata.var_names, dtype=str),
        slice=np.array(adata.obs["slice"], dtype=str),
        patient=np.array(adata.obs["patient"], dtype=str),
        spot_diameter_px=adata.uns["spatial"]["S1"]["scalefactors"]["spot_diameter_fullres"],
    )
    again = scenes.with_features(scenes.sections())
    names = np.array(again.obs_names, dtype=str)
    np.savez_compressed(INPUTS / "features.npz", spots=names, features=again.obsm["X_patch"])


def record_stores() -> None:
    """Write one of each file that the package keeps for its users."""
    for path in STORES.iterdir():
        if path.name != OF_EARLIER:
            shutil.rmtree(path)
    adata = scenes.with_features(scenes.sections())
    model = scenes.trained(scenes.slices_of(adata, "S1", "S2"), "default")
    model.save(STORES / "model")
    model.predict(scenes.bare(scenes.slices_of(adata, "S3")), search="index")
    model.save(STORES / "indexed")
    record_checkpoint("checkpoint_measured")
    record_receipts()
    with tempfile.TemporaryDirectory() as folder:
        st_gchb.evaluate.evaluate(adata, methods=["ridge", "mean"], n_top_genes=25, seeds=[0], runs_dir=folder)
        shutil.copytree(folder, STORES / "runs")
    with tempfile.TemporaryDirectory() as folder:
        part = scenes.slices_of(scenes.sections(), "S3")
        st_gchb.pp.embed_patches(part, encoder="texture", patch_um=150, n_views=4, cache_dir=folder)
        shutil.copytree(folder, STORES / "cache")


def record_checkpoint(name: str) -> None:
    """Write the checkpoint of a training that was stopped after two epochs."""

    class Stop(Exception):
        """Ends the training whose checkpoint is kept."""

    def stop(trainer: object, module: object) -> None:
        if trainer.current_epoch == 2:  # type: ignore[attr-defined]
            raise Stop

    from lightning.pytorch.callbacks import LambdaCallback

    try:
        scenes.untrained().train(
            **QUIET,
            calibrate=False,
            checkpoint_dir=STORES / name,
            callbacks=[LambdaCallback(on_train_epoch_start=stop)],
        )
    except Stop:
        logger.info("A checkpoint of two epochs is kept.")


def record_receipts() -> None:
    """Predict one slide, and keep its result with the receipt, whose paths are put in by who copies it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        slide, model = scenes.slide_in(folder), shutil.copytree(STORES / "model", folder / "model")
        report = scenes.predicted(folder)
        assert report["status"].tolist() == ["done"], report
        shutil.copytree(folder / "results", STORES / "results")
        del slide, model
        for file in (STORES / "results").rglob("*.json"):
            text = file.read_text(encoding="utf-8")
            file.write_text(text.replace(json.dumps(name)[1:-1], "@FOLDER@"), encoding="utf-8")
        (STORES / "results" / "report.csv").unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes", nargs="*", help="scenes to record; by default all")
    parser.add_argument("--stores", action="store_true", help="also write inputs and stores anew")
    parser.add_argument("--shared", type=Path, help="folder with data/her2st and weights/: also record real tissue")
    arguments = parser.parse_args()
    os.environ.setdefault("MPLBACKEND", "agg")
    # An empty cache: features that another thread count has made differ in their last bits.
    with tempfile.TemporaryDirectory() as cache, st_gchb.settings.override(cache_dir=cache), scenes.one_thread():
        if arguments.stores:
            record_inputs()
            record_stores()
        for name, scene in scenes.SCENES.items():
            if not arguments.scenes or name in arguments.scenes:
                logger.info("Recording %s", name)
                write(name, scene())
        if not arguments.scenes or "checkpoint" in arguments.scenes:
            with tempfile.TemporaryDirectory() as folder:
                write("checkpoint", scenes.checkpoint(scenes.copy_of("checkpoint", Path(folder))))
        if arguments.shared:
            weights = arguments.shared / "weights" / "mobilenet_v2_imagenet.safetensors"
            write("her2st", scenes.her2st(arguments.shared / "data" / "her2st", weights))
    write_machine()


if __name__ == "__main__":
    main()
