"""If these fail, the image does not build, lacks something, runs as root, or a service ends at its first command."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ray.scripts.scripts import start as ray_start
from tensorboard.program import TensorBoard

from tests.launching import ROOT

DOCKERFILE = ROOT / "docker/Dockerfile"
COMPOSE = ROOT / "docker/compose.yaml"
Stages = dict[str, list[tuple[str, list[str]]]]


def tool(name: str) -> str:
    """A program of the development group; there are none for some kinds of machines."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def read_stages() -> Stages:
    """The Dockerfile's stages: each instruction and its words, those of the stage it is based on before its own."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if line.strip() and not line.startswith("#")]
    stages: Stages = {}
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        instruction, _, rest = line.partition(" ")
        words = rest.split()
        if instruction == "FROM":
            name = words[2]
            stages[name] = list(stages.get(words[0], []))
        stages[name].append((instruction, words))
    return stages


def composed(**environment: str) -> dict[str, Any]:
    """The services as Docker's own reader understands them, every profile included."""
    command = [tool("docker-compose"), "--file", str(COMPOSE), "--profile", "*", "config", "--format", "json"]
    variables = {"PATH": os.environ["PATH"], "HOME": "/home/user", **environment}
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, "a variable without a default, or an outdated key"
    content: dict[str, Any] = json.loads(done.stdout)
    return content


def test_the_dockerfile_is_clean() -> None:
    subprocess.run([tool("hadolint"), str(DOCKERFILE)], check=True)


def test_what_an_image_is_made_of_is_there_and_reaches_the_build() -> None:
    """A folder that is renamed, or not named in .dockerignore, would be missed in the middle of a build."""
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert rules[0] == "*", "data, runs and credentials would travel into the build"
    sent = {rule[1:] for rule in rules if rule.startswith("!")}
    assert all((ROOT / name).exists() for name in sent)
    copied = {
        name: {
            source
            for instruction, words in instructions
            if instruction == "COPY" and not words[0].startswith("--from")
            for source in words[:-1]
        }
        for name, instructions in read_stages().items()
    }
    assert copied["trainer"] <= sent
    assert copied["dependencies"] == {"pyproject.toml"}, "a change of the sources would install everything again"
    code = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    assert code | {"configs"} <= copied["trainer"]
    assert code | {"configs", "docker", "tests"} <= sent


def test_images_run_as_a_user_without_rights() -> None:
    stages = read_stages()
    assert list(stages)[-1] == "trainer", "the last stage is what `docker build` makes"
    for name in ("trainer", "development"):
        (user,) = [words for instruction, words in stages[name] if instruction == "USER"][-1]
        made = [words for instruction, words in stages[name] if instruction == "RUN" and "useradd" in words]
        assert user in made[0], "a number that a build argument leaves empty would be root's"
    defaults = dict(words[0].split("=") for instruction, words in stages["trainer"] if instruction == "ARG")
    assert all(int(defaults[number]) > 0 for number in ("USER_ID", "GROUP_ID"))


def test_services_find_their_image_their_folders_and_their_token() -> None:
    stages, content = read_stages(), composed(DATA="/mnt/data", RUNS="/mnt/runs")
    (folder,) = {words[0] for instruction, words in stages["trainer"] if instruction == "WORKDIR"}
    for name, service in content["services"].items():
        mounted = {volume["target"]: volume["source"] for volume in service["volumes"]}
        assert {f"{folder}/runs": "/mnt/runs"}.items() <= mounted.items(), name
        assert not any(volume["bind"]["create_host_path"] for volume in service["volumes"]), "Docker makes it root's"
        assert not any("token" in str(value).lower() for value in service.get("build", {}).get("args", {}).values())
        if name == "tensorboard":
            assert [port["host_ip"] for port in service["ports"]] == ["127.0.0.1"]
            continue
        assert mounted[f"{folder}/data"] == "/mnt/data"
        assert service["build"]["target"] in stages
        assert (Path(service["build"]["context"]) / service["build"]["dockerfile"]).resolve() == DOCKERFILE
        assert set(service["build"]["args"]) == {"USER_ID", "GROUP_ID"}
        assert int(service["shm_size"]) >= 2**30
        (gpus,) = service["deploy"]["resources"]["reservations"]["devices"]
        assert (gpus["driver"], gpus["capabilities"]) == ("nvidia", ["gpu"])
    for name in ("ray-head", "ray-worker"):
        service = content["services"][name]
        assert service["environment"] == {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": f"/run/secrets/{service['secrets'][0]['source']}",
        }
    token = Path(content["secrets"]["ray_token"]["file"])
    assert token == Path("/home/user/.ray/auth_token"), "where configs/ray/cluster.sh makes it"


@pytest.mark.parametrize(("service", "address"), [("ray-head", None), ("ray-worker", "10.0.0.1:6379")])
def test_ray_services_start_what_ray_knows_and_stay(tmp_path: Path, service: str, address: str | None) -> None:
    """The script is run with a `ray` that writes down how it was called, which Ray's own reader then takes."""
    fake = tmp_path / "ray"
    fake.write_text('#!/bin/bash\n[ "$1" = start ] && printf "%s\\n" "${@:2}" > "$(dirname "$0")/called"\nexit 0\n')
    fake.chmod(0o755)
    command = composed(RAY_HEAD="10.0.0.1")["services"][service]["command"]
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    given = ray_start.make_context("start", (tmp_path / "called").read_text().splitlines()).params
    assert (given["head"], given["address"], given["block"]) == (address is None, address, True)


def test_a_worker_without_the_head_s_address_says_so() -> None:
    command = composed()["services"]["ray-worker"]["command"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert "the address of the head" in done.stderr


def test_the_other_services_are_commands_of_this_project() -> None:
    services = composed()["services"]
    stages = read_stages()
    default = [words for instruction, words in stages["trainer"] if instruction == "CMD"][-1]
    assert json.loads(" ".join(default)) == services["trainer"]["command"]
    assert services["trainer"]["command"][:2] == shlex.split("accelerate launch")
    assert (ROOT / services["trainer"]["command"][2]).is_file()
    board = TensorBoard()
    board.configure(services["tensorboard"]["command"])
    assert (board.flags.logdir, board.flags.host, board.flags.port) == ("runs", "0.0.0.0", 6006)
