"""Which addresses may be talked to: checked after name resolution, on the very address that is then connected to.

Plain http is for loopback and private networks; link-local and cloud metadata addresses are never used; an image's
address is either on the server that drew it or public https. See `docs/serving.md`.
"""

import ipaddress
import os
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from .errors import UnsafeAddressError

ALLOW_HTTP = "GLM_IMAGE_ALLOW_HTTP"  # host names, comma separated, that plain http may reach in public networks

_PRIVATE = [
    ipaddress.ip_network(net)
    for net in ("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "::1/128", "fc00::/7")
]
# Metadata services outside 169.254.0.0/16: AWS, Google and Oracle over IPv6, Alibaba, Oracle, Azure.
_METADATA = {
    ipaddress.ip_address(ip)
    for ip in (
        "fd00:ec2::254",
        "fd20:ce::254",
        "fd00:c1::a9fe:a9fe",
        "100.100.100.200",
        "192.0.0.192",
        "168.63.129.16",
    )
}
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


@dataclass(frozen=True)
class Endpoint:
    """Where a server is: `path` is the part before the API's own paths, without a trailing slash."""

    scheme: str
    host: str
    port: int
    path: str = ""

    @property
    def origin(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        standard = {"http": 80, "https": 443}[self.scheme]
        return f"{self.scheme}://{host}" + ("" if self.port == standard else f":{self.port}")

    def __str__(self) -> str:
        return self.origin

    def below(self, path: str) -> "Endpoint":
        return replace(self, path=path)


def parse_engine(url: str) -> Endpoint:
    """An engine's address; the /v1 that OpenAI's clients want at its end is part of the protocol's own paths."""
    endpoint = parse_server(url)
    return endpoint.below(endpoint.path.removesuffix("/v1"))


def parse_server(url: str) -> Endpoint:
    """A server's address as the user wrote it. Messages do not repeat it: it may hold a password."""
    parts, endpoint = _parse(url)
    if parts.query or parts.fragment:
        raise UnsafeAddressError(f"the address of {endpoint} has a '?' or '#' part; give only http(s)://host:port")
    return endpoint


def parse_image_url(url: str, server: Endpoint) -> tuple[Endpoint, str, bool]:
    """An image's address from an answer -> (endpoint, path with query, whether it is the server's own).

    A foreign host must be https; that it is public is checked when its name is resolved.
    """
    root = server.below("")
    if url.startswith("/") and not url.startswith("//"):
        return root, url, True
    parts, endpoint = _parse(url)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if endpoint.origin == server.origin:
        return root, path, True
    if endpoint.scheme != "https":
        raise UnsafeAddressError(f"{server} answered with an image at {endpoint}; only https is followed elsewhere")
    return endpoint.below(""), path, False


def _parse(url: str):
    url = url.strip()
    if not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        raise UnsafeAddressError("the address holds blanks or characters outside ASCII; write http(s)://host:port")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise UnsafeAddressError("the address is malformed; write http(s)://host:port") from None
    if parts.scheme not in ("http", "https"):
        raise UnsafeAddressError(f"addresses starting with '{parts.scheme[:10]}:' are refused; use http or https")
    if parts.username is not None or parts.password is not None:
        raise UnsafeAddressError("the address holds a user name or password; keys come from the environment or a file")
    if not parts.hostname:
        raise UnsafeAddressError("the address has no host; write http(s)://host:port")
    port = port or {"http": 80, "https": 443}[parts.scheme]
    return parts, Endpoint(parts.scheme, parts.hostname, port, parts.path.rstrip("/"))


def plain_http_hosts() -> frozenset[str]:
    """Hosts that the machine's owner lets plain http reach anywhere. A workflow cannot add to them."""
    return frozenset(name.strip().lower() for name in os.environ.get(ALLOW_HTTP, "").split(",") if name.strip())


def refusal(address: str, endpoint: Endpoint, public_only: bool) -> str | None:
    """Why the resolved `address` must not be connected to, or None."""
    ip = _unwrap(ipaddress.ip_address(address.split("%")[0]))
    if ip.is_link_local or ip in _METADATA:
        return f"{ip} is a link-local or metadata address"
    if ip.is_multicast or ip.is_unspecified or (ip.version == 4 and (ip.is_reserved or ip.packed[0] == 0)):
        return f"{ip} is no address of a server"
    private = any(ip in net for net in _PRIVATE if net.version == ip.version)
    if public_only and (private or not ip.is_global):
        return f"{ip} is not public"
    if endpoint.scheme == "http" and not private and endpoint.host not in plain_http_hosts():
        return f"{ip} is public and plain http is readable on the way; use https, or name the host in {ALLOW_HTTP}"
    return None


def _unwrap(ip):
    """An IPv4 address carried inside an IPv6 one is judged as itself."""
    if ip.version == 4:
        return ip
    if ip in _NAT64:
        return ipaddress.IPv4Address(ip.packed[-4:])
    return ip.ipv4_mapped or ip.sixtofour or ip
