"""API keys, signed links, and the secrets behind links and webhooks."""

import base64
import hashlib
import stat
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from itsdangerous import TimestampSigner, URLSafeTimedSerializer
from pydantic import SecretStr
from standardwebhooks import Webhook

from ltx2.errors import NotFound, NotReady, Unauthorized
from ltx2.settings import Settings
from ltx2.studio.keys import Keys, webhook_secret

KEY = "hunter2"
OWNER = hashlib.sha256(KEY.encode()).hexdigest()[:32]


def make(folder: Path, keys: str | None = None, **settings: Any) -> Keys:
    return Keys(Settings(data_dir=folder, api_keys=None if keys is None else SecretStr(keys), **settings))


@pytest.mark.parametrize("keys", ["", " , ,", ",", "drüben", "a,b\n", "a\0"])
def test_what_is_no_key_opens_the_server_to_nobody(keys: str) -> None:
    with pytest.raises(ValueError, match="at least one key"):
        Settings(api_keys=SecretStr(keys))


def test_without_keys_everybody_is_the_same_owner(tmp_path: Path) -> None:
    checked = make(tmp_path)
    assert not checked.wanted
    assert {checked.owner(key) for key in (None, "", "whatever", "\ud800")} == {""}


def test_each_key_has_a_name_of_its_own_that_stays_the_same(tmp_path: Path) -> None:
    checked = make(tmp_path, " first ,second,,third ")
    assert checked.wanted
    names = [checked.owner(key) for key in ("first", "second", "third")]
    assert len(set(names)) == 3
    assert [make(tmp_path / "another", "second,third").owner(key) for key in ("second", "third")] == names[1:]


def test_the_name_of_a_key_does_not_give_it_away(tmp_path: Path) -> None:
    name = make(tmp_path, "hunter2").owner("hunter2")
    assert "hunter2" not in name
    assert len(name) == 32
    assert name.isalnum()


@pytest.mark.parametrize(
    "key", [None, "", "wrong", "firs", "first ", "First", "first,second", ",", "first\0", "\ud800", "x" * 10**6]
)
def test_a_wrong_key_and_none_are_refused_with_a_hint(tmp_path: Path, key: str | None) -> None:
    with pytest.raises(Unauthorized) as caught:
        make(tmp_path, "first,second").owner(key)
    assert "X-API-Key" in str(caught.value)
    assert "first" not in str(caught.value)


def test_a_link_opens_the_output_it_was_signed_for(tmp_path: Path) -> None:
    keys = make(tmp_path, f"first,{KEY}")
    token = keys.sign("clip.mp4", OWNER)
    assert keys.opened("clip.mp4", token) == OWNER
    # what is passed on does not say whose it is, and goes with the key
    assert OWNER not in base64.urlsafe_b64decode(token.split(".")[0] + "==").decode()
    with pytest.raises(NotFound):
        make(tmp_path, "first").opened("clip.mp4", token)
    without = make(tmp_path)
    assert without.opened("clip.mp4", without.sign("clip.mp4", "")) == ""
    assert token.isascii()
    assert not set(token) & set("/?#&+= %")  # it can stand in a URL as it is


def test_a_link_opens_nothing_else(tmp_path: Path) -> None:
    keys = make(tmp_path, KEY)
    token = keys.sign("clip.mp4", OWNER)
    body, sent, signature = token.rsplit(".", 2)
    other = keys.sign("other.mp4", OWNER).rsplit(".", 2)[0]
    wrong = ["", ".", "..", "x", body, f"{body}.{sent}", f"{body}.{sent}.", f"{other}.{sent}.{signature}"]
    wrong += [token[:-1], f"{token}x", f"x{token}", f" {token}", token.swapcase(), f"{token}.{signature}"]
    wrong += [f"{body}.{sent[:-1]}B.{signature}", f"{body}..{signature}", "\ud800", "é", token * 1000, "\0"]
    for changed in wrong:
        with pytest.raises(NotFound) as caught:
            keys.opened("clip.mp4", changed)
        assert OWNER not in str(caught.value)
    for name in ("other.mp4", "", "clip.mp", "clip.mp4 ", "CLIP.MP4"):
        with pytest.raises(NotFound):
            keys.opened(name, token)


class EarlierSigner(TimestampSigner):
    """Signs as it would have been done some seconds ago."""

    seconds_ago = 0

    def get_timestamp(self) -> int:
        return int(time.time()) - self.seconds_ago


def test_a_link_is_good_for_a_while_and_not_longer(tmp_path: Path) -> None:
    keys = make(tmp_path, KEY, link_seconds=100)
    secret = (tmp_path / "link-secret").read_text()

    def signed(seconds_ago: int, secret: str = secret, salt: str = "outputs") -> str:
        signer = type("Signer", (EarlierSigner,), {"seconds_ago": seconds_ago})
        token = URLSafeTimedSerializer(secret, salt=salt, signer=signer).dumps(["clip.mp4", keys._alias(OWNER)])
        assert isinstance(token, str)
        return token

    assert keys.opened("clip.mp4", signed(0)) == OWNER
    assert keys.opened("clip.mp4", signed(98)) == OWNER
    for expired in (102, 10_000, int(time.time())):
        with pytest.raises(NotFound, match="expired"):
            keys.opened("clip.mp4", signed(expired))
    for forged in (signed(0, secret="guessed"), signed(0, secret=""), signed(0, salt="inputs"), signed(-1000)):
        with pytest.raises(NotFound):
            keys.opened("clip.mp4", forged)


def test_a_link_of_another_server_opens_nothing(tmp_path: Path) -> None:
    token = make(tmp_path / "one").sign("clip.mp4", OWNER)
    with pytest.raises(NotFound):
        make(tmp_path / "two").opened("clip.mp4", token)


def test_secrets_are_made_once_and_for_this_user_only(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    token, hook = make(folder, KEY).sign("clip.mp4", OWNER), webhook_secret(Settings(data_dir=folder))
    written = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert written.keys() == {"link-secret", "webhook-secret"}
    for path in folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert len(base64.b64decode(path.read_bytes(), validate=True)) == 32
    assert len(set(written.values())) == 2

    assert make(folder, KEY).opened("clip.mp4", token) == OWNER
    assert webhook_secret(Settings(data_dir=folder)) == hook
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == written


def test_what_a_killed_process_half_wrote_is_no_secret(tmp_path: Path) -> None:
    for name in ("link-secret.part", "link-secret", "webhook-secret"):
        (tmp_path / name).write_bytes(b"")
        (tmp_path / name).chmod(0o644)
    keys = make(tmp_path, KEY)
    forged = URLSafeTimedSerializer("", salt="outputs").dumps(["clip.mp4", keys._alias(OWNER)])
    with pytest.raises(NotFound):
        keys.opened("clip.mp4", str(forged))
    assert keys.opened("clip.mp4", keys.sign("clip.mp4", OWNER)) == OWNER
    assert Webhook(webhook_secret(Settings(data_dir=tmp_path)))
    for name in ("link-secret", "webhook-secret"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
        assert (tmp_path / name).stat().st_size == 44


def test_a_folder_without_room_for_secrets_is_told_so_without_its_name(tmp_path: Path) -> None:
    (tmp_path / "hidden").write_bytes(b"")
    for ask in (make, lambda folder: webhook_secret(Settings(data_dir=folder))):
        with pytest.raises(NotReady, match="LTX2_DATA_DIR") as caught:
            ask(tmp_path / "hidden" / "data")
        assert "hidden" not in str(caught.value)


def test_receivers_can_verify_with_the_secret_that_was_given_or_kept(tmp_path: Path) -> None:
    given = "whsec_" + base64.b64encode(b"0123456789abcdef0123456789abcdef").decode()
    assert webhook_secret(Settings(data_dir=tmp_path, webhook_secret=SecretStr(given))) == given
    assert list(tmp_path.iterdir()) == []
    now, kept = datetime.now(UTC), webhook_secret(Settings(data_dir=tmp_path))
    assert kept.startswith("whsec_")
    for secret in (given, kept):
        headers = {"webhook-id": "msg_1", "webhook-timestamp": str(int(now.timestamp()))}
        headers["webhook-signature"] = Webhook(secret).sign("msg_1", now, '{"a": 1}')
        assert Webhook(secret).verify(b'{"a": 1}', headers) == {"a": 1}


@pytest.mark.parametrize("secret", ["", "whsec_", "hunter2", "whsec_hunter2!", "whsec_é", "MDEyMzQ1Njc4OWFiY2RlZg=="])
def test_a_webhook_secret_of_another_form_is_refused_without_its_words(tmp_path: Path, secret: str) -> None:
    with pytest.raises(NotReady, match="LTX2_WEBHOOK_SECRET must be whsec_") as caught:
        webhook_secret(Settings(data_dir=tmp_path, webhook_secret=SecretStr(secret)))
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None
