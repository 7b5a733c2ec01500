"""λ-GELU in other packages: one module each, imported by name (``import lambda_gelu.integrations.lightning``).

Each needs its package, which ``pip install lambda-gelu[<name of the module>]`` brings along; ``tensor_parallel`` needs
nothing but torch, as the rest of lambda_gelu.
"""
