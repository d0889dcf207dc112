"""Launch lines that are right, to be made wrong."""

VLLM = "vllm serve Qwen/Qwen3-32B @h100,vllm=0.33"
SGLANG = "python -m sglang.launch_server --model-path Qwen/Qwen3-32B @h100,sglang=0.5.23"


def vllm(words: str = "", place: str = "@h100,vllm=0.33", model: str = "Qwen/Qwen3-32B") -> str:
    return f"vllm serve {model} {words} {place}"
