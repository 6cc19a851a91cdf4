"""WS /v1/live against a real server: the newest request wins, frames are numbered."""

import base64
import io
import json
import re

import httpx2
import numpy as np
import pytest
from PIL import Image
from serving import listening, only_the_left_quarter_changed, png, png_of, start_and_mask, wait_until
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from sdturbo.blend import slerp
from sdturbo_serve.access import KEY_PROTOCOL, SUBPROTOCOL

IMAGE = base64.b64encode(png()).decode()


def address(url):
    return url.replace("http", "ws") + "/v1/live"


def frame(socket):
    """The next frame: (head, picture)."""
    head = json.loads(socket.recv(10))
    assert head["type"] == "frame", head
    return head, np.asarray(Image.open(io.BytesIO(socket.recv(10))))


def ask(socket, prompt, **more):
    socket.send(json.dumps({"prompt": prompt, "output_format": "png", **more}))


def counted(url, outcome):
    """How many frames had that outcome."""
    match = re.search(rf'sdturbo_live_frames_total{{outcome="{outcome}"}} ([\d.]+)', httpx2.get(f"{url}/metrics").text)
    return float(match[1]) if match else 0


def superseded(url):
    """How many frames the server has set aside for newer ones."""
    return counted(url, "superseded")


def test_every_request_of_a_patient_client_is_answered_with_the_bare_engines_picture(server, bare):
    with connect(address(server)) as socket:
        for number in range(1, 4):
            ask(socket, f"number {number}", seed=number, steps=2)
            head, picture = frame(socket)
            assert (head["frame"], head["seed"]) == (number, number)
            assert head["sdturbo"]["timings_ms"]["total"] > 0
            expected = bare(f"number {number}", seed=number, num_inference_steps=2, output_type="np").images[0]
            assert np.array_equal(picture, expected)


def test_frames_that_show_nothing_new_are_skipped_if_asked(server):
    def changed(level):
        picture = np.full((64, 64, 3), level, np.uint8)
        return base64.b64encode(png_of(picture)).decode()

    def answer(socket, level, **more):
        ask(socket, "x", seed=1, steps=2, image=changed(level), **more)
        message = json.loads(socket.recv(10))
        if message["type"] == "frame":
            socket.recv(10)
        return message["type"], message["frame"]

    before = counted(server, "skipped")
    with connect(address(server)) as socket:
        assert answer(socket, 10, skip_similar=4) == ("frame", 1)
        assert answer(socket, 11, skip_similar=4) == ("skipped", 2)
        assert answer(socket, 13, skip_similar=4) == ("skipped", 3)
        assert answer(socket, 15, skip_similar=4) == ("frame", 4)  # compared with the last drawn one
        assert answer(socket, 15, skip_similar=4, strength=1.0) == ("frame", 5)  # another request
        assert answer(socket, 15) == ("frame", 6)
        assert answer(socket, 15) == ("frame", 7)
        ask(socket, "x", image=changed(1), skip_similar=256)
        assert json.loads(socket.recv(10))["error"]["param"] == "skip_similar"
    assert counted(server, "skipped") == before + 2


def test_an_image_starts_a_frame(server, bare, tmp_path):
    (tmp_path / "x.png").write_bytes(png(70, 70))
    image = "data:image/png;base64," + base64.b64encode(png(70, 70)).decode()
    with connect(address(server)) as socket:
        ask(socket, "x", seed=1, steps=2, image=image, strength=0.5)
        _, picture = frame(socket)
    expected = bare("x", tmp_path / "x.png", seed=1, num_inference_steps=2, strength=0.5, output_type="np")
    assert np.array_equal(picture, expected.images[0])


def test_a_mask_changes_its_own_pixels_and_no_others_frame_by_frame(server, bare):
    start, mask = start_and_mask()
    image, masked = (base64.b64encode(png_of(each)).decode() for each in (start, mask))
    with connect(address(server)) as socket:
        pictures = []
        for prompt in ("a fox", "a boat"):
            ask(socket, prompt, seed=1, steps=2, image=image, mask="data:image/png;base64," + masked)
            head, picture = frame(socket)
            assert head["sdturbo"]["strength"] == 1.0
            assert only_the_left_quarter_changed(picture, start)
            pictures.append(picture)
        assert not np.array_equal(*pictures)
        ask(socket, "a boat", seed=1, steps=2, image=image, strength=1.0)
        assert not only_the_left_quarter_changed(frame(socket)[1], start)


@pytest.mark.parametrize(("blend", "alone"), [(0, "a fox"), (1, "a boat")])
def test_either_end_of_a_blend_is_the_picture_of_its_prompt(server, bare, blend, alone):
    with connect(address(server)) as socket:
        ask(socket, "a fox", second_prompt="a boat", blend=blend, seed=1)
        _, picture = frame(socket)
    assert np.array_equal(picture, bare(alone, seed=1, output_type="np").images[0])


@pytest.mark.parametrize(("asked", "share"), [({}, 0.5), ({"blend": 0.25}, 0.25)])
def test_a_second_prompt_is_blended_in_and_the_report_has_what_it_lost(server, bare, asked, share):
    second = "cat " * 75 + "bird"
    with connect(address(server)) as socket:
        ask(socket, "a fox", second_prompt=second, seed=1, **asked)
        head, picture = frame(socket)
    embeds = slerp(bare.encode_prompt("a fox"), bare.encode_prompt(second), share)
    assert np.array_equal(picture, bare(prompt_embeds=embeds, seed=1, output_type="np").images[0])
    assert head["sdturbo"]["dropped"] == "bird"
    assert "text_encoder" in head["sdturbo"]["timings_ms"]


def test_while_the_engine_is_busy_only_the_newest_request_waits(gated, bare):
    pipeline, gate = gated
    with listening(pipeline) as url, connect(address(url)) as socket:
        gate.shut()
        ask(socket, "the first", seed=1)
        gate.wait_for_entry()
        for number in range(2, 30):
            ask(socket, f"number {number}", seed=number)
        wait_until(lambda: superseded(url) == 27)
        gate.open.set()
        assert frame(socket)[0]["frame"] == 1
        numbers = []
        while not numbers or numbers[-1] != 29:
            head, picture = frame(socket)
            numbers.append(head["frame"])
        assert numbers == [29]
        assert np.array_equal(picture, bare("number 29", seed=29, output_type="np").images[0])
        assert len(gate.batches) == 2


def test_a_newer_request_that_cannot_be_drawn_takes_nobodys_place(gated, bare):
    pipeline, gate = gated
    with listening(pipeline) as url, connect(address(url)) as socket:
        gate.shut()
        ask(socket, "the first", seed=1)
        gate.wait_for_entry()
        ask(socket, "the second", image="aGVsbG8=")
        refused = json.loads(socket.recv(10))
        assert (refused["type"], refused["frame"]) == ("error", 2)
        gate.open.set()
        head, picture = frame(socket)
        assert head["frame"] == 1
        assert np.array_equal(picture, bare("the first", seed=1, output_type="np").images[0])


def test_in_a_queue_behind_others_the_newest_request_keeps_the_place(gated):
    pipeline, gate = gated
    with listening(pipeline) as url, connect(address(url)) as busy, connect(address(url)) as socket:
        gate.shut()
        ask(busy, "holds the engine")
        gate.wait_for_entry()
        for number in range(1, 6):
            ask(socket, f"number {number}", seed=number)
        wait_until(lambda: superseded(url) == 4)
        gate.open.set()
        assert frame(busy)[0]["frame"] == 1
        assert frame(socket)[0]["frame"] == 5
        assert len(gate.batches) == 2


def test_an_error_has_the_number_of_the_newest_request(gated):
    pipeline, gate = gated
    with (
        listening(pipeline, deadline_s=3.0) as url,
        connect(address(url)) as busy,
        connect(address(url)) as socket,
    ):
        gate.shut()
        ask(busy, "holds the engine")
        gate.wait_for_entry()
        ask(socket, "the first")
        ask(socket, "the second")
        answer = json.loads(socket.recv(10))
        gate.open.set()
        assert superseded(url) == 1
        assert (answer["type"], answer["frame"], answer["error"]["code"]) == ("error", 2, "deadline_exceeded")


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ("not json", None),
        (b"\x00\xff", None),
        ('{"prompt": "x", "steps": 9}', "steps"),
        ('{"prompt": "x", "seed": "1"}', "seed"),
        ('{"prompt": "a\\u0000b"}', "prompt"),
        ('{"prompt": "x", "hint": 1}', "hint"),
        ('{"prompt": "x", "image": "%%%"}', "image"),
        ('{"prompt": "x", "image": "aGVsbG8="}', "image"),
        ('{"prompt": "x", "mask": "aGVsbG8="}', "mask"),
        (json.dumps({"prompt": "x", "image": IMAGE, "mask": "%%%"}), "mask"),
        (json.dumps({"prompt": "x", "image": IMAGE, "mask": "aGVsbG8="}), "mask"),
        (json.dumps({"prompt": "x", "image": IMAGE, "strength": 0.1}), "strength"),
        ('{"prompt": "x", "strength": 2}', "strength"),
        ('{"prompt": "x", "second_prompt": "y", "blend": 1.1}', "blend"),
        ('{"prompt": "x", "second_prompt": "y", "blend": -0.1}', "blend"),
        ('{"prompt": "x", "second_prompt": "y", "blend": NaN}', "blend"),
        ('{"prompt": "x", "blend": 0.5}', "blend"),
        ('{"prompt": "x", "second_prompt": "a\\u0000b"}', "second_prompt"),
        ("[" * 100000, None),
        ("{}", "prompt"),
    ],
)
def test_a_bad_message_is_answered_in_openais_shape_and_the_connection_goes_on(server, message, param):
    with connect(address(server)) as socket:
        socket.send(message)
        answer = json.loads(socket.recv(10))
        assert (answer["type"], answer["frame"]) == ("error", 1)
        assert answer["error"]["type"] == "invalid_request_error"
        assert answer["error"]["param"] == param
        ask(socket, "x", seed=1)
        assert frame(socket)[0]["frame"] == 2


def test_a_flood_closes_its_connection_and_nothing_else(server):
    with connect(address(server)) as socket, pytest.raises(ConnectionClosed) as closed:
        for _ in range(2000):
            socket.send('{"prompt": "x"}')
        while True:
            socket.recv(10)
    assert closed.value.rcvd.code == 1008
    with connect(address(server)) as socket:
        ask(socket, "x")
        assert frame(socket)[0]["frame"] == 1


def test_too_many_connections_and_wrong_origins_and_keys_are_turned_away(bare):
    def status(url, **options):
        with pytest.raises(InvalidStatus) as refused:
            connect(address(url), **options)
        body = json.loads(refused.value.response.body)
        assert set(body["error"]) == {"message", "type", "param", "code"}
        return refused.value.response.status_code

    def key(text):
        return [SUBPROTOCOL, KEY_PROTOCOL + base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")]

    with listening(bare, api_keys=("correct horse".replace(" ", "-"),), max_live=1) as url:
        assert status(url) == 401
        assert status(url, subprotocols=key("wrong-horse")) == 401
        assert status(url, subprotocols=[SUBPROTOCOL, KEY_PROTOCOL + "!"]) == 401
        with connect(address(url), subprotocols=key("correct-horse"), origin=url) as socket:
            ask(socket, "x")
            assert frame(socket)[0]["frame"] == 1
            assert socket.subprotocol == SUBPROTOCOL
            assert status(url, subprotocols=key("correct-horse")) == 429
        assert status(url, subprotocols=key("correct-horse"), origin="https://elsewhere.example") == 403
