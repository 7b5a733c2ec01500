"""Tables and figures of docs/results.md, made of the records and of nothing else. page.py writes them."""
