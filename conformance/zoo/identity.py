"""Pages that are found under an identity which is not that of their content."""

from pagedkv.conformance.zoo.change import Edit
from pagedkv.conformance.zoo.specimen import Specimen
from pagedkv.reference.commit import _commit, step
from pagedkv.reference.identity import page_digests
from pagedkv.reference.lengths import identifiable_tokens, written_tokens
from pagedkv.reference.matching import _match, lookup_digests
from pagedkv.reference.media import Media

SPECIMENS = (
    Specimen(
        number=11,
        name="last_token_hashed",
        happens="the last token is hashed like the others: a full hit leaves nothing to compute",
        source=(),
        changes=(
            Edit(
                identifiable_tokens,
                {"max(1, ctx.pending_future_count)": "ctx.pending_future_count"},
            ),
            Edit(
                lookup_digests, {"ctx.tokens.current_position - 1": "ctx.tokens.current_position"}
            ),
        ),
        expected=("identity.a_repeated_prompt_leaves_a_token_to_compute",),
    ),
    Specimen(
        number=12,
        name="placeholder_committed",
        happens="a placeholder is committed like a token, before anybody knows which it will be",
        source=(),
        changes=(
            Edit(
                written_tokens,
                {
                    "min(ctx.tokens.processed_length, identifiable_tokens(ctx))": (
                        "ctx.tokens.processed_length"
                    )
                },
            ),
        ),
        expected=("step.a_placeholder_is_not_committed",),
    ),
    Specimen(
        number=12,
        name="draft_committed",
        happens="a page that draft tokens would fill is committed before they are verified",
        source=(),
        changes=(
            Edit(
                step,
                {
                    "written_tokens(ctx) // size)": "(written_tokens(ctx) + "
                    "len(ctx.spec_decoding_state.draft_tokens_to_verify)) // size)"
                },
            ),
        ),
        expected=("step.drafts_are_not_committed",),
    ),
    Specimen(
        number=15,
        name="adapters_share_pages",
        happens="requests with different adapters share pages",
        source=("vLLM, test_lora_name_and_cache_salt_block_hashes_do_not_collide",),
        changes=(Edit(page_digests, {"ctx.adapter": "None"}),),
        expected=("identity.tenants_share_nothing",),
    ),
    Specimen(
        number=15,
        name="salts_share_pages",
        happens="tenants with different salts share pages",
        source=("vLLM, test_lora_name_and_cache_salt_block_hashes_do_not_collide",),
        changes=(Edit(page_digests, {"ctx.cache_salt": "None"}),),
        expected=("identity.tenants_share_nothing",),
    ),
    Specimen(
        number=15,
        name="adapter_taken_for_salt",
        happens="adapter and salt are joined before they are hashed: one can stand for the other",
        source=("vLLM, test_lora_name_and_cache_salt_block_hashes_do_not_collide",),
        changes=(
            Edit(
                page_digests,
                {
                    "ctx.cache_salt": '(ctx.cache_salt or "") + (ctx.adapter or "")',
                    "ctx.adapter)": "None)",
                },
            ),
        ),
        expected=("identity.tenants_share_nothing",),
    ),
    Specimen(
        number=15,
        name="parent_truncated",
        happens="a chain that is hashed in two passes goes on from a shortened parent, under "
        "sha256_64: what a request adds later is never found by others",
        source=("MAX, sha256_64",),
        changes=(
            Edit(
                page_digests,
                {"digests[-1] if digests": "page_key(digests[-1], algorithm) if digests"},
            ),
        ),
        expected=("identity.a_page_has_one_identity_however_it_was_filled",),
    ),
    Specimen(
        number=16,
        name="hash_of_this_process",
        happens="something of the process enters the hash: what others have stored is never hit",
        source=("LMCache#1139", "LMCache#2136"),
        changes=(
            Edit(
                page_digests,
                {"root_digest(algorithm, seed,": "root_digest(algorithm, repr(page_key).encode(),"},
            ),
        ),
        expected=("identity.each_algorithm_is_its_hash", "identity.seed_and_salt_are_the_root"),
    ),
    Specimen(
        number=17,
        name="images_look_alike",
        happens="prompts with different images have equal placeholders, and share pages",
        source=(),
        changes=(Edit(page_digests, {"ctx.hash_overrides": "()"}),),
        expected=("identity.an_image_is_content_at_its_first_position",),
    ),
    Specimen(
        number=51,
        name="new_weights_on_an_old_disk",
        happens="after a restart with other weights, the blocks of the old ones are hit",
        source=("vllm#42125", "lmdeploy#4917"),
        changes=(
            Edit(Media.open_disk, {"model is None or found.model != model": "model is None"}),
        ),
        expected=("namespaces.blocks_of_other_weights_are_dropped",),
    ),
    Specimen(
        number=51,
        name="new_weights_on_an_old_store",
        happens="managers with other weights hit each other's blocks in a store",
        source=("vllm#42125", "lmdeploy#4917"),
        changes=(Edit(Media.namespace, {r"\nmodel {model}": ""}),),
        expected=("namespaces.in_a_store_other_weights_are_not_found",),
    ),
    Specimen(
        number=52,
        name="successor_ignored",
        happens="with a draft model, a page is hit whose draft KV was written before another token",
        source=("vllm#50438",),
        changes=(Edit(_match, {"        hits.pop()": "        pass"}),),
        expected=("drafts.the_last_block_of_a_hit_is_not_used",),
    ),
    Specimen(
        number=52,
        name="successor_ignored_by_step",
        happens="with a draft model, step swaps in a page that was written before another token",
        source=("vllm#50438",),
        changes=(Edit(_commit, {" and not state.drafts_look_ahead": ""}),),
        expected=("drafts.a_page_with_another_successor_is_not_swapped_in",),
    ),
)
