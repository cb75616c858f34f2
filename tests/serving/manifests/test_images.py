"""Images: pinned by digest or not to be pulled, and the one thing that ops may edit."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from serving.errors import BundleError
from serving.manifests import Images, images, render
from tests.serving.plans import plan

from .bundles import DIGEST, IMAGE, PINNED

IN_CLUSTER, COMPOSED = ("vllm", "gateway", "redis"), ("vllm", "redis", "prometheus", "python")


@pytest.mark.parametrize("name", Images.model_fields)
@pytest.mark.parametrize(
    "image",
    [
        "vllm/vllm-openai:latest",
        "vllm/vllm-openai",
        "x@sha256:12",
        IMAGE + "\n",
        IMAGE.replace("vllm@", "vllm:latest@"),
        IMAGE.upper(),
        "",
    ],
)
def test_images_that_move_are_refused(name: str, image: str) -> None:
    with pytest.raises(BundleError, match="not pinned"):
        render(plan(), chosen=Images.model_validate({name: image}))


def test_ops_may_pin_images_later_and_change_nothing_else() -> None:
    texts = [images.files(Images())[path] for path in images.EDITABLE]
    assert images.check(*texts) == (dict.fromkeys(IN_CLUSTER), dict.fromkeys(COMPOSED))
    in_cluster, composed_of = images.check(*images.files(PINNED).values())
    assert in_cluster | composed_of == PINNED.model_dump()
    assert (tuple(in_cluster), tuple(composed_of)) == (IN_CLUSTER, COMPOSED)
    cluster, composed = texts
    found = yaml.safe_load(cluster)
    name, digest = IMAGE.split("@")
    found["images"][0] |= {"digest": digest, "newName": name}
    assert images.check(yaml.safe_dump(found), composed)[0]["vllm"] == IMAGE
    edited = composed.replace("REDIS_IMAGE=", f"REDIS_IMAGE=redis@{DIGEST}")
    assert images.check(cluster, edited)[1]["redis"] == f"redis@{DIGEST}"

    def refused(changed: dict[str, Any], why: str) -> None:
        with pytest.raises(BundleError, match=why):
            images.check(yaml.safe_dump(found | changed), composed)

    first, *others = found["images"]
    refused({"images": [{"name": "vllm-image", "newName": name, "newTag": "1"}]}, "not pin")
    refused({"images": [first | {"digest": "latest"}, *others]}, "pins nothing")
    refused({"images": [first | {"newTag": "latest"}, *others]}, "more than")
    refused({"images": others}, "not pin")
    refused({"images": [*found["images"], first | {"name": "other"}]}, "more than")
    refused({"namePrefix": "x-"}, "more than")
    for text in ("", "a: [", "- 1"):
        with pytest.raises(BundleError):
            images.check(text, composed)
    for text in (
        composed.replace("REDIS_IMAGE=", "REDIS_IMAGE=redis:7"),
        composed + "LD_PRELOAD=x\n",
        composed.replace("REDIS_IMAGE=\n", ""),
        composed + "nonsense\n",
    ):
        with pytest.raises(BundleError, match=r"images\.env"):
            images.check(cluster, text)
