"""HEAD, redirects behind a proxy, and uploads: without a temporary directory, and in every format that Pillow reads."""

import io
import tempfile
from urllib.parse import urljoin

import httpx2
import numpy as np
import pytest
from PIL import Image, features
from serving import EDITS, GENERATIONS, client_of, listening, png, png_of

from sdturbo_serve.uploads import readable_formats


@pytest.fixture(scope="module")
def whole(bare):
    """The address of a server with all APIs."""
    with listening(bare, a1111=True, public_url="https://example.org") as url:
        yield url


def test_head_is_get_without_its_body_on_every_route(whole):
    paths = httpx2.get(f"{whole}/openapi.json").json()["paths"]
    gets = [path for path, methods in paths.items() if "get" in methods and "{" not in path]
    assert len(gets) > 15
    link = httpx2.post(whole + GENERATIONS, json={"prompt": "x", "response_format": "url"}).json()["data"][0]["url"]
    others = ["/", "/page/page.css", "/openapi.json", "/v1/models/fake", "/v1/models/other", "/nothing"]
    with httpx2.Client() as client:
        for path in [*gets, *others, link.removeprefix("https://example.org")]:
            head, get = client.head(whole + path), client.get(whole + path)
            assert head.status_code == get.status_code, path
            assert head.content == b""
            if path != "/metrics":  # which counts these requests
                assert head.headers["content-length"] == get.headers["content-length"], path
            assert head.headers["content-type"] == get.headers["content-type"]
        answer = client.head(whole + GENERATIONS)
        assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
        assert set(client.post(f"{whole}/v1/models").headers["allow"].split(", ")) == {"GET", "HEAD"}


def test_head_is_counted_under_its_route(bare):
    with client_of(bare) as client:
        client.head("/v1/models")
        assert 'sdturbo_requests_total{route="/v1/models",status="200"} 1.0' in client.get("/metrics").text


@pytest.mark.parametrize(
    ("method", "path", "leads_to"),
    [
        ("GET", "/page", "/page/"),
        ("GET", "/healthz/", "/healthz"),
        ("GET", "/healthz/?x=1&y=%2F", "/healthz?x=1&y=%2F"),
        ("POST", "/v1/images/generations/", "/v1/images/generations"),
        ("HEAD", "/sdapi/v1/options/", "/sdapi/v1/options"),
    ],
)
def test_a_redirect_keeps_a_proxys_scheme_host_and_prefix(whole, method, path, leads_to):
    answer = httpx2.request(method, whole + path)
    assert answer.status_code == 307
    outside = "https://example.org/pictures"
    assert urljoin(outside + path, answer.headers["location"]) == outside + leads_to
    assert urljoin(whole + path, answer.headers["location"]) == whole + leads_to


def test_large_uploads_need_no_temporary_directory(client, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", None)  # what was found before
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/no/such/directory"])
    with pytest.raises(FileNotFoundError):
        tempfile.mkdtemp()
    noise = png_of(np.random.default_rng(0).integers(0, 256, (1000, 1000, 3), dtype=np.uint8))
    assert len(noise) > 2**21
    files = {"image": ("x.png", noise), "mask": ("m.png", noise)}
    assert client.post(EDITS, data={"prompt": "x", "strength": "1"}, files=files).status_code == 200


def file_of(picture, output_format, **options):
    file = io.BytesIO()
    picture.save(file, output_format, **options)
    return file.getvalue()


def drawn_from(client, data):
    form = {"prompt": "x", "seed": "1", "steps": "2", "strength": "0.5"}
    answer = client.post(EDITS, data=form, files={"image": data})
    assert answer.status_code == 200, answer.text
    return answer.json()["data"]


def test_the_first_frame_of_a_gif_is_an_image(client):
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    assert drawn_from(client, file_of(frames[0], "GIF", save_all=True, append_images=frames[1:])) == drawn_from(
        client, png(colour=(255, 0, 0))
    )


def test_a_gifs_transparent_pixels_are_its_mask(client):
    picture = Image.new("RGBA", (64, 64), "red")
    picture.paste((0, 0, 0, 0), (0, 0, 32, 64))
    data, png_data = file_of(picture, "GIF"), png_of(picture)
    answers = [
        client.post(EDITS, data={"prompt": "x", "seed": "1"}, files={"image": each}) for each in (data, png_data)
    ]
    assert answers[0].json()["sdturbo"]["strength"] == 1.0
    assert answers[0].status_code == answers[1].status_code == 200


@pytest.mark.skipif(not features.check("avif"), reason="Pillow was built without AVIF")
def test_avif_is_read(client):
    grey = Image.new("RGB", (64, 64), (128, 128, 128))
    assert drawn_from(client, file_of(grey, "AVIF", quality=100)) == drawn_from(client, png(colour=(128, 128, 128)))


def test_heic_is_read_with_its_library(client):
    pytest.importorskip("pillow_heif", reason="the extra `heif` brings it")
    assert "HEIF" in readable_formats()
    data = file_of(Image.new("RGB", (64, 64), (128, 128, 128)), "HEIF", quality=-1)
    assert data[4:8] == b"ftyp"
    assert drawn_from(client, data) == drawn_from(client, png(colour=(128, 128, 128)))


def test_heic_without_its_library_is_refused_with_the_extra_that_reads_it(client, monkeypatch):
    monkeypatch.setattr("sdturbo_serve.uploads.readable_formats", lambda: ("PNG", "JPEG"))
    answer = client.post(EDITS, data={"prompt": "x"}, files={"image": b"\0\0\0\x18ftypheic" + bytes(100)})
    assert answer.status_code == 400
    assert "extra `heif`" in answer.json()["error"]["message"]


@pytest.mark.parametrize("output_format", [name for name in readable_formats() if name != "JPEG"])
def test_the_limit_on_pixels_holds_for_every_format(bare, output_format):
    with client_of(bare, max_image_pixels=10_000) as client:
        for side, status in ((96, 200), (104, 400)):
            data = file_of(Image.new("RGB", (side, side)), output_format)
            answer = client.post(EDITS, data={"prompt": "x"}, files={"image": data})
            assert answer.status_code == status
        assert "104x104 pixels" in answer.json()["error"]["message"]


def test_a_gif_whose_frame_is_larger_than_its_screen_is_measured_by_the_frame(bare):
    data = bytearray(file_of(Image.new("P", (104, 104)), "GIF"))
    data[6:10] = (8).to_bytes(2, "little") * 2  # the logical screen
    with client_of(bare, max_image_pixels=10_000) as client:
        answer = client.post(EDITS, data={"prompt": "x"}, files={"image": bytes(data)})
    assert answer.status_code == 400
