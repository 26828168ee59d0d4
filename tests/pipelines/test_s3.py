"""The second person's first hour, through an S3-compatible server: moto's, on this machine."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from project import Project, Reproduced, stages_run

from azneobert.dvc_files import locked_outputs, object_path, objects_of

pytest.importorskip("dvc_s3", reason="dvc[s3] is not installed")
moto_server = pytest.importorskip("moto.server", reason="moto is not installed")

pytestmark = pytest.mark.s3

URL = "s3://handover/outputs"
POINTS = "outputs/sample/phase1/points.jsonl"
CHECKPOINT = "outputs/sample/phase2/checkpoint"
WEIGHTS = "outputs/sample/phase2/checkpoint/weights.safetensors"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """A server with one bucket, and credentials for it in the environment."""
    import boto3

    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("ACCESS_KEY_ID", "key"), ("SECRET_ACCESS_KEY", "secret"), ("DEFAULT_REGION", "us-east-1")):
            patch.setenv(f"AWS_{name}", value)
        boto3.client("s3", endpoint_url=f"http://{host}:{port}").create_bucket(Bucket="handover")
        yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="module")
def bucket(endpoint: str) -> Any:
    """The bucket, to damage what is in it."""
    import boto3

    return boto3.resource("s3", endpoint_url=endpoint).Bucket("handover")


@pytest.fixture(scope="module")
def pushed(pristine: Reproduced, endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project that has pushed its outputs."""
    project = pristine.project.copy(tmp_path_factory.mktemp("s3") / "project")
    said = project.run("azneobert", "remote", "set", URL, "--endpoint-url", endpoint).stdout
    assert f"outputs go to {URL}" in said
    project.commit()
    project.run("dvc", "push", "-q")
    return project


@pytest.fixture
def clone(pushed: Project, tmp_path: Path) -> Project:
    return pushed.clone(tmp_path / "clone")


def key_of(project: Project, bucket: Any, path: str) -> tuple[str, str]:
    """Where the bucket keeps an output, or a file of one; and which output it is."""
    (output,) = (out for out in locked_outputs(project.folder / "dvc.lock") if f"{path}/".startswith(f"{out.path}/"))
    listed = bucket.Object(key(output.md5)).get()["Body"].read() if output.md5.endswith(".dir") else None
    return key(objects_of(output, listed)[path]), output.path


def key(md5: str) -> str:
    return f"outputs/{object_path(Path(), md5).as_posix()}"


def refused(project: Project, *command: str, environment: dict[str, str] | None = None) -> list[str]:
    """The lines on standard error of a command that exits with 1."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (environment or {}).items():
            patch.setenv(name, value)
        done = project.run(*command, check=False)
    assert done.returncode == 1, done.stdout
    assert "Traceback" not in done.stderr
    return done.stderr.strip().splitlines()


def test_a_clone_pulls_and_has_everything(clone: Project) -> None:
    assert "has all" in clone.run("azneobert", "remote", "check").stdout
    assert "outputs of recipe sample: there" in clone.run("azneobert", "remote", "pull").stdout
    assert stages_run(clone.run("dvc", "repro").stdout) == []
    listed = clone.run("azneobert", "registry", "list").stdout
    assert listed.count("restored, sha256") == 2
    assert "probability" in clone.run("azneobert", "fill-mask", "Bakı Azərbaycanın [MASK] şəhəridir.").stdout


@pytest.mark.parametrize("path", [POINTS, WEIGHTS, CHECKPOINT])
def test_a_flipped_byte_is_refused_and_named_before_anything_is_trained(clone: Project, bucket: Any, path: str) -> None:
    key, output = key_of(clone, bucket, path)
    whole = bucket.Object(key).get()["Body"].read()
    place = whole.find(b"weights.safetensors") if path == CHECKPOINT else len(whole) // 2  # of a list, still a list
    bucket.Object(key).put(Body=whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    try:
        *_, why, last = refused(clone, "azneobert", "remote", "pull")
        assert why.startswith(f"{output}: damaged in the remote, {key.removeprefix('outputs/')}")
        assert "`dvc push`" in why
        assert f"`dvc repro {output.split('/')[2]}`" in why
        assert ": 1 of " in last
        assert not (clone.folder / "outputs/sample/running").exists()
    finally:
        bucket.Object(key).put(Body=whole)
    assert "there" in clone.run("azneobert", "remote", "pull").stdout
    assert stages_run(clone.run("dvc", "repro").stdout) == []


@pytest.mark.parametrize("path", [POINTS, CHECKPOINT, WEIGHTS])
def test_a_remote_that_was_pushed_in_part_is_said_by_name(clone: Project, bucket: Any, path: str) -> None:
    key, output = key_of(clone, bucket, path)
    whole = bucket.Object(key).get()["Body"].read()
    bucket.Object(key).delete()
    try:
        for command in ("check", "pull"):
            *_, why, last = refused(clone, "azneobert", "remote", command)
            assert why.startswith(f"{output}: not in the remote, {key.removeprefix('outputs/')}")
            assert "`dvc push` from where it was made" in why
            assert last.startswith(f"error: remote storage ({URL}): ")
    finally:
        bucket.Object(key).put(Body=whole)


def test_what_is_wrong_with_the_place_is_one_line(clone: Project, endpoint: str) -> None:
    config = (clone.folder / ".dvc/config").read_text()
    nobody = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_EC2_METADATA_DISABLED": "true"}
    for arguments, environment, said in (
        (["s3://nothing/there", "--endpoint-url", endpoint], {}, "no such bucket"),
        (["s3://handover/x", "--endpoint-url", "http://127.0.0.1:9"], {}, "does not answer"),
        (["s3://handover/x", "--endpoint-url", endpoint], nobody, "AWS_ACCESS_KEY_ID"),
        (["gopher://handover/x"], {}, "gopher"),
        (["s3://key:secret@handover/x", "--endpoint-url", endpoint], {}, "holds a password"),
    ):
        (line,) = refused(clone, "azneobert", "remote", "set", *arguments, environment=environment)
        assert said in line
        assert (clone.folder / ".dvc/config").read_text() == config, "a place that does not answer is not kept"


def test_a_wrong_key_is_one_line(clone: Project) -> None:
    """moto asks for no key, so the server is one that refuses all."""
    program = (
        "import http.server\n"
        "class Refusing(http.server.BaseHTTPRequestHandler):\n"
        "    def do_HEAD(self): self.send_response(403); self.end_headers()\n"
        "    do_GET = do_HEAD\n"
        "    def log_message(self, *_): pass\n"
        "server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Refusing)\n"
        "print(server.server_port, flush=True)\n"
        "server.serve_forever()\n"
    )
    with subprocess.Popen(["python", "-c", program], stdout=subprocess.PIPE, text=True, env=os.environ) as server:
        assert server.stdout is not None
        endpoint = f"http://127.0.0.1:{server.stdout.readline().strip()}"
        try:
            (line,) = refused(clone, "azneobert", "remote", "set", URL, "--endpoint-url", endpoint)
        finally:
            server.kill()
    assert "does not let you in" in line
    assert "check the key" in line
