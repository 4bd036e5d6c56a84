"""Where a bug happened: short references, and the pages behind them."""

REPOSITORIES = {
    "dynamo": "ai-dynamo/dynamo",
    "LMCache": "LMCache/LMCache",
    "lmdeploy": "InternLM/lmdeploy",
    "Mooncake": "kvcache-ai/Mooncake",
    "nixl": "ai-dynamo/nixl",
    "sglang": "sgl-project/sglang",
    "TensorRT-LLM": "NVIDIA/TensorRT-LLM",
    "vllm": "vllm-project/vllm",
}
"""On GitHub, by the short name that references use."""


def url_of(source: str) -> str | None:
    """The page of ``vllm#42571``; ``None`` for a reference that is no number in a tracker."""
    name, _, number = source.partition("#")
    repository = REPOSITORIES.get(name)
    if repository is None or not number.isdecimal():
        return None
    return f"https://github.com/{repository}/issues/{number}"  # GitHub sends pulls on to their page
