"""Clients with fixed model names, sizes and wishes: aliases, and a server that leaves out what it cannot honour and says so."""

import base64
import io

import openai
import pytest
from PIL import Image
from serving import EDITS, GENERATIONS, client_of, listening, png

from sdturbo.errors import InvalidRequest
from sdturbo_serve import Settings
from sdturbo_serve.lenient import nearest_size


def test_an_alias_is_a_name_of_the_model(bare):
    with client_of(bare, model_aliases=("dall-e-3", "openai/gpt-image-1")) as client:
        assert [model["id"] for model in client.get("/v1/models").json()["data"]] == [
            "fake",
            "dall-e-3",
            "openai/gpt-image-1",
        ]
        assert client.get("/v1/models/openai/gpt-image-1").json()["id"] == "openai/gpt-image-1"
        for model, status in (("dall-e-3", 200), ("openai/gpt-image-1", 200), ("fake", 200), ("dall-e-2", 404)):
            assert client.post(GENERATIONS, json={"prompt": "x", "model": model}).status_code == status
        assert client.post(GENERATIONS, json={"prompt": "x", "size": "1024x1024"}).status_code == 400, "still strict"
    with pytest.raises(InvalidRequest):
        Settings(model_aliases=("",))


def test_a_lenient_server_draws_what_it_can_and_names_the_rest(bare):
    wishes = {"size": "1024x1024", "quality": "hd", "style": "vivid", "background": "transparent"}
    with listening(bare, lenient=True, model_aliases=("dall-e-3",)) as url:
        images = openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0).images
        plain = images.generate(prompt="a fox", extra_body={"seed": 7})
        assert plain.sdturbo["not_honoured"] == {}
        answer = images.generate(
            prompt="a fox", model="dall-e-3", extra_body={"seed": 7, "negative_prompt": "dogs"}, **wishes
        )
        assert answer.data == plain.data
        assert answer.size == "64x64"
        assert answer.sdturbo["not_honoured"] == {**wishes, "negative_prompt": "dogs"}
        wishes.pop("style")
        answer = images.edit(image=png(), prompt="a fox", quality="high", input_fidelity="high", size="256x256")
        assert answer.sdturbo["not_honoured"] == {"quality": "high", "input_fidelity": "high", "size": "256x256"}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": "x", "n": 11}, "n"),
        ({"prompt": "x", "stream": True}, "stream"),
        ({"prompt": "x", "output_format": "gif"}, "output_format"),
        ({"prompt": "x", "steps": 50}, "steps"),
        ({"prompt": "x", "model": "dall-e-3"}, "model"),
        ({"prompt": "x", "response_format": "url"}, "response_format"),
        ({"quality": "hd", "unknown": 1}, "prompt"),
    ],
)
def test_a_lenient_server_refuses_what_decides_the_answer(bare, body, param):
    with client_of(bare, lenient=True) as client:
        assert client.post(GENERATIONS, json=body).json()["error"]["param"] == param
        answer = client.post(EDITS, data={"prompt": "x", "strength": "2"}, files={"image": png()})
        assert answer.json()["error"]["param"] == "strength"


def test_many_odd_fields_make_no_long_answer(bare):
    with client_of(bare, lenient=True) as client:
        answer = client.post(
            GENERATIONS, json={"prompt": "x", **{f"{i:03}" * 50: "y" * 500 for i in range(500)}}
        ).json()
    assert len(answer["sdturbo"]["not_honoured"]) == 20
    assert max(len(text) for item in answer["sdturbo"]["not_honoured"].items() for text in item) == 80


def test_a_lenient_server_takes_the_size_of_the_nearest_shape(sized):
    with client_of(sized, lenient=True) as client:
        for asked, drawn in {"1536x1024": (96, 64), "1024x1024": (64, 64), "odd": (64, 64), "0x0": (64, 64)}.items():
            answer = client.post(GENERATIONS, json={"prompt": "x", "size": asked}).json()
            assert answer["sdturbo"]["not_honoured"] == {"size": asked}
            assert Image.open(io.BytesIO(base64.b64decode(answer["data"][0]["b64_json"]))).size == drawn
    assert nearest_size([(512, 512), (768, 768), (512, 768)], 1024, 1024) == (768, 768)
