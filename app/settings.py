"""Every setting: environment variables ``FRAMEBOX_*``, read here and nowhere else, checked all at once."""

from __future__ import annotations

import base64
import os
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)

from app.egress.addresses import parse_allowed

CHECKOUT = Path(__file__).resolve().parent.parent
MIB = 1024 * 1024
GIB = 1024 * MIB
DAY_SECONDS = 24 * 60 * 60
BODY_BUFFER_BYTES = 256 * 1024  # of nginx, for each body that passes it
# One for each running job, while its video is indexed and until it decodes; before that it decodes next to
# nothing. An MP4 with so many samples that it takes more is indexed without others
# (`VideoLimits.large_samples`), in what decoders leave of theirs.
INDEX_CHILD_BYTES = 48 * MIB
# Locked-down decoder processes of a host that wait for a video: a job takes one at once, and another is
# forked meanwhile. What one holds beyond what it shares with its server was measured as 4.1 MB.
READY_CHILDREN = 3
READY_CHILD_BYTES = 5 * MIB
ENGINE_BYTES = 136 * MIB  # eight jobs, their threads, their indexes and records

_PREFIX = "FRAMEBOX_"


class SettingsFault(Exception):
    """At least one setting is wrong; the text names every fault, one per line."""


def _split(value: Any) -> Any:
    if isinstance(value, str):
        return tuple(item.strip() for item in value.split(",") if item.strip())
    return value


def _networks(value: Any) -> Any:
    """Return the networks of a list; the error names the wrong one, as that of the type would not."""
    try:
        return tuple(ip_network(item, strict=False) for item in _split(value))
    except ValueError as error:
        raise ValueError(
            f"{error}; addresses or networks, such as 10.0.0.0/8, separated by commas"
        ) from error


def _checked_host(entry: str) -> str:
    parse_allowed(entry)
    return entry


def _checked_secret(secret: SecretStr) -> SecretStr:
    text = secret.get_secret_value()
    try:
        key = base64.b64decode(text.removeprefix("whsec_"), validate=True)
    except ValueError:
        key = b""
    if not text.startswith("whsec_") or not 24 <= len(key) <= 64:
        raise ValueError("must be whsec_ and then 24 to 64 bytes in base64")
    return secret


_AbsolutePath = Annotated[Path, AfterValidator(lambda path: path.expanduser().absolute())]
_Words = Annotated[tuple[str, ...], BeforeValidator(_split)]
_Folders = Annotated[tuple[_AbsolutePath, ...], BeforeValidator(_split)]
_Hosts = Annotated[tuple[Annotated[str, AfterValidator(_checked_host)], ...], BeforeValidator(_split)]
_Secrets = Annotated[
    tuple[Annotated[SecretStr, AfterValidator(_checked_secret)], ...], BeforeValidator(_split)
]
_Networks = Annotated[tuple[IPv4Network | IPv6Network, ...], BeforeValidator(_networks)]


class Settings(BaseModel):
    """All settings of one instance, frozen. A field's variable is FRAMEBOX_ and its name in capitals.

    The text below a field describes it in docs/settings.md.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    # -- where
    port: int = Field(8080, ge=1, le=65535)
    """port that nginx listens on"""
    host: str = "0.0.0.0"  # noqa: S104 - a service
    """address that nginx listens on"""
    data: _AbsolutePath = CHECKOUT / "var"
    """data folder; every instance needs its own"""
    models: _AbsolutePath | None = None
    """the administrator's folder of models; it is read, never written"""
    model_hashes: _AbsolutePath | None = None
    """file in the format of sha256sum that lists the model files that may be loaded; if empty, all may"""
    model: str = "hog-people"
    """model for requests that name none"""
    ingest: _Folders = ()
    """folders from which {'path': …} may be read; comma-separated"""
    devices: _Words = ()
    """torch devices of one make, comma-separated; if empty, all CUDA devices like the first, or the CPU"""
    precision: str = Field("float32", pattern="^(float32|float16|bfloat16)$")
    """number type that torch networks compute in on CUDA, unless their declaration sets one; 16 bits change
    boxes a little: see precision_effect in /v1/models"""

    # -- HTTP
    max_upload_bytes: int = Field(110_000_000_000, ge=1)
    """largest request body: 100 GB and a margin for a multipart envelope"""
    max_open_uploads: int = Field(1000, ge=1)
    """resumable uploads that may be open at a time, each with disk space set aside; more get a 429"""
    keep_upload_hours: float = Field(24.0, gt=0)
    """how long an unfinished resumable upload is kept after its last byte"""
    cors_origins: _Words = ()
    """origins whose pages may upload (tus in a browser), such as https://app.example; comma-separated, * for
    all"""
    http_workers: int = Field(2, ge=1, le=16)
    """gunicorn processes"""
    http_threads: int = Field(192, ge=8, le=1024)
    """threads for each gunicorn process: half for uploads that the application reads and for event streams, a
    quarter for requests that wait for their answer, an eighth for raw uploads beyond
    FRAMEBOX_MAX_RAW_UPLOADS"""
    max_connections: int = Field(8192, ge=256, le=65536)
    """connections that nginx accepts, from clients and to the HTTP workers"""
    max_raw_uploads: int = Field(192, ge=1)
    """raw uploads of known length at a time; nginx writes them without using a thread. The application reads
    more of them, in an eighth of its threads and at a minimum rate; beyond that they get a 503"""
    client_connections: int = Field(256, ge=1)
    """requests from one client address at a time, health probes excluded; more get a 503"""
    client_long_requests: int = Field(48, ge=1)
    """of these, how many may be uploads, waiting requests and event streams; half of all threads for those,
    so that one address cannot take every thread"""
    client_header_seconds: int = Field(15, ge=1)
    """time for a client to send all headers of a request"""
    client_idle_seconds: int = Field(60, ge=1)
    """a client that neither sends nor receives a byte for this long is disconnected"""
    min_upload_bytes_per_second: int = Field(2048, ge=0)
    """slowest rate of an upload that the application reads; slower ones get a 408; 0 turns this off"""
    upload_pace_seconds: float = Field(300.0, gt=0)
    """period over which that rate is averaged; at least the time of 512 KiB"""
    max_wait_seconds: int = Field(30 * DAY_SECONDS, ge=1, le=30 * DAY_SECONDS)
    """longest time that a request waits for its answer; it then gets a 202, and its job continues"""
    compress: bool = True
    """send documents compressed (gzip) to clients that accept it; costs CPU"""
    trusted_proxies: _Networks = ()
    """addresses or networks of proxies in front whose X-Forwarded-For names the client; comma-separated"""
    tls_certificate: _AbsolutePath | None = None
    """certificate and its chain, PEM; if set, the port accepts only HTTPS"""
    tls_key: _AbsolutePath | None = None
    """the certificate's private key, PEM, not encrypted"""
    attach: bool = True
    """answer a video that was posted before with equal options from the earlier job instead of a new one"""
    max_active_jobs: int = Field(10_000, ge=1)
    """jobs that may be queued or running; more get a 429"""
    min_free_bytes: int = Field(1 * GIB, ge=0)
    """disk space to be left free in the data folder: with less, uploads get a 507 and no job starts"""
    keep_days: float = Field(30.0, gt=0)
    """how long finished jobs and their answers are kept"""
    keep_free_bytes: int = Field(2 * GIB, ge=0)
    """if less disk space is free, the oldest finished jobs are removed early"""

    # -- other servers
    allowed_hosts: _Hosts = ()
    """internal servers that {'url': …} and callbacks may reach, over http as well and on any port: host
    names, addresses, networks (CIDR); comma-separated. All others must be public"""
    ca_file: _AbsolutePath | None = None
    """certificates (PEM) of your own authority, trusted in addition to the public ones"""
    webhook_secret: _Secrets = ()
    """secret that signs callbacks: whsec_ and 24 to 64 bytes in base64; several, comma-separated, while
    receivers change from one to the next. Without it there are no callbacks"""
    fetches: int = Field(4, ge=1, le=16)
    """videos fetched from URLs at a time"""
    fetch_hours: float = Field(24.0, gt=0)
    """a job whose video has not been fetched from its URL after this time fails"""

    # -- engine
    running_jobs: int = Field(8, ge=1, le=64)
    """jobs that share the devices at a time, segment by segment"""
    decoders: int = Field(2, ge=1, le=64)
    """decoder processes at a time, which is the number of segments in flight"""
    express_decoders: int = Field(1, ge=0, le=16)
    """additional decoder processes for videos that have none at work, so that short videos start at once"""
    decoder_threads: int = Field(1, ge=1, le=16)
    """FFmpeg threads for each decoder process; more need more memory and are hardly faster"""
    decoder_memory_bytes: int = Field(512 * MIB, ge=128 * MIB)
    """address space of a decoder process (RLIMIT_AS), without its ring"""
    ring_bytes: int = Field(96 * MIB, ge=4 * MIB)
    """shared memory for the decoded frames of each decoder process"""
    decoder_stall_seconds: float = Field(60.0, gt=0)
    """a decoder process that makes no progress for this long is stopped"""
    segment_frames: int = Field(120, ge=1, le=100_000)
    """a segment ends at the first keyframe after this many frames; long segments leave decoders idle"""
    cpu_threads: int | None = Field(None, ge=1, le=256)
    """torch threads for a detector on the CPU; if empty, one for each core"""
    stop_seconds: float = Field(20.0, ge=0)
    """time for running segments to finish after Ctrl-C or SIGTERM; unfinished ones run again after the next
    start"""
    model_call_seconds: float = Field(300.0, gt=0)
    """longest time for one batch of a model; after it the host is replaced"""
    model_load_seconds: float = Field(600.0, gt=0)
    """longest time for the trial of a model, after which it is refused; and for loading it into a host,
    which is then replaced"""
    engine_deaths: int = Field(8, ge=3, le=1000)
    """a job fails after this many engines or hosts in a row died while working on it without a finished part;
    more than random kills seconds apart cause, few enough for a model that crashes"""
    require_sandbox: bool = True
    """refuse to decode if Landlock or seccomp is not available"""

    # -- limits of a video
    max_pixels: int = Field(8192 * 4320, ge=256)
    """width × height of a frame"""
    max_side: int = Field(16384, ge=16)
    """width or height of a frame"""
    max_frames: int = Field(20_000_000, ge=1)
    """frames of a video"""
    max_streams: int = Field(32, ge=1)
    """streams of a container"""
    max_decoded_pixels: int = Field(2**47, ge=1)
    """width × height × frames of a video; a day of 1080p at 60 fps is 1.1e13"""
    max_tags: int = Field(5000, ge=1)
    """tags of an MP4, MOV, Matroska or WebM file; their cost grows with the square of their number"""
    max_opening_seconds: int = Field(5, ge=1)
    """processor time to open a container; 20,000 tags take 2 to 5 seconds, an ordinary video less than one"""
    max_header_bytes: int = Field(512 * MIB, ge=1024)
    """size of an MP4 header box, which is read into memory"""

    # -- memory
    instance_memory_bytes: int = Field(4 * GIB, ge=512 * MIB)
    """host memory of the whole instance; all memory budgets together must fit"""
    host_memory_bytes: int = Field(1272 * MIB, ge=512 * MIB)
    """host memory of each host, one for each device: torch and libraries, about 300 MiB, and the models"""

    log_level: str = Field("INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$")
    """lowest level that is logged on stdout"""

    @model_validator(mode="after")
    def _tls_is_whole(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("FRAMEBOX_TLS_CERTIFICATE and FRAMEBOX_TLS_KEY go together: one is missing")
        return self

    @model_validator(mode="after")
    def _budgets_fit(self) -> Self:
        needed = sum(self.memory_budgets().values())
        if needed > self.instance_memory_bytes:
            parts = ", ".join(f"{name} {value // MIB} MiB" for name, value in self.memory_budgets().items())
            raise ValueError(
                f"the memory budgets ({parts}) add up to {needed // MIB} MiB, more than "
                f"FRAMEBOX_INSTANCE_MEMORY_BYTES = {self.instance_memory_bytes // MIB} MiB"
            )
        return self

    def overflow_uploads(self) -> int:
        """Return how many raw uploads beyond those that nginx writes the application reads at a time."""
        return self.http_threads // 8

    def memory_budgets(self) -> dict[str, int]:
        """Return the most host memory that each part of the instance may take, in bytes."""
        segments = self.decoders + self.express_decoders  # at a time
        bodies = self.max_raw_uploads + 2 * self.overflow_uploads()  # one of those passes nginx twice
        hosts = max(1, len(self.devices))
        return {
            "nginx": 48 * MIB + bodies * BODY_BUFFER_BYTES,
            "http workers": self.http_workers * 128 * MIB,
            "courier": 80 * MIB,
            "engine": ENGINE_BYTES,
            "hosts": hosts * self.host_memory_bytes,
            "decoders": segments * self.decoder_memory_bytes,
            "rings": segments * self.ring_bytes,
            "index children": self.running_jobs * INDEX_CHILD_BYTES,
            "ready children": hosts * READY_CHILDREN * READY_CHILD_BYTES,
        }


def load_settings(**overrides: Any) -> Settings:
    """Return the settings of this process's environment, `overrides` first. Empty variables do not count.

    Raises SettingsFault naming every wrong setting at once.
    """
    given = {
        name.upper().removeprefix(_PREFIX).lower(): value
        for name, value in os.environ.items()
        if value and name.upper().startswith(_PREFIX)
    }
    try:
        return Settings(**given | overrides)
    except ValidationError as error:
        lines = []
        for fault in error.errors():
            name = "".join(f"{_PREFIX}{field}: ".upper() for field in fault["loc"][:1])
            lines.append(f"{name}{fault['msg'].removeprefix('Value error, ')}")
        raise SettingsFault("\n".join(lines)) from error
