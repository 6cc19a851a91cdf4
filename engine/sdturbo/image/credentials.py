"""Content Credentials: signatures in picture files, after C2PA (Coalition for Content Provenance and Authenticity).

The only file that imports c2pa, Content Authenticity Initiative's library, and cryptography. The manifest is constant and holds
no prompt. No time server is asked, so that nothing leaves the machine, and signatures hold until the certificate ends.
Source: C2PA Technical Specification 2.2, "Actions" and "Trust Model".
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from sdturbo.errors import BackendUnavailable, InvalidRequest, SigningFailed
from sdturbo.files import expanded
from sdturbo.image.provenance import DIGITAL_SOURCE_TYPE

if TYPE_CHECKING:
    from c2pa import Context
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
    from cryptography.x509 import Certificate

_SETTINGS = {
    "verify": {"verify_after_sign": False, "ocsp_fetch": False, "remote_manifest_fetch": False},
    "builder": {"thumbnail": {"enabled": False}},
}


class ContentCredentials:
    """A certificate and its key, which sign pictures. Any number of threads may use it.

    valid_until: when the certificate ends, in UTC. `sign` fails from then on.
    """

    __slots__ = ("_context", "_manifest", "valid_until")

    def __init__(self, context: Context, valid_until: datetime) -> None:
        self.valid_until = valid_until
        self._context = context
        generator = {"name": "sdturbo"}
        with suppress(PackageNotFoundError):  # run from a clone that is not installed
            generator["version"] = version("sdturbo")
        actions = {"actions": [{"action": "c2pa.created", "digitalSourceType": DIGITAL_SOURCE_TYPE}]}
        assertions = [{"label": "c2pa.actions.v2", "data": actions}]
        self._manifest = json.dumps({"claim_generator_info": [generator], "assertions": assertions})

    @classmethod
    def load(cls, certificate: str | os.PathLike[str], key: str | os.PathLike[str]) -> ContentCredentials:
        """Read both files once, and sign a test picture.

        certificate: PEM, the signing certificate first and then those of its issuers. key: PEM without a password, of P-256,
        P-384, P-521, RSA from 2048 bits, or Ed25519. The algorithm follows from the key.
        Raises InvalidRequest for files that cannot be used, BackendUnavailable without the extra `credentials`.
        """
        if missing := [name for name in ("c2pa", "cryptography") if importlib.util.find_spec(name) is None]:
            raise BackendUnavailable(
                f"Content Credentials need {', '.join(missing)}, not installed here. In a clone of sdturbo,"
                " `pip install '.[credentials]'` brings them."
            )
        from c2pa import C2paError, C2paSignerInfo, Context, Signer
        from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

        chain, private_key = _chain(certificate := expanded(certificate)), _private_key(key := expanded(key))
        algorithm = _algorithm(private_key, key)
        _check(chain, private_key, certificate, key)
        try:
            info = C2paSignerInfo(
                algorithm,
                b"".join(link.public_bytes(Encoding.PEM) for link in chain),
                private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
                None,
            )
            context = Context.from_dict(_SETTINGS, signer=Signer.from_info(info))
            credentials = cls(context, chain[0].not_valid_after_utc)
            picture = io.BytesIO()
            Image.new("RGB", (8, 8)).save(picture, "PNG")
            credentials.sign(picture.getvalue(), "png")
        except (C2paError, SigningFailed) as error:
            raise InvalidRequest(
                f"The certificate in {certificate} cannot sign pictures: {error} Expected one with the key usage"
                " digitalSignature and an extended key usage such as emailProtection, and the issuers' certificates after it."
            ) from error
        return credentials

    def sign(self, file: bytes, output_format: str) -> bytes:
        """The file of a picture with a signed manifest in it. output_format: png, jpeg or webp. Raises SigningFailed."""
        from c2pa import Builder, C2paError

        signed = io.BytesIO()
        try:
            with Builder(self._manifest, self._context) as builder:
                builder.sign(f"image/{output_format}", io.BytesIO(file), signed)
        except C2paError as error:
            raise SigningFailed(f"The picture could not be signed: {error}.") from error
        return signed.getvalue()


# The key's text is no local variable of any function below, so that tools that show locals of a traceback do not show it.


def _read(path: Path, name: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidRequest(f"Cannot read {name} {path}: {error.strerror or error}. Expected a PEM file.") from error


def _chain(path: Path) -> list[Certificate]:
    from cryptography.x509 import load_pem_x509_certificates

    try:
        return load_pem_x509_certificates(_read(path, "the certificate"))
    except ValueError as error:
        if b"PRIVATE KEY-----" in _read(path, "the certificate"):
            text = f"Got a private key as CERT, {path}. Expected the certificate first and then the key: CERT KEY."
            raise InvalidRequest(text) from None
        raise InvalidRequest(f"{path} holds no certificate that can be read. Expected a PEM file.") from error


def _private_key(path: Path) -> PrivateKeyTypes:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        return load_pem_private_key(_read(path, "the key"), None)
    except TypeError:
        raise InvalidRequest(
            f"The key in {path} is encrypted. Expected one without a password, which `openssl pkey -in KEY -out PLAIN` writes."
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        if b"BEGIN CERTIFICATE-----" in _read(path, "the key"):
            text = f"Got a certificate as KEY, {path}. Expected the certificate first and then the key: CERT KEY."
            raise InvalidRequest(text) from None
        raise InvalidRequest(f"{path} holds no private key that can be read. Expected a PEM file.") from None


def _algorithm(key: PrivateKeyTypes, path: Path) -> str:
    """C2PA's name of the algorithm that goes with a key."""
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

    curves = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
    if isinstance(key, EllipticCurvePrivateKey) and key.curve.name in curves:
        return curves[key.curve.name]
    if isinstance(key, RSAPrivateKey) and key.key_size >= 2048:
        return "ps256"
    if isinstance(key, Ed25519PrivateKey):
        return "ed25519"
    raise InvalidRequest(
        f"The key in {path} is of a kind that C2PA does not take. Expected P-256, P-384, P-521, RSA from 2048 bits, or Ed25519."
    )


def _check(chain: list[Certificate], key: PrivateKeyTypes, certificate_path: Path, key_path: Path) -> None:
    """Raise InvalidRequest for a key of another certificate, and for a certificate that is not valid today."""
    public, first, now = key.public_key(), chain[0], datetime.now(UTC)
    if first.public_key() != public:
        if any(link.public_key() == public for link in chain):
            text = (
                f"The certificates in {certificate_path} are in the wrong order. Expected the one of {key_path} first."
            )
            raise InvalidRequest(text)
        raise InvalidRequest(f"The key in {key_path} does not belong to the certificate in {certificate_path}.")
    start, end = first.not_valid_before_utc, first.not_valid_after_utc
    if not start <= now <= end:
        raise InvalidRequest(
            f"The certificate in {certificate_path} is valid from {start:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC. Now it is"
            f" {now:%Y-%m-%d %H:%M}. Renew it, or set the clock."
        )
