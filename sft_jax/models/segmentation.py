"""Networks that give every pixel an output: a backbone, one of `dense_heads`, and bilinear interpolation.

Their names are torchvision's, HEAD_BACKBONE, with any backbone: `deeplabv3_resnet50`, `fcn_resnet18`,
`lraspp_mobilenet_v3_large`, `segformer_mit_b0`, `upernet_swin_t`, `linear_vit_small_patch14_dinov2`. `_os8`, `_os16`
or `_os32` at the end sets the stride of the backbone's last map. By default it is torchvision's: 8, and 16 of mobile
networks; linear heads and those that read all maps have that of the backbone itself, as have all with backbones that
cannot be dilated.
"""

import contextlib
import dataclasses
import functools
import re
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import jax
import numpy as np
from flax import nnx

from sft_jax import ops
from sft_jax.errors import UserError
from sft_jax.models import mit, upernet_head
from sft_jax.models.architecture import Architecture, Depth, Rule
from sft_jax.models.dense_heads import HEADS
from sft_jax.models.mobile import MobileNetwork

# The attributes of the two parts, and so the beginnings of the names of their parameters.
BACKBONE, HEAD = "backbone", "classifier"
# Attributes of backbones, besides their heads, that follow the last map.
AFTER_MAPS = ("conv_head", "bn2", "norm_head")
# Families of `MobileNetwork`s; lraspp heads read two of their maps.
MOBILE = ("mobilenet", "efficientnet")
# Networks of transformers, by the kind of their head and the family of their backbone.
TRANSFORMERS = {("segformer", "mit"): "segformer", ("upernet", "convnext"): "upernet", ("upernet", "swin"): "upernet"}
# Folded into the key of a step for the head's dropout; the backbone's blocks use their positions.
DROPOUT = 1 << 16


class Segmenter(nnx.Module):
    """A backbone with a head that gives every pixel an output.

    Args:
      kind: a key of `dense_heads.HEADS`.
      backbone: describes the backbone.
      outputs: per pixel.
      head: further arguments of the head.
      dtype, axis_name: see the backbone's module.
      settings: further arguments of the backbone's module.
    """

    def __init__(
        self,
        kind: str,
        backbone: Architecture,
        outputs: int,
        *,
        head: Mapping[str, Any] = types.MappingProxyType({}),
        dtype: jax.typing.DTypeLike = np.float32,
        axis_name: str | None = None,
        rngs: nnx.Rngs,
        **settings: Any,
    ):
        self.backbone = cast(Any, backbone.make(1, dtype=dtype, axis_name=axis_name, rngs=rngs, **settings))
        for name in after_maps(kind, backbone):
            if hasattr(self.backbone, name):
                delattr(self.backbone, name)
        self.first, channels = first_map(backbone), backbone.channels[-1:]
        if HEADS[kind].reads == "all":
            channels = backbone.channels[self.first :]
        elif HEADS[kind].reads == "eighth":
            channels = (self.backbone.eighth_channels, *channels)
        self.classifier: Any = HEADS[kind](channels, outputs, **head, dtype=dtype, axis_name=axis_name, rngs=rngs)

    @property
    def rematerialise(self) -> bool:
        """See `BlockNetwork`."""
        return self.backbone.rematerialise

    @rematerialise.setter
    def rematerialise(self, value: bool) -> None:
        self.backbone.rematerialise = value

    def __call__(self, x: jax.Array, *, train: bool = False, key: jax.Array | None = None) -> jax.Array:
        """Maps normalised images [batch, height, width, 3] to logits, float32 [batch, height, width, outputs].

        With `train` batch norm uses batch statistics and updates the running ones. `key`, of a training step, draws
        what the backbone and the head's dropout leave out; without it, nothing is. With a key, the head's batch norm
        always uses batch statistics, because a new head has no running ones that could be frozen.
        """
        maps = self._maps(x, train=train, key=key)
        own = None if key is None else jax.random.fold_in(key, DROPOUT)
        logits = self.classifier(maps, train=train or key is not None, key=own)
        return ops.upsample(logits, *x.shape[1:3])

    def stages(self, x: jax.Array) -> Iterator[tuple[str, jax.Array]]:
        """Yields the backbone's (name, activations), and the head's logits before the interpolation."""
        trunk = self.backbone.trunk if isinstance(self.backbone, MobileNetwork) else self.backbone.stages
        for name, activations in trunk(x):
            yield f"{BACKBONE}.{name}", activations
        yield HEAD, self.classifier(self._maps(x), train=False, key=None)

    def _maps(self, x: jax.Array, *, train: bool = False, key: jax.Array | None = None) -> tuple[jax.Array, ...]:
        """Returns the maps that the head reads."""
        if self.classifier.reads == "eighth":
            activations = dict(self.backbone.trunk(x, train=train, key=key))
            return activations[self.backbone.eighth], list(activations.values())[-1]
        maps = self.backbone.maps(x, train=train, key=key)
        return maps[self.first :] if self.classifier.reads == "all" else maps[-1:]


@dataclasses.dataclass(frozen=True)
class DenseArchitecture(Architecture):
    """A network of a backbone and a head for pixels.

    Attributes:
      backbone: the backbone.
      kind: a key of `dense_heads.HEADS`.
    """

    backbone: Architecture = dataclasses.field(kw_only=True)
    kind: str = dataclasses.field(kw_only=True)

    @property
    def dense(self) -> bool:
        """See `Architecture`."""
        return True

    @property
    def last(self) -> str:
        """See `Architecture`."""
        return f"{HEAD}.{HEADS[self.kind].lasts[-1]}"

    def gives_outputs(self, name: str) -> bool:
        """See `Architecture`."""
        return name.startswith(tuple(f"{HEAD}.{last}." for last in HEADS[self.kind].lasts))

    def starts_from(self, other: Architecture) -> bool:
        """See `Architecture`: also from the backbone alone, with or without another head."""
        return (other.backbone if isinstance(other, DenseArchitecture) else other).name == self.backbone.name

    def adopted(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See `Architecture`: a classifier becomes the backbone, without what follows its last map."""
        if any(name.startswith(f"{BACKBONE}.") for name in arrays):
            return dict(arrays)
        after = tuple(f"{name}." for name in after_maps(self.kind, self.backbone))
        return {f"{BACKBONE}.{name}": array for name, array in arrays.items() if not name.startswith(after)}

    def check_size(self, size: int, setting: str = "config.data.size") -> None:
        """See `Architecture`."""
        self.backbone.check_size(size, setting)

    def size_of(self, arrays: Mapping[str, Any]) -> int | None:
        """See `Architecture`."""
        return self.backbone.size_of(_own(arrays))

    def for_size(self, arrays: Mapping[str, np.ndarray], size: int) -> tuple[dict[str, np.ndarray], str]:
        """See `Architecture`."""
        own, said = self.backbone.for_size(_own(arrays), size)
        return {**arrays, **{f"{BACKBONE}.{name}": array for name, array in own.items()}}, said


def _own(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the backbone's arrays under their names in the backbone alone."""
    start = f"{BACKBONE}."
    return {name.removeprefix(start): array for name, array in arrays.items() if name.startswith(start)}


def named(name: str, backbones: Mapping[str, Architecture]) -> DenseArchitecture | None:
    """Returns the network called `name`, with one of `backbones`; None if it is none of HEAD_BACKBONE.

    Raises:
      UserError: the backbone cannot have this head or stride.
    """
    match = re.fullmatch(rf"({'|'.join(HEADS)})_(.+?)(?:_os(8|16|32))?", name)
    if match is None or match[2] not in backbones or backbones[match[2]].texts is not None:
        return None
    return _composed(name, match[1], backbones[match[2]], int(match[3]) if match[3] else None)


def usable(backbone: Architecture) -> list[str]:
    """Returns the names of the networks with this backbone, without a stride."""
    names = []
    for kind in HEADS:
        with contextlib.suppress(UserError):
            names.append(_composed(f"{kind}_{backbone.name}", kind, backbone, None).name)
    return names


@functools.cache
def _composed(name: str, kind: str, backbone: Architecture, asked: int | None) -> DenseArchitecture:
    native = backbone.strides[-1] if backbone.strides else None
    if asked is not None and asked != native and not backbone.dilates:
        raise UserError(
            f"{name}: {backbone.name} cannot be dilated, its last map has a stride of {native}; use {kind}_"
            f"{backbone.name}"
        )
    usual = native if HEADS[kind].reads == "all" or kind == "linear" else 16 if backbone.family in MOBILE else 8
    stride = asked or (usual if backbone.dilates else native)
    settings: dict[str, Any] = {"output_stride": stride} if backbone.dilates else {}
    if HEADS[kind].reads == "all":
        strides = backbone.strides[first_map(backbone) :]
        if len(strides) == 1 or sorted(set(strides)) != list(strides):
            raise UserError(f"{name}: {kind} heads need maps of several sizes; use fcn_{backbone.name}")
        if stride != native:
            raise UserError(f"{name}: {kind} heads read maps of all strides; use {kind}_{backbone.name}")
    if kind == "lraspp" and not (backbone.dilates and backbone.family in MOBILE):
        raise UserError(f"{name}: lraspp heads are for MobileNetV3 and EfficientNet; use fcn_{backbone.name}")
    family = TRANSFORMERS.get((kind, backbone.family), "segmentation")
    module_path: Callable[[str], str] = functools.partial(_module_path, backbone.module_path)
    if family == "segformer":
        settings["head"] = {"width": mit.VARIANTS[backbone.name].decoder}
        module_path = mit.dense_path
    elif kind == "upernet":
        settings["head"] = {"epsilon": backbone.map_epsilon}
        settings |= {"shifts_lone": True} if backbone.family == "swin" else {}
        module_path = functools.partial(upernet_head.transformers_path, backbone.module_path)
    return DenseArchitecture(
        name=name,
        family=family,
        make=functools.partial(_make, kind, backbone, settings),
        head=HEAD,
        channels=backbone.channels,
        strides=tuple(min(each, stride or each) for each in backbone.strides),
        locate=functools.partial(_locate, backbone.locate),
        stems=tuple((stem, f"{BACKBONE}.{path}", size) for stem, path, size in backbone.stems),
        pretrained=backbone.pretrained,
        pretrained_by=backbone.pretrained_by,
        reference=REFERENCES.get(name, ""),
        module_path=module_path,
        rules=tuple(
            Rule(rf"{BACKBONE}\.(?:{rule.ours})", f"{BACKBONE}.{rule.theirs}", rule.axes) for rule in backbone.rules
        ),
        positions=backbone.positions,
        dilates=backbone.dilates,
        backbone=backbone,
        kind=kind,
    )


def after_maps(kind: str, backbone: Architecture) -> tuple[str, ...]:
    """Returns the attributes of a backbone that follow its last map, which a head of this kind replaces."""
    return (backbone.head, *AFTER_MAPS, *(("norm",) if kind == "upernet" else ()))


def first_map(backbone: Architecture) -> int:
    """Returns the index of the first of its maps with a stride of 4 or more, of those that heads that read all take."""
    return next((index for index, stride in enumerate(backbone.strides) if stride >= 4), 0)


# Those that a library of torch has, and which one.
REFERENCES = {
    **{f"{kind}_{backbone}": "torchvision" for kind in ("fcn", "deeplabv3") for backbone in ("resnet50", "resnet101")},
    "deeplabv3_mobilenet_v3_large": "torchvision",
    "lraspp_mobilenet_v3_large": "torchvision",
    **{f"segformer_{backbone}": "transformers" for backbone in mit.VARIANTS},
    **{
        f"upernet_{backbone}": "transformers"
        for backbone in (
            *(f"convnext_{size}" for size in ("tiny", "small", "base", "large")),
            "swin_t",
            "swin_s",
            "swin_b",
        )
    },
}


def _make(kind: str, backbone: Architecture, own: Mapping[str, Any], outputs: int, **settings: Any) -> Segmenter:
    return Segmenter(kind, backbone, outputs, **own, **settings)


def _locate(locate: Callable[[str], Depth | None], name: str) -> Depth | None:
    return locate(name.removeprefix(f"{BACKBONE}.")) if name.startswith(f"{BACKBONE}.") else None


def _module_path(module_path: Callable[[str], str], path: str) -> str:
    """Returns torchvision's path of a module; its MobileNets keep `features` alone."""
    start = f"{BACKBONE}."
    if not path.startswith(start):
        return path
    return start + module_path(path.removeprefix(start)).removeprefix("features.")
