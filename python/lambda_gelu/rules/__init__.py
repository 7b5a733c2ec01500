"""What PyTorch's transforms have to be told about the operators, one file each.

They exist in Python only, so their rules do too (docs/architecture.md).
"""

from . import nested, sharding, vmap

nested.register()
sharding.register_with_dtensor()
vmap.register()
