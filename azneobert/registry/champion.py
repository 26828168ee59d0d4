"""Which of two versions is better: by held-out loss, where tokenizer and held-out data are the same."""

from __future__ import annotations

from dataclasses import dataclass

from azneobert.errors import RegistryError
from azneobert.mlflow_place import tracking_uri
from azneobert.mlflow_store import mlflow_client, mlflow_errors
from azneobert.recipe import Tracking
from azneobert.registry.versions import HELD_OUT_TAG, TOKENIZER_TAG, Version, find_version, list_versions, version_of

CHAMPION = "champion"
_LOSS_TAG = "azneobert.loss"
_MUST_AGREE = {TOKENIZER_TAG: "tokenizer", HELD_OUT_TAG: "held-out data"}


@dataclass(frozen=True)
class Promotion:
    """The result of `promote`: the version that has the alias now, the one that had it before, and why, in a line."""

    version: Version
    former: Version | None
    why: str


def held_out_loss(version: Version) -> float | None:
    """The held-out loss with which a version was registered, in nats."""
    try:
        return float(version.tags[_LOSS_TAG])
    except (KeyError, ValueError):
        return None


def differing(a: Version, b: Version) -> str | None:
    """What keeps the figures of two versions from being compared; None where nothing does.

    Losses with two tokenizers are over different tokens; losses on two sets of texts show which texts are easier.
    """
    for tag, what in _MUST_AGREE.items():
        one, other = a.tags.get(tag), b.tags.get(tag)
        if one is None or other is None:
            return f"{(a if one is None else b).uri} does not say which {what} it was evaluated with"
        if one != other:
            return f"{a.uri} and {b.uri} do not have the same {what} ({one[:12]}, {other[:12]})"
    return None


def promote(uri: str, tracking: Tracking, alias: str = CHAMPION, *, force: bool = False) -> Promotion:
    """Point an alias at a version if it is better than the version that has the alias, or with `force`.

    Raises:
        RegistryError: it is not better, or the two cannot be compared; the URI names nothing; MLflow does not answer.
    """
    version = find_version(uri, tracking)
    former = next((v for v in list_versions(tracking, version.name) if alias in v.aliases), None)
    why = _why(version, former, alias, force=force)
    if former is None or former.number != version.number:
        with mlflow_errors(tracking_uri(tracking)):
            client = mlflow_client(tracking)
            client.set_registered_model_alias(version.name, alias, str(version.number))
            version = version_of(client, version.name, str(version.number))
    return Promotion(version, former, why)


def _why(version: Version, former: Version | None, alias: str, *, force: bool) -> str:
    if former is None:
        return f"there was no @{alias}"
    if former.number == version.number:
        return f"it is @{alias} already"
    if reason := differing(version, former):
        if force:
            return f"not compared, since {reason}"
        raise RegistryError(f"{version.uri}: is not compared to {former.uri}, @{alias}: {reason}; use --force")
    mine, theirs = held_out_loss(version), held_out_loss(former)
    if mine is None or theirs is None:
        unknown = version if mine is None else former
        if force:
            return f"{unknown.uri} has no held-out loss"
        raise RegistryError(f"{unknown.uri}: has no held-out loss; use --force to move @{alias} all the same")
    said = f"held-out loss {mine:.4f} against {theirs:.4f} of {former.uri}"
    if mine < theirs:
        return said
    if force:
        return f"{said}, which is not better"
    raise RegistryError(f"{version.uri}: is not better than @{alias}: {said}; use --force to move it all the same")
