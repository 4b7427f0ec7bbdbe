"""Files of a lens in a repository on the Hub: found, listed, fetched and uploaded through huggingface_hub and its
cache.

tuned-lens keeps the lenses that it publishes in a Space, each in a folder lens/NAME; a lens that is pushed has a model
repository of its own, with the files at its top.
"""

import contextlib
import json
import logging
import os
import shlex
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from typing import Any

from lens_rnn.errors import ArtifactError, ConfigError

from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

SPACE = "AlignmentResearch/tuned-lens"
"""Where tuned-lens publishes its lenses."""
SUBFOLDER = "lens"
"""The folder there that holds them."""
_ANSWERS = (RemoteEntryNotFoundError, RevisionNotFoundError, RepositoryNotFoundError)
"""The Hub was reached and does not have it."""

log = logging.getLogger(__name__)


def available(
    required: Sequence[str], repo_id: str | None, repo_type: str | None, revision: str | None, subfolder: str
) -> list[str]:
    """Names of the folders below `subfolder` that hold all files `required`, sorted. Raises ArtifactError if they
    cannot be listed."""
    repo, kind = _repository(repo_id, repo_type)
    try:
        files = set(HfApi().list_repo_files(repo, repo_type=kind, revision=revision))
    except Exception as error:  # offline, missing, private: huggingface_hub has a type for each
        raise ArtifactError(f"the lenses of the {kind} {repo} cannot be listed ({_reason(error, revision)})") from error
    top = f"{subfolder}/" if subfolder else ""
    folders = {path.rpartition("/")[0] for path in files}
    return sorted(
        f.removeprefix(top) for f in folders if f.startswith(top) and all(f"{f}/{name}" in files for name in required)
    )


def fetch(
    resource: str,
    required: Sequence[str],
    optional: Sequence[str],
    *,
    repo_id: str | None,
    repo_type: str | None,
    revision: str | None,
    subfolder: str,
) -> Path:
    """The folder of huggingface_hub's cache that holds the files of a lens, all of one commit; what is not cached yet
    is downloaded.

    It is looked for as tuned-lens does, in the folder `subfolder`/`resource` of the repository. Where no repository is
    named, here or in the environment, `resource` may also be a model repository with the lens at its top. Raises
    ArtifactError if it cannot be had.
    """
    repo, kind = _repository(repo_id, repo_type)
    folder = "/".join(filter(None, (subfolder, resource)))
    places: list[dict[str, Any]] = [{"repo_id": repo, "repo_type": kind, "revision": revision, "subfolder": folder}]
    of_its_own = repo == SPACE and repo_id is None and resource.count("/") == 1
    if of_its_own:
        cached = isinstance(try_to_load_from_cache(resource, required[0], revision=revision), str)
        places.insert(
            0 if cached else 1, {"repo_id": resource, "revision": revision}
        )  # where it was found before is asked first
    failures: dict[str, Exception] = {}
    for place in places:
        unreachable = not all(isinstance(error, _ANSWERS) for error in failures.values())
        try:
            return _download(required, optional, local_files_only=unreachable, **place)
        except Exception as error:
            failures[place["repo_id"]] = error
    failed = failures[repo]
    names = []
    if isinstance(failed, RemoteEntryNotFoundError):
        with contextlib.suppress(ArtifactError):
            names = get_close_matches(resource, available(required, repo, kind, revision, subfolder), cutoff=0.4)
    where = f"neither {repo} nor a model repository of that name gives it" if of_its_own else f"{repo} does not give it"
    close = f"; close names there: {', '.join(names)}" if names else ""
    raise ArtifactError(
        f"no lens folder {resource!r} here, and {where} ({_reason(failed, revision)}){close}"
    ) from failed


def fetch_file(resource: str, suffix: str, revision: str | None) -> Path:
    """One file of a model repository, from huggingface_hub's cache or downloaded: USER/REPOSITORY/PATH or, where one
    file there has this suffix, USER/REPOSITORY. Raises ArtifactError if it cannot be had."""
    parts = resource.strip("/").split("/") if not resource.startswith("/") else [resource]
    repo, path = "/".join(parts[:2]), "/".join(parts[2:])
    try:
        validate_repo_id(repo)
        if not path:
            files = [name for name in HfApi().list_repo_files(repo, revision=revision) if name.endswith(suffix)]
            if len(files) != 1:
                names = ", ".join(files[:8]) or "none"
                raise ArtifactError(f"{repo} has not one {suffix} file but: {names}; add the file's path to the name")
            path = files[0]
        return Path(hf_hub_download(repo, path, revision=revision))
    except ArtifactError:
        raise
    except Exception as error:  # offline, missing, private: huggingface_hub has a type for each
        raise ArtifactError(
            f"no file {resource!r} here, and the Hub does not give it ({_reason(error, revision)})"
        ) from error


def check_push(repo_id: str) -> str:
    """Ask the Hub whose token this is. Returns the full name, "user/name", of the repository to push to.

    Raises ConfigError if there is no token, the Hub cannot be asked, or the token may not write there: before a fit,
    not after it.
    """
    try:
        validate_repo_id(repo_id)
        user = HfApi().whoami()
    except LocalTokenNotFoundError:
        raise ConfigError(
            f"pushing to {repo_id} needs a token of the Hub, and there is none; `hf auth login` stores one"
        ) from None
    except Exception as error:  # a bad name, no network, a token that is no longer valid
        raise ConfigError(f"cannot push to {repo_id} ({_reason(error)})") from error
    owner, _, _ = repo_id.rpartition("/")
    owners = [user["name"], *(group["name"] for group in user.get("orgs", []))]
    if owner and owner not in owners:
        raise ConfigError(
            f"the token of {user['name']} cannot push to {repo_id}; its repositories are those of {', '.join(owners)}"
        )
    if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise ConfigError(
            f"the token of {user['name']} may only read, and pushing to {repo_id} needs one that may write"
        )
    return repo_id if owner else f"{user['name']}/{repo_id}"


def upload(folder: Path, files: Sequence[str], repo_id: str, private: bool, revision: str | None) -> None:
    """Put files of a folder at the top of a model repository, in one commit; the repository is made if there is none.

    Raises ArtifactError if the Hub refuses, or if it is to be private and the repository that is there is public.
    """
    api = HfApi()
    try:
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        public = private and not api.model_info(repo_id).private
        if not public:
            if revision is not None:
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            adds = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=folder / name) for name in files]
            commit = api.create_commit(repo_id, adds, commit_message="Upload a tuned lens", revision=revision)
    except Exception as error:
        raise ArtifactError(
            f"the lens in {folder} could not be uploaded to {repo_id} ({_reason(error)}); to try again: "
            + _command(folder, repo_id, private, revision)
        ) from error
    if public:
        raise ArtifactError(
            f"nothing was uploaded: the repository {repo_id} is there already and public; name another or make it "
            "private"
        )
    log.info("the lens in %s is now %s", folder, commit.commit_url)


def _repository(repo_id: str | None, repo_type: str | None) -> tuple[str, str]:
    """The repository and its type: as given, else as the variables that tuned-lens reads say, else its Space."""
    repo_id = repo_id or os.environ.get("TUNED_LENS_REPO_ID") or SPACE
    return repo_id, repo_type or os.environ.get("TUNED_LENS_REPO_TYPE") or "space"


def _download(required: Sequence[str], optional: Sequence[str], **place: Any) -> Path:
    paths = []
    for name in required:
        paths.append(Path(hf_hub_download(filename=name, **place)))
        folders = len(PurePosixPath(place.get("subfolder") or "").parts)
        place["revision"] = paths[0].parents[folders].name  # the commit, so that the others are of the same
    known = {key: value for key, value in place.items() if key in ("repo_id", "repo_type", "revision")}
    for name in optional:
        file = "/".join(filter(None, (place.get("subfolder"), name)))
        if try_to_load_from_cache(filename=file, **known) is None:  # neither there nor known to be absent
            with contextlib.suppress(EntryNotFoundError):
                hf_hub_download(filename=name, **place)
    return paths[0].parent


def _reason(error: BaseException, revision: str | None = None) -> str:
    """What went wrong, in a few words."""
    if isinstance(error, LocalEntryNotFoundError) and error.__cause__:
        error = error.__cause__  # its own text only says that something else happened
    if isinstance(error, RevisionNotFoundError):
        return f"it has no revision {revision}"
    if isinstance(error, RepositoryNotFoundError):
        return "there is no such repository, or it is private"
    if isinstance(error, RemoteEntryNotFoundError):
        return "it has no such lens"
    return " ".join(str(error).split())[:200] or type(error).__name__


def _command(folder: Path, repo_id: str, private: bool, revision: str | None) -> str:
    """What to type to push a lens."""
    arguments = [json.dumps(str(folder)), json.dumps(repo_id)]
    arguments += ["private=True"] if private else []
    arguments += [f"revision={json.dumps(revision)}"] if revision else []
    return "python -c " + shlex.quote(f"from lens_rnn import artifacts; artifacts.push({', '.join(arguments)})")
