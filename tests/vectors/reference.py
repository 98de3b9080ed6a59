"""A second implementation of `fedlearn-secagg v1`, from docs/protocol.md alone: slow, plain, without fedlearn.

Python integers and lists; of `cryptography` it takes X25519, Ed25519, the AES block and AES-GCM. It plays honest
parties and checks nothing: it says what the bytes are.
"""

import hashlib
import hmac
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

P = 2**256 + 297
SEGMENT = 4 * 1024 * 1024


def u(value: int, size: int) -> bytes:
    return value.to_bytes(size, "big")


def sha(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()


def label(purpose: str) -> bytes:
    text = b"fedlearn/secagg/v1/" + purpose.encode()
    return u(len(text), 1) + text


def hkdf(secret: bytes, salt: bytes, info: bytes, size: int) -> bytes:
    """RFC 5869 with SHA-256."""
    key = hmac.new(salt, secret, "sha256").digest()
    out, block, counter = b"", b"", 1
    while len(out) < size:
        block = hmac.new(key, block + info + u(counter, 1), "sha256").digest()
        out, counter = out + block, counter + 1
    return out[:size]


def keystream(seed: bytes, start: int, size: int) -> bytes:
    """Block by block: AES-256(key, salt | u32 segment | u32 counter), counter from 2 in each segment."""
    aes = Cipher(algorithms.AES(seed[:32]), modes.ECB()).encryptor()
    out = b""
    for number in range(start // 16, (start + size + 15) // 16):
        segment, inside = divmod(16 * number, SEGMENT)
        out += aes.update(seed[32:] + u(segment, 4) + u(2 + inside // 16, 4))
    return out[start % 16 :][:size]


def lanes(seed: bytes, count: int) -> list[int]:
    stream = keystream(seed, 0, 4 * count)
    return [int.from_bytes(stream[4 * k : 4 * k + 4], "little") for k in range(count)]


def x25519(seed: bytes, public: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(seed).exchange(X25519PublicKey.from_public_bytes(public))


def x25519_public(seed: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()


def ed25519(seed: bytes, message: bytes) -> bytes:
    return Ed25519PrivateKey.from_private_bytes(seed).sign(message)


def ed25519_public(seed: bytes) -> bytes:
    return Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()


def shares(secret: bytes, coefficients: list[int], holders: int) -> list[bytes]:
    polynomial = [int.from_bytes(secret, "big"), *coefficients]
    return [u(sum(c * x**k for k, c in enumerate(polynomial)) % P, 33) for x in range(1, holders + 1)]


def recover(points: dict[int, bytes]) -> bytes:
    """Lagrange at zero."""
    total = 0
    for x, share in points.items():
        weight = 1
        for other in points:
            if other != x:
                weight = weight * other * pow(other - x, -1, P) % P
        total += weight * int.from_bytes(share, "big")
    return u(total % P, 32)


CONTEXT_FIELDS = [
    ("suite", 2),
    ("session", 16),
    ("round", 4),
    ("attempt", 2),
    ("config_hash", 32),
    ("roster_hash", 32),
    ("model_hash", 32),
    ("layout_hash", 32),
    ("privacy_mode", 1),
    ("planned_cohort", 2),
    ("threshold", 2),
    ("min_survivors", 2),
    ("max_colluders", 2),
    ("dimension", 8),
    ("scale_bits", 1),
    ("lane_bits", 1),
    ("sensitivity", 8),
    ("clip_bound", 8),
    ("noise_std", 4),
    ("sampling_numerator", 4),
    ("sampling_denominator", 4),
]


def encode_context(fields: dict[str, object]) -> bytes:
    out = b""
    for name, size in CONTEXT_FIELDS:
        value = fields[name]
        out += bytes.fromhex(value) if isinstance(value, str) else u(value, size)
    return out + b"".join(u(seconds, 2) for seconds in fields["stage_seconds"])


def bitmap(members: list[bytes], chosen: list[bytes]) -> bytes:
    out = bytearray(-(-len(members) // 8))
    for rank, member in enumerate(members, start=1):
        if member in chosen:
            out[(rank - 1) // 8] |= 1 << (7 - (rank - 1) % 8)
    return bytes(out)


@dataclass
class Client:
    """One honest client with all its secrets in the open."""

    id: bytes
    identity: bytes
    mask_seed: bytes
    channel_seed: bytes
    b: bytes
    mask_coefficients: list[int]
    self_coefficients: list[int]
    vector: list[int]
    held: dict[bytes, bytes] = field(default_factory=dict)

    def envelope(self, ctx: bytes, stage: int, digest: bytes, reply: bytes) -> bytes:
        place = ctx[2:24]  # session | round | attempt
        signed = label("reply") + place + u(stage, 1) + self.id + digest + sha(reply)
        return reply + ed25519(self.identity, signed)

    def advertise(self, ctx: bytes) -> bytes:
        c0 = sha(label("ctx"), ctx)
        com = sha(label("b"), c0, self.id, self.b)
        fields = self.id + x25519_public(self.mask_seed) + x25519_public(self.channel_seed) + com
        return fields + ed25519(self.identity, label("adv") + c0 + fields)

    def share(self, adverts: dict[bytes, bytes], c1: bytes) -> bytes:
        members = sorted(adverts)
        of_mask = shares(self.mask_seed, self.mask_coefficients, len(members))
        of_self = shares(self.b, self.self_coefficients, len(members))
        out = b""
        for rank, peer in enumerate(members):
            plain = of_mask[rank] + of_self[rank]
            if peer == self.id:
                self.held[self.id] = plain
                continue
            key = self.box_key(adverts, c1, sender=self.id, receiver=peer)
            out += peer + AESGCM(key).encrypt(bytes(12), plain, c1 + self.id + peer)
        return out

    def box_key(self, adverts: dict[bytes, bytes], c1: bytes, sender: bytes, receiver: bytes) -> bytes:
        peer = receiver if sender == self.id else sender
        info = label("box") + sender + receiver + adverts[sender][48:80] + adverts[receiver][48:80]
        return hkdf(x25519(self.channel_seed, adverts[peer][48:80]), c1, info, 32)

    def mask(self, adverts: dict[bytes, bytes], c1: bytes, c2: bytes, boxes: dict[bytes, bytes]) -> bytes:
        for sender, box in boxes.items():
            key = self.box_key(adverts, c1, sender=sender, receiver=self.id)
            self.held[sender] = AESGCM(key).decrypt(bytes(12), box, c1 + sender + self.id)
        x = with_check_words(self.vector, c2)
        x = add(x, lanes(hkdf(self.b, c2, label("self") + self.id, 40), len(x)), 1)
        for peer in boxes:
            x = add(
                x, lanes(pair_seed(self.mask_seed, adverts, self.id, peer, c2), len(x)), 1 if peer > self.id else -1
            )
        return b"".join(lane.to_bytes(4, "little") for lane in x)


def pair_seed(mask_seed: bytes, adverts: dict[bytes, bytes], one: bytes, other: bytes, c2: bytes) -> bytes:
    """The seed of the mask between `one`, whose mask seed is known, and `other`."""
    low, high = sorted((one, other))
    info = label("pair") + low + high + adverts[low][16:48] + adverts[high][16:48]
    return hkdf(x25519(mask_seed, adverts[other][16:48]), c2, info, 40)


def add(x: list[int], mask: list[int], sign: int) -> list[int]:
    return [(a + sign * b) % 2**32 for a, b in zip(x, mask, strict=True)]


def with_check_words(vector: list[int], c2: bytes) -> list[int]:
    words = [1]
    for salt in (0, 1):
        r = lanes(sha(label("check"), c2) + u(salt, 8), len(vector))
        words.append(sum(a * b for a, b in zip(r, vector, strict=True)) % 2**32)
    return vector + words


def play(context: dict[str, object], config: bytes, model: bytes, clients: list[Client], lost: list[bytes]) -> dict:
    """One attempt; the replies of `lost` to stage 2 do not arrive. Every message, hashes and the sum."""
    ctx = encode_context(context)
    threshold = context["threshold"]
    by_id = {client.id: client for client in sorted(clients, key=lambda client: client.id)}
    messages = []

    def exchange(stage: int, client: Client, request: bytes, reply: bytes, digest: bytes | None = None) -> None:
        sealed = client.envelope(ctx, stage, digest or sha(request), reply)
        messages.append({"stage": stage, "client": client.id.hex(), "request": request.hex(), "reply": sealed.hex()})

    first = ctx + u(len(config), 4) + config
    adverts = {id_: client.advertise(ctx) for id_, client in by_id.items()}
    for id_, client in by_id.items():
        exchange(0, client, first, adverts[id_])

    c0 = sha(label("ctx"), ctx)
    c1 = sha(label("u1"), c0, *(sha(advert) for advert in adverts.values()))
    boxes = {id_: client.share(adverts, c1) for id_, client in by_id.items()}
    for id_, client in by_id.items():
        exchange(1, client, b"".join(adverts.values()), boxes[id_])

    members = list(by_id)
    u2 = bitmap(members, members)
    c2 = sha(label("u2"), c1, u2)
    masked = {}
    for id_, client in by_id.items():
        mine = {}
        for sender in members:
            for start in range(0, len(boxes[sender]), 98):
                if boxes[sender][start : start + 16] == id_:
                    mine[sender] = boxes[sender][start + 16 : start + 98]
        listed = b"".join(sender + box for sender, box in mine.items())
        masked[id_] = client.mask(adverts, c1, c2, mine)
        exchange(2, client, u2 + listed + model, masked[id_], sha(u2, listed, sha(model)))

    survivors = [id_ for id_ in members if id_ not in lost]
    u3 = bitmap(members, survivors)
    signatures = {id_: ed25519(by_id[id_].identity, label("u3") + c2 + u3) for id_ in survivors}
    for id_ in survivors:
        exchange(3, by_id[id_], u3, signatures[id_])

    listed = b"".join(id_ + signature for id_, signature in signatures.items())
    given = {}
    for id_ in survivors:
        held = by_id[id_].held
        given[id_] = {m: held[m][33:] if m in survivors else held[m][:33] for m in members}
        exchange(4, by_id[id_], listed, b"".join(given[id_].values()))

    total = [0] * (context["dimension"] + 3)
    for id_ in survivors:
        y = [int.from_bytes(masked[id_][k : k + 4], "little") for k in range(0, len(masked[id_]), 4)]
        total = add(total, y, 1)
    responders = survivors[:threshold]
    for m in members:
        secret = recover({members.index(r) + 1: given[r][m] for r in responders})
        if m in survivors:
            total = add(total, lanes(hkdf(secret, c2, label("self") + m, 40), len(total)), -1)
            continue
        for survivor in survivors:
            mask = lanes(pair_seed(secret, adverts, m, survivor, c2), len(total))
            total = add(total, mask, -1 if m > survivor else 1)
    assert total[-3:] == [len(survivors), *with_check_words(total[:-3], c2)[-2:]]
    return {
        "ctx": ctx.hex(),
        "c0": c0.hex(),
        "c1": c1.hex(),
        "c2": c2.hex(),
        "messages": messages,
        "sum": total[:-3],
    }
