"""Secure aggregation, `fedlearn-secagg v1`: state machines without I/O (docs/specification/secure-aggregation.md).

`participant` is a client, `aggregator` the server; `stages` and `recovery` are their steps; `transcript` is what both
hash, `messages` what travels, `masking` what is added.
"""
