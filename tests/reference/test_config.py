"""Settings from code, environment and files."""

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pagedkv.reference.config import KVCacheConfig, KVConnectorConfig, TierOptions
from pagedkv.reference.device import DeviceLike, DeviceRef
from pagedkv.reference.params import KVCacheParams, KVCacheQuantizationConfig, KVConnectorType

# Any throughout: these tests hand over settings of whatever type a file or a caller may have.


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "server.yaml"


def write(path: Path, content: Any) -> str:
    path.write_text(json.dumps(content) if path.suffix == ".json" else yaml.safe_dump(content))
    return str(path)


@pytest.mark.rule("CONF-2")
def test_fields_and_defaults_are_in_the_documented_order() -> None:
    def signature(config: type[Any]) -> dict[str, Any]:
        return {
            name: parameter.default
            for name, parameter in inspect.signature(config).parameters.items()
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY
        }

    assert list(signature(KVConnectorConfig).items()) == [
        ("config_file", None),
        ("section_name", None),
        ("host_kvcache_swap_space_gb", 50.0),
        ("disk_offload_dir", None),
        ("use_debug_tiered_mode", False),
        ("disk_offload_max_gb", 50.0),
        ("disk_offload_direct_io", False),
        ("block_store_endpoint", None),
    ]
    assert list(signature(KVCacheConfig).items()) == [
        ("config_file", None),
        ("section_name", None),
        ("kv_cache_page_size", 128),
        ("enable_prefix_caching", True),
        ("kv_connector", None),
        ("kv_connector_config", None),
        ("device_memory_utilization", 0.9),
        ("kv_cache_format", None),
    ]
    assert KVConnectorConfig.model_config == {"extra": "allow", "strict": False}
    assert KVCacheConfig.model_config == {"extra": "forbid", "strict": False}
    assert list(inspect.signature(KVCacheConfig.to_params).parameters) == [
        "self", "dtype", "n_kv_heads", "head_dim", "num_layers", "devices", "data_parallel_degree",
        "is_mla", "num_q_heads", "kvcache_quant_config", "speculative_method", "num_draft_tokens",
    ]  # fmt: skip


ABOVE = "Input should be greater than or equal to 1"

page_sizes = st.none() | st.integers(1, 512)


@pytest.mark.rule("CONF-1")
@given(code=page_sizes, environment=page_sizes, in_file=page_sizes)
def test_code_beats_environment_beats_file_beats_default(
    tmp_path_factory: pytest.TempPathFactory,
    code: int | None,
    environment: int | None,
    in_file: int | None,
) -> None:
    path = tmp_path_factory.mktemp("config") / "cache.yaml"
    write(path, {} if in_file is None else {"kv_cache_page_size": in_file})
    config = KVCacheConfig.from_environment(
        {} if environment is None else {"PAGEDKV_KV_CACHE_PAGE_SIZE": str(environment)},
        config_file=str(path),
        **({} if code is None else {"kv_cache_page_size": code}),
    )
    layers = [value for value in (code, environment, in_file, 128) if value is not None]
    assert config.kv_cache_page_size == layers[0]


@pytest.mark.rule("CONF-1", "CONF-2")
def test_sections_are_merged_key_by_key_over_all_layers(file: Path) -> None:
    write(
        file,
        {
            "cache": {
                "kv_connector": "tiered",
                "kv_connector_config": {
                    "disk_offload_dir": "/file",
                    "disk_offload_max_gb": 1,
                    "host_kvcache_swap_space_gb": 1,
                    "write_policy": "reuse",
                },
            }
        },
    )
    config = KVCacheConfig.from_environment(
        {
            "PAGEDKV_CONFIG_FILE": str(file),
            "PAGEDKV_SECTION_NAME": "cache",
            "PAGEDKV_KV_CONNECTOR_CONFIG": '{"disk_offload_max_gb": 2}',
            "PAGEDKV_KV_CONNECTOR_CONFIG__HOST_KVCACHE_SWAP_SPACE_GB": "2",
            "PAGEDKV_KV_CONNECTOR_CONFIG__MODEL_FINGERPRINT": "llama",
            "PAGEDKV_SOMETHING_ELSE": "not a setting",
            "KV_CACHE_PAGE_SIZE": "7",
        },
        kv_connector_config={"host_kvcache_swap_space_gb": 3},
    )
    assert config.kv_connector is KVConnectorType.tiered
    assert config.kv_cache_page_size == 128
    connector = config.kv_connector_config
    assert connector is not None
    assert connector.disk_offload_dir == "/file"
    assert connector.disk_offload_max_gb == 2
    assert connector.host_kvcache_swap_space_gb == 3
    assert connector.model_extra == {"write_policy": "reuse", "model_fingerprint": "llama"}


@pytest.mark.rule("CONF-1")
def test_the_environment_is_read_only_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAGEDKV_KV_CACHE_PAGE_SIZE", "7")
    assert KVCacheConfig().kv_cache_page_size == 128
    assert KVCacheConfig.from_environment().kv_cache_page_size == 7


@pytest.mark.rule("CONF-1")
def test_a_finished_section_replaces_the_files(file: Path) -> None:
    write(file, {"kv_connector_config": {"disk_offload_max_gb": 1}})
    config = KVCacheConfig(config_file=str(file), kv_connector_config=KVConnectorConfig())
    assert config.kv_connector_config == KVConnectorConfig()


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_a_connector_config_may_be_a_mapping_a_path_or_inline_json(
    tmp_path: Path, suffix: str
) -> None:
    settings = {"disk_offload_dir": "/ssd", "write_policy": "write_back"}
    path = tmp_path / f"tiers{suffix}"
    given: list[Any] = [settings, write(path, settings), path, json.dumps(settings)]
    for value in given:
        config = KVCacheConfig.model_validate({"kv_connector_config": value})
        assert config.kv_connector_config is not None
        assert config.kv_connector_config.disk_offload_dir == "/ssd"
        assert config.kv_connector_config.model_extra == {"write_policy": "write_back"}


@pytest.mark.rule("CONF-1")
def test_a_path_in_one_layer_is_merged_with_keys_of_another(tmp_path: Path) -> None:
    path = write(tmp_path / "tiers.yaml", {"disk_offload_dir": "/ssd", "disk_offload_max_gb": 1})
    config = KVCacheConfig.from_environment(
        {"PAGEDKV_KV_CONNECTOR_CONFIG": path}, kv_connector_config={"disk_offload_max_gb": 2}
    )
    assert config.kv_connector_config is not None
    assert config.kv_connector_config.disk_offload_dir == "/ssd"
    assert config.kv_connector_config.disk_offload_max_gb == 2


def test_a_model_can_be_read_from_a_path_alone(file: Path) -> None:
    assert KVCacheConfig.model_validate(write(file, {"kv_cache_page_size": 9})) == KVCacheConfig(
        config_file=str(file), kv_cache_page_size=9
    )


@pytest.mark.parametrize("content", ["", "cache:\n"])
def test_an_empty_file_or_section_holds_no_settings(file: Path, content: str) -> None:
    file.write_text(content)
    section = "cache" if content else None
    assert KVCacheConfig(config_file=str(file), section_name=section).kv_cache_page_size == 128


@pytest.mark.rule("CONF-3")
@pytest.mark.parametrize(
    ("content", "section", "message"),
    [
        ("[1, 2]", None, "holds list, but should hold a mapping"),
        ("cache: 3", "cache", "section 'cache' holds int, but should hold a mapping"),
        ("a: {}\nb: {}\nc: 1", "cache", "has no section 'cache'; it has 'a', 'b'"),
        ("page: 1", "cache", "has no section 'cache'; it has no sections"),
        ("kv_cache_pagesize: 1", None, "field 'kv_cache_pagesize' is unknown; use 'kv_cache_page"),
        ("cache: {zzz: 1}", "cache", "section 'cache': field 'zzz' is unknown; use"),
        ("a: [", None, "is not valid YAML"),
        ("a: \udc80", None, "is not valid YAML"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_section_and_field(
    file: Path, content: str, section: str | None, message: str
) -> None:
    file.write_text(content, errors="surrogateescape")
    with pytest.raises(ValidationError, match=f"config_file '.*server.yaml'.*{message}"):
        KVCacheConfig(config_file=str(file), section_name=section)


@pytest.mark.rule("CONF-3")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kv_cache_page_size": 0}, "kv_cache_page_size is 0: .*greater than or equal to 1"),
        ({"enable_prefix_caching": "maybe"}, "enable_prefix_caching is 'maybe'"),
        ({"kv_connector_config": {"disk_offload_max_gb": -1}}, "kv_.*disk_offload_max_gb is -1"),
        ({"kv_connector": "local", "enable_prefix_caching": False}, ".*prefix_caching is False"),
        ({1: 2}, "field 1 is unknown"),
    ],
)
def test_a_bad_value_in_a_file_is_named_with_file_section_and_field(
    file: Path, settings: Any, message: str
) -> None:
    write(file, {"cache": settings})
    place = "config_file '.*server.yaml', section 'cache'"
    with pytest.raises(ValidationError, match=f"{place}: {message}"):
        KVCacheConfig(config_file=str(file), section_name="cache")


@pytest.mark.rule("CONF-1", "CONF-3")
def test_a_file_is_not_blamed_for_the_codes_values(file: Path) -> None:
    write(file, {"kv_cache_page_size": 0, "device_memory_utilization": 2})
    path = str(file)
    with pytest.raises(ValidationError) as both:
        KVCacheConfig(config_file=path, kv_cache_page_size=-1)
    assert f"error, kv_cache_page_size is -1: {ABOVE}" in str(both.value)
    assert f"; config_file {path!r}: device_memory_utilization is 2: " in str(both.value)
    with pytest.raises(ValidationError) as code:
        KVCacheConfig(config_file=path, kv_cache_page_size=-1, device_memory_utilization=0.5)
    assert f"config_file {path!r}: " not in str(code.value)


@pytest.mark.rule("CONF-3")
def test_a_bad_value_in_a_file_that_a_file_names_is_named_with_both(tmp_path: Path) -> None:
    tiers = write(tmp_path / "tiers.yaml", {"disk_offload_max_gb": -1})
    cache = write(tmp_path / "cache.yaml", {"kv_connector_config": tiers})
    with pytest.raises(ValidationError, match=r"cache\.yaml': .*tiers\.yaml': disk_offload_max"):
        KVCacheConfig(config_file=cache)


@pytest.mark.rule("CONF-3")
@pytest.mark.parametrize("name", ["deep.yaml", "deep.json"])
def test_a_file_that_nests_too_deeply_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text('{"a": ' + "[" * 200_000)
    with pytest.raises(ValidationError, match=f"{name}' nests sections too deeply"):
        KVCacheConfig(config_file=str(path))
    with pytest.raises(ValidationError, match="nests sections too deeply"):
        KVCacheConfig.model_validate({"kv_connector_config": path.read_text()})


@pytest.mark.rule("CONF-3")
@pytest.mark.parametrize("field", ["config_file", "section_name"])
@pytest.mark.parametrize("value", [5, [1], {}, b"server.yaml"])
def test_a_place_that_is_no_text_is_refused_by_name(file: Path, field: str, value: Any) -> None:
    write(file, {})
    place: dict[str, Any] = {"config_file": str(file), "section_name": "cache"}
    with pytest.raises(ValidationError, match=rf"{field} is .*; use text"):
        KVCacheConfig(**place | {field: value})


@pytest.mark.rule("CONF-3")
def test_a_missing_file_is_named(file: Path) -> None:
    with pytest.raises(ValidationError, match=r"server\.yaml' cannot be read: No such file"):
        KVCacheConfig(config_file=str(file))


@pytest.mark.rule("CONF-3")
def test_broken_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cache.json"
    path.write_text('{"kv_cache_page_size": ')
    with pytest.raises(ValidationError, match=r"cache\.json' is not valid JSON"):
        KVCacheConfig(config_file=str(path))
    with pytest.raises(ValueError, match="is not valid JSON"):
        KVCacheConfig.from_environment({"PAGEDKV_KV_CONNECTOR_CONFIG": '{"disk'})


@pytest.mark.rule("CONF-3")
def test_a_section_needs_a_file() -> None:
    with pytest.raises(ValidationError, match="section_name is 'cache', but there is no config_fi"):
        KVCacheConfig(section_name="cache")


@pytest.mark.rule("PARAM-5", "CONF-2")
@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"kv_cache_page_size": 0}, "kv_cache_page_size"),
        ({"device_memory_utilization": 0}, "device_memory_utilization"),
        ({"device_memory_utilization": 1.01}, "device_memory_utilization"),
        ({"kv_cache_format": "float12"}, "kv_cache_format is 'float12'; use one of float32"),
        ({"kv_connector": "tape"}, "'null', 'local', 'tiered' or 'dkv'"),
        ({"kv_connector_config": {"host_kvcache_swap_space_gb": -1}}, "host_kvcache_swap_space_gb"),
        ({"kv_connector_config": {"disk_offload_max_gb": "inf"}}, "disk_offload_max_gb"),
        ({"page_size": 1}, "page_size"),
        ({"kv_connector": "local", "enable_prefix_caching": False}, "enable_prefix_caching is Fal"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(settings: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError, match=field):
        KVCacheConfig.model_validate(settings)


def test_text_is_converted_like_the_environment_needs() -> None:
    config = KVCacheConfig.model_validate(
        {"kv_cache_page_size": "64", "enable_prefix_caching": "false"}
    )
    assert (config.kv_cache_page_size, config.enable_prefix_caching) == (64, False)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        (None, torch.float32),
        ("float32", torch.float32),
        ("float16", torch.float16),
        ("BFloat16", torch.bfloat16),
        ("float8_e4m3fn", torch.float8_e4m3fn),
    ],
)
def test_the_format_names_the_cache_dtype(name: str | None, dtype: torch.dtype) -> None:
    assert KVCacheConfig(kv_cache_format=name).cache_dtype == dtype


def test_to_params_passes_every_argument_on() -> None:
    quantization = KVCacheQuantizationConfig(quantization_granularity=8)
    connector = KVConnectorConfig(disk_offload_dir="/ssd", host_kvcache_swap_space_gb=2)
    config = KVCacheConfig(
        kv_cache_page_size=32,
        kv_connector=KVConnectorType.tiered,
        kv_connector_config=connector,
    )
    devices: list[DeviceLike] = ["gpu:0", torch.device("cuda", 1), DeviceRef.GPU(2), "cuda:3"]
    params = config.to_params(
        torch.float8_e4m3fn, 8, 16, 3, devices, 2, True, 4, quantization, "dflash", 5
    )
    assert params == KVCacheParams(
        dtype=torch.float8_e4m3fn,
        n_kv_heads=8,
        head_dim=16,
        num_layers=3,
        devices=[DeviceRef.GPU(i) for i in range(4)],
        enable_prefix_caching=True,
        kv_connector=KVConnectorType.tiered,
        kv_connector_config=connector,
        host_kvcache_swap_space_gb=2.0,
        page_size=32,
        is_mla=True,
        num_q_heads=4,
        data_parallel_degree=2,
        kvcache_quant_config=quantization,
        speculative_method="dflash",
        num_draft_tokens=5,
    )


def test_a_connector_without_settings_gets_the_defaults() -> None:
    local = KVCacheConfig(kv_connector=KVConnectorType.local)
    params = local.to_params(torch.float16, 1, 8, 1, ["cpu"])
    assert params.kv_connector_config == KVConnectorConfig()
    assert params.host_kvcache_swap_space_gb == 50.0
    plain = KVCacheConfig().to_params(torch.float16, 1, 8, 1, ["cpu"])
    assert (plain.kv_connector_config, plain.host_kvcache_swap_space_gb) == (None, None)


@pytest.mark.rule("CONF-2")
def test_tier_options_are_read_from_the_extra_fields() -> None:
    assert TierOptions.from_connector_config(None) == TierOptions()
    options = TierOptions()
    assert options.write_policy == "through"
    assert (options.model_fingerprint, options.disk_write_budget_gb_per_day) == (None, None)
    extra = {
        "write_policy": "write_back",
        "model_fingerprint": "llama-3.1-8b@abc",
        "disk_write_budget_gb_per_day": "500",
        "other_connectors_option": 1,
    }
    options = TierOptions.from_connector_config(KVConnectorConfig.model_validate(extra))
    assert options.write_policy == "write_back"
    assert options.model_fingerprint == "llama-3.1-8b@abc"
    assert options.disk_write_budget_gb_per_day == 500


@pytest.mark.rule("PARAM-5")
@pytest.mark.parametrize(
    "extra",
    [
        {"write_policy": "around"},
        {"model_fingerprint": ""},
        {"disk_write_budget_gb_per_day": 0},
        {"disk_write_budget_gb_per_day": float("nan")},
    ],
)
def test_tier_options_out_of_range_are_refused_by_name(extra: Mapping[str, Any]) -> None:
    (name,) = extra
    with pytest.raises(ValidationError, match=name):
        TierOptions.from_connector_config(KVConnectorConfig.model_validate(extra))
