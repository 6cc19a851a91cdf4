"""Files that leave the server: the mark that a model drew them, and a signature if the server has a certificate."""

import base64
import io
import json
import logging
import os
import sys
import threading
from urllib.parse import urlsplit

import certificates
import httpx2
import pytest
from PIL import Image
from serving import EDITS, GENERATIONS, client_of, command, png, wait_until

from sdturbo import ContentCredentials
from sdturbo.commands.console import run
from sdturbo_serve.cli import cli

MARK = b"<Iptc4xmpExt:DigitalSourceType>http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia<"
CREATED = [("c2pa.created", "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia")]
FORMATS = ("png", "jpeg", "webp")
PROMPT = "a secret fox"


@pytest.fixture(scope="module")
def authority():
    return certificates.Authority()


@pytest.fixture(scope="module")
def pair(tmp_path_factory, authority):
    return certificates.write_pair(tmp_path_factory.mktemp("pair"), authority, certificates.KEYS["Es256"]())


@pytest.fixture(scope="module")
def signing(bare, pair):
    options = {"public_url": "http://testserver", "a1111": True, "credentials": ContentCredentials.load(*pair)}
    with client_of(bare, **options) as client:
        yield client


def generated(client, output_format):
    return client.post(GENERATIONS, json={"prompt": PROMPT, "seed": 7, "n": 2, "output_format": output_format})


def edited(client, output_format):
    fields = {"prompt": PROMPT, "steps": "2", "output_format": output_format}
    return client.post(EDITS, data=fields, files={"image": png()})


def files_of(answer):
    assert answer.status_code == 200, answer.text
    return [base64.b64decode(each["b64_json"]) for each in answer.json()["data"]]


def linked(client, output_format):
    body = {"prompt": PROMPT, "response_format": "url", "output_format": output_format}
    (link,) = client.post(GENERATIONS, json=body).json()["data"]
    parts = urlsplit(link["url"])
    return client.get(f"{parts.path}?{parts.query}").content


def lived(client, output_format):
    with client.websocket_connect("/v1/live") as socket:
        socket.send_json({"prompt": PROMPT, "seed": 7, "output_format": output_format})
        assert socket.receive_json()["type"] == "frame"
        return socket.receive_bytes()


def automatic(client, route, **more):
    answer = client.post(f"/sdapi/v1/{route}", json={"prompt": PROMPT, "seed": 7, **more})
    assert answer.status_code == 200, answer.text
    return [base64.b64decode(image) for image in answer.json()["images"]]


def every_file(client):
    """(format, file) of every route that gives pictures."""
    start = base64.b64encode(png()).decode()
    for output_format in FORMATS:
        files = [*files_of(generated(client, output_format)), *files_of(edited(client, output_format))]
        for file in (*files, linked(client, output_format), lived(client, output_format)):
            yield output_format, file
    for file in (*automatic(client, "txt2img", batch_size=2), *automatic(client, "img2img", init_images=[start])):
        yield "png", file


def test_every_route_marks_and_signs_its_pictures(signing, authority):
    count = 0
    for output_format, file in every_file(signing):
        assert MARK in file
        state, manifest = certificates.read_signed(file, output_format, authority)
        assert state == "Trusted"
        assert certificates.source_types(manifest) == CREATED
        assert not certificates.has_text(manifest, "fox")
        count += 1
    assert count == 3 * 5 + 3


def test_without_a_certificate_every_route_marks_its_pictures(bare, authority):
    with client_of(bare, public_url="http://testserver", a1111=True) as client:
        for _, file in every_file(client):
            assert MARK in file
            assert b"c2pa" not in file


def test_signing_changes_no_pixel(signing, client):
    def pixels(file):
        return Image.open(io.BytesIO(file)).convert("RGB").tobytes()

    for output_format in FORMATS:
        plain, signed = (files_of(generated(each, output_format)) for each in (client, signing))
        assert [pixels(file) for file in plain] == [pixels(file) for file in signed]


def test_a_signed_picture_still_says_how_it_was_made(signing):
    (file, _) = files_of(generated(signing, "png"))
    answer = signing.post("/sdapi/v1/png-info", json={"image": base64.b64encode(file).decode()})
    assert answer.json()["info"].startswith(f"{PROMPT}\nSteps: 1, ")


def test_without_metadata_files_carry_the_mark_alone(bare, authority, pair):
    options = {"public_url": "http://testserver", "a1111": True, "credentials": ContentCredentials.load(*pair)}
    with client_of(bare, metadata=False, **options) as client:
        for output_format, file in every_file(client):
            assert MARK in file
            assert certificates.read_signed(file, output_format, authority)[0] == "Trusted"
            assert not any(text in file for text in (b"fox", "fox".encode("utf-16-be"), b"Steps", b"parameters"))


def test_the_engines_thread_signs_nothing(bare, pair, monkeypatch):
    threads = set()
    credentials = ContentCredentials.load(*pair)
    real = ContentCredentials.sign

    def sign(self, file, output_format):
        threads.add(threading.current_thread().name)
        return real(self, file, output_format)

    monkeypatch.setattr(ContentCredentials, "sign", sign)
    with client_of(bare, credentials=credentials) as client:
        files_of(generated(client, "jpeg"))
        lived(client, "jpeg")
    assert threads
    assert "sdturbo-engine" not in threads


def test_a_certificate_that_ends_soon_is_said_at_the_start(bare, authority, tmp_path, pair, caplog):
    key = certificates.KEYS["Es256"]()
    soon = ContentCredentials.load(*certificates.write_pair(tmp_path, authority, key, days=(-1, 3)))
    for credentials, count in ((ContentCredentials.load(*pair), 0), (soon, 1)):
        with client_of(bare, credentials=credentials):
            warnings = [record for record in caplog.records if "the certificate ends soon" in record.message]
            assert len(warnings) == count
    assert warnings[0].fields["valid_until"].startswith(f"{soon.valid_until:%Y-%m-%d}")


def test_a_picture_that_cannot_be_signed_is_not_given_and_the_log_says_why(bare, pair, monkeypatch, caplog):
    import c2pa

    credentials = ContentCredentials.load(*pair)

    def refuse(*_):
        raise c2pa.C2paError("the certificate was not valid at time of signing")

    with client_of(bare, credentials=credentials) as client:
        monkeypatch.setattr(c2pa.Builder, "sign", refuse)
        answer = generated(client, "png")
        with client.websocket_connect("/v1/live") as socket:
            socket.send_json({"prompt": PROMPT})
            told = socket.receive_json()
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == told["error"]["code"] == "signing_failed"
    assert "the certificate was not valid at time of signing" in answer.json()["error"]["message"]
    records = [record for record in caplog.records if record.message == "a picture could not be signed"]
    assert len(records) == 2
    assert all("the certificate was not valid" in record.fields["reason"] for record in records)


def test_the_command_signs_filters_and_says_what_it_leaves_out(serve_bundle, pair, authority):
    options = ["--content-credentials", *pair, "--no-metadata", "--filter", "own_filter:OwnFilter"]
    with command(serve_bundle, *options, PYTHONPATH=os.pathsep.join(sys.path)) as (process, url):

        def ready():
            try:
                return httpx2.get(f"{url}/readyz").status_code == 200
            except httpx2.TransportError:
                return False

        wait_until(ready)
        (file, _) = files_of(httpx2.post(url + GENERATIONS, json={"prompt": PROMPT, "n": 2}))
        refused = httpx2.post(url + GENERATIONS, json={"prompt": "blood"})
        process.terminate()
        logged = process.stderr.read()
    assert certificates.read_signed(file, "png", authority)[0] == "Trusted"
    assert b"fox" not in file
    assert refused.json()["error"]["code"] == "content_policy_violation"
    messages = [json.loads(line)["message"] for line in logged.splitlines() if line.startswith("{")]
    assert any("do not say how they were made: prompt, seed" in message for message in messages)
    assert "PRIVATE KEY" not in logged
    lines = pair[1].read_text().splitlines()[1:-1]
    assert not any(line in logged for line in lines)


@pytest.mark.parametrize("order", [(1, 0), (0, 0)])
def test_the_command_refuses_files_before_the_model_is_loaded(pair, tmp_path, capsys, order):
    files = [str(pair[place]) for place in order]
    assert run(cli, "sdturbo-serve", ["--bundle", str(tmp_path), "--content-credentials", *files]) == 2
    assert "Expected the certificate first and then the key: CERT KEY." in capsys.readouterr().err
    logging.getLogger().handlers.clear()
