version: str
torch_version: str
cuda_archs: tuple[str, ...]
compiler: str
