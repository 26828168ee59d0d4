"""`azneobert remote`: the shared storage of the outputs, and which of them are there. Only this file calls DVC itself.

`dvc push` and `dvc pull` do the same work; these commands say in a line what is wrong, and what to do.
"""

from __future__ import annotations

import hashlib
import logging
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from azneobert.cli.console import complaints, console
from azneobert.cli.recipe import RecipeName
from azneobert.dvc_files import Output, cached_object, object_path, objects_of, outputs_of
from azneobert.errors import RemoteError
from azneobert.printable import without_secrets
from azneobert.recipe_files import open_recipe

if TYPE_CHECKING:
    from dvc.repo import Repo

app = typer.Typer(no_args_is_help=True, help="Where the outputs lie for others: a folder, SSH, an S3-compatible store.")

NAME = "storage"
_SHOWN = 3  # objects of an output that a message names
_IN_BUCKETS = ("s3", "gs", "azure")
_CONFIG = Path(".dvc/config")


@app.command(name="set")
def set_remote(
    url: Annotated[str, typer.Argument(help="/shared/folder, ssh://host/folder, s3://bucket/folder, ...")],
    endpoint_url: Annotated[str | None, typer.Option(help="Of an S3-compatible store that is not Amazon's.")] = None,
) -> None:
    """Have `dvc push` and `dvc pull` use this place, every object verified; it is asked before anything is changed."""
    if without_secrets(url) != url:
        raise RemoteError(
            f"{_CONFIG}: is in git, and the address holds a password; leave it out, and use AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, an SSH key, or `dvc remote modify --local`"
        )
    former = _CONFIG.read_bytes()
    try:
        _dvc("remote", "add", "--default", "--force", NAME, url)
        _dvc("remote", "modify", NAME, "verify", "true")
        if endpoint_url:
            _dvc("remote", "modify", NAME, "endpointurl", endpoint_url)
        with opened() as repo:
            probe(repo)
    except BaseException:
        _CONFIG.write_bytes(former)
        raise
    console.print(f"{_CONFIG}: outputs go to {url}; commit it, and `dvc push`")


@app.command()
def check(name: RecipeName = None) -> None:
    """Say whether the remote has all that dvc.lock names of a recipe."""
    _, recipe = open_recipe(name)
    outputs = outputs_of(recipe.name)
    with opened() as repo, _refused_objects() as refused:
        storage = probe(repo)
        lacking = {output: missing for output in outputs if (missing := _lacking(repo, storage, output))}
    for output, missing in lacking.items():
        _say_why(output, missing, refused)
    if lacking:
        raise RemoteError(
            f"{place(repo)}: lacks objects of {len(lacking)} of {len(outputs)} outputs; see the lines above"
        )
    console.print(f"{place(repo)}: has all {len(outputs)} outputs of recipe {recipe.name}")


@app.command()
def pull(
    targets: Annotated[list[str] | None, typer.Argument(help="Stages or outputs; default: all of the recipe.")] = None,
) -> None:
    """Bring the outputs of the recipe that runs, as `dvc pull` does, and say of each that cannot be had why."""
    _, recipe = open_recipe(None)
    outputs = outputs_of(recipe.name)
    with opened() as repo, _refused_objects() as refused:
        storage = probe(repo)
        fetched = _pull(repo, targets)
        today = {str(out) for out in repo.index.outs}  # dvc.lock may hold a stage that the recipe no longer has
        asked = [out for out in outputs if out.path in today and (not targets or _is_asked(out, targets))]
        # Do not rely on DVC: it accepts a damaged list of a folder's files if it still is a list.
        lacking = {output: missing for output in asked if (missing := _uncached(repo, storage, output))}
        for output, missing in lacking.items():
            _say_why(output, missing, refused)
        if lacking:
            raise RemoteError(
                f"{place(repo)}: {len(lacking)} of {len(asked)} outputs did not come; see the lines above"
            )
        if isinstance(fetched, Exception):
            raise fetched
    what = ", ".join(targets) if targets else f"all {len(asked)} outputs of recipe {recipe.name}"
    console.print(f"{place(repo)}: {fetched:,} objects brought; {what}: there")


def _pull(repo: Repo, targets: list[str] | None) -> int | Exception:
    """How many objects DVC has fetched, or why it has not brought everything asked for.

    Pulling the stages of the recipe that runs by their file, dvc.yaml, takes a tenth of the time of pulling them by
    name, and leaves the outputs of other recipes in place.
    """
    from dvc.exceptions import CheckoutError, DownloadError, FileTransferError
    from dvc_objects.errors import ObjectFormatError

    try:
        return int(repo.pull(targets or ["dvc.yaml"], allow_missing=True)["stats"].get("fetched", 0))
    except (CheckoutError, DownloadError, FileTransferError) as error:
        return error
    except ObjectFormatError as error:
        return RemoteError(f"{place(repo)}: {_one_line(error)}")


def _is_asked(output: Output, targets: list[str]) -> bool:
    names = (output.path, output.stage, output.stage.split("@")[0])
    return any(target in names or output.path.startswith(f"{target}/") for target in targets)


def _dvc(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", "dvc", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        said = next((line for line in done.stderr.splitlines() if line.startswith("ERROR: ")), done.stderr)
        raise RemoteError(f"`dvc {' '.join(arguments)}`: {_one_line(said.removeprefix('ERROR: '))}")


@contextmanager
def opened() -> Iterator[Repo]:
    """This project as a DVC repository. DVC's errors become one line."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    # These loggers warn of what the commands here report themselves.
    for logger in ("dvc.data_cloud", "dvc_data", "dvc_objects"):
        logging.getLogger(logger).setLevel(logging.CRITICAL)
    try:
        with Repo() as repo:
            yield repo
    except DvcException as error:
        said = _one_line(error)
        if said.startswith("Can't remove the following unsaved files"):
            changed = said.rsplit(" ", 1)[-1]
            raise RemoteError(
                f"{changed}: is not what DVC left there; delete it, or move it away, and pull again"
            ) from error
        raise RemoteError(f"dvc: {said}") from error


def probe(repo: Repo) -> Any:
    """The remote's store of objects, which answers.

    Raises:
        RemoteError: there is no remote, or it does not answer.
    """
    from dvc.config import NoRemoteError

    try:
        storage = repo.cloud.get_remote_odb()
        list(storage.oids_exist(["0" * 32]))
        bucket = storage.path.split("/")[0]
        if storage.fs.protocol in _IN_BUCKETS and not storage.fs.exists(bucket):
            raise FileNotFoundError(bucket)
        if not storage.fs.exists(storage.path) and storage.fs.protocol == "local":
            complaints.print(f"{storage.path}: is not there yet; the first `dvc push` makes it")
    except NoRemoteError:
        raise RemoteError(
            "dvc: no remote is set; use `azneobert remote set URL`, with a folder, ssh://... or s3://..."
        ) from None
    except Exception as error:  # any error of the transport: botocore, asyncssh, or the file system
        raise RemoteError(f"{place(repo)}: {_remedy(error)}") from error
    return storage


def _remedy(error: Exception) -> str:
    said = _one_line(error)
    kind = type(error).__name__
    if isinstance(error, ImportError):
        scheme = said.split(" ")[0]
        return f"needs a package that is not installed; use `pip install 'azneobert[{scheme}]'`, or 'dvc[{scheme}]'"
    if "NoCredentials" in kind or "credentials" in said.lower():
        return f"{said}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
    if isinstance(error, PermissionError) or "Forbidden" in said or "Signature" in said or "InvalidAccessKey" in said:
        return f"does not let you in ({said}); check the key"
    if isinstance(error, FileNotFoundError) or "NoSuchBucket" in said:
        return f"no such bucket or folder ({said}); make it, or correct the address in {_CONFIG}"
    if "Connect" in kind or isinstance(error, ConnectionError):
        return f"does not answer ({said}); check the address in {_CONFIG}, and the network"
    return f"cannot be used ({kind}: {said}); check the address in {_CONFIG}"


def _lacking(repo: Repo, storage: Any, output: Output) -> list[str]:
    """The objects of an output that the remote lacks; for a folder whose list it lacks, the list."""
    objects = _objects_of(repo, storage, output)
    there = set(storage.oids_exist(objects))
    return [md5 for md5 in objects if md5 not in there]


def _uncached(repo: Repo, storage: Any, output: Output) -> list[str]:
    """The objects of an output that this machine lacks; for a folder its files, if their list is known."""
    cache, objects = _cache(repo), _objects_of(repo, storage, output)
    missing = [md5 for md5 in objects if not object_path(cache, md5).is_file()]
    # DVC brings a list after its files: if a file does not come, neither does the list.
    return [md5 for md5 in missing if md5 != output.md5] or missing


def _objects_of(repo: Repo, storage: Any, output: Output) -> list[str]:
    """The md5 of each object of an output. A folder's list of files is read from the cache, or from the remote."""
    content = None
    if output.md5.endswith(".dir"):
        content = cached_object(_cache(repo), output.md5)
        if content is None and storage.exists(output.md5):
            content = storage.fs.cat_file(storage.oid_to_path(output.md5))
            if hashlib.md5(content).hexdigest() != output.md5.removesuffix(".dir"):
                content = None  # the list is damaged, and may name anything
    return list(objects_of(output, content).values())


@contextmanager
def _refused_objects() -> Iterator[set[str]]:
    """The md5 of each object that DVC finds corrupted. DVC reports these in its log alone."""
    found: set[str] = set()

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "corrupted" in str(record.msg):
                place = record.getMessage().split("'")[1]  # corrupted cache file '.../files/md5/ab/cdef...'.
                found.add("".join(Path(place).parts[-2:]))

    logger, listener = logging.getLogger("dvc_data.hashfile.db"), Listener()
    former = logger.level, logger.propagate
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    logger.addHandler(listener)
    try:
        yield found
    finally:
        logger.removeHandler(listener)
        logger.level, logger.propagate = former


def _say_why(output: Output, missing: list[str], refused: set[str]) -> None:
    """Why an output cannot be had: objects that are not in the remote, and those that are there with other bytes."""
    make = f"or `dvc repro {output.stage.split('@')[0]}`"
    # If the remote has a folder's list, DVC does not check the folder's files, and would push nothing.
    listed = output.md5.endswith(".dir") and missing != [output.md5]
    its_list = f"the folder's list {_objects([output.md5])}" if listed else ""
    if damaged := [md5 for md5 in missing if md5 in refused]:
        complaints.print(
            f"{output.path}: damaged in the remote, {_objects(damaged)}, whose bytes are not those of its name; delete "
            f"it{' and ' * listed}{its_list} there and `dvc push` from where it is whole, {make}"
        )
    if absent := [md5 for md5 in missing if md5 not in refused]:
        complaints.print(
            f"{output.path}: not in the remote, {_objects(absent)}; {listed * f'delete {its_list} there and '}"
            f"`dvc push` from where it was made, {make}"
        )


def _objects(hashes: list[str]) -> str:
    more = f" and {len(hashes) - _SHOWN:,} more" if len(hashes) > _SHOWN else ""
    return ", ".join(object_path(Path(), md5).as_posix() for md5 in hashes[:_SHOWN]) + more


def _cache(repo: Repo) -> Path:
    return Path(repo.cache.local.path).parent.parent


def place(repo: Repo) -> str:
    """The remote's name and address, for messages."""
    name = repo.config["core"].get("remote", NAME)
    return f"remote {name} ({repo.config['remote'].get(name, {}).get('url', 'no address')})"


def _one_line(said: object) -> str:
    return " ".join(str(said).split()) or type(said).__name__
