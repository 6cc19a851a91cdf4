"""Origins and host names, as operators write them: they work, or the server does not start and says the right spelling."""

import pytest
from serving import GENERATIONS, client_of

from sdturbo.commands.console import run
from sdturbo.errors import InvalidRequest
from sdturbo_serve import Settings
from sdturbo_serve.cli import cli
from sdturbo_serve.settings import answered_hosts

# of openai-node 6 in a browser
STAINLESS = "authorization,content-type,x-stainless-arch,x-stainless-lang,x-stainless-os,x-stainless-package-version,\
x-stainless-retry-count,x-stainless-runtime,x-stainless-runtime-version,x-stainless-timeout"


@pytest.mark.parametrize(
    ("written", "sent"),
    [
        ("http://localhost:3000/", "http://localhost:3000"),
        ("HTTP://LocalHost:3000", "http://localhost:3000"),
        (" https://example.org ", "https://example.org"),
        ("https://example.org:443", "https://example.org"),
        ("http://example.org:80/", "http://example.org"),
        ("http://[0:0::1]:3000", "http://[::1]:3000"),
        ("https://bücher.example", "https://xn--bcher-kva.example"),
        ("chrome-extension://abcdef", "chrome-extension://abcdef"),
        ("*", "https://anything.example"),
        ("*", "null"),
        ("null", "null"),
    ],
)
def test_an_origin_works_as_it_is_written(bare, written, sent):
    with client_of(bare, allow_origins=(written,)) as client:
        preflight = {"Origin": sent, "Access-Control-Request-Method": "POST"}
        preflight |= {"Access-Control-Request-Private-Network": "true"}
        asked = client.options(GENERATIONS, headers=preflight | {"Access-Control-Request-Headers": STAINLESS})
        assert asked.status_code == 200
        assert set(STAINLESS.split(",")) <= {
            name.strip().lower() for name in asked.headers["access-control-allow-headers"].split(",")
        }
        drawn = client.post(GENERATIONS, json={"prompt": "x"}, headers={"Origin": sent})
        assert drawn.status_code == 200
        for answer in (asked, drawn):
            assert answer.headers["access-control-allow-origin"] in (sent, "*")
        assert "X-Request-Id" in drawn.headers["access-control-expose-headers"]
        other = client.get("/v1/models", headers={"Origin": "https://example.org.other"})
        assert other.status_code == (200 if written == "*" else 403)


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("localhost:3000", "Write http://localhost:3000"),
        ("example.org", "Write http://example.org"),
        ("", "begins with a scheme"),
        ("http://localhost:3000/app", "Write http://localhost:3000."),
        ("https://example.org?x", "Write https://example.org."),
        ("https://*.example.org", "once per name, or write \\* alone"),
        ("http://localhost:*", "port"),
        ("http://a.example,http://b.example", "once per name"),
        ("http://a.example http://b.example", "once per name"),
        ("http://user@example.org", "such as https://example.org"),
        ("http://example.org:99999", "port"),
        ("http://", "Expected one name"),
        ("http://[::1", "cannot be read"),
        ("file:///home/page.html", "Write null"),
    ],
)
def test_an_origin_that_no_browser_sends_is_refused_with_the_right_spelling(written, words):
    with pytest.raises(InvalidRequest, match=words):
        Settings(allow_origins=(written,))


@pytest.mark.parametrize(
    ("written", "sent"),
    [
        ("Studio.local", "studio.local:9"),
        ("studio.local:8000", "STUDIO.local"),
        ("studio.local.", "studio.local"),
        ("studio.local", "studio.local."),
        ("::1", "[::1]:8000"),
        ("[0:0::1]:8000", "[::1]"),
        ("10.0.0.1:8000", "10.0.0.1"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("*", "anything.example"),
    ],
)
def test_a_host_name_works_as_it_is_written(bare, written, sent):
    with client_of(bare, allow_hosts=("testserver", written)) as client:
        assert client.get("/v1/models", headers={"Host": sent}).status_code == 200
        other = client.get("/v1/models", headers={"Host": "studio.local.other"})
        assert other.status_code == (200 if written == "*" else 403)


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("http://Studio.local:8000/", "Write studio.local."),
        ("studio.local/x", "Write studio.local."),
        ("*.example.org", "once per name, or write \\* alone"),
        ("a.example,b.example", "once per name"),
        ("a.example b.example", "once per name"),
        ("user@example.org", "such as example.org"),
        ("studio.local:port", "port"),
        ("", "Expected one name"),
    ],
)
def test_a_host_name_that_no_request_has_is_refused_with_the_right_spelling(written, words):
    with pytest.raises(InvalidRequest, match=words):
        Settings(allow_hosts=(written,))


def test_the_command_refuses_them_before_it_reads_the_bundle(capsys):
    for option, text in (("--allow-origin", "localhost:3000"), ("--allow-host", "http://studio.local")):
        assert run(cli, "sdturbo-serve", ["--bundle", "nowhere", option, text]) == InvalidRequest.exit_code
        assert "Write " in capsys.readouterr().err


def test_the_names_of_this_machine_are_answered_beside_the_allowed_ones():
    hosts = Settings(allow_hosts=answered_hosts("127.1.2.3", ["Studio.local:8000"], has_key=False)).allow_hosts
    assert hosts == ("localhost", "127.0.0.1", "[::1]", "127.1.2.3", "studio.local")
