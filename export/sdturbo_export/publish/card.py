"""The README.md of a bundle on the Hub, with the fields that the Hub reads: licence, library, base model."""

from __future__ import annotations

import json
import re

from sdturbo.bundle import Bundle

CARD = "README.md"
STABILITY = "stabilityai-ai-community"  # the Hub's name for the licence, as on Stability AI's own pages
# how the licence's own text begins, a line that names it, and the first lines of our own checkpoints
_APACHE = re.compile(
    r"Apache License,? Version 2\.0\b|Licensed under the Apache License, Version 2\.0\b"
    r"|Copyright the authors of sdturbo\. [^.]*\. They are licensed under the Apache License, Version 2\.0:"
)


def card(bundle: Bundle, repo_id: str, licence: str) -> str:
    """The text. licence: that of the bundle's LICENSE.md."""
    name, source = bundle.model.get("name"), bundle.model.get("source")
    sizes = ", ".join(f"{width}×{height}" for height, width in bundle.sizes)
    powered = "\nPowered by Stability AI.\n" if "Stability AI" in licence else ""
    return f"""---
{_fields(bundle, licence)}
---

# {name}, compiled for sdturbo

A bundle of {source} for sdturbo, a compiled inference engine for SD-Turbo: four ONNX graphs with their weights, a tokenizer,
and a picture that every backend must draw again. It draws a picture from a prompt in one to four steps.

```
sdturbo generate "a photo of a cat" --bundle {repo_id} --revision COMMIT --out cat.png
```

```python
from sdturbo import Pipeline

pipe = Pipeline.load("{repo_id}", revision="COMMIT")
pipe("a photo of a cat").images[0].save("cat.png")
```

COMMIT is one of the [commits](https://huggingface.co/{repo_id}/commits/main). Both need huggingface_hub.

| | |
|---|---|
| precision | {bundle.precision} |
| pictures | {sizes}, batch sizes {", ".join(map(str, bundle.batch_sizes))} |
| decoder | {bundle.decoder} |

The weights are under the licence in [LICENSE.md](LICENSE.md). Keep [NOTICE](NOTICE) with them.
{powered}"""


def _fields(bundle: Bundle, licence: str) -> str:
    """YAML. Texts are written as JSON, which YAML reads."""
    fields: dict[str, object] = {"license": "apache-2.0"} if _is_apache(licence) else {"license": "other"}
    if fields["license"] == "other":
        fields["license_name"] = STABILITY if "Stability AI" in licence else "licence-of-the-weights"
        fields["license_link"] = "LICENSE.md"
    fields |= {"library_name": "sdturbo", "pipeline_tag": "text-to-image", "tags": ["sd-turbo", "onnx"]}
    source, revision = bundle.model.get("source"), bundle.model.get("revision")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)) and re.fullmatch(r"[0-9a-f]{40}", str(revision)):
        fields["base_model"] = source  # from the Hub: another source has no commit
    return "\n".join(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in fields.items())


def _is_apache(licence: str) -> bool:
    """Whether that is the only licence. A decoder brings its own, and others name that of their code."""
    others = ("# Licence of the decoder", "Stability AI", "RAIL")
    return _APACHE.match(" ".join(licence.split())) is not None and not any(name in licence for name in others)
