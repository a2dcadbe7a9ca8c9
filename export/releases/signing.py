"""Signs the manifest of a release, for servers that serve only what they trust
(`cascade.server.trust`): release.json names every file by its sha256."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from cascade.artifact import ArtifactError
from cascade.errors import need
from cascade.release import RELEASE_FILE, SIGNATURE_FILE
from cascade.spec import ENSEMBLE
from export.releases.manifest import verify

PASSWORD_VARIABLE = "CASCADE_SIGN_PASSWORD"  # noqa: S105  # a name


class SigningError(ArtifactError):
    """The key cannot sign."""


class Signer:
    """A private key of ed25519.

    Args:
        file: PEM; where it is encrypted, the variable CASCADE_SIGN_PASSWORD has the password.

    Raises SigningError: the file holds no such key; OSError.
    """

    def __init__(self, file: Path) -> None:
        self._key = _private_key(file)

    def sign(self, repository: Path, number: int) -> None:
        """Write the signature of a release beside its manifest, once every file is as the manifest
        says. Raises ArtifactError: one is not; OSError."""
        verify(repository, number)
        manifest = repository / ENSEMBLE / str(number) / RELEASE_FILE
        partial = manifest.with_name(f"{SIGNATURE_FILE}.partial")
        partial.write_bytes(self._key.sign(manifest.read_bytes()))
        partial.replace(manifest.with_name(SIGNATURE_FILE))


def _private_key(file: Path) -> Any:
    need("cryptography", "signing", "sign", SigningError)
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    password = os.environ.get(PASSWORD_VARIABLE, "").encode() or None
    try:
        key = load_pem_private_key(file.read_bytes(), password)
    except (TypeError, ValueError, UnsupportedAlgorithm) as error:
        raise SigningError(
            f"{file} holds no private key in PEM that can be read ({error}); make one with: "
            f"openssl genpkey -algorithm ed25519 -out {file}. The variable {PASSWORD_VARIABLE} has "
            "the password of an encrypted one"
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        kind = type(key).__name__.removeprefix("_")
        raise SigningError(f"{file} holds a key of another kind, {kind}; expected ed25519")
    return key
