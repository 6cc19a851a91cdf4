"""The Containerfile's images: small, without tools, and serving with no right but to listen."""

import base64
import io
import time

import httpx2
import pytest
import yaml
from containers import KEY, ROOT, SERVER, compose_options, counted_network, inspected, run
from PIL import Image

import sdturbo

pytestmark = pytest.mark.container
MAX_BYTES = 450_000_000
AUTHORIZED = {"Authorization": f"Bearer {KEY}"}
URL = f"http://{SERVER}:8000"
# limits that machines without rights to raise them have too
HERE = ("--ulimit", "nofile=1024:4096", "--ulimit", "nproc=4096:4096", "--pull=never")
HARD = ("--read-only", "--read-only-tmpfs=false", "--cap-drop", "all", "--security-opt", "no-new-privileges")


def shell(podman, image, script):
    return podman("run", "--rm", *HERE, "--network", "none", "--user", "0", "--entrypoint", "sh", image, "-c", script)


def wait_until_ready(podman, name):
    for _ in range(600):
        try:
            if httpx2.get(f"{URL}/readyz").status_code == 200:
                return
        except httpx2.TransportError:
            assert inspected(podman, "container", name)["State"]["Running"], podman.logs(name)
        time.sleep(0.2)
    raise AssertionError(f"the server was not ready in time: {podman.logs(name)}")


@pytest.fixture(scope="module")
def network():
    with counted_network() as network:
        yield network


@pytest.fixture(scope="module")
def server(podman, image, network, tmp_path_factory):
    """The name of a container with the options of compose.yaml, once its server is ready."""
    options, named = compose_options("cpu", tmp_path_factory.mktemp("compose"))
    assert named == image
    there = (
        "--network",
        f"ns:/run/netns/{network.name}",
        "--read-only-tmpfs=false",
    )  # podman's own, which Docker has not
    podman("run", "--detach", "--name", "server", *HERE, *there, *options, image)
    try:
        wait_until_ready(podman, "server")
        yield "server"
    finally:
        print(podman.logs("server"))
        podman("rm", "--force", "server")


def test_the_image_with_onnxruntime_and_the_server_is_small(podman, image):
    size = inspected(podman, "image", image)["Size"]
    print(f"\n{image}: {size / 1e6:.0f} MB")
    assert size <= MAX_BYTES


def test_the_image_holds_no_tool_for_building_and_no_cache(podman, image):
    tools = "pip pip3 gcc cc make git curl wget"
    assert shell(podman, image, f"for tool in {tools}; do command -v $tool; done; true") == ""
    site = "/opt/sdturbo/lib/python3*/site-packages"
    assert shell(podman, image, f"find {site} -maxdepth 1 -iname 'pip*' -not -iname 'pillow*'") == ""
    assert shell(podman, image, f"find {site} -name tests -type d") == ""
    leftovers = "/root /tmp /source /var/lib/apt/lists /var/cache/apt"
    assert shell(podman, image, f"find {leftovers} -type f -size +16k 2>/dev/null || true") == ""


def test_the_image_says_what_it_is_and_whom_it_runs_as(podman, image):
    answer = inspected(podman, "image", image)
    config = answer["Config"]
    labels = {name.removeprefix("org.opencontainers.image."): text for name, text in config["Labels"].items()}
    assert labels["version"] == sdturbo.__version__
    assert {"title", "description", "licenses"} <= set(labels)
    assert config["User"] == "10001:10001"
    assert config["ExposedPorts"] == {"8000/tcp": {}}
    assert "/readyz" in " ".join(answer["Healthcheck"]["Test"])


def test_no_secret_of_the_build_is_in_the_image(podman, image):
    assert shell(podman, image, "ls -A /run/secrets /etc/pip.conf 2>/dev/null || true") == ""
    assert "index" not in str(inspected(podman, "image", image)["Config"]).lower()


def test_the_server_has_no_rights_and_writes_nowhere(podman, server):
    lines = podman("exec", server, "cat", "/proc/1/status").splitlines()
    status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    assert {int(status[name], 16) for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb")} == {0}
    assert status["NoNewPrivs"].strip() == "1"
    assert set(status["Uid"].split()) == {"10001"}
    places = "/ /tmp /var/tmp /root /opt/sdturbo /etc $HOME"
    script = f"for place in {places}; do touch $place/x 2>/dev/null && echo $place; done; true"
    assert podman("exec", server, "sh", "-c", script) == ""


def test_the_health_check_passes(podman, server):
    podman("healthcheck", "run", server)


def test_text_and_images_are_drawn(server):
    request = {"prompt": "a red cat in the snow", "seed": 1}
    assert httpx2.post(f"{URL}/v1/images/generations", json=request).status_code == 401
    answer = httpx2.post(f"{URL}/v1/images/generations", json=request, headers=AUTHORIZED, timeout=60).json()
    cat = base64.b64decode(answer["data"][0]["b64_json"])
    with Image.open(io.BytesIO(cat)) as image:
        assert image.size == (512, 512)
        noise = Image.effect_noise((1400, 1400), 90).convert("RGB")
    large = io.BytesIO()
    noise.save(large, "png")
    assert len(large.getvalue()) > 2**20  # beyond what a form holds in memory
    for start in (cat, large.getvalue()):
        edit = httpx2.post(
            f"{URL}/v1/images/edits",
            data={"prompt": "a blue cat", "steps": 2, "strength": 0.5},
            files={"image": ("start.png", start, "image/png")},
            headers=AUTHORIZED,
            timeout=60,
        )
        assert edit.status_code == 200, edit.text
        assert edit.json()["data"][0]["b64_json"]


def test_it_ends_in_seconds_and_has_sent_nothing_anywhere(podman, server, network):
    assert network.sent() == 0
    start = time.monotonic()
    podman("stop", "--time", "20", server)
    assert time.monotonic() - start < 5
    assert inspected(podman, "container", server)["State"]["ExitCode"] == 0
    assert network.sent() == 0
    run("ip", "netns", "exec", network.name, "sh", "-c", "timeout 1 bash -c 'echo > /dev/tcp/203.0.113.1/80' || true")
    assert network.sent() > 0, "a connection would not have been counted"


def test_without_a_key_it_says_so_and_ends(podman, image):
    name = "keyless"
    podman("run", "--detach", "--name", name, *HERE, *HARD, "--network", "none", image)
    try:
        assert podman("wait", name) == "2"
        logs = podman.logs(name)
    finally:
        podman("rm", "--force", name)
    assert "--without-key" in logs
    assert "Traceback" not in logs


def test_openvino_is_an_argument_of_the_build(podman, network):
    image = "localhost/sdturbo:openvino"
    podman.build("cpu", image, "--build-arg", "EXTRAS=openvino,serve")
    print(f"\n{image}: {inspected(podman, 'image', image)['Size'] / 1e6:.0f} MB")
    podman("stop", "--all", "--time", "20")  # the other server has the same address
    before, there = network.sent(), ("--network", f"ns:/run/netns/{network.name}")
    podman("run", "--detach", "--name", "openvino", *HERE, *HARD, *there, image, "--without-key")
    try:
        wait_until_ready(podman, "openvino")
        answer = httpx2.post(f"{URL}/v1/images/generations", json={"prompt": "a cat"}, timeout=60).json()
        assert answer["sdturbo"]["backend"] == "openvino"
        podman("stop", "--time", "20", "openvino")
        assert inspected(podman, "container", "openvino")["State"]["ExitCode"] == 0
    finally:
        print(podman.logs("openvino"))
        podman("rm", "--force", "openvino")
    assert network.sent() == before


def test_every_step_of_the_image_for_gpus_runs_with_its_packages_only_resolved(podman):
    """Gigabytes of CUDA's libraries are looked up, and neither fetched nor installed."""
    podman.build("cuda", "localhost/sdturbo:cuda", pip="[install]\ndry-run = true")
    config = inspected(podman, "image", "localhost/sdturbo:cuda")["Config"]
    assert {"NVIDIA_VISIBLE_DEVICES=all", "NVIDIA_DRIVER_CAPABILITIES=compute,utility"} <= set(config["Env"])
    assert config["User"] == "10001:10001"
    assert config["Entrypoint"] == ["sdturbo-serve", "--host", "0.0.0.0"]


def test_the_example_for_kubernetes_fits_its_schema():
    import kubernetes_validate

    documents = list(yaml.safe_load_all((ROOT / "engine/examples/kubernetes.yaml").read_text(encoding="utf-8")))
    assert [document["kind"] for document in documents] == ["Deployment", "Service"]
    for document in documents:
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)
    documents[0]["spec"]["template"]["spec"]["containers"][0]["livenessProbe"]["httpGet"]["path"] = 8000
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(documents[0], kubernetes_validate.latest_version(), strict=True)
