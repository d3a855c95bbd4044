"""What ships for Kubernetes, containers, SLURM and TLS, as far as it can be tried without any of them."""

from __future__ import annotations

import copy
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer
import yaml

from support.kuberay import KINDS
from voxray import __version__, cli
from voxray.core.config import parse
from voxray.serving.config import ServeConfig

REPOSITORY = Path(__file__).resolve().parents[1]
DEPLOY = REPOSITORY / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
RAY = re.search(r"^ray==(.+)$", (REPOSITORY / "constraints.txt").read_text(), re.MULTILINE)


def documents(name: str) -> list[dict[str, Any]]:
    """What a manifest holds."""
    return list(yaml.safe_load_all((KUBERNETES / name).read_text()))


def custom() -> Iterator[tuple[str, dict[str, Any]]]:
    """(file, resource) of every custom resource of KubeRay."""
    for path in sorted(KUBERNETES.glob("*.yaml")):
        for document in documents(path.name):
            if document["apiVersion"] == "ray.io/v1":
                yield path.name, document


def cluster_of(document: dict[str, Any]) -> dict[str, Any]:
    """The cluster's specification within a resource."""
    spec: dict[str, Any] = document["spec"]
    found: dict[str, Any] = spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec
    return found


CUSTOM = list(custom())


def test_there_is_a_cluster_a_job_and_a_service() -> None:
    assert {document["kind"] for _, document in CUSTOM} == set(KINDS)


@pytest.mark.parametrize(("name", "document"), CUSTOM, ids=lambda value: value if isinstance(value, str) else "")
class TestKubeRay:
    """Each custom resource."""

    def test_its_fields_are_kuberays(self, name: str, document: dict[str, Any]) -> None:
        del name
        jsonschema.validate(document, KINDS[document["kind"]])
        slip = copy.deepcopy(document)
        cluster_of(slip)["headGroupSpec"]["rayStartParam"] = {}
        with pytest.raises(jsonschema.ValidationError, match="rayStartParam"):
            jsonschema.validate(slip, KINDS[document["kind"]])

    def test_it_has_one_image_the_tested_ray_and_a_token(self, name: str, document: dict[str, Any]) -> None:
        del name
        assert RAY is not None
        cluster = cluster_of(document)
        groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
        images = {container["image"] for group in groups for container in group["template"]["spec"]["containers"]}
        assert images == {f"registry.example.org/voxray:{__version__}-cuda"}
        assert cluster["rayVersion"] == RAY.group(1)
        assert cluster["authOptions"] == {"mode": "token"}

    def test_workers_come_from_none_or_one_and_have_bounds(self, name: str, document: dict[str, Any]) -> None:
        del name
        cluster = cluster_of(document)
        assert cluster["enableInTreeAutoscaling"]
        for group in cluster["workerGroupSpecs"]:
            assert group["minReplicas"] == group["replicas"] <= group["maxReplicas"]
            assert group["replicas"] == (1 if document["kind"] == "RayService" else 0)
            (container,) = group["template"]["spec"]["containers"]
            amounts = container["resources"]
            assert amounts["requests"] == amounts["limits"], "Ray counts what the limits say"


def test_a_training_on_kubernetes_is_a_command_that_voxray_takes_and_is_begun_again() -> None:
    (job,) = documents("rayjob.yaml")
    program, verb, *arguments = shlex.split(job["spec"]["entrypoint"])
    assert (program, verb) == ("voxray", "train")
    command: Any = typer.main.get_command(cli.app)
    assert command.commands[verb].make_context(verb, arguments).params["out"] == "s3://BUCKET/run"
    assert job["spec"]["backoffLimit"] >= 1
    assert yaml.safe_load(job["spec"]["runtimeEnvYAML"])["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"] == "60"


def test_the_service_is_one_that_ray_serve_and_voxray_take() -> None:
    from ray.serve.schema import ServeDeploySchema

    (service,) = documents("rayservice.yaml")
    config = yaml.safe_load(service["spec"]["serveConfigV2"])
    ServeDeploySchema.model_validate(config)
    (application,) = config["applications"]
    made = parse(ServeConfig, application["args"], where="rayservice.yaml")
    pod = cluster_of(service)["headGroupSpec"]["template"]["spec"]
    mounted = [mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]]
    assert made.folder in mounted
    assert all(model.path.startswith(made.folder) for model in made.models.values())
    assert made.host == config["http_options"]["host"] == "0.0.0.0"
    assert "@postgres" in made.database
    assert ":" not in made.database.partition("://")[2].partition("@")[0], "no password stands in it"


def test_redis_is_the_one_that_heads_ask_for() -> None:
    service, stateful = documents("redis.yaml")
    (port,) = service["spec"]["ports"]
    address = f"redis://{service['metadata']['name']}:{port['port']}"
    (container,) = stateful["spec"]["template"]["spec"]["containers"]
    secret = container["env"][0]["valueFrom"]
    asked = [found for _, one in CUSTOM if (found := cluster_of(one).get("gcsFaultToleranceOptions"))]
    assert asked == [{"redisAddress": address, "redisPassword": {"valueFrom": secret}}] * 2
    assert service["spec"]["selector"] == stateful["spec"]["template"]["metadata"]["labels"]


def instructions(text: str) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile with what they are given, continued lines joined."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(line.split()[0], line.partition(" ")[2].strip()) for line in joined.splitlines() if line.strip()]


def test_the_image_is_made_of_what_is_there_under_the_tested_versions() -> None:
    found = instructions((DEPLOY / "Dockerfile").read_text())
    known = {"ARG", "FROM", "RUN", "ENV", "WORKDIR", "COPY", "USER", "CMD"}
    assert {name for name, _ in found} == known
    assert found[0] == ("ARG", "PYTHON=3.11")
    taken = [source for name, text in found if name == "COPY" for source in text.split()[:-1]]
    assert all((REPOSITORY / source).exists() for source in taken)
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    assert ignored[0] == "**"
    assert {line[1:] for line in ignored if line.startswith("!")} == {source.rstrip("/") for source in taken}
    pips = [text for name, text in found if name == "RUN" and "pip install" in text]
    assert all("constraints.txt" in text for text in pips)
    extras = next(text.partition("=")[2] for name, text in found if name == "ARG" and text.startswith("EXTRAS="))
    offered = re.findall(r"^([a-z0-9-]+) = \[", (REPOSITORY / "pyproject.toml").read_text(), re.MULTILINE)
    assert set(extras.split(",")) <= set(offered)
    assert [name for name, _ in found].index("USER") > max(at for at, (name, _) in enumerate(found) if name == "COPY")
    assert ("USER", "ray") in found


def test_the_images_build_argument_is_checked_by_the_shell_that_takes_it() -> None:
    (script,) = [
        text for name, text in instructions((DEPLOY / "Dockerfile").read_text()) if "TORCH" in text and name == "RUN"
    ]
    stub = 'pip() { echo pip "$@"; }; '
    for torch, code, part in (("cpu", 0, "whl/cpu torch=="), ("cuda", 0, "pip install torch=="), ("rocm", 1, "")):
        done = subprocess.run(
            ["sh", "-c", stub + script],
            env={"TORCH": torch, "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            cwd=REPOSITORY,
        )
        assert (done.returncode, part in done.stdout) == (code, True), done
    assert "TORCH=rocm: must be cpu or cuda" in done.stderr


def test_the_slurm_script_is_a_script_and_refuses_no_verb() -> None:
    script = DEPLOY / "slurm.sh"
    subprocess.run(["bash", "-n", script], check=True)
    done = subprocess.run(["bash", script], capture_output=True, text=True)
    assert done.returncode == 2
    assert "no verb" in done.stderr
    options = re.findall(r"^#SBATCH --([a-z-]+)", script.read_text(), re.MULTILINE)
    assert {"nodes", "requeue", "exclusive", "ntasks-per-node"} <= set(options)
    assert "RAY_AUTH_MODE=token" in script.read_text()


def test_the_proxy_goes_where_the_service_and_the_dashboard_listen() -> None:
    text = re.sub(r"#.*", "", (DEPLOY / "tls" / "nginx.conf").read_text())
    assert text.count("{") == text.count("}")
    port = yaml.safe_load((REPOSITORY / "serve" / "config.yaml").read_text())["http_options"]["port"]
    assert set(re.findall(r"proxy_pass (\S+);", text)) == {f"http://127.0.0.1:{port}", "http://127.0.0.1:8265"}
    for statement in re.split(r"[{}]", text):
        assert (
            not statement.strip()
            or ";" in statement
            or statement.strip().split()[0] in {"events", "http", "server", "location", "map"}
        )
    assert "ssl_protocols TLSv1.2 TLSv1.3;" in text


def test_no_secret_stands_in_what_ships() -> None:
    for path in [REPOSITORY / "cluster.yaml", *(path for path in DEPLOY.rglob("*") if path.is_file())]:
        text = path.read_text()
        assert not re.search(r"(password|token|secret|key): *['\"]?[A-Za-z0-9+/]{16,}", text, re.IGNORECASE), (
            path.name
        )
