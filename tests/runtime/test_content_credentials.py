"""Content Credentials: what c2pa's own reader says of signed files, and the words for files that cannot sign."""

import importlib.util
import io
import logging
import traceback

import certificates
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, PrivateFormat
from PIL import Image

from sdturbo import BackendUnavailable, ContentCredentials, InvalidRequest, Pipeline, save_image
from sdturbo.errors import SigningFailed
from sdturbo.image import write_image

CREATED = [("c2pa.created", "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia")]
SUFFIXES = {"png": "png", "jpg": "jpeg", "webp": "webp"}


@pytest.fixture(scope="module")
def authority():
    return certificates.Authority()


@pytest.fixture(scope="module")
def key():
    return certificates.KEYS["Es256"]()


@pytest.fixture
def pair(tmp_path, authority, key):
    return certificates.write_pair(tmp_path, authority, key)


@pytest.fixture(scope="module")
def picture(bundle_dir):
    return Pipeline.load(bundle_dir, "null")("a secret fox", seed=7).images[0]


def refusal_of(certificate, key):
    with pytest.raises(InvalidRequest) as refusal:
        ContentCredentials.load(certificate, key)
    return str(refusal.value)


@pytest.mark.parametrize("kind", SUFFIXES)
def test_a_signed_file_is_trusted_and_a_changed_one_is_not(pair, authority, picture, tmp_path, kind):
    out = tmp_path / f"x.{kind}"
    save_image(picture, out, credentials=ContentCredentials.load(*pair))
    data = out.read_bytes()
    state, manifest = certificates.read_signed(data, SUFFIXES[kind], authority)
    assert state == "Trusted"
    assert certificates.source_types(manifest) == CREATED
    assert manifest["claim_generator_info"][0]["name"] == "sdturbo"
    assert not certificates.has_text(manifest, "fox")
    assert b"trainedAlgorithmicMedia</Iptc4xmpExt:DigitalSourceType>" in data
    with Image.open(out) as image:
        assert image.size == picture.size
    place = len(data) - 60  # in the picture's own data, or in its text
    changed = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
    try:
        state, _ = certificates.read_signed(changed, SUFFIXES[kind], authority)
    except Exception:  # the flipped byte may be one of the container's
        state = "Invalid"
    assert state == "Invalid"


def test_a_stranger_is_valid_and_not_trusted(pair, picture):
    file = io.BytesIO()
    write_image(picture, file, "png", credentials=ContentCredentials.load(*pair))
    assert certificates.read_signed(file.getvalue(), "png", certificates.Authority())[0] == "Valid"


@pytest.mark.parametrize("algorithm", certificates.KEYS)
def test_the_algorithm_follows_from_the_key(tmp_path, authority, picture, algorithm):
    key = certificates.KEYS[algorithm]()
    file = io.BytesIO()
    credentials = ContentCredentials.load(*certificates.write_pair(tmp_path, authority, key))
    write_image(picture, file, "png", credentials=credentials)
    state, manifest = certificates.read_signed(file.getvalue(), "png", authority)
    assert (state, manifest["signature_info"]["alg"]) == ("Trusted", algorithm)


def test_openssls_older_layout_of_keys_is_taken(pair, key):
    parameters = b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"
    pair[1].write_bytes(parameters + certificates.pem_of(key, layout=PrivateFormat.TraditionalOpenSSL))
    ContentCredentials.load(*pair)


@pytest.mark.parametrize("command", [("generate", "a secret fox"), ("walk", "a secret fox", "a cat", "--frames", "2")])
def test_the_commands_sign_their_files(sdturbo, pair, authority, tmp_path, command):
    out = tmp_path / "out"
    arguments = ["--content-credentials", *pair, "--backend", "null", "--out", out, "--no-metadata"]
    status, _, stderr = sdturbo(*command, *arguments)
    assert status == 0, stderr
    for path in [out] if out.is_file() else out.iterdir():
        state, manifest = certificates.read_signed(path.read_bytes(), "png", authority)
        assert state == "Trusted"
        assert not certificates.has_text(manifest, "fox")
        assert b"fox" not in path.read_bytes()


def test_faults_are_said_before_the_model_is_loaded(sdturbo, tmp_path):
    missing = ["--content-credentials", tmp_path / "c.pem", tmp_path / "k.pem"]
    status, _, stderr = sdturbo("generate", "x", *missing, "--bundle", tmp_path / "none")
    assert status == 2
    assert f"Cannot read the certificate {tmp_path / 'c.pem'}: No such file or directory" in stderr


def test_missing_and_unreadable_files_are_named(pair, tmp_path):
    assert "Cannot read the certificate" in refusal_of(tmp_path / "none", pair[1])
    assert "Cannot read the key" in refusal_of(pair[0], tmp_path / "none")
    assert "Cannot read the key" in refusal_of(pair[0], tmp_path)
    (tmp_path / "junk").write_bytes(b"junk")
    assert "junk holds no certificate that can be read. Expected a PEM file." in refusal_of(tmp_path / "junk", pair[1])
    assert "junk holds no private key that can be read. Expected a PEM file." in refusal_of(pair[0], tmp_path / "junk")


def test_the_wrong_order_is_seen(pair):
    words = "Expected the certificate first and then the key: CERT KEY."
    assert f"Got a private key as CERT, {pair[1]}. {words}" in refusal_of(pair[1], pair[0])
    assert f"Got a certificate as KEY, {pair[0]}. {words}" in refusal_of(pair[0], pair[0])


def test_a_key_of_another_certificate_is_refused(pair):
    pair[1].write_bytes(certificates.pem_of(certificates.KEYS["Es256"]()))
    assert f"The key in {pair[1]} does not belong to the certificate in {pair[0]}." in refusal_of(*pair)


def test_the_signing_certificate_comes_first(pair, authority, key):
    pair[0].write_bytes(authority.pem + authority.issue(key))
    assert "are in the wrong order" in refusal_of(*pair)


@pytest.mark.parametrize("days", [(-9, -1), (1, 9)])
def test_a_certificate_that_is_not_valid_today_is_refused(tmp_path, authority, key, days):
    words = refusal_of(*certificates.write_pair(tmp_path, authority, key, days=days))
    assert "is valid from" in words
    assert "Renew it, or set the clock." in words


def test_an_encrypted_key_is_refused_with_the_way_out(pair, key):
    pair[1].write_bytes(certificates.pem_of(key, BestAvailableEncryption(b"password")))
    assert "is encrypted. Expected one without a password, which `openssl pkey -in KEY -out PLAIN`" in refusal_of(*pair)


@pytest.mark.parametrize(
    "kind", [lambda: rsa.generate_private_key(65537, 1024), lambda: ec.generate_private_key(ec.SECP256K1())]
)
def test_a_key_of_another_kind_is_refused(tmp_path, authority, kind):
    words = refusal_of(*certificates.write_pair(tmp_path, authority, kind()))
    assert "Expected P-256, P-384, P-521, RSA from 2048 bits, or Ed25519." in words


def test_a_certificate_that_may_not_sign_is_refused(tmp_path, authority, key):
    words = refusal_of(*certificates.write_pair(tmp_path, authority, key, email=False))
    assert "cannot sign pictures: " in words
    assert "an extended key usage such as emailProtection" in words


def test_without_the_package_the_extra_is_named(pair, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "c2pa" else real(name, *rest))
    with pytest.raises(BackendUnavailable, match=r"c2pa, not installed here.*pip install '\.\[credentials\]'"):
        ContentCredentials.load(*pair)


def traceback_with_locals(error):
    """As error trackers send it, without the frame of the test."""
    return "".join(
        traceback.TracebackException(type(error), error, error.__traceback__.tb_next, capture_locals=True).format()
    )


def test_the_key_is_in_no_log_repr_or_traceback(pair, key, caplog, monkeypatch):
    import c2pa

    def fail(*_, **__):
        raise c2pa.C2paError("no")

    caplog.set_level(logging.DEBUG)
    credentials = ContentCredentials.load(*pair)
    said = [repr(credentials), str(credentials)]
    for place, name in ((c2pa.Signer, "from_info"), (c2pa.Builder, "sign")):
        with monkeypatch.context() as patch, pytest.raises(InvalidRequest) as failed:
            patch.setattr(place, name, fail)
            ContentCredentials.load(*pair)
        said.append(traceback_with_locals(failed.value))
        assert "private_key = <cryptography" in said[-1]
    lines = certificates.pem_of(key).decode().splitlines()[1:-1]
    pair[1].write_bytes(certificates.pem_of(key).replace(b"PRIVATE KEY", b"PRIVATE QUAY"))
    with pytest.raises(InvalidRequest) as failed:
        ContentCredentials.load(*pair)
    said.append(traceback_with_locals(failed.value))
    assert not any(line in text for line in lines for text in (*said, caplog.text))


def test_the_files_are_read_once(pair, picture):
    credentials = ContentCredentials.load(*pair)
    for path in pair:
        path.unlink()
    write_image(picture, io.BytesIO(), "jpeg", credentials=credentials)


def test_a_signature_that_fails_leaves_no_file(pair, picture, tmp_path, monkeypatch):
    import c2pa

    credentials = ContentCredentials.load(*pair)

    def refuse(*_):
        raise c2pa.C2paError("the certificate was not valid at time of signing")

    monkeypatch.setattr(c2pa.Builder, "sign", refuse)
    with pytest.raises(SigningFailed, match="could not be signed: the certificate was not valid"):
        save_image(picture, tmp_path / "x.png", credentials=credentials)
    assert not (tmp_path / "x.png").exists()
