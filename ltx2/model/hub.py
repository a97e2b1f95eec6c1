"""Repositories of huggingface.co: what a cache on this machine has of them, and what is fetched."""

import errno
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import huggingface_hub
from huggingface_hub import constants, errors

from ltx2.catalogue import DEV_TRANSFORMER
from ltx2.errors import NotReady
from ltx2.model.layout import OPTIONAL, PROCESSOR, TOKENIZER, title, weight_names
from ltx2.model.parts import REQUIRED

log = logging.getLogger(__name__)

PAGE = "https://huggingface.co/"
STALE_SECONDS = 3600
"""A download that is going on writes every few seconds."""


def local_cache() -> Path:
    """Where huggingface_hub keeps what it fetches: below HF_HOME."""
    return Path(constants.HF_HUB_CACHE)


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE says that nothing may be fetched."""
    return bool(constants.is_offline_mode())


def snapshot_in(cache: Path, repository: str) -> Path | None:
    """The folder a cache has a repository's main revision in, complete or not."""
    folder = cache / _folder_name(repository)
    try:
        snapshots = {path.name: path for path in (folder / "snapshots").iterdir() if path.is_dir()}
        main = folder / "refs" / "main"
        # a cache that others have filled may have no refs
        revision = main.read_text().strip() if main.is_file() else next(iter(snapshots), "")
    except OSError:
        return None
    return snapshots.get(revision)


def fetch(repository: str, patterns: Sequence[str]) -> Path:
    """Have files of a repository in the local cache: those that are not there yet.

    A file is taken up where the connection was cut. Of what a process that was killed had begun, only whole files
    count: huggingface_hub gives each process a file of its own, since not every volume honours locks.

    Returns:
        The folder of the snapshot. It holds what matched, which may be nothing.

    Raises:
        NotReady: the repository is gated, private or not there, the hub cannot be reached, or the disk is full.
    """
    _sweep(local_cache() / _folder_name(repository) / "blobs")
    with _explained(repository):
        return Path(huggingface_hub.snapshot_download(repository, allow_patterns=list(patterns)))


def fetch_diffusers(repository: str, folders: Sequence[str]) -> Path:
    """Have a repository in the diffusers layout in the local cache: of these folders what their indexes name.

    Raises:
        NotReady: see :func:`fetch`.
    """
    described = [f"{folder}/*.json" for folder in folders if folder != TOKENIZER]
    snapshot = fetch(repository, ["model_index.json", f"{TOKENIZER}/*", f"{PROCESSOR}/*", *described])
    weights = [
        f"{folder}/{name}"
        for folder in folders
        if (snapshot / folder / "config.json").is_file()
        for name in weight_names(snapshot / folder, f"the {folder} of the model {title(snapshot)!r}")
    ]
    return fetch(repository, weights)


def list_files(repository: str) -> list[str]:
    """The names of all files of a repository.

    Raises:
        NotReady: see :func:`fetch`.
    """
    with _explained(repository):
        return list(huggingface_hub.HfApi().list_repo_files(repository))


def diffusers_folders(files: Sequence[str], *, is_dev: bool) -> tuple[str, ...]:
    """Which of the folders LTX-2 has in the diffusers layout a repository with these files has: of two transformers
    the one asked for."""
    found = {file.partition("/")[0] for file in files}
    if DEV_TRANSFORMER in found and (is_dev or "transformer" not in found):
        found.discard("transformer")
    else:
        found.discard(DEV_TRANSFORMER)
    return tuple(folder for folder in (*REQUIRED, DEV_TRANSFORMER, TOKENIZER, *OPTIONAL) if folder in found)


def _folder_name(repository: str) -> str:
    return f"models--{repository.replace('/', '--')}"


def _sweep(blobs: Path) -> None:
    """Remove what processes that were killed have begun; a worker that dies at each start would fill the disk."""
    for left in blobs.glob("*.incomplete"):
        with suppress(OSError):  # another process may be sweeping too
            if time.time() - left.stat().st_mtime > STALE_SECONDS:
                left.unlink()
                log.info("removed %s, left by a process that ended early", left)


@contextmanager
def _explained(repository: str) -> Iterator[None]:
    """Say what went wrong and what helps. The hub's own words are left out: they quote signed addresses."""
    verbosity = huggingface_hub.logging.get_verbosity()
    huggingface_hub.logging.set_verbosity(logging.ERROR)
    try:
        yield
    except Exception as error:  # noqa: BLE001 (whatever it is: its words are not for the log)
        # the client wraps what went wrong with the connection
        root = error.__cause__ if isinstance(error, errors.LocalEntryNotFoundError) else None
        raise _refusal(repository, root or error) from None
    finally:
        huggingface_hub.logging.set_verbosity(verbosity)


def _refusal(repository: str, error: BaseException) -> NotReady:
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    log.error("fetching %s failed: %s, status %s", repository, type(error).__name__, status)
    has_token = huggingface_hub.get_token() is not None
    if isinstance(error, errors.GatedRepoError):
        return NotReady(
            f"{repository} is gated: "
            + (
                "the account of HF_TOKEN has not been granted access"
                if has_token
                else "it is not given without a token"
            ),
            hint=f"accept its licence on {PAGE}{repository} and set HF_TOKEN to a read token of that account",
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return NotReady(
            f"there is no hub repository {repository}, or it is private",
            hint="check LTX2_MODEL" + ("" if has_token else "; for a private repository set HF_TOKEN"),
        )
    if status == 401:
        return NotReady(f"the hub does not accept HF_TOKEN for {repository}", hint="set HF_TOKEN to a valid read token")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NotReady(
            f"the disk is full, {repository} could not be fetched completely",
            hint="make room, or set HF_HOME to a folder on a larger disk; files that are complete are kept",
        )
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EROFS):
        return NotReady(
            f"{repository} could not be written to the hub cache",
            hint="set HF_HOME to a folder that this user can write",
        )
    if status is not None:
        return NotReady(f"the hub answered {status} for {repository}", hint="try again later")
    return NotReady(
        f"{repository} could not be fetched: the connection to the hub failed ({type(error).__name__})",
        hint="check the network and try again: files that are complete are kept",
    )
