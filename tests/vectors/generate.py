"""Write the known answers beside this file: `python tests/vectors/generate.py`. All come from `reference`."""

import hashlib
import json
from pathlib import Path

import reference as r

HERE = Path(__file__).parent


def fixed(name: str, size: int) -> bytes:
    return hashlib.shake_256(b"fedlearn vectors/" + name.encode()).digest(size)


def coefficients(name: str, count: int) -> list[int]:
    return [int.from_bytes(fixed(f"{name}/{k}", 48), "big") % r.P for k in range(count)]


def primitives() -> dict:
    seed = bytes(range(40))
    segment = r.SEGMENT
    places = [(0, 64), (segment - 64, 64), (segment, 64), (2 * segment - 64, 64), (0, 1), (5, 33), (segment - 7, 15)]
    salt, ids, keys = fixed("salt", 32), (b"\x01" * 16, b"\x02" * 16), (fixed("key one", 32), fixed("key two", 32))
    context = ids[0] + ids[1] + keys[0] + keys[1]
    derived = [
        {"purpose": purpose, "secret": fixed("secret", 32).hex(), "salt": salt.hex(), "context": info.hex(),
         "out": r.hkdf(fixed("secret", 32), salt, r.label(purpose) + info, size).hex()}
        for purpose, info, size in (("box", context, 32), ("pair", context, 40), ("self", ids[0], 40))
    ]  # fmt: skip
    secret, coefs = fixed("shamir", 32), coefficients("shamir", 3)
    return {
        "labels": {p: r.label(p).hex() for p in ("adv", "attest", "b", "box", "certificate", "check", "ctx", "join",
                                                 "pair", "refuse", "reply", "self", "u1", "u2", "u3")},
        "refusal": r.sha(r.label("refuse"))[:16].hex(),
        "keystream": {"seed": seed.hex(), "reads": [
            {"offset": at, "bytes": r.keystream(seed, at, size).hex()} for at, size in places]},
        "derivations": derived,
        "shamir": {"secret": secret.hex(), "coefficients": [f"{c:066x}" for c in coefs],
                   "shares": [share.hex() for share in r.shares(secret, coefs, 7)]},
        "published": {
            "rfc7748": {"private": "5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb",
                        "public": "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f",
                        "peer": "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a",
                        "shared": "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"},
            "rfc8032": {"private": "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
                        "public": "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
                        "signature_of_nothing": "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555"
                                                "fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"},
            "rfc5869": {"secret": "0b" * 22, "salt": "000102030405060708090a0b0c", "info": "f0f1f2f3f4f5f6f7f8f9",
                        "out": "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"},
            "nist_gcm": {"key": "00" * 32, "plain": "00" * 16,
                         "box": "cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919"},
        },
    }  # fmt: skip


def whole_round() -> dict:
    """Four clients, the third lost after its boxes: its mask seed is reconstructed."""
    config, model, dimension = b'{"run":{"rounds":20}}', fixed("model", 50), 5
    clients = [
        {
            "client_id": fixed(f"client {n}", 16).hex(),
            "identity_seed": fixed(f"identity {n}", 32).hex(),
            "mask_seed": fixed(f"mask {n}", 32).hex(),
            "channel_seed": fixed(f"channel {n}", 32).hex(),
            "self_mask_seed": fixed(f"self {n}", 32).hex(),
            "mask_coefficients": [f"{c:066x}" for c in coefficients(f"mask {n}", 2)],
            "self_coefficients": [f"{c:066x}" for c in coefficients(f"self {n}", 2)],
            "vector": [int.from_bytes(fixed(f"lane {n} {k}", 4), "big") for k in range(dimension)],
        }
        for n in range(1, 5)
    ]
    clients.sort(key=lambda client: client["client_id"])
    for client in clients:
        client["public"] = r.ed25519_public(bytes.fromhex(client["identity_seed"])).hex()
    context = {
        "suite": 1, "session": fixed("session", 16).hex(), "round": 7, "attempt": 1,
        "config_hash": r.sha(config).hex(), "roster_hash": fixed("roster", 32).hex(), "model_hash": r.sha(model).hex(),
        "layout_hash": fixed("layout", 32).hex(), "privacy_mode": 1, "planned_cohort": 4, "threshold": 3,
        "min_survivors": 3, "max_colluders": 1, "dimension": dimension, "scale_bits": 16, "lane_bits": 32,
        "sensitivity": 6_557, "clip_bound": 655_360, "noise_std": 50_000, "sampling_numerator": 1,
        "sampling_denominator": 3, "stage_seconds": [60, 60, 600, 60, 60],
    }  # fmt: skip
    lost = clients[2]["client_id"]
    played = r.play(context, config, model, [reference_client(client) for client in clients], [bytes.fromhex(lost)])
    return {"context": context, "config": config.hex(), "model": model.hex(), "clients": clients, "lost": lost} | played


def reference_client(client: dict) -> r.Client:
    return r.Client(
        id=bytes.fromhex(client["client_id"]),
        identity=bytes.fromhex(client["identity_seed"]),
        mask_seed=bytes.fromhex(client["mask_seed"]),
        channel_seed=bytes.fromhex(client["channel_seed"]),
        b=bytes.fromhex(client["self_mask_seed"]),
        mask_coefficients=[int(c, 16) for c in client["mask_coefficients"]],
        self_coefficients=[int(c, 16) for c in client["self_coefficients"]],
        vector=client["vector"],
    )


def answers() -> dict[str, dict]:
    """{file name: content}."""
    return {"primitives.json": primitives(), "round_of_four.json": whole_round()}


if __name__ == "__main__":
    for name, content in answers().items():
        (HERE / name).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="ascii")
