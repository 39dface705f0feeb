"""The digest of a checkpoint, made a second way: for files that tests change and sign again."""

import json
from hashlib import sha256

PIECE = 8 << 20


def signed(body: bytes) -> bytes:
    """Append the digest of a checkpoint's schema to all of it but its last 32 bytes.

    What has no header that could be read is hashed at once.
    """
    end = 8 + int.from_bytes(body[:8], "little")
    try:
        entries = json.loads(body[8:end])
        if entries.pop("__metadata__", {}).get("spherescan.schema") in {"1", "2"}:
            return body + sha256(body).digest()
        spans = [entry["data_offsets"] for entry in entries.values()][:-1]
        digests = [
            sha256(body[at : min(at + PIECE, end + after)]).digest()
            for begin, after in spans
            for at in range(end + max(0, begin), min(end + after, len(body)), PIECE)
        ]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
        return body + sha256(body).digest()
    return body + sha256(body[:end] + b"".join(digests)).digest()
