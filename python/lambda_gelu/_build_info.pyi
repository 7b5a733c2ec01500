version: str
torch_version: str
cuda_archs: tuple[str, ...]
cuda_version: str | None
compiler: str
