"""Certificates of a test's own authority, and the state of a signed file, as c2pa's reader sees it."""

import io
import json
from datetime import UTC, datetime, timedelta

from c2pa import Context, Reader
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

KEYS = {
    "Es256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "Es384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "Es512": lambda: ec.generate_private_key(ec.SECP521R1()),
    "Ps256": lambda: rsa.generate_private_key(65537, 2048),
    "Ed25519": ed25519.Ed25519PrivateKey.generate,
}


def name_of(text):
    return x509.Name([x509.NameAttribute(kind, text) for kind in (NameOID.ORGANIZATION_NAME, NameOID.COMMON_NAME)])


class Authority:
    """Signs certificates. `pem` is its own, the trust anchor of the tests."""

    def __init__(self):
        self.key = KEYS["Es256"]()
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        self.pem = self._sign("authority", self.key, (-1, 100), x509.BasicConstraints(True, None), usage)

    def issue(self, key, days=(-1, 100), email=True):
        """The PEM of a certificate for `key`. days: first and last from today. email: whether it has that extended use."""
        usage = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
        return self._sign("press office", key, days, x509.BasicConstraints(False, None), usage, email)

    def _sign(self, name, key, days, constraints, usage, email=False):
        start, end = (datetime.now(UTC) + timedelta(days=number) for number in days)
        unsigned = x509.CertificateBuilder(name_of("authority"), name_of(name), key.public_key())
        unsigned = unsigned.serial_number(x509.random_serial_number()).not_valid_before(start).not_valid_after(end)
        unsigned = unsigned.add_extension(constraints, critical=True).add_extension(usage, critical=True)
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        unsigned = unsigned.add_extension(identifier, critical=False)
        if email:
            uses = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])
            unsigned = unsigned.add_extension(uses, critical=False)
        return unsigned.sign(self.key, hashes.SHA256()).public_bytes(Encoding.PEM)


def pem_of(key, encryption=None, layout=PrivateFormat.PKCS8):
    return key.private_bytes(Encoding.PEM, layout, encryption or NoEncryption())


def write_pair(folder, authority, key, **options):
    """(CERT, KEY): two files."""
    folder.joinpath("cert.pem").write_bytes(authority.issue(key, **options) + authority.pem)
    folder.joinpath("key.pem").write_bytes(pem_of(key))
    return folder / "cert.pem", folder / "key.pem"


def read_signed(data, output_format, authority):
    """(state, active manifest) of a file. The state is "Trusted" for a whole file whose certificate the authority signed."""
    verify = {"verify_trust": True, "ocsp_fetch": False, "remote_manifest_fetch": False}
    context = Context.from_dict({"trust": {"trust_anchors": authority.pem.decode()}, "verify": verify})
    reader = Reader(f"image/{output_format}", io.BytesIO(data), context=context)
    return reader.get_validation_state(), reader.get_active_manifest()


def source_types(manifest):
    """(action, digital source type) of each action of a manifest."""
    (actions,) = (
        part["data"]["actions"] for part in manifest["assertions"] if part["label"].startswith("c2pa.actions")
    )
    return [(each["action"], each["digitalSourceType"]) for each in actions]


def has_text(manifest, text):
    return text in json.dumps(manifest)
