"""Proof by enumeration: the output law of real parts on a tiny target, and the contract of each part."""
