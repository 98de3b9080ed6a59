"""Cryptography: the only room, with `fedlearn.deployment`, that imports `cryptography`."""
