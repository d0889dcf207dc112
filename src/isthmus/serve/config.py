"""The one file that describes a deployment: `isthmus serve ... --config FILE`.

    model: ~/models/Qwen2.5-0.5B          # a local Hugging Face directory; default: the packaged SmolLM2-135M
    gateway: {host: 127.0.0.1, port: 8000}
    pools:
      - {name: prefill, role: prefill, count: 1, kv_layout: NHD, block_size: 16}
      - {name: decode,  role: decode,  count: 2, kv_layout: HND, block_size: 64, tp_size: 3}

Workers are named `<pool>-<index>`. Order of precedence: environment `ISTHMUS_<FIELD>` (top-level fields, `__` between
levels), then the file, then defaults. An unknown key is an error.
"""

import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from isthmus.core.errors import BadInput, ConfigInvalid
from isthmus.core.files import read_at_most
from isthmus.core.ids import WorkerId
from isthmus.core.limits import NAME_CHARS_MAX, POOL_BYTES_MAX, REQUESTS_IN_FLIGHT_MAX, WORKERS_MAX, YAML_BYTES_MAX
from isthmus.core.units import GIB
from isthmus.engines.embedded.config import EmbeddedConfig
from isthmus.engines.launch.yaml_text import check_bounds
from isthmus.ownership.protocol.states import TriggerMode
from isthmus.serve.admission_config import AdmissionConfig, QuotaConfig
from isthmus.serve.tls import GATEWAY, TlsConfig, TlsSetting, is_loopback

__all__ = ["DeadlinesConfig", "GatewayConfig", "PoolConfig", "ServeConfig", "load_config", "parse_config"]

Milliseconds = Annotated[int, Field(ge=1, le=86_400_000)]
Port = Annotated[int, Field(ge=1, le=65535)]
ENGINE_FIELDS = frozenset(EmbeddedConfig.model_fields) - {"model"}


class _Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class GatewayConfig(_Config):
    """Where the gateway listens (`port` for clients, `control_port` for workers), and how it treats requests.

    `control_host` is where workers reach it, where that is another address than clients use. `allow_pins` lets any
    client choose the workers of its request (X-Isthmus-Producer, X-Isthmus-Consumer): for drills, not for production.
    `max_tokens_default` is for chats that name none. A decode worker reserves blocks for a whole answer before it
    begins, so that it never runs out in mid-stream: an answer without a bound would keep others waiting.
    `retry_ratio`, `retry_floor_per_second` and `retry_burst` are the retry budget (`gateway/retries.py`).
    """

    host: str = "127.0.0.1"
    control_host: str | None = None
    allow_pins: bool = False
    port: Port = 8000
    control_port: Port = 8001
    requests_in_flight_max: Annotated[int, Field(ge=1, le=REQUESTS_IN_FLIGHT_MAX)] = 512
    max_tokens_default: Annotated[int, Field(ge=1)] = 512
    attempts_max: Annotated[int, Field(ge=1, le=16)] = 4
    retry_ratio: Annotated[float, Field(ge=0, le=1)] = 0.2
    retry_floor_per_second: Annotated[float, Field(gt=0, le=1000)] = 10.0
    retry_burst: Annotated[int, Field(ge=1, le=REQUESTS_IN_FLIGHT_MAX)] = 100
    worker_wait_ms: Milliseconds = 5_000
    heartbeat_ms: Milliseconds = 1_000
    heartbeat_timeout_ms: Milliseconds = 15_000


class DeadlinesConfig(_Config):
    """How long each stage of a hand-off may take, and a whole request from its arrival to its last token."""

    request_ms: Milliseconds = 1_800_000
    reserve_ms: Milliseconds = 300_000
    prefill_ms: Milliseconds = 300_000
    transfer_ms: Milliseconds = 60_000
    confirm_ms: Milliseconds = 5_000


class PrefixCachingConfig(_Config):
    """Whether a worker keeps the KV of prompts' whole blocks for later prompts that begin alike, and what goes first.

    What is kept gives way to requests. `retention` is `lru`, `lfu`, or `cost` (time to compute again for its bytes,
    times expected reuse); a use counts half as much after each `half_life_ms`. `blocks_max`: by default the whole pool.

    Blocks that the pool gives up go where `residency` says, of what is configured behind it: `host_bytes_max` bytes of
    host memory for each worker, outside of the pool and pinned where that is on a GPU; `files_folder`, of which each
    worker has `files_bytes_max` bytes. Files outlive the worker; they are the tenants' KV, readable to this user only.
    `residency` is `nearest_that_pays` (the tier that loads soonest, if loading is sooner than computing again),
    `nearest_with_room` (whatever it takes), or `memory_only` (as the first, but no file is written). What a full tier
    gives up, by the same `retention`, goes further out.
    """

    enabled: bool = True
    retention: Literal["lru", "lfu", "cost"] = "lru"
    half_life_ms: Milliseconds = 300_000
    blocks_max: Annotated[int, Field(ge=1)] | None = None
    residency: Literal["nearest_that_pays", "nearest_with_room", "memory_only"] = "nearest_that_pays"
    host_bytes_max: Annotated[int, Field(ge=1, le=POOL_BYTES_MAX)] | None = None
    files_folder: Path | None = None
    files_bytes_max: Annotated[int, Field(ge=1)] = 16 * GIB


class PoolConfig(EmbeddedConfig):
    """`count` like workers of one role. All other fields are the embedded engine's (`engines/embedded/config.py`).

    `port` (orders) and `tcp_port` (KV) are the first worker's, the next one's are one higher each; none: any free one.
    Where peers reach them elsewhere, behind address translation say, the `advertised_` ones are what they are told.
    A prefill pool of one tenant (`sole_tenant`) frees what a lost reader held when its lease ends; one of many (null)
    only once it is proven that nobody can read any more.
    """

    model: Path = Path()
    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,62}$")]
    role: Literal["prefill", "decode"]
    count: Annotated[int, Field(ge=1, le=WORKERS_MAX)] = 1
    host: str = "127.0.0.1"
    port: Port | None = None
    tcp_port: Port | None = None
    advertised_host: str | None = None
    advertised_port: Port | None = None
    advertised_tcp_port: Port | None = None
    transports: tuple[Literal["shm", "tcp"], ...] = ("shm", "tcp")
    staging_bytes: Annotated[int, Field(ge=1)] = GIB
    admission: AdmissionConfig = AdmissionConfig()
    prefix_caching: PrefixCachingConfig = PrefixCachingConfig()
    sole_tenant: Annotated[str, Field(min_length=1, max_length=NAME_CHARS_MAX)] | None = "default"

    @model_validator(mode="after")
    def _transports(self) -> Self:
        if not self.transports or len(set(self.transports)) != len(self.transports):
            raise ValueError("transports: name at least one of shm, tcp, each once")
        return self

    @model_validator(mode="after")
    def _admission(self) -> Self:
        try:
            self.admission.quotas_for(self.num_blocks)
        except ConfigInvalid as error:
            raise ValueError(f"admission.{error}") from None
        return self

    def engine(self, model: Path) -> EmbeddedConfig:
        """The engine's part, with the deployment's model."""
        fields = {name: getattr(self, name) for name in ENGINE_FIELDS}
        return EmbeddedConfig(model=model, **fields)


class ServeConfig(_Config):
    """A deployment.

    `handoff_mode` says who moves KV and when: `pull`, decode reads once prefill has filled; `push`, prefill writes
    what it has filled into memory that decode has registered; `send`, it writes while it still fills.
    """

    model: Path | None = None
    served_model_name: str | None = None
    gateway: GatewayConfig = GatewayConfig()
    deadlines: DeadlinesConfig = DeadlinesConfig()
    lease_ms: Annotated[int, Field(ge=100, le=3_600_000)] = 10_000
    handoff_mode: TriggerMode = TriggerMode.PULL
    journal: Path | None = None
    tls: TlsSetting = None
    pools: Annotated[tuple[PoolConfig, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _pools(self) -> Self:
        names = [pool.name for pool in self.pools]
        if len(set(names)) != len(names):
            raise ValueError(f"pools: names must differ, got {names}")
        for role in ("prefill", "decode"):
            if not any(pool.role == role for pool in self.pools):
                raise ValueError(f"pools: no pool has role {role}; a deployment needs both")
        for index, pool in enumerate(self.pools):
            if "model" in pool.model_fields_set:
                raise ValueError(f"pools[{index}].model: set `model` once, at the top")
        if len(self.workers()) > WORKERS_MAX:
            raise ValueError(f"pools: {len(self.workers())} workers in all, wanted at most {WORKERS_MAX}")
        if self.gateway.heartbeat_timeout_ms < 2 * self.gateway.heartbeat_ms:
            raise ValueError("gateway.heartbeat_timeout_ms: wanted at least twice heartbeat_ms")
        if self.gateway.port == self.gateway.control_port:
            raise ValueError(f"gateway.control_port: {self.gateway.control_port} is also gateway.port")
        return self

    @model_validator(mode="after")
    def _exposure(self) -> Self:
        """Beyond loopback, workers prove who they are."""
        if self.tls is not None:
            return self
        hosts = {"gateway.control_host" if self.gateway.control_host else "gateway.host": self.control_host}
        hosts |= {f"pools[{index}].host": pool.host for index, pool in enumerate(self.pools)}
        for field, host in hosts.items():
            if not is_loopback(host):
                names = " ".join(f"--worker {name}" for name in (GATEWAY, *(worker for worker, _ in self.workers())))
                raise ValueError(
                    f"tls: {field} is {host}, which is not loopback: set tls to {{ca, certificate, key}} (`isthmus "
                    f"certs init certs` and `isthmus certs issue certs {names}` make them), or to `insecure` where "
                    "nobody else is on that network"
                )
        return self

    @property
    def control_host(self) -> str:
        """Where the gateway listens for workers."""
        return self.gateway.control_host or self.gateway.host

    def workers(self) -> tuple[tuple[WorkerId, PoolConfig], ...]:
        """Every worker's name and pool."""
        return tuple((WorkerId(f"{pool.name}-{index}"), pool) for pool in self.pools for index in range(pool.count))

    def index(self, worker: WorkerId) -> int:
        """The worker's number in its pool."""
        return int(worker.rpartition("-")[2])


def load_config(path: Path) -> ServeConfig:
    """Read and check a file.

    Raises:
        ConfigInvalid: unreadable, not YAML, or a field is wrong; the message names it and what would be right.
    """
    try:
        data = read_at_most(path, YAML_BYTES_MAX)
        text = data.decode("utf-8")
    except OSError as error:
        raise ConfigInvalid(f"{path}: {error.strerror}", field="config") from None
    except UnicodeDecodeError as error:
        raise ConfigInvalid(f"{path}: not UTF-8: {error.reason} at byte {error.start}", field="config") from None
    try:
        check_bounds(path, data, field="config", aliases=True)
        raw = yaml.safe_load(text)
    except BadInput as error:
        raise ConfigInvalid(str(error), field=error.field) from None
    except (yaml.YAMLError, ValueError) as error:  # a ValueError: a date that is none, say
        raise ConfigInvalid(f"{path}: not YAML: {error}", field="config") from None
    if not isinstance(raw, dict):
        raise ConfigInvalid(f"{path}: got {type(raw).__name__}, wanted a mapping with `pools`", field="config")
    return parse_config(raw, where=str(path), environment=os.environ)


def parse_config(raw: dict[str, Any], *, where: str, environment: Any = None) -> ServeConfig:
    """Check a mapping, after laying the environment over it. Raises ConfigInvalid."""
    laid = _overlay(raw, environment or {})
    try:
        return ServeConfig.model_validate(laid)
    except ValidationError as error:
        lines = []
        for found in error.errors():
            path = ".".join(str(part) for part in found["loc"])
            wanted = found["msg"].removeprefix("Value error, ")
            if found["type"] == "extra_forbidden":
                wanted = f"unknown key; known here: {', '.join(_known(found['loc']))}"
            lines.append(f"{path or 'deployment'}: {wanted}")
        first = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise ConfigInvalid(f"{where}: " + "; ".join(lines), field=first) from None


def _overlay(raw: dict[str, Any], environment: Any) -> dict[str, Any]:
    """`ISTHMUS_GATEWAY__PORT=9000` sets `gateway: {port: 9000}`."""
    laid = dict(raw)
    for name, value in environment.items():
        if not name.startswith("ISTHMUS_") or name == "ISTHMUS_CACHE" or name.startswith("ISTHMUS_TEST_"):
            continue
        path = name.removeprefix("ISTHMUS_").lower().split("__")
        here = laid
        for part in path[:-1]:
            child = here.get(part)
            here[part] = dict(child) if isinstance(child, dict) else {}
            here = here[part]
        try:
            here[path[-1]] = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError, RecursionError):
            raise ConfigInvalid(f"{name}: {value!r} is not a YAML value", field=name) from None
    return laid


def _known(location: tuple[int | str, ...]) -> list[str]:
    """The keys that the mapping at a location may have."""
    kind: type[BaseModel] = ServeConfig
    if location[0] == "pools" and len(location) > 2:
        inner: dict[str, type[BaseModel]] = {"prefix_caching": PrefixCachingConfig, "admission": AdmissionConfig}
        kind = inner.get(str(location[2]), PoolConfig) if len(location) > 3 else PoolConfig
        kind = QuotaConfig if kind is AdmissionConfig and len(location) > 4 else kind
    elif location[0] == "tls":
        kind = TlsConfig
    elif location[0] in ("gateway", "deadlines") and len(location) > 1:
        kind = GatewayConfig if location[0] == "gateway" else DeadlinesConfig
    return sorted(kind.model_fields)
