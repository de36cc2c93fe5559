"""Hugging Face hub: download and upload of whole folders, model cards, and the hub's refusals in plain words.

Nothing that is downloaded is run: files are fetched by their names, and their readers check them.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelCardData,
    constants,
)
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from st_gchb import __version__
from st_gchb._errors import ArgumentError, HubAccessError, HubError, HubNotFoundError, ModelCardError, STGCHBError
from st_gchb._logging import logger
from st_gchb._settings import bars_disabled

_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
CARD = "README.md"
"""File name of a model card."""

# The errors of the hub's client have no common base but that of its HTTP library, which differs between versions.
_CLIENT_ERRORS: tuple[type[Exception], ...] = (OSError, *cast("tuple[type[Exception], ...]", HfHubHTTPError.__bases__))

_UPLOAD_ERRORS: tuple[type[Exception], ...] = (*_CLIENT_ERRORS, ValueError)


@dataclass(frozen=True)
class Download:
    """Files of a repository on this machine.

    Parameters
    ----------
    folder
        Folder with the files.
    commit
        Commit that they are of, 40 hexadecimal digits.
    """

    folder: Path
    commit: str


def is_repo_id(name: str) -> bool:
    """Return whether a text has the form ``owner/name``.

    Examples
    --------
    >>> from st_gchb._hub import is_repo_id
    >>> is_repo_id("my-lab/breast"), is_repo_id("results/model/v2"), is_repo_id("model")
    (True, False, False)
    """
    return bool(_REPO_ID.fullmatch(name)) and ".." not in name and "--" not in name


def page_of(repo_id: str) -> str:
    """Return the address of a repository's page."""
    return f"{_endpoint()}/{repo_id}"


def kept_at(repo_id: str) -> Path:
    """Return the folder of the hub's cache where a repository's files are kept."""
    return Path(constants.HF_HUB_CACHE).expanduser() / _store(repo_id)


def _store(repo_id: str) -> str:
    return f"models--{repo_id.replace('/', '--')}"


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", constants.ENDPOINT).rstrip("/")


def _api(token: str | bool | None) -> HfApi:
    return HfApi(endpoint=_endpoint(), token=token, library_name="st-gchb", library_version=__version__)


def download(
    repo_id: str,
    choose: Callable[[list[str]], list[str]],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: Path | None = None,
    local_files_only: bool = False,
) -> Download:
    """Fetch files of a repository into the hub's cache; those that are there already are not fetched again.

    Parameters
    ----------
    repo_id
        Repository, as ``owner/name``.
    choose
        Function that is given the names of the repository's files and returns those to fetch. What it raises passes
        through, before anything is fetched.
    revision
        Branch, tag or commit; by default the main branch.
    token
        Token of the hub; by default the one with which the user is logged in.
    cache_dir
        Folder of the cache; by default the hub's own.
    local_files_only
        Take what is in the cache, and ask no server. The same is done, with a warning, if the hub gives nothing.

    Raises
    ------
    HubAccessError
        The repository is private or gated, and this account may not read it.
    HubNotFoundError
        There is no such repository or revision.
    HubError
        The hub cannot be reached and the files are not in the cache, or the connection broke off.
    """
    api, kept = _api(token), cache_dir or Path(constants.HF_HUB_CACHE).expanduser()
    if local_files_only:
        return _from_cache(repo_id, revision, kept, choose, None)
    try:
        names = [file.rfilename for file in api.model_info(repo_id, revision=revision).siblings or []]
    except _CLIENT_ERRORS as error:
        return _from_cache(repo_id, revision, kept, choose, error)
    wanted = choose(names)
    with _quiet_if_asked():
        try:
            folder = api.snapshot_download(repo_id, revision=revision, cache_dir=kept, allow_patterns=wanted)
        except _CLIENT_ERRORS as error:
            raise _in_words(error, repo_id, revision) from error
    missing = [name for name in wanted if not (Path(folder) / name).is_file()]
    if missing:
        raise HubError(
            f"{repo_id} on {_endpoint()}: {missing[0]} was not delivered. Nothing was loaded. Call again; files that "
            "came whole are kept."
        )
    return Download(Path(folder), Path(folder).name)


def _found(repo_id: str, revision: str | None, cache_dir: Path) -> Download | None:
    """Look for a revision in the cache, of which some files may be missing."""
    store = cache_dir / _store(repo_id)
    commit = revision if revision is not None and _COMMIT.fullmatch(revision) else None
    if commit is None:
        reference = store / "refs" / (revision or constants.DEFAULT_REVISION)
        commit = reference.read_text().strip() if reference.is_file() else None
    folder = store / "snapshots" / (commit or "-")
    return Download(folder, folder.name) if folder.is_dir() else None


def _from_cache(
    repo_id: str,
    revision: str | None,
    cache_dir: Path,
    choose: Callable[[list[str]], list[str]],
    why: BaseException | None,
) -> Download:
    """Return a copy in the cache; ``why`` is the error of the hub, None if it was not asked.

    Raises
    ------
    HubError
        There is no copy; of the kind that tells why the hub gave none.
    """
    found, store = _found(repo_id, revision, cache_dir), cache_dir / _store(repo_id)
    refusal = None if why is None else _in_words(why, repo_id, revision)
    if found is None:
        if refusal is not None and _answer(why) is not None:
            raise refusal from why
        reason = (
            "local_files_only=True asks no server"
            if why is None
            else f"{_endpoint()} cannot be reached ({_first_line(why)})"
        )
        raise HubError(
            f"{repo_id}{_at(revision)}: {reason}, and no copy is in {cache_dir}. Call again with network; or copy the "
            f"folder {store} from a machine that has it; or download the repository's files elsewhere and pass their "
            "folder."
        ) from why
    try:
        choose([path.relative_to(found.folder).as_posix() for path in found.folder.rglob("*") if path.is_file()])
    except STGCHBError as error:
        # An interrupted download: what the hub says tells more than what is missing.
        raise (refusal or error) from why
    if why is not None:
        logger.warning(
            "%s: %s gives nothing (%s); the copy of commit %s in the cache is used.",
            *(repo_id, _endpoint(), _first_line(why), found.commit[:12]),
        )
    return found


@contextmanager
def _quiet_if_asked() -> Iterator[None]:
    """Turn the hub's progress bars off where those of the package are."""
    if not bars_disabled() or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def upload(
    folder: Path,
    repo_id: str,
    *,
    replaces: Iterable[str],
    message: str,
    private: bool,
    revision: str | None = None,
    create_pr: bool = False,
    token: str | bool | None = None,
) -> str:
    """Put the files of a folder into a repository as one commit, whole or not at all.

    Parameters
    ----------
    folder
        Folder whose files are uploaded.
    repo_id
        Repository, as ``owner/name``; it is made if there is none.
    replaces
        Names of files that are deleted in the repository where the folder has none of that name. Others stay.
    message
        Message of the commit.
    private
        Whether a repository that is made is private.
    revision
        Branch, which is made if there is none; by default the main branch.
    create_pr
        Open a pull request instead of changing the branch.
    token
        As in :func:`download`.

    Returns
    -------
    str
        Address of the repository's page, or of the pull request.

    Raises
    ------
    HubAccessError
        This account may not write there, or nobody is logged in.
    HubNotFoundError, HubError
        As in :func:`download`.
    """
    api = _api(token)
    made = False
    try:
        if not api.repo_exists(repo_id):
            api.create_repo(repo_id, private=private, exist_ok=True)
            made = True
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        there = {file.rfilename for file in api.model_info(repo_id, revision=revision).siblings or []}
        names = sorted(path.name for path in folder.iterdir())
        operations: list[Any] = [CommitOperationAdd(name, folder / name) for name in names]
        operations += [CommitOperationDelete(name) for name in sorted(there & set(replaces) - set(names))]
        # One commit. The hub's upload_folder may make several, between which the repository would hold half a model.
        with _quiet_if_asked():
            commit = api.create_commit(
                repo_id, operations, commit_message=message, revision=revision, create_pr=create_pr
            )
    except _UPLOAD_ERRORS as error:
        left = f" The repository {repo_id} was made, and is empty." if made else " The repository is as it was."
        raise _in_words(error, repo_id, revision, writing=True, left=left) from error
    return str(commit.pr_url or page_of(repo_id))


def check_repo_id(repo_id: str) -> None:
    """Validate that a repository can have this name.

    Raises
    ------
    ArgumentError
        It has not the form ``owner/name``.
    """
    if not is_repo_id(repo_id):
        raise ArgumentError(
            f"repo_id={repo_id!r}; expected 'owner/name', the account or organization on the hub and the name of the "
            "model, of letters, digits, '-', '_' and '.', such as 'my-lab/her2-breast'."
        )


# ---- Refusals of the hub ----


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def refusal(error: BaseException, repo_id: str) -> HubError | None:
    """Put the hub's refusal behind another library's error into words; None if there is none."""
    return None if _answer(error) is None else _in_words(error, repo_id, None)


def _answer(error: BaseException | None) -> Any:
    """Return the hub's own refusal behind an error; None if the hub was not reached or is down."""
    for one in _chain(error):
        # Some versions of the client derive "not in the cache" from this, without an answer.
        if isinstance(one, HfHubHTTPError) and one.response is not None:
            status = one.response.status_code
            return None if status >= 500 else one
    return None


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"


def _at(revision: str | None) -> str:
    return "" if revision is None else f" at revision {revision!r}"


def _in_words(
    error: BaseException, repo_id: str, revision: str | None, *, writing: bool = False, left: str = ""
) -> HubError:
    """Say what the hub refused, and what to do."""
    answer, page = _answer(error), page_of(repo_id)
    status = getattr(getattr(answer, "response", None), "status_code", 0)
    nothing = "Nothing was uploaded." if writing else "Nothing was loaded."
    login = "Log in once by `hf auth login` with a token of https://huggingface.co/settings/tokens, or set HF_TOKEN"
    if isinstance(answer, GatedRepoError):
        return HubAccessError(
            f"{repo_id} is shared under terms that this account has not accepted, or nobody is logged in (the hub "
            f"answers {status}). (1) Make an account on https://huggingface.co. (2) Open {page} and accept the terms; "
            "some owners answer by hand, after days, and want the address of an institution. (3) "
            f"{login}; the token needs the right to read gated repositories. (4) Call again: the files are then kept "
            f"in {kept_at(repo_id)}, and are not asked for again. {nothing}"
        )
    if isinstance(answer, RevisionNotFoundError):
        return HubNotFoundError(
            f"{repo_id} has no revision {revision!r}. Its branches, tags and commits are on {page}/commits/main. "
            f"{nothing}{left}"
        )
    if status in (401, 403):
        right = "write there" if writing else "read it"
        return HubAccessError(
            f"{repo_id} on {_endpoint()}: nobody is logged in, this account may not {right}, or there is no such "
            f"repository (the hub answers {status}). Check the name. {login}; the token has to be of an account with "
            f"the right to {right}. {nothing}{left}"
        )
    if status == 404 or isinstance(answer, RepositoryNotFoundError):
        return HubNotFoundError(
            f"There is no repository {repo_id} on {_endpoint()}. Check the name: it is 'owner/name', as in the address "
            f"of its page. {nothing}{left}"
        )
    if answer is not None:
        reason = getattr(answer, "server_message", None) or str(answer).strip().splitlines()[0]
        return HubError(
            f"{repo_id} on {_endpoint()}: the hub refuses (it answers {status}: {reason}). {nothing}{left} "
            f"{'Wait, and call again.' if status == 429 else 'Correct what it names, and call again.'}"
        )
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT):
        return HubError(
            f"{repo_id}: the files cannot be kept in {constants.HF_HUB_CACHE} ({error}). Make room there, or set "
            f"HF_HOME to another folder. {nothing}{left}"
        )
    return HubError(
        f"{repo_id} on {_endpoint()}: the hub could not be reached, or the connection broke off before all was "
        f"{'sent' if writing else 'there'} ({_first_line(error)}). {nothing}{left} Call again; "
        f"{'see https://status.huggingface.co if it fails again.' if writing else 'files that came whole are kept.'}"
    )


# ---- Model cards ----


def card_text(metadata: dict[str, Any], body: str) -> str:
    """Return a model card: metadata as YAML between lines of dashes, then Markdown."""
    return f"---\n{ModelCardData(**metadata).to_yaml()}\n---\n\n{body}"


def check_card(text: str, where: str) -> None:
    """Validate that a model card has metadata with a license, and says something of the training data.

    Raises
    ------
    ModelCardError
        The card has no metadata, no license, or no section on the training data.
    """
    remedy = "STGCHB.write_model_card makes a card that has it, to be edited."
    front = re.match(r"---\n(.*?)\n---(?:\n|\Z)", text, re.DOTALL)
    try:
        metadata = yaml.safe_load(front[1]) if front else {}
    except yaml.YAMLError as error:
        raise ModelCardError(
            f"{where}: what stands between the lines of dashes is no YAML ({error}). {remedy}"
        ) from error
    if not isinstance(metadata, dict) or not metadata.get("license"):
        raise ModelCardError(
            f"{where} names no license in its metadata (license: ..., between lines of dashes at the top). {remedy}"
        )
    section = re.search(r"^#+ *training data *$\n(.*?)(?=^#|\Z)", text, re.MULTILINE | re.DOTALL | re.IGNORECASE)
    if section is None or not section[1].strip():
        raise ModelCardError(
            f"{where} says nothing of the data that the model was trained on: it has no section 'Training data', or an "
            f"empty one. {remedy}"
        )


def read_card(path: Path) -> str:
    """Read a model card; errors as :func:`check_card`, and if there is no such file."""
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise ModelCardError(f"{path}: there is no card that can be read ({error.strerror}). Pass its path.") from error
    except UnicodeDecodeError as error:
        raise ModelCardError(f"{path} is no text in UTF-8 ({error}). Save it as UTF-8.") from error
    check_card(text.replace("\r\n", "\n"), str(path))
    return text
