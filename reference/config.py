"""Settings from code, environment variables and files.

Code wins over the environment, the environment over the file, the file over the defaults (CONF-1).
Sections within sections are merged key by key, so that one variable can change one setting of a
file.
"""

from __future__ import annotations

import difflib
import json
import os
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

import torch
import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from pagedkv.reference.device import DeviceLike, DeviceRef
from pagedkv.reference.param_interface import KVConnectorType, SpeculativeMethod, check_type
from pagedkv.reference.params import KVCacheParams, KVCacheQuantizationConfig
from pagedkv.reference.tensor_types import DType

ENVIRONMENT_PREFIX = "PAGEDKV_"
"""Start of every environment variable that is a setting."""

Size = Annotated[float, Field(ge=0, allow_inf_nan=False)]
"""A size in the unit its field names; from 0."""

FILE_FIELDS = {"config_file", "section_name"}
"""Fields that say where the others come from."""

TOO_DEEP = "nests sections too deeply; a setting is at most one section down"

CACHE_DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float8_e4m3fn": torch.float8_e4m3fn,
}
"""What ``kv_cache_format`` can say."""


class ConfigFileModel(BaseModel):
    """Settings that may also come from a file: give its path as ``config_file``.

    A ``.json`` file is JSON, any other YAML. Where a section is expected, text stands for it too:
    inline JSON if it starts with ``{``, otherwise the path of a file. Paths are relative to the
    working directory. Environment variables count only through :meth:`from_environment`.

    Whatever cannot be used is a ``ValueError`` (pydantic's ``ValidationError``) that names the
    field, and the file and section if that is where its value comes from (CONF-3).
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=False)

    config_file: str | None = None
    """Path to the configuration file."""
    section_name: str | None = None
    """Section of the file to read; without one, its top level."""

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None, /, **values: Any) -> Self:
        """Settings from ``values`` (the code), the environment, and the file it may name (CONF-1).

        A variable is ``PAGEDKV_`` and the field's name in upper case; two underscores lead into a
        section: ``PAGEDKV_KV_CACHE_PAGE_SIZE=64``, ``PAGEDKV_CONFIG_FILE=server.yaml``,
        ``PAGEDKV_KV_CONNECTOR_CONFIG__DISK_OFFLOAD_DIR=/ssd``. Other variables are left alone.

        Args:
            environ: The variables; the process's own when left out.
            **values: Fields as for the constructor, of whatever type pydantic converts to theirs.

        Raises:
            ValueError: As for the constructor.
        """
        layer: dict[str, Any] = {}
        for variable, text in sorted((os.environ if environ is None else environ).items()):
            name, *path = variable.removeprefix(ENVIRONMENT_PREFIX).lower().split("__")
            if not variable.startswith(ENVIRONMENT_PREFIX) or name not in cls.model_fields:
                continue
            value: Any = text
            for key in reversed(path):
                value = {key: value}
            layer = cls._merge(layer, {name: value})
        return cls.model_validate(cls._merge(layer, values))

    @model_validator(mode="wrap")
    @classmethod
    def _load_config_file(cls, data: Any, validate: ModelWrapValidatorHandler[Self]) -> Self:
        """Put the file's values below the given ones. ``data`` is whatever pydantic was handed."""
        if isinstance(data, str | Path):
            data = _section_from_text(str(data))
        if not isinstance(data, Mapping):
            return validate(data)
        config_file, section_name = data.get("config_file"), data.get("section_name")
        for name in FILE_FIELDS & data.keys():
            check_type(name, data[name], str | None, "use text")
        if config_file is None:
            if section_name is not None:
                raise ValueError(
                    f"section_name is {section_name!r}, but there is no config_file to read it "
                    "from; name the file"
                )
            return validate(data)
        section, place = cls._read(Path(config_file), section_name)
        try:
            return validate(cls._merge(section, data))
        except ValidationError as error:
            in_file = section | {name: data[name] for name in FILE_FIELDS & data.keys()}
            reasons = [_reason(details, in_file, place) for details in error.errors()]
            if not any(reason.startswith(place) for reason in reasons):
                raise
            raise ValueError("; ".join(reasons)) from error

    @classmethod
    def _read(cls, path: Path, section_name: str | None) -> tuple[dict[str, Any], str]:
        """The settings, and how to name the place that they are from."""
        section = _parse(path)
        place = f"config_file {str(path)!r}"
        if section_name is not None:
            if section_name not in section:
                names = [name for name, value in section.items() if isinstance(value, dict)]
                raise ValueError(
                    f"{place} has no section {section_name!r}; it has "
                    f"{', '.join(map(repr, names)) or 'no sections'}"
                )
            section = section[section_name]
            place += f", section {section_name!r}"
        if section is None:
            section = {}
        if not isinstance(section, dict):
            raise ValueError(
                f"{place} holds {type(section).__name__}, but should hold a mapping of settings"
            )
        settings = cls.model_fields.keys() - FILE_FIELDS
        for name in section.keys() - settings:
            if cls.model_config.get("extra") == "forbid" or not isinstance(name, str):
                close = difflib.get_close_matches(str(name), settings, n=1) or sorted(settings)
                raise ValueError(
                    f"{place}: field {name!r} is unknown; use {' or '.join(map(repr, close))}, or "
                    "section_name if the settings are in a section of the file"
                )
        return section, place

    @classmethod
    def _merge(cls, lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
        """``upper`` over ``lower``, key by key in sections; a finished section replaces."""
        merged = dict(lower)
        for name, value in upper.items():
            below, section = merged.get(name), cls._section(name)
            if section is not None:
                below, value = _section_from_text(below), _section_from_text(value)
                if isinstance(below, Mapping) and isinstance(value, Mapping):
                    value = section._merge(below, value)
            merged[name] = value
        return merged

    @classmethod
    def _section(cls, name: str) -> type[ConfigFileModel] | None:
        """The model of the section that field ``name`` is, if it is one."""
        if name not in cls.model_fields:
            return None
        annotation = cls.model_fields[name].annotation
        for kind in (annotation, *get_args(annotation)):
            if isinstance(kind, type) and issubclass(kind, ConfigFileModel):
                return kind
        return None


class KVConnectorConfig(ConfigFileModel):
    """Settings of the tiers below the device.

    Fields that all connectors know are typed; any other is kept in ``model_extra`` for the
    connector that knows it (CONF-2), such as those of :class:`TierOptions`.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="allow", strict=False)

    host_kvcache_swap_space_gb: Size = 50.0
    """Host memory for pages, in GiB."""
    disk_offload_dir: str | None = None
    """Directory for pages on disk; needed by ``tiered``."""
    use_debug_tiered_mode: bool = False
    """Whether the tiers run in their debug mode."""
    disk_offload_max_gb: Size = 50.0
    """Disk space for pages, in GB."""
    disk_offload_direct_io: bool = False
    """Whether disk reads and writes bypass the page cache (O_DIRECT)."""
    block_store_endpoint: str | None = None
    """Endpoint of the block store nearby; needed by ``dkv``. Other stores are named per request,
    in the context's ``external_block_metadata``."""


class TierOptions(BaseModel):
    """Options of this project's own tiers, taken from a connector config's extra fields."""

    # The title is what errors name: this is where users have set it.
    model_config: ClassVar[ConfigDict] = ConfigDict(
        extra="ignore", frozen=True, title="KVConnectorConfig"
    )

    write_policy: Literal["through", "write_back", "reuse"] = "through"
    """When a page is written to the tier below: at once, when it is evicted, or when it is used a
    second time."""
    model_fingerprint: Annotated[str, Field(min_length=1)] | None = None
    """What the weights are. Without it nothing on disk or in a store outlives the process."""
    disk_write_budget_gb_per_day: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Most that is written to disk in a day, in GB, to spare flash; None for no limit."""

    slow_tier_policy: Literal["wait", "timeout", "best_effort"] = "wait"
    """What an allocation does about blocks below host memory: it waits until they are loaded, waits
    for :attr:`slow_tier_timeout_s`, or leaves them and computes their tokens (ALLOC-15)."""
    slow_tier_timeout_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """How long an allocation waits under ``timeout``, in seconds."""

    @classmethod
    def from_connector_config(cls, config: KVConnectorConfig | None) -> TierOptions:
        """The options among ``config``'s extra fields; what other connectors know is skipped.

        Raises:
            ValueError: An option has a value that it cannot have; pydantic's message names it.
        """
        return cls.model_validate({} if config is None else config.model_extra)


class KVCacheConfig(ConfigFileModel):
    """Settings of the paged KV cache, whatever the model; other fields are refused (CONF-2)."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=False)

    kv_cache_page_size: Annotated[int, Field(ge=1)] = 128
    """Tokens per page."""
    enable_prefix_caching: bool = True
    """Whether requests reuse the pages of a common prefix."""
    kv_connector: KVConnectorType | None = None
    """What lies below the device tier; None means the same as ``null``."""
    kv_connector_config: KVConnectorConfig | None = None
    """Settings of the lower tiers; as text, inline JSON or the path of a file."""
    device_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Share of the free device memory that weights and pages together may take."""
    kv_cache_format: str | None = None
    """Name of the pages' element type, in place of the default ``float32``."""

    @field_validator("kv_cache_format")
    @classmethod
    def _known_format(cls, value: str | None) -> str | None:
        if value is not None and value.lower() not in CACHE_DTYPES:
            raise ValueError(f"kv_cache_format is {value!r}; use one of {', '.join(CACHE_DTYPES)}")
        return value

    # Any is pydantic's own signature: the context is whatever the caller of a validation passes.
    def model_post_init(self, context: Any, /) -> None:
        """Check what no field shows alone, once all are set; pydantic calls it.

        Args:
            context: What the caller of a validation handed down; it is not used.

        Raises:
            ValueError: A connector is configured while prefix caching is off: nothing would ever
                be found in its tiers.
        """
        if self.kv_connector not in (None, KVConnectorType.null) and not self.enable_prefix_caching:
            raise ValueError(
                f"enable_prefix_caching is False, but kv_connector {self.kv_connector.value!r} "
                "needs it; set it to True, or kv_connector to 'null'"
            )

    @property
    def cache_dtype(self) -> DType:
        """Element type of the pages."""
        return CACHE_DTYPES[(self.kv_cache_format or "float32").lower()]

    def to_params(
        self,
        dtype: DType,
        n_kv_heads: int,
        head_dim: int,
        num_layers: int,
        devices: Sequence[DeviceLike],
        data_parallel_degree: int = 1,
        is_mla: bool = False,
        num_q_heads: int | None = None,
        kvcache_quant_config: KVCacheQuantizationConfig | None = None,
        speculative_method: SpeculativeMethod | None = None,
        num_draft_tokens: int = 0,
    ) -> KVCacheParams:
        """Parameters of a model's cache under these settings.

        A connector without settings gets their defaults. What no setting covers, such as the hash
        algorithm, is changed with ``dataclasses.replace`` on the result.

        Args:
            dtype: Element type of keys and values, usually :attr:`cache_dtype`.
            n_kv_heads: KV heads over all shards of a replica.
            head_dim: Elements per head.
            num_layers: Layers of the model.
            devices: All devices, replica-major.
            data_parallel_degree: Replicas.
            is_mla: Whether the model uses multi-head latent attention.
            num_q_heads: Query heads over all shards of a replica; needed with ``is_mla``.
            kvcache_quant_config: Scales for FP8 values.
            speculative_method: How draft tokens are made; None without speculation.
            num_draft_tokens: Draft tokens per speculative iteration.

        Raises:
            ValueError: As for :class:`KVCacheParams`.
        """
        connector_config = self.kv_connector_config
        if connector_config is None and self.kv_connector is not None:
            connector_config = KVConnectorConfig()
        return KVCacheParams(
            dtype=dtype,
            n_kv_heads=n_kv_heads,
            head_dim=head_dim,
            num_layers=num_layers,
            devices=DeviceRef.all_of(devices),
            enable_prefix_caching=self.enable_prefix_caching,
            kv_connector=self.kv_connector,
            kv_connector_config=connector_config,
            host_kvcache_swap_space_gb=(
                connector_config.host_kvcache_swap_space_gb if connector_config else None
            ),
            page_size=self.kv_cache_page_size,
            is_mla=is_mla,
            num_q_heads=num_q_heads,
            data_parallel_degree=data_parallel_degree,
            kvcache_quant_config=kvcache_quant_config,
            speculative_method=speculative_method,
            num_draft_tokens=num_draft_tokens,
        )


# Any: what a file or the environment holds is not known before it is validated.
def _section_from_text(value: Any) -> Any:
    """Text becomes the settings it stands for; anything else is left as it is."""
    if not isinstance(value, str | Path):
        return value
    text = str(value).strip()
    if not text.startswith("{"):
        return {"config_file": text}
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{text!r} is not valid JSON: {error}; correct it") from error
    except RecursionError as error:
        raise ValueError(f"{reprlib.repr(text)} {TOO_DEEP}") from error


# Any: a file's settings are of whatever type.
def _reason(details: ErrorDetails, in_file: Any, place: str) -> str:
    """Field, value and reason of one of pydantic's errors; after ``place`` if the file says so."""
    path, value = details["loc"], details["input"]
    for key in path:
        in_file = in_file.get(key) if isinstance(in_file, Mapping) else None
    field = f"{'.'.join(map(str, path))} is {reprlib.repr(value)}: " if path else ""
    return f"{f'{place}: ' if in_file == value else ''}{field}{details['msg']}"


def _parse(path: Path) -> Any:
    """What the file holds, if it can be read; an empty one holds no settings."""
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except OSError as error:
        reason = f"cannot be read: {error.strerror}; check the path"
    except RecursionError:
        reason = TOO_DEEP
    except (ValueError, yaml.YAMLError) as error:
        kind = "JSON" if path.suffix == ".json" else "YAML"
        reason = f"is not valid {kind}: {' '.join(str(error).split())}"
    else:
        if content is None or isinstance(content, dict):
            return content or {}
        reason = f"holds {type(content).__name__}, but should hold a mapping of settings"
    raise ValueError(f"config_file {str(path)!r} {reason}")
