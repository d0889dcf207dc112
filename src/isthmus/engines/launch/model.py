"""Which model a line serves: from the catalogue by its name, or from a folder with a config.json."""

import hashlib
import json
from pathlib import Path

from isthmus.catalogue.models import model_shape
from isthmus.catalogue.shape_types import ModelShape
from isthmus.catalogue.shapes import shape_of
from isthmus.core.errors import BadInput
from isthmus.state.assumption import Assumption
from isthmus.state.identity import UNVERIFIED, Identity, ModelLineage, RopeState, WeightsRecord

__all__ = ["identity_of", "served_model"]

CONFIG_BYTES_MAX = 1 << 20


def served_model(name: str, base: str) -> tuple[ModelShape, bool]:
    """The shape of a model, and whether it comes from a folder.

    Args:
        base: the catalogue's name of the model that `name` is a form of; '' where `name` says it.

    Raises:
        UnknownModel, BadInput, Unsupported: it is not known, or its config.json does not say what it keeps.
    """
    path = Path(name)
    config = path if path.name == "config.json" else path / "config.json"
    try:
        local = (path.is_dir() or path.name == "config.json") and (config.is_file() or not base)
    except OSError:  # too long for a path, which a name may be
        local = False
    if local:
        return shape_of(name, _read(config), base_model=base or str(config.parent), revision=UNVERIFIED), True
    return model_shape(base or name), False


def identity_of(
    shape: ModelShape,
    *,
    name: str,
    local: bool,
    base: str,
    revision: str,
    weights_dtype: str,
    assumed: list[Assumption],
) -> Identity:
    """The identity of what is served. What the line did not say is added to `assumed`."""
    if not revision and not local:
        assumed.append(
            Assumption(field="lineage.revision", value=shape.revision, why="no revision is given; hubs serve this one")
        )
    served = UNVERIFIED if local and not base and not revision else revision or shape.revision
    published = f"{Path(name).resolve()}" if local else f"{shape.name if not base else name}@{served}"
    return Identity(
        lineage=ModelLineage(base_model=shape.base_model, revision=served),
        weights=WeightsRecord(dtype=weights_dtype, digest="", published=published[-256:]),
        rope=RopeState(
            applied=shape.rope.rope_dim > 0,
            theta=shape.rope.theta,
            rope_dim=shape.rope.rope_dim,
            style=shape.rope.style,
            scaling_digest=_digest(shape.rope.scaling),
        ),
        architecture_digest=_digest(shape.architecture),
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32] if text else ""


def _read(path: Path) -> dict[str, object]:
    try:
        if path.stat().st_size > CONFIG_BYTES_MAX:
            raise BadInput(f"{path}: larger than {CONFIG_BYTES_MAX} bytes", field="model")
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise BadInput(
            f"{path}: {error.strerror}; give a model's name, or a folder with its config.json", field="model"
        ) from None
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}: is not JSON ({error})", field="model") from None
    if not isinstance(found, dict):
        raise BadInput(f"{path}: got {type(found).__name__}, wanted an object", field="model")
    return found
