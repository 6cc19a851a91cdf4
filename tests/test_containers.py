"""Containerfile, compose.yaml and kubernetes.yaml agree with the package. `make container` builds and runs them."""

import re
import tomllib
from pathlib import Path

import yaml

import sdturbo
from sdturbo_serve.app import probes
from sdturbo_serve.cli import cli

ROOT = Path(__file__).parent.parent
CONTAINERFILE = (ROOT / "Containerfile").read_text(encoding="utf-8").replace("\\\n", " ")
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
DEPLOYMENT, SERVICE = yaml.safe_load_all((ROOT / "engine/examples/kubernetes.yaml").read_text(encoding="utf-8"))
PORT = next(part.default for part in cli.params if part.name == "port")
ROUTES = {route.path for route in probes.routes}


def test_the_label_has_the_version():
    assert re.findall(r'image\.version="(.*?)"', CONTAINERFILE) == [sdturbo.__version__]


def test_extras_exist_and_those_for_gpus_do_not_mix_with_those_for_cpus():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    cpu, cuda = re.findall(r"^ARG EXTRAS=(\S+)", CONTAINERFILE, re.MULTILINE)
    (openvino,) = re.findall(r"--build-arg EXTRAS=(\S+)", CONTAINERFILE)
    assert cpu.split(",") == ["cpu", "serve"]
    assert cuda.split(",") == ["cuda", "serve"]
    assert {extra for names in (cpu, cuda, openvino) for extra in names.split(",")} <= set(extras)
    assert any(requirement.startswith("onnxruntime-gpu[cuda,cudnn]") for requirement in extras["cuda"])


def test_every_stage_stands_on_one_base():
    stages = re.findall(r"^FROM (\S+) AS (\S+)$", CONTAINERFILE, re.MULTILINE)
    assert len(stages) == len(re.findall(r"^FROM ", CONTAINERFILE, re.MULTILINE))
    names = {name: parent for parent, name in stages}
    assert [parent for parent in names.values() if parent not in names] == ["${BASE}"]
    assert names["cpu"] == names["cuda"] == "server"
    assert names["server"] == "python", "the tools of the build stay in the stages of the build"
    assert set(re.findall(r"--from=(\S+)", CONTAINERFILE)) == {"build-cpu", "build-cuda"}


def test_ports_and_routes_are_the_servers():
    (health,) = re.findall(r"HEALTHCHECK.*?CMD (.*)", CONTAINERFILE)
    assert f"'127.0.0.1', {PORT}" in health
    assert re.findall(r"'GET', '(.*?)'", health) == ["/readyz"]
    assert re.findall(r"^EXPOSE (\d+)", CONTAINERFILE, re.MULTILINE) == [str(PORT)]
    container = DEPLOYMENT["spec"]["template"]["spec"]["containers"][0]
    paths = {name: container[name]["httpGet"]["path"] for name in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert paths == {"startupProbe": "/healthz", "readinessProbe": "/readyz", "livenessProbe": "/healthz"}
    assert set(paths.values()) <= ROUTES
    assert [port["containerPort"] for port in container["ports"]] == [PORT]


def test_compose_and_kubernetes_give_no_rights():
    for service in COMPOSE["services"].values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    pod = DEPLOYMENT["spec"]["template"]["spec"]
    container = pod["containers"][0]["securityContext"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["readOnlyRootFilesystem"] is True
    assert container["allowPrivilegeEscalation"] is False
    assert container["capabilities"] == {"drop": ["ALL"]}
    assert f"USER {pod['securityContext']['runAsUser']}:" in CONTAINERFILE


def test_a_service_of_compose_is_a_target_of_the_containerfile():
    targets = {service["build"]["target"]: service["profiles"] for service in COMPOSE["services"].values()}
    assert targets == {"cpu": ["cpu"], "cuda": ["cuda"]}
    assert all(f"AS {target}\n" in CONTAINERFILE for target in targets)


def test_there_is_time_to_finish_what_was_accepted():
    drain = next(part.default for part in cli.params if part.name == "drain")
    pod = DEPLOYMENT["spec"]["template"]["spec"]
    wait = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] > drain + wait
    assert all(int(service["stop_grace_period"].rstrip("s")) > drain for service in COMPOSE["services"].values())


def test_the_service_leads_to_the_deployment():
    labels = DEPLOYMENT["spec"]["template"]["metadata"]["labels"]
    assert SERVICE["spec"]["selector"].items() <= labels.items()
    assert DEPLOYMENT["spec"]["selector"]["matchLabels"].items() <= labels.items()
