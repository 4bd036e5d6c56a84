"""ID: what identifies a page. Only what has the same identity is shared."""

from pagedkv.conformance.checks.identity import content, digests, tenants, unknown_tokens

# To import them is to register their checks.
__all__ = ["content", "digests", "tenants", "unknown_tokens"]
