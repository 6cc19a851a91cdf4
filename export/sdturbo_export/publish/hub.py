"""A bundle to the Hugging Face Hub: the files that it lists, as one commit. huggingface_hub is imported when it is used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath

from sdturbo.bundle import Bundle
from sdturbo.bundle.description import MANIFEST
from sdturbo.bundle.hub_cache import COMMIT, is_inside, repository_of
from sdturbo.bundle.hub_errors import hub_errors, require_hub
from sdturbo.errors import BundleError, HubError, InvalidRequest
from sdturbo_export.errors import listed
from sdturbo_export.publish.card import CARD, card

LICENCE, NOTICE = "LICENSE.md", "NOTICE"
NO_TEXT = "was not part of the checkpoint this bundle was made from"  # of `bundle_writer.STABILITY_TERMS`
TEMPORARY = (".tmp", ".partial", ".incomplete", ".lock")


@dataclass(frozen=True, slots=True)
class Pushed:
    """A bundle on the Hub. commit: 40 hex digits, for `revision`. url: its files at that commit."""

    repo_id: str
    commit: str
    url: str
    files: tuple[str, ...]


def push(
    bundle: Bundle, repo_id: str, *, private: bool, branch: str | None, message: str | None, say: Callable[[str], None]
) -> Pushed:
    """Push a bundle whose hashes were just checked. The repository and the branch are made if they are missing.

    A card (README.md) comes with it, unless the bundle or the repository has one. Files that a broken push has left on the Hub
    are not sent again. branch: None is main. say: takes a line of progress.
    Raises InvalidRequest, BundleError for a bundle that must not be passed on, HubError with the reason, and
    BackendUnavailable without huggingface_hub.
    """
    require_hub("`sdturbo-export push`")
    licence, is_own = _check(bundle, branch), _has_card(bundle)
    with hub_errors(f"{bundle.path} cannot be pushed to {repo_id}"):
        from huggingface_hub import CommitOperationAdd, HfApi

        api = HfApi()
        api.create_repo(repo_id, private=private or None, exist_ok=True)
        if private and not api.repo_info(repo_id).private:
            raise InvalidRequest(f"{repo_id} is on the Hub and is public. Leave out --private, or take another name.")
        if branch is not None:
            api.create_branch(repo_id, branch=branch, exist_ok=True)
        names = sorted([*bundle.files, MANIFEST])
        additions = [CommitOperationAdd(name, bundle.path / name) for name in names]
        if is_own:
            say(f"the bundle's directory holds a {CARD}, which goes along as the card")
            additions.append(CommitOperationAdd(CARD, bundle.path / CARD))
        elif CARD not in names and CARD not in api.list_repo_files(repo_id, revision=branch):
            additions.append(CommitOperationAdd(CARD, card(bundle, repo_id, licence).encode()))
        say(f"{len(additions)} files, {sum(size for _, size in bundle.files.values()) / 1e6:.0f} MB, to {repo_id}")
        text = message or f"Bundle {bundle.bundle_id}"
        commit = api.create_commit(repo_id, additions, commit_message=text, revision=branch).oid
        lost = set(names) - set(api.list_repo_files(repo_id, revision=commit))
        if lost:
            raise HubError(
                f"{repo_id}@{commit} lacks {listed(sorted(lost))}: a .gitignore there names them. Delete it and push again."
            )
        url = f"{api.endpoint}/{repo_id}/tree/{commit}"
    return Pushed(repo_id, commit, url, tuple(addition.path_in_repo for addition in additions))


def _has_card(bundle: Bundle) -> bool:
    """Whether the directory holds a card that the bundle does not list. Raises BundleError if it is a link that leads out."""
    file = bundle.path / CARD
    if CARD in bundle.files or not file.is_file():
        return False
    repository = repository_of(bundle.path)
    is_own = file.resolve().is_relative_to(bundle.path.resolve()) or (repository and is_inside(repository, file))
    if not is_own:
        fault = (
            f"its {CARD} leads out of the bundle, to {file.resolve()}, which would be published. Copy it or delete it"
        )
        raise BundleError(bundle.path, [fault])
    return True


def unlisted(bundle: Bundle) -> list[str]:
    """Files in the bundle's directory that it does not list, so that they are not pushed."""
    present = (file.relative_to(bundle.path).as_posix() for file in bundle.path.rglob("*") if file.is_file())
    return sorted(name for name in present if name not in bundle.files and name not in (MANIFEST, CARD))


def _check(bundle: Bundle, branch: str | None) -> str:
    """The text of the licence. Raises BundleError for a bundle that must not be passed on, InvalidRequest for the branch."""
    if branch is not None and COMMIT.fullmatch(branch):
        raise InvalidRequest(f"Got --revision {branch}, which looks like a commit. Expected the name of a branch.")
    faults = [
        f"it lists no {name}, without which it must not be passed on"
        for name in (LICENCE, NOTICE)
        if name not in bundle.files
    ]
    hidden = [name for name in bundle.files if _is_hidden(name)]
    if hidden:
        faults.append(f"it lists hidden or temporary files: {listed(hidden)}")
    licence = "" if faults else (bundle.path / LICENCE).read_text(encoding="utf-8")
    if NO_TEXT in " ".join(licence.split()):
        faults.append(
            f"its {LICENCE} says that the licence's text is missing, and the licence asks to pass that on. Put LICENSE.md into"
            " the checkpoint's directory and build the bundle again"
        )
    if faults:
        raise BundleError(bundle.path, faults)
    return licence


def _is_hidden(name: str) -> bool:
    path = PurePosixPath(name)
    return any(part.startswith(".") for part in path.parts) or path.suffix in TEMPORARY
