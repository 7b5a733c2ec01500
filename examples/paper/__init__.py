"""The experiments of arXiv 2603.21991, and those it left open, on real data: ``python -m examples.paper.run --help``.

A *system* is a data set with a network and how it is trained; an *arm* is what is compared on it; an *experiment* is a
set of arms on a system. One run, that is a system, an arm and a seed, leaves one record. Of lambda_gelu only the public
API is used.
"""
