"""Who may call: API keys, links that work without one for a while, and the secrets behind both."""

import base64
import hashlib
import hmac
import secrets
from pathlib import Path

from itsdangerous import BadSignature, URLSafeTimedSerializer

from ltx2.errors import NotFound, NotReady, Unauthorized
from ltx2.settings import Settings

WEBHOOK_PREFIX = "whsec_"
WANTED = "this server wants an API key"
HINT = "send it as Authorization: Bearer … or as X-API-Key"


class Keys:
    """Checks API keys, and signs links.

    Raises:
        NotReady: the secret can be neither read nor made.
    """

    def __init__(self, settings: Settings) -> None:
        self._digests = [_digest(key) for key in settings.keys]
        self._link_seconds = settings.link_seconds
        self._owners = [digest.hex()[:32] for digest in self._digests] or [""]
        self._secret = _kept_secret(settings.data_dir / "link-secret")
        self._links = URLSafeTimedSerializer(self._secret, salt="outputs")

    @property
    def wanted(self) -> bool:
        """Whether callers need a key."""
        return bool(self._digests)

    def owner(self, key: str | None) -> str:
        """The name that the jobs and files of a key go by. It does not give the key away.

        Raises:
            Unauthorized: a key is wanted, and this is none.
        """
        if not self.wanted:
            return ""
        if not key:
            raise Unauthorized(WANTED, hint=HINT)
        digest = _digest(key)
        # all of them are compared, so that time tells nothing
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        if not any(matches):
            raise Unauthorized("this API key is not known here", hint=HINT)
        return digest.hex()[:32]

    def sign(self, name: str, owner: str) -> str:
        """A token that opens an owner's output for ``LTX2_LINK_SECONDS``."""
        signed = self._links.dumps([name, self._alias(owner)])
        return signed if isinstance(signed, str) else signed.decode()

    def opened(self, name: str, token: str) -> str:
        """Whose output of this name a token opens.

        Raises:
            NotFound: it is not a token for this output, or too old.
        """
        try:
            signed, alias = self._links.loads(token, max_age=self._link_seconds)
        except (BadSignature, UnicodeError):
            signed = alias = None
        for owner in self._owners:
            if signed == name and alias == self._alias(owner):
                return owner
        raise NotFound("this link is wrong or has expired", hint="ask for the job again to get a new one")

    def _alias(self, owner: str) -> str:
        """An owner as links name it. They are passed on, and an owner's name is made of nothing but the key."""
        return hmac.new(self._secret.encode(), owner.encode(), hashlib.sha256).hexdigest()[:16]


def webhook_secret(settings: Settings) -> str:
    """What webhooks are signed with, as receivers need it: ``whsec_`` and base64.

    Raises:
        NotReady: LTX2_WEBHOOK_SECRET is not of that form, or none can be made.
    """
    if settings.webhook_secret is None:
        return WEBHOOK_PREFIX + _kept_secret(settings.data_dir / "webhook-secret")
    given = settings.webhook_secret.get_secret_value()
    try:
        secret = base64.b64decode(given.removeprefix(WEBHOOK_PREFIX), validate=True)
    except ValueError:
        secret = b""
    if not secret or not given.startswith(WEBHOOK_PREFIX):
        raise NotReady("LTX2_WEBHOOK_SECRET must be whsec_ followed by base64")
    return given


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogatepass")).digest()


def _kept_secret(path: Path) -> str:
    """The secret in a file that only this user can read; made when there is none."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # an empty one was cut off by a power failure, and would be known to everybody
        if not path.exists() or not path.stat().st_size:
            beside = path.with_suffix(".part")
            beside.unlink(missing_ok=True)
            beside.touch(mode=0o600)
            beside.write_text(base64.b64encode(secrets.token_bytes(32)).decode())
            beside.rename(path)
        return path.read_text().strip()
    except OSError as error:
        raise NotReady(
            f"the data folder cannot be used: {error.strerror}",
            hint="set LTX2_DATA_DIR to a folder this user can write",
        ) from None
