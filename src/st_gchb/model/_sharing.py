"""Models on hubs: a model folder and its card go up as one commit, and come back as a folder that is read as any other.

scvi-tools' own hub keeps one pickle and a few files that it knows; a model folder of this package has others, and goes
up whole.
"""

from __future__ import annotations

import re
import tempfile
from dataclasses import replace
from pathlib import Path

from st_gchb._artifacts import is_there, write_whole
from st_gchb._errors import InputError, MissingFileError, ModelFileError
from st_gchb._hub import CARD, check_card, check_repo_id, download, is_repo_id, page_of, read_card, upload
from st_gchb._logging import logger
from st_gchb._signals import held_back
from st_gchb.model._saving import INDEX, JSON, ORIGIN, REFERENCE, TENSORS, SavedModel, write_model
from st_gchb.pp import FeatureSet

MODEL_FILES = (JSON, TENSORS, REFERENCE, ORIGIN, INDEX)
"""Files of a model; the index is optional."""


def write_card(text: str, path: Path, *, overwrite: bool) -> Path:
    """Write a model card, into a folder as ``README.md`` or to a file.

    Raises
    ------
    InputError
        There is a file already, and ``overwrite`` is False.
    StoreError
        It cannot be written.
    """
    target = path / CARD if is_there(path, Path.is_dir) else path
    if is_there(target) and not overwrite:
        raise InputError(f"{target} is there already. Pass overwrite=True to replace it, or another path.")
    check_card(text, "the card")
    with write_whole(target) as part:
        part.write_text(text, encoding="utf-8")
    return target


def without_folders(saved: SavedModel) -> SavedModel:
    """Keep the names of weights files alone: the folders in which they lay are those of one machine, and its user's."""
    features = saved.rules.features
    if features is None:
        return saved
    specs = [replace(spec, weights=re.split(r"[/\\]", spec.weights)[-1]) for spec in features.specs]
    return replace(saved, rules=replace(saved.rules, features=FeatureSet(specs)))


def push(
    saved: SavedModel,
    card: str | Path,
    repo_id: str,
    *,
    private: bool,
    revision: str | None,
    create_pr: bool,
    message: str,
    token: str | bool | None,
) -> str:
    """Upload a model and its card.

    Parameters
    ----------
    saved
        Content of the model.
    card
        Text of the card, or the path of one.
    repo_id, private, revision, create_pr, message, token
        As in :func:`st_gchb._hub.upload`.

    Returns
    -------
    str
        Address of the repository's page, or of the pull request.
    """
    check_repo_id(repo_id)
    if create_pr and revision is not None:
        raise InputError("create_pr=True is a proposal to the main branch. Leave revision out, or create_pr.")
    text = read_card(card) if isinstance(card, Path) else card
    check_card(text, "the card")
    with tempfile.TemporaryDirectory(prefix="st_gchb_hub_") as parent:
        folder = Path(parent) / "model"
        with held_back():
            write_model(without_folders(saved), folder, overwrite=False, adata=None, write={})
        (folder / CARD).write_text(text, encoding="utf-8")
        place = upload(
            folder,
            repo_id,
            replaces=MODEL_FILES,
            message=message,
            private=private,
            revision=revision,
            create_pr=create_pr,
            token=token,
        )
    logger.info("The model is on %s.", place)
    return place


def pull(
    source: str | Path,
    *,
    revision: str | None,
    token: str | bool | None,
    cache_dir: str | Path | None,
    local_files_only: bool,
) -> Path:
    """Return the folder of a model: the folder itself, or that of the hub's cache into which it was fetched.

    Raises
    ------
    MissingFileError
        There is no such folder, and the name is none of a repository.
    InputError
        A revision of a folder is asked for.
    ModelFileError
        The repository holds no model of this package; nothing is fetched then.
    HubAccessError, HubNotFoundError, HubError
        As in :func:`st_gchb._hub.download`.
    """
    if is_there(Path(source), Path.is_dir):
        if revision is not None:
            raise InputError(f"{source} is a folder here, which has no revisions. Leave revision out.")
        return Path(source)
    if isinstance(source, Path) or not is_repo_id(source):
        raise MissingFileError(
            f"There is no model folder {source} (now in {Path.cwd()}), and this is no name of a repository on a hub, "
            "which is 'owner/name'. Pass the folder that model.save wrote, or the name of a repository."
        )

    def files_of_model(names: list[str]) -> list[str]:
        if JSON not in names:
            shown = ", ".join(sorted(names)[:5]) or "nothing"
            raise ModelFileError(
                f"{page_of(source)} holds no model of st-gchb: it has no {JSON} (found {shown}). Check the name; a "
                "model gets there by model.push_to_hub."
            )
        return [name for name in (*MODEL_FILES, CARD) if name in names]

    found = download(
        source,
        files_of_model,
        revision=revision,
        token=token,
        cache_dir=None if cache_dir is None else Path(cache_dir).expanduser(),
        local_files_only=local_files_only,
    )
    logger.info("%s, commit %s: %s", source, found.commit[:12], found.folder)
    return found.folder
