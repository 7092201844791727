"""Plan, read and decode inputs without Ray, and print what became of each image as JSON.

    python -m tests.chaos.read_inputs LOCATION…

It runs in a process of its own, so that an input that kills its reader fails one test and not the whole suite.
"""

import hashlib
import json
import sys

from fmnist_model.errors import InvalidDataset
from fmnist_model.images.decode import decode_images
from infra.errors import RequestError
from tasks.classification.read import read_shard
from tests.unit.tasks.classification.image_inputs import OPTIONS, plan_of


def read_inputs(location: str) -> dict[str, object]:
    """Return the planned number of images, the digest of the pixels of each decoded one, and the reasons of the rest.

    A location may be refused as a whole. The result then has the error and no images.
    """
    try:
        plan = plan_of(location)
    except (RequestError, InvalidDataset) as error:
        return {"planned": 0, "decoded": [], "rejected": [], "refused": str(error)}
    decoded: list[tuple[str, str]] = []
    rejected: list[tuple[str, str]] = []
    for batch in read_shard(plan, OPTIONS):
        found = decode_images(batch.encoded)
        uris = batch.images.to_pylist()
        digests = [hashlib.sha256(pixels.tobytes()).hexdigest() for pixels in found.pixels]
        decoded += [(uris[row], digest) for row, digest in zip(found.rows.tolist(), digests, strict=True)]
        rejected += [(uris[row], batch.reasons.get(row, reason)) for row, reason in found.rejected]
    return {"planned": sum(plan.column("rows").to_pylist()), "decoded": decoded, "rejected": rejected, "refused": ""}


if __name__ == "__main__":
    json.dump({location: read_inputs(location) for location in sys.argv[1:]}, sys.stdout)
