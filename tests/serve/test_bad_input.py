"""Whatever a client sends, it gets a clear 4xx in OpenAI's shape or a closed socket, and the server goes on."""

import io
import struct
import zlib

import pytest
from PIL import Image
from serving import EDITS, GENERATIONS, client_of, png, png_of


def refused(answer, status, code=None, param=None):
    assert answer.status_code == status, answer.text[:300]
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert len(answer.text) < 1000, "the answer must not repeat what was sent"
    assert "Traceback" not in answer.text
    if code:
        assert error["code"] == code
    if param:
        assert error["param"] == param


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": ["x"]}, "prompt"),
        ({"prompt": "a\0b"}, "prompt"),
        ({"prompt": "a\x1bb"}, "prompt"),
        ({"prompt": "a\x9bb"}, "prompt"),
        ({"prompt": "x" * 4001}, "prompt"),
        ({"prompt": "x", "n": 0}, "n"),
        ({"prompt": "x", "n": "2"}, "n"),
        ({"prompt": "x", "n": True}, "n"),
        ({"prompt": "x", "n": 11}, "n"),
        ({"prompt": "x", "size": "1024x1024"}, "size"),
        ({"prompt": "x", "size": 64}, "size"),
        ({"prompt": "x", "steps": 5}, "steps"),
        ({"prompt": "x", "steps": 1.5}, "steps"),
        ({"prompt": "x", "seed": -2}, "seed"),
        ({"prompt": "x", "seed": 2**64}, "seed"),
        ({"prompt": "x", "seed": 2**64 - 1, "n": 2}, "seed"),
        ({"prompt": "x", "output_format": "gif"}, "output_format"),
        ({"prompt": "x", "output_compression": 101}, "output_compression"),
        ({"prompt": "x", "response_format": "url"}, "response_format"),
        ({"prompt": "x", "stream": True}, "stream"),
        ({"prompt": "x", "negative_prompt": "y"}, "negative_prompt"),
        ({"prompt": "x", "k" * 50000: 1}, None),
    ],
)
def test_a_wrong_field_is_named(client, body, param):
    refused(client.post(GENERATIONS, json=body), 400, param=param)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"nonsense", b"\xff\xfe", b'{"prompt": "\\ud800"}', b"[" * 50000, b"[]", b'"x"', b'{"prompt": NaN}'],
)
def test_a_body_that_is_no_request_is_refused(client, body):
    refused(client.post(GENERATIONS, content=body, headers={"Content-Type": "application/json"}), 400)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"prompt": "x", "seed": ' + "9" * 6000 + "}", "\xff"])
def test_json_that_no_parser_takes_is_refused(client, text):
    json_type = {"Content-Type": "application/json"}
    refused(client.post(GENERATIONS, content=text.encode("latin-1"), headers=json_type), 400, "invalid_json")


def test_a_field_that_comes_twice_is_refused(client):
    for twice in ('{"prompt": "x", "seed": 1, "seed": 1}', '{"prompt": {"a": 1, "seed": 2, "seed": 3}}'):
        answer = client.post(GENERATIONS, content=twice, headers={"Content-Type": "application/json"})
        refused(answer, 400, "duplicate_parameter", "seed")
    answer = client.post(EDITS, data={"prompt": "x", "seed": ["1", "2"]}, files={"image": ("x.png", png())})
    refused(answer, 400, "duplicate_parameter", "seed")


@pytest.mark.parametrize(
    "content_type", [None, "text/plain", "application/xml", "multipart/form-data; boundary=b", ";;="]
)
def test_a_body_of_another_content_type_is_415(client, content_type):
    headers = {"Content-Type": content_type} if content_type else {}
    refused(client.post(GENERATIONS, content=b'{"prompt": "x"}', headers=headers), 415, "unsupported_media_type")
    if "form" not in str(content_type):
        refused(client.post(EDITS, content=b'{"prompt": "x"}', headers=headers), 415, "unsupported_media_type")


def test_odd_headers_are_no_surprise(client):
    for origin in ("http://[", "null", "\xff", "://"):
        refused(client.get("/v1/models", headers={"Origin": origin.encode("latin-1")}), 403, "origin")
    for part in ("bytes=zz", "bytes=9999999-", "bytes=5-1"):
        assert client.get("/page/page.css", headers={"Range": part}).status_code == 200


def test_an_unknown_model_route_and_method_are_404_and_405(client):
    refused(client.post(GENERATIONS, json={"prompt": "x", "model": "dall-e-3"}), 404, "model_not_found", "model")
    refused(client.get("/v1/nothing"), 404, "not_found")
    refused(client.get("/page/../app.py"), 404)
    refused(client.get("/page/%2e%2e/app.py"), 404)
    refused(client.delete(GENERATIONS), 405)


def test_ten_megabytes_are_refused_whether_or_not_their_length_is_told(client):
    refused(client.post(GENERATIONS, json={"prompt": "x" * 10**7}), 413, "too_large")
    chunks = (b"x" * 65536 for _ in range(200))
    refused(client.post(GENERATIONS, content=chunks, headers={"Content-Type": "application/json"}), 413, "too_large")


def enormous():
    """A PNG of 10000x10000 pixels in a few hundred bytes that Pillow would decode to 300 MB."""
    head = struct.pack(">IIBBBBB", 10000, 10000, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", head), (b"IDAT", zlib.compress(bytes(10**6))), (b"IEND", b"")]
    chunks = [struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def tiff():
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "TIFF")
    return file.getvalue()


def dot():
    """A mask with one white pixel, in which the first pixel of no 8x8 block is white."""
    mask = Image.new("L", (64, 64))
    mask.putpixel((3, 3), 255)
    return png_of(mask)


@pytest.mark.parametrize(
    "data", [b"", b"hello", png()[:-40], png(6000, 5000), enormous(), tiff(), b"\x89PNG\r\n\x1a\n" + b"\0" * 40]
)
def test_an_image_that_cannot_be_used_is_refused(client, data):
    answer = client.post(EDITS, data={"prompt": "x"}, files={"image": ("x.png", data)})
    refused(answer, 400, "invalid_value", "image")


@pytest.mark.parametrize(
    "data",
    [b"", b"hello", png()[:-40], png(6000, 5000), enormous(), tiff(), png(colour=(0, 0, 0)), dot()],
    ids=["empty", "text", "truncated", "large", "enormous", "tiff", "black", "dot"],
)
def test_a_mask_that_cannot_be_used_is_refused(client, data):
    answer = client.post(EDITS, data={"prompt": "x"}, files={"image": ("x.png", png()), "mask": ("m.png", data)})
    refused(answer, 400, "invalid_value", "mask")


def test_a_mask_comes_with_an_image_and_once(client):
    refused(client.post(EDITS, data={"prompt": "x"}, files={"mask": png()}), 400, "invalid_value", "mask")
    answer = client.post(EDITS, data={"prompt": "x"}, files=[("image", png()), ("mask", png()), ("mask", png())])
    refused(answer, 400, "duplicate_parameter", "mask")


@pytest.mark.parametrize(
    ("form", "param"),
    [
        ({"prompt": "x", "strength": "0"}, "strength"),
        ({"prompt": "x", "strength": "nan"}, "strength"),
        ({"prompt": "x", "strength": "much"}, "strength"),
        ({"prompt": "x", "strength": "0.1", "steps": "2"}, "strength"),
        ({"prompt": "x", "steps": "two"}, "steps"),
        ({"prompt": "a\0b"}, "prompt"),
        ({"prompt": "x", "mask": "y"}, "mask"),
        ({}, "prompt"),
    ],
)
def test_a_wrong_form_field_is_named(client, form, param):
    refused(client.post(EDITS, data=form, files={"image": ("x.png", png())}), 400, param=param)


def test_a_form_without_a_file_or_with_two_or_broken_is_refused(client):
    refused(client.post(EDITS, data={"prompt": "x"}), 400, param="image")
    refused(client.post(EDITS, data={"prompt": "x", "image": "no file"}), 400)
    refused(client.post(EDITS, data={"prompt": "x"}, files=[("image", png()), ("image", png())]), 400, param="image")
    refused(client.post(EDITS, data={"prompt": "x"}, files=[("image[]", png()), ("image[]", png())]), 400)
    refused(client.post(EDITS, json={"prompt": "x"}), 415)
    multipart = {"Content-Type": "multipart/form-data; boundary=b"}
    refused(client.post(EDITS, content=b"--b\r\nnot a part", headers=multipart), 400)
    refused(client.post(EDITS, content=b"x", headers={"Content-Type": "multipart/form-data"}), 400)
    assert client.post(EDITS, data={"prompt": "x"}, files=[("image[]", ("x.png", png()))]).status_code == 200


def test_a_large_upload_is_refused_before_it_is_read(bare):
    with client_of(bare, max_upload_bytes=100_000) as client:
        answer = client.post(EDITS, data={"prompt": "x"}, files={"image": ("x.png", b"x" * 200_000)})
        refused(answer, 413, "too_large")


def test_keys_are_asked_for_and_compared(bare):
    with client_of(bare, api_keys=("correct-horse", "battery-staple")) as client:
        refused(client.post(GENERATIONS, json={"prompt": "x"}), 401, "missing_api_key")
        for header in ("Bearer wrong", "Bearer ", "Basic correct-horse", "correct-horse", "Bearer \xe9"):
            answer = client.get("/v1/models", headers={"Authorization": header.encode("latin-1")})
            refused(answer, 401)
        refused(client.get("/metrics"), 401)
        for key in ("correct-horse", "battery-staple"):
            assert client.get("/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code == 200
        assert client.get("/healthz").status_code == 200


def test_pages_of_other_origins_are_turned_away_unless_admitted(bare):
    elsewhere = {"Origin": "https://elsewhere.example"}
    with client_of(bare) as client:
        refused(client.post(EDITS, data={"prompt": "x"}, files={"image": png()}, headers=elsewhere), 403)
        assert "access-control-allow-origin" not in client.get("/v1/models", headers=elsewhere).headers
        assert client.get("/v1/models", headers={"Origin": "http://testserver"}).status_code == 200
    with client_of(bare, allow_origins=("https://elsewhere.example",)) as client:
        answer = client.get("/v1/models", headers=elsewhere)
        assert answer.headers["access-control-allow-origin"] == "https://elsewhere.example"
