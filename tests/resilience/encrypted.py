"""gRPC in TLS on both sides, with certificates made for the occasion."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from cascade.client import Recommender, Retry, Tls, Unavailable
from tests.served import serve

EXTENSIONS = "subjectAltName=IP:127.0.0.1,DNS:localhost\n"
NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def measure(repository: Path, users_file: Path, work: Path) -> bool:
    """Whether a client with a certificate is answered, and those without one or in clear are not.
    The launcher's own probe and canary go the same way."""
    folder = work / "certificates"
    make_certificates(folder)
    user = json.loads(users_file.open().readline())
    flags = ("--tls-cert", "server.pem", "--tls-key", "server.key", "--tls-client-ca", "ca.pem")
    arguments = [f if f.startswith("--") else str(folder / f) for f in flags]
    ca, key, cert = (folder / name for name in ("ca.pem", "client.key", "client.pem"))
    with serve(repository, work / "encrypted.log", *arguments) as served:
        answered = [_asks(served.url, user, tls) for tls in (Tls(ca, key, cert), Tls(ca), None)]
    return answered == [True, False, False]


def _asks(url: str, user: dict[str, object], tls: Tls | None) -> bool:
    with Recommender(url, deadline_s=10, tls=tls, retry=Retry(tries=2, first_s=0.01)) as client:
        try:
            return len(client.recommend(user).item_ids) > 0
        except Unavailable:
            return False


def make_certificates(folder: Path) -> None:
    """An authority, and a certificate for the server and one for a client: ca.pem, server.pem with
    server.key, client.pem with client.key."""
    folder.mkdir(parents=True, exist_ok=True)

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    authority = ("-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=ca")
    openssl("req", "-x509", *NEW_KEY, *authority)
    (folder / "names").write_text(EXTENSIONS)
    for name in ("server", "client"):
        files = ("-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        openssl("req", *NEW_KEY, *files)
        signer = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2")
        names = ("-extfile", "names", "-out", f"{name}.pem")
        openssl("x509", "-req", "-in", f"{name}.csr", *signer, *names)
