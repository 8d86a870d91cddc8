"""Whatever is given as a base URL is refused as such, or cannot give a key away by its form."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from vecmill.core.errors import ConfigError
from vecmill.models.hosted.addresses import Given, base_url, is_vendors

PIECES = st.sampled_from(
    [
        *(
            "https://",
            "http://",
            "HTTPS://",
            "api.openai.com",
            "evil.example",
            "127.0.0.1",
            "[::1]",
            "localhost",
        ),
        *(
            "@",
            ":",
            "/",
            "\\",
            "//",
            "?",
            "#",
            "%2f",
            "%40",
            ":443",
            ":0",
            "..",
            ".",
            "v1",
            "user",
            "\u3002",
            "\u00e9",
        ),
        *("\t", "\n", " ", "[", "]", ";", "a", "\u2100"),
    ]
)


@pytest.mark.parametrize(
    ("provider", "url", "own"),
    [
        ("openai", "https://api.openai.com/v1", True),
        ("openai", "https://eu.api.openai.com/v1", True),
        ("openai", "http://api.openai.com/v1", False),
        ("openai", "https://evilapi.openai.com/v1", False),
        ("openai", "https://api.openai.com.evil.example/v1", False),
        ("openai", "https://mill.openai.azure.com/openai/v1", False),
        ("github", "https://models.github.ai/inference", True),
        ("github", "https://evil.models.github.ai/inference", False),
        ("github", "http://models.github.ai/inference", False),
        ("azure", "https://mill.openai.azure.com/openai", True),
        ("azure", "https://MILL.OpenAI.azure.us/openai", True),
        ("azure", "https://mill.openai.azure.cn:8443/openai", True),
        ("azure", "https://mill.cognitiveservices.azure.com/openai/v1", True),
        ("azure", "https://mill.services.ai.azure.com/openai/v1", True),
        ("azure", "http://mill.openai.azure.com/openai", False),
        ("azure", "https://openai.azure.com/openai", False),
        ("azure", "https://evilopenai.azure.com/openai", False),
        ("azure", "https://mill.azure-api.net/openai", False),
        ("azure", "https://mill.openai.azure.com.evil.example/openai", False),
        ("azure", "https://evil.example/mill.openai.azure.com", False),
        ("azure", "http://127.0.0.1:8099", False),
        ("local", "https://api.openai.com/v1", False),
    ],
)
def test_only_the_vendors_own_addresses_over_https_are_believed(provider: str, url: str, own: bool) -> None:
    assert is_vendors(provider, url) is own


@given(st.lists(PIECES, max_size=9).map("".join) | st.text(max_size=30))
def test_what_is_taken_is_read_alike_by_the_client_and_has_no_password(text: str) -> None:
    try:
        base = base_url(Given(text, "base_url"))
    except ConfigError:
        return
    parts = urlsplit(base.url)
    assert parts.scheme in ("http", "https")
    assert (parts.username, parts.password, parts.query, parts.fragment) == (None, None, "", "")
    assert base.host == (URL(base.url).raw_host or "").rstrip("/")
    assert not base.url.endswith("/")


@pytest.mark.parametrize(
    "text",
    [
        "https://api.openai.com\\.evil.example/v1",
        "https://api.openai.com%2eevil.example/v1",
        "https://[::1/v1",
        "https://[evil]/v1",
        "https://-/v1",
        "https://\u2100/v1",
    ],
)
def test_hosts_that_readers_differ_about_are_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        base_url(Given(text, "base_url"))


def test_a_host_in_other_letters_is_the_host_it_stands_for() -> None:
    assert base_url(Given("https://api\u3002openai\u3002com/v1", "x")).host == "api.openai.com"
    assert base_url(Given("https://m\u00fchle.example/v1", "x")).url == "https://xn--mhle-0ra.example/v1"


def test_a_value_that_may_be_a_key_does_not_print() -> None:
    assert "planted" not in repr(Given("sk-planted-0123456789", "OPENAI_API_KEY"))
