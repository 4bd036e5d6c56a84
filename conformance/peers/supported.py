"""Refusing setups that ask a peer for what it does not have."""

from collections.abc import Collection

from pagedkv.traces.events.setup import RunSetup


def check_supported(
    peer: str, setup: RunSetup, *, fields: Collection[str], hash_algorithms: Collection[str]
) -> None:
    """Refuse a setup that asks for something else than ``peer`` does.

    Args:
        peer: What people call it.
        setup: What is asked of it.
        fields: The fields of ``setup`` that it understands, or that change nothing it shows.
        hash_algorithms: The values of ``hash_algorithm`` that it understands.

    Raises:
        ValueError: Another field differs from its default, or the algorithm is another one.
    """
    for name, field in RunSetup.model_fields.items():
        value = getattr(setup, name)
        if name not in fields and value != field.default:
            raise ValueError(f"{name} is {value!r}; {peer} takes only the default, {field.default}")
    if setup.hash_algorithm not in hash_algorithms:
        raise ValueError(
            f"hash_algorithm is {setup.hash_algorithm!r}; {peer} takes {', '.join(hash_algorithms)}"
        )
