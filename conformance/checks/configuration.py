"""CONF: settings from code, the environment and files."""

import itertools
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pagedkv.conformance.bench import Bench
from pagedkv.conformance.check import check
from pagedkv.conformance.violation import demand, expect
from pagedkv.reference.config import KVCacheConfig, KVConnectorConfig


# Any: settings of whatever type a file may hold.
@contextmanager
def file_of(content: Any, name: str = "server.json") -> Iterator[str]:
    """A configuration file; text is written as it is, anything else as JSON."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        yield str(path)


def is_refused(what: str, *hints: str, **values: Any) -> None:
    """Demand that settings are refused with a message that holds all ``hints``."""
    try:
        KVCacheConfig.from_environment({}, **values)
    except ValueError as error:
        told = str(error)
        if isinstance(error, ValidationError):  # Its text repeats the input, which helps nobody.
            told = "; ".join(f"{reason['loc']} {reason['msg']}" for reason in error.errors())
        missing = [hint for hint in hints if hint not in told]
        demand("CONF-3", not missing, f"{what} does not name {missing}: {told}")
    else:
        demand("CONF-3", False, f"{what} is accepted")


# --- CONF-1: which goes first ---------------------------------------------------------------------


@check("CONF-1", needs=("vocabulary",))
def code_goes_before_environment_before_file_before_default(bench: Bench) -> None:
    """In every combination of places the first of them that has a value decides."""
    values = {"code": 16, "environment": 32, "file": 64}
    for count in range(4):
        for places in itertools.combinations(values, count):
            code = {"kv_cache_page_size": 16} if "code" in places else {}
            environment = {"PAGEDKV_KV_CACHE_PAGE_SIZE": "32"} if "environment" in places else {}
            in_file = {"kv_cache_page_size": 64} if "file" in places else {}
            with file_of(in_file) as path:
                config = KVCacheConfig.from_environment(environment, config_file=path, **code)
            expected = values[places[0]] if places else 128
            expect("CONF-1", config.kv_cache_page_size, expected, f"page size set by {places}")


@check("CONF-1", needs=("vocabulary",))
def settings_are_merged_one_by_one(bench: Bench) -> None:
    """A place that sets one field leaves the others to the next, within sections too."""
    in_file = {
        "device_memory_utilization": 0.5,
        "kv_connector_config": {"disk_offload_dir": "/file", "disk_offload_max_gb": 7},
    }
    environment = {
        "PAGEDKV_KV_CONNECTOR_CONFIG__DISK_OFFLOAD_DIR": "/environment",
        "PAGEDKV_ENABLE_PREFIX_CACHING": "false",
        "SOMETHING_ELSE": "1",
    }
    with file_of(in_file) as path:
        config = KVCacheConfig.from_environment(
            environment, config_file=path, kv_cache_page_size=16
        )
    section = config.kv_connector_config
    assert section is not None
    seen = (
        config.kv_cache_page_size,
        config.enable_prefix_caching,
        config.device_memory_utilization,
        section.disk_offload_dir,
        section.disk_offload_max_gb,
        section.host_kvcache_swap_space_gb,
    )
    expect("CONF-1", seen, (16, False, 0.5, "/environment", 7, 50.0), "merged settings")


@check("CONF-1", needs=("vocabulary",))
def a_file_is_read_from_its_section(bench: Bench) -> None:
    """YAML and JSON are read alike; ``section_name`` says which part is meant."""
    with file_of({"cache": {"kv_cache_page_size": 32}, "other": 1}) as path:
        config = KVCacheConfig(config_file=path, section_name="cache")
        expect("CONF-1", config.kv_cache_page_size, 32, "page size in a section of JSON")
    with file_of("cache:\n  kv_cache_page_size: 64\n", "server.yaml") as path:
        config = KVCacheConfig(config_file=path, section_name="cache")
        expect("CONF-1", config.kv_cache_page_size, 64, "page size in a section of YAML")


# --- CONF-2: unknown fields -----------------------------------------------------------------------


@check("CONF-2", needs=("vocabulary",))
def the_cache_knows_all_its_fields(bench: Bench) -> None:
    """``KVCacheConfig`` refuses a field that it does not know, in code and in a file."""
    builds: list[Callable[[], object]] = [
        lambda: KVCacheConfig.model_validate({"kv_cache_pagesize": 16}),
        lambda: KVCacheConfig.from_environment({}, kv_cache_pagesize=16),
    ]
    for build in builds:
        try:
            build()
        except ValueError as error:
            told = "kv_cache_pagesize" in str(error)
            demand("CONF-2", told, f"the message does not name the field: {error}")
        else:
            demand("CONF-2", False, "a misspelt field is accepted")
    with file_of({"kv_cache_pagesize": 16}) as path:
        is_refused("a file with a misspelt field", path, "kv_cache_pagesize", config_file=path)


@check("CONF-2", needs=("vocabulary",))
def connectors_keep_what_others_know(bench: Bench) -> None:
    """``KVConnectorConfig`` keeps unknown fields as they are, also those of a file."""
    config = KVConnectorConfig.model_validate({"write_policy": "reuse", "lanes": [1, 2]})
    expected = {"write_policy": "reuse", "lanes": [1, 2]}
    expect("CONF-2", config.model_extra, expected, "fields that a connector may know")
    with file_of({"kv_connector_config": expected}) as path:
        section = KVCacheConfig(config_file=path).kv_connector_config
        assert section is not None
        expect("CONF-2", section.model_extra, expected, "fields of a file's section")


# --- CONF-3: files that cannot be read ------------------------------------------------------------


@check("CONF-3", needs=("vocabulary",))
def a_missing_file_is_named(bench: Bench) -> None:
    """A file that is not there is an error that names it."""
    is_refused("a missing file", "/nowhere/server.yaml", config_file="/nowhere/server.yaml")


@check("CONF-3", needs=("vocabulary",))
def a_malformed_file_is_named(bench: Bench) -> None:
    """A file that is no JSON, no YAML or no mapping is an error that names it."""
    for content, name in (
        ("{not json", "server.json"),
        ("a: [1, 2", "server.yaml"),
        ("[1, 2]", "server.json"),
        ("just text", "server.yaml"),
    ):
        with file_of(content, name) as path:
            is_refused(f"a file with {content!r}", path, config_file=path)


@check("CONF-3", needs=("vocabulary",))
def a_missing_section_is_named(bench: Bench) -> None:
    """A section that the file lacks, or that is none, is an error that names file and section."""
    with file_of({"cache": {"kv_cache_page_size": 32}, "number": 3}) as path:
        for section in ("engine", "number"):
            what = f"section {section}"
            is_refused(what, path, section, config_file=path, section_name=section)
    is_refused("a section without a file", "section_name", section_name="cache")


@check("CONF-3", needs=("vocabulary",))
def a_wrong_value_in_a_file_is_named_with_its_place(bench: Bench) -> None:
    """A value that cannot be is an error that names file, section and field."""
    with file_of({"cache": {"kv_cache_page_size": 0}}) as path:
        is_refused(
            "a page size of 0",
            path,
            "cache",
            "kv_cache_page_size",
            config_file=path,
            section_name="cache",
        )
