"""Addresses that are refused, keys that stay where they belong, TLS that is verified. Traffic stays on 127.0.0.1."""

import json
import logging
import os
import pickle
import shutil
import socket
import ssl
import subprocess
import traceback
from email.message import Message

import pytest
from comfyui_glm_image.pipeline.errors import GlmImageError
from comfyui_glm_image.pipeline.remote import Job, client, generate, http, pool
from comfyui_glm_image.pipeline.remote import api_keys as keys
from comfyui_glm_image.pipeline.remote.addresses import parse_image_url, parse_server, refusal
from comfyui_glm_image.pipeline.remote.api_keys import Key, find_key
from comfyui_glm_image.pipeline.remote.errors import KeyMissingError, UnsafeAddressError
from comfyui_glm_image.pipeline.remote.http import Deadline, Request, Response, exchange
from comfyui_glm_image.tests.remote.contract import FAULTS, KEY
from PIL import Image
from PIL.PngImagePlugin import PngInfo

SIZE = {"width": 64, "height": 64}
HOSTED = {"width": 1280, "height": 1280, "engine": "zai"}


@pytest.fixture(autouse=True)
def no_keys(monkeypatch, tmp_path):
    """Nothing of the machine's own keys and proxies."""
    for name in ("ZAI_API_KEY", "ZHIPUAI_API_KEY", "BIGMODEL_API_KEY", "GLM_IMAGE_API_KEY", "GLM_IMAGE_KEY_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(keys, "DEFAULT_FILE", tmp_path / "none.json")
    monkeypatch.setattr(pool, "BACK_OFF", 0.02)


def give_key(monkeypatch, server, value=KEY):
    monkeypatch.setenv("GLM_IMAGE_API_KEY", value)
    monkeypatch.setenv("GLM_IMAGE_API_KEY_SERVERS", server.url)


# Addresses -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("file:///etc/passwd", "addresses starting with 'file:' are refused"),
        ("ftp://127.0.0.1/x", "addresses starting with 'ftp:' are refused"),
        ("127.0.0.1:8091", "refused; use http or https"),
        ("http://user:secret@127.0.0.1", "keys come from the environment or a file"),
        ("http://127.0.0.1/?key=secret", "has a '\\?' or '#' part"),
        ("http://127.0.0.1/#x", "has a '\\?' or '#' part"),
        ("http:///x", "has no host"),
        ("http://127.0.0.1:99999", "malformed"),
        ("http://[::1", "malformed"),
        ("http://bücher.example", "outside ASCII"),
        ("http://127.0.0.1\\@evil.example", "outside ASCII"),
        ("http://127.0.0.1/\r\nHost: x", "outside ASCII"),
    ],
)
def test_a_bad_address_is_refused_without_repeating_it(url, message):
    with pytest.raises(UnsafeAddressError, match=message) as error:
        parse_server(url)
    assert "secret" not in str(error.value)


PUBLIC, METADATA, NOWHERE = "is public and plain http", "link-local or metadata", "no address of a server"


@pytest.mark.parametrize(
    ("address", "http", "https"),
    [
        ("127.0.0.1", None, None),
        ("10.1.2.3", None, None),
        ("192.168.0.9", None, None),
        ("::1", None, None),
        ("fd12::1", None, None),
        ("93.184.216.34", PUBLIC, None),
        ("2606:2800:220:1::1", PUBLIC, None),
        ("169.254.169.254", METADATA, METADATA),
        ("::ffff:169.254.169.254", METADATA, METADATA),
        ("64:ff9b::a9fe:a9fe", METADATA, METADATA),
        ("fe80::1%eth0", METADATA, METADATA),
        ("fd00:ec2::254", METADATA, METADATA),
        ("100.100.100.200", METADATA, METADATA),
        ("0.0.0.0", NOWHERE, NOWHERE),
        ("224.0.0.1", NOWHERE, NOWHERE),
        ("255.255.255.255", NOWHERE, NOWHERE),
    ],
)
def test_addresses_are_judged_by_what_they_are(address, http, https):
    for scheme, expected in (("http", http), ("https", https)):
        reason = refusal(address, parse_server(f"{scheme}://host.example"), public_only=False)
        assert (reason is None) if expected is None else (expected in reason)


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.1", "192.168.1.1", "100.64.0.1", "::1", "fd12::1"])
def test_a_image_elsewhere_is_never_fetched_from_a_private_address(address):
    assert "is not public" in refusal(address, parse_server("https://cdn.example"), public_only=True)


def test_the_owner_of_the_machine_may_allow_plain_http(monkeypatch):
    monkeypatch.setenv("GLM_IMAGE_ALLOW_HTTP", "other.example, host.example")
    assert refusal("93.184.216.34", parse_server("http://host.example"), public_only=False) is None
    assert refusal("169.254.169.254", parse_server("http://host.example"), public_only=False)


@pytest.mark.parametrize("name", ["http://metadata.example", "https://metadata.example"])
def test_a_name_that_leads_to_a_metadata_address_is_never_connected_to(monkeypatch, name):
    answer = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("169.254.169.254", 80))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: answer)
    monkeypatch.setattr(socket.socket, "connect_ex", lambda *args: pytest.fail("connected"))
    with pytest.raises(UnsafeAddressError, match="169.254.169.254 is a link-local or metadata address"):
        generate(Job("x", name, **SIZE))


def test_a_image_s_address_is_its_server_s_own_or_https():
    server = parse_server("http://127.0.0.1:8091/api")
    assert parse_image_url("/v1/images/1/content?variant=0", server)[1:] == ("/v1/images/1/content?variant=0", True)
    assert parse_image_url("http://127.0.0.1:8091/a", server)[2] is True
    assert parse_image_url("https://cdn.example/a?b=c", server)[1:] == ("/a?b=c", False)
    for url in ("http://127.0.0.1:8092/a", "http://cdn.example/a", "file:///etc/passwd", "//cdn.example/a", "a.png"):
        with pytest.raises(UnsafeAddressError):
            parse_image_url(url, server)


def test_a_redirect_is_not_followed_and_its_target_hears_nothing(serve):
    server, target = serve(fault="redirect"), serve()
    server.elsewhere = target.url
    with pytest.raises(UnsafeAddressError, match=f"redirects to {target.url}; redirects are not followed"):
        generate(Job("x", server.url, **SIZE))
    assert not target.requests


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_image_at_another_private_server_is_not_fetched(serve, monkeypatch, scheme):
    server, target = serve("zai"), serve("zai")
    give_key(monkeypatch, server)
    server.elsewhere = target.url.replace("http", scheme, 1)
    with pytest.raises(UnsafeAddressError, match="only https is followed elsewhere|127.0.0.1 is not public"):
        generate(Job("x", server.url, **HOSTED))
    assert len(server.requests) == 1
    assert not target.authorizations


def test_proxies_of_the_environment_are_not_used(serve, monkeypatch):
    server, proxy = serve(), serve()
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, proxy.url)
    generate(Job("x", server.url, **SIZE))
    assert server.requests and not proxy.requests


# Keys ----------------------------------------------------------------------------------------------------------------


def test_the_hosted_api_without_a_key_says_how_to_set_one_and_sends_nothing(serve):
    server = serve("zai")
    with pytest.raises(KeyMissingError, match="needs a key; set GLM_IMAGE_API_KEY and GLM_IMAGE_API_KEY_SERVERS="):
        generate(Job("x", server.url, **HOSTED))
    assert not server.authorizations
    assert "set ZAI_API_KEY in the environment" in keys.how_to_set(parse_server("https://api.z.ai"))


@pytest.mark.parametrize(
    ("name", "server"),
    [
        ("ZAI_API_KEY", "https://api.z.ai"),
        ("ZHIPUAI_API_KEY", "https://open.bigmodel.cn"),
        ("BIGMODEL_API_KEY", "https://open.bigmodel.cn"),
    ],
)
def test_a_key_belongs_to_one_origin(monkeypatch, name, server):
    monkeypatch.setenv(name, KEY)
    assert find_key(parse_server(server)).header() == f"Bearer {KEY}"
    for other in ("http://127.0.0.1:8091", server.replace("https", "http"), server + ":8443", server + ".evil.example"):
        assert find_key(parse_server(other)) is None


def test_another_server_gets_no_key(serve, monkeypatch):
    owner, stranger = serve("zai"), serve()
    give_key(monkeypatch, owner)
    generate(Job("x", stranger.url, **SIZE))
    assert stranger.authorizations == [None]


def test_an_own_server_gets_its_key_for_images_and_requests(serve, monkeypatch):
    server = serve("zai")
    give_key(monkeypatch, server)
    generate(Job("x", server.url, **HOSTED))
    assert server.authorizations == [f"Bearer {KEY}"] * 2


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="no owners and permissions on this system")
def test_a_key_file_is_read_only_if_nobody_else_can(tmp_path, monkeypatch):
    path = tmp_path / "keys.json"
    monkeypatch.setenv("GLM_IMAGE_KEY_FILE", str(path))
    path.write_text(json.dumps({"http://127.0.0.1:8091/v1": KEY}))
    path.chmod(0o600)
    assert find_key(parse_server("http://127.0.0.1:8091")).header() == f"Bearer {KEY}"
    assert find_key(parse_server("http://127.0.0.1:8092")) is None
    path.chmod(0o640)
    with pytest.raises(KeyMissingError, match="others can read the key file .* chmod 600"):
        find_key(parse_server("http://127.0.0.1:8091"))


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="no owners and permissions on this system")
@pytest.mark.parametrize("text", ["", "[1]", '{"http://127.0.0.1": 5}', KEY, f'"http://127.0.0.1": "{KEY}'])
def test_a_broken_key_file_is_not_quoted(tmp_path, monkeypatch, text):
    path = tmp_path / "keys.json"
    monkeypatch.setenv("GLM_IMAGE_KEY_FILE", str(path))
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(KeyMissingError) as error:
        find_key(parse_server("http://127.0.0.1"))
    assert KEY not in "".join(traceback.format_exception(error.value))


@pytest.mark.parametrize("value", ["a b", "a\r\nX-Evil: 1", "ключ", "", "a\x00b"])
def test_a_key_that_could_break_a_header_is_refused_unquoted(value):
    with pytest.raises(KeyMissingError) as error:
        Key(value, "here")
    assert not value or value not in str(error.value)


def test_a_key_neither_prints_nor_pickles():
    key = Key(KEY, "here")
    assert KEY not in f"{key} {key!r} {[key]}"
    with pytest.raises(TypeError):
        pickle.dumps(key)


def test_a_server_that_repeats_a_wrong_key_does_not_get_it_shown(serve, monkeypatch):
    server = serve("zai")
    give_key(monkeypatch, server, "sk-wrong-99887766")
    with pytest.raises(GlmImageError, match="answered 401: Bearer \\(key\\) is not valid; check the key") as error:
        generate(Job("x", server.url, **HOSTED))
    assert "99887766" not in "".join(traceback.format_exception(error.value))


ENDLESS = {"hang", "drip", "always busy", "busy for a minute"}


@pytest.mark.parametrize("fault", [None, *sorted(FAULTS.keys() - ENDLESS - {"poll_fails_once", "task_fails"})])
def test_no_key_is_found_in_reports_logs_images_or_tracebacks(serve, monkeypatch, caplog, capfd, tmp_path, fault):
    server = serve("zai", fault)
    server.elsewhere = server.url if fault != "redirect" else "http://127.0.0.1:9"
    give_key(monkeypatch, server)
    caplog.set_level(logging.DEBUG)
    traces = []
    try:
        generated = generate(Job("x", server.url, count=2, **HOSTED), traces.append)
        info = PngInfo()
        info.add_text("report", generated.report)
        generated.images[0].save(tmp_path / "image.png", pnginfo=info)
    except (GlmImageError, KeyError) as error:
        traces.append("".join(traceback.format_exception(error)))
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*"))
    output = capfd.readouterr()
    everything = "".join([*traces, caplog.text, output.out, output.err, written.decode("latin-1")])
    assert f"Bearer {KEY}" in server.authorizations
    assert KEY not in everything


@pytest.mark.parametrize("form", ["https://{}.example", "https://cdn.example/{}?a=", "http://127.0.0.1:9/{}", "{}:x"])
@pytest.mark.parametrize("spell", [str, str.upper, lambda key: key.replace("-", "%2D")])
def test_an_image_s_address_with_the_key_in_it_is_not_followed_and_not_shown(serve, monkeypatch, form, spell):
    server = serve("zai")
    give_key(monkeypatch, server)
    server.elsewhere = form.format(spell(KEY))
    monkeypatch.setattr(socket, "getaddrinfo", known_names_only(socket.getaddrinfo))
    with pytest.raises(UnsafeAddressError, match="put the key into an image's address") as error:
        generate(Job("x", server.url, **HOSTED))
    assert KEY not in "".join(traceback.format_exception(error.value)).lower()


def known_names_only(ask):
    """A resolver that repeats what it was asked, with control characters, for every name but an address."""

    def answer(host, port, **options):
        if host[0].isdigit():
            return ask(host, port, **options)
        raise socket.gaierror(-2, f"Name or service not known: \x1b[31m{host}\x00 {KEY}")

    return answer


def test_what_a_resolver_says_is_not_repeated(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", known_names_only(socket.getaddrinfo))
    with pytest.raises(GlmImageError) as error:
        generate(Job("x", "https://images.example:8091", **SIZE))
    assert str(error.value) == "https://images.example:8091: the name images.example is not known"
    assert KEY not in "".join(traceback.format_exception(error.value))


@pytest.mark.parametrize("name", ["a" * 64 + ".example", "a..example", "\u2028.example", "-" * 300])
def test_a_name_that_no_resolver_takes_is_one_sentence(name):
    with pytest.raises(GlmImageError) as error:
        generate(Job("x", f"https://{name}", **SIZE))
    assert len(str(error.value)) < 300 and str(error.value).isprintable()


def test_a_foreign_host_is_sent_no_key(serve, monkeypatch):
    server = serve("zai")
    monkeypatch.setattr(http, "refusal", lambda *_: None)  # as if 127.0.0.1 were public
    asked = Request("GET", "/image.png?64,64,7")
    for foreign in (True, False):
        exchange(parse_server(server.url), asked, Deadline(5.0), 1 << 20, Key(KEY, "a test"), foreign)
    assert server.authorizations == [None, f"Bearer {KEY}"]


def test_a_foreign_host_that_knows_the_key_does_not_get_it_shown(monkeypatch):
    words = Message()
    words["Content-Type"] = "text/plain"
    monkeypatch.setattr(client, "exchange", lambda *_, **__: Response(404, words, f"no {KEY.upper()}".encode()))
    asked = client.Client(parse_server("https://api.example"), Key(KEY, "a test"), Deadline(5.0), 1 << 20)
    with pytest.raises(GlmImageError, match=r"^https://cdn.example answered 404: no \(key\)$"):
        asked.fetch("https://cdn.example/image.png")


def test_metadata_of_a_server_s_image_is_not_passed_on(serve):
    (image,) = generate(Job("x", serve().url, **SIZE)).images
    assert not image.info and not Image.Image.getexif(image)


# TLS -----------------------------------------------------------------------------------------------------------------


def certificate(folder, names):
    """A self-signed certificate for `names`, and a server context that shows it."""
    if not shutil.which("openssl"):
        pytest.skip("the openssl program makes the test's certificate and is not installed")
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = (
        f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=test -keyout {key}"
    )
    subprocess.run(
        [*command.split(), "-out", cert, "-addext", f"subjectAltName={names}"], check=True, capture_output=True
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    return cert, context


def test_a_self_signed_certificate_is_refused_before_anything_is_sent(serve, tmp_path, monkeypatch):
    _, context = certificate(tmp_path, "IP:127.0.0.1")
    server = serve("zai", context=context)
    give_key(monkeypatch, server)
    with pytest.raises(UnsafeAddressError, match="its certificate is not trusted .self-signed certificate"):
        generate(Job("x", server.url, **HOSTED))
    assert not server.authorizations


def test_an_authority_of_one_s_own_is_accepted(serve, tmp_path, monkeypatch):
    cert, context = certificate(tmp_path, "IP:127.0.0.1")
    monkeypatch.setenv("SSL_CERT_FILE", str(cert))
    assert generate(Job("x", serve(context=context).url, **SIZE)).images


def test_a_trusted_certificate_for_another_name_is_refused(serve, tmp_path, monkeypatch):
    cert, context = certificate(tmp_path, "DNS:api.z.ai")
    monkeypatch.setenv("SSL_CERT_FILE", str(cert))
    with pytest.raises(UnsafeAddressError, match="its certificate is not trusted .*IP address mismatch"):
        generate(Job("x", serve(context=context).url, **SIZE))


def test_a_server_without_tls_is_no_https_server(serve):
    with pytest.raises(GlmImageError, match="no TLS connection"):
        generate(Job("x", serve().url.replace("http", "https"), **SIZE))


def test_a_compressed_answer_is_refused(serve):
    server = serve()
    original = server.RequestHandlerClass.answer

    class Compressing(server.RequestHandlerClass):
        def answer(self, status, body, headers=None):
            original(self, status, body, (headers or {}) | {"Content-Encoding": "gzip"})

    server.RequestHandlerClass = Compressing
    with pytest.raises(GlmImageError, match="compressed answer that was not asked for"):
        exchange(parse_server(server.url), Request("GET", "/health"), Deadline(5), 1000)
