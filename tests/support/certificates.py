"""Certificates of an authority made for a test, and a server that uses one of them."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.support.serving import serving

DAY = timedelta(days=1)


class Authority:
    """Signs certificates for this machine. `bundle` is the path of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "an authority for a test")])
        constraints = x509.BasicConstraints(ca=True, path_length=0)
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        own = self._builder(self._name, self._key.public_key(), DAY)
        own = own.add_extension(constraints, critical=True).add_extension(usage, critical=True)
        self.bundle = folder / "authority.pem"
        self.bundle.write_bytes(own.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePublicKey, until: timedelta) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        identifier = x509.SubjectKeyIdentifier.from_public_key(key)
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(self._name).public_key(key)
        builder = builder.serial_number(x509.random_serial_number()).add_extension(identifier, critical=False)
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = builder.add_extension(authority, critical=False)
        return builder.not_valid_before(now - 9 * DAY).not_valid_after(now + until)

    def certify(self, *, address: str = "127.0.0.1", until: timedelta = DAY) -> Path:
        """Write a certificate and its key into one file, for an address and a period from now."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a server for a test")])
        names = x509.SubjectAlternativeName([x509.IPAddress(ip_address(address))])
        made = self._builder(subject, key.public_key(), until).add_extension(names, critical=False)
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        path = self._folder / f"{address}-{until.days}.pem"
        path.write_bytes(made.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM) + private)
        return path


@dataclass(slots=True)
class SecureServer:
    """Its address, and the requests received."""

    url: str
    asked: list[str] = field(default_factory=list)


@contextlib.contextmanager
def secure_server(certificate: Path, body: bytes = b"x" * 10) -> Iterator[SecureServer]:
    """Answer every request with the body, over TLS."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # the base class calls it so
            made.asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:  # the base class calls it so
            self.rfile.read(int(self.headers["Content-Length"]))
            self.do_GET()

        def do_PATCH(self) -> None:  # the base class calls it so
            self.do_POST()

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    class Server(HTTPServer):
        def handle_error(self, *_: object) -> None:
            """Ignore clients that refuse the certificate."""

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server = Server(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    made = SecureServer(f"https://127.0.0.1:{server.server_address[1]}")
    with serving(server):
        yield made
