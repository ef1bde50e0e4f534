"""Vision transformers (Dosovitskiy et al., 2020, arXiv:2010.11929), as in torchvision and timm.

They include DeiT (arXiv:2012.12877, without distillation), DeiT III (arXiv:2204.07118), networks for fine-tuning MAE
(arXiv:2111.06377) and DINOv2 (arXiv:2304.07193) without and with registers (arXiv:2309.16588). Attribute paths are the
keys of the reference's state_dict; only the leaves have JAX's names.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from sft_jax.models.architecture import Architecture, Features, Pretrained, Rule, located_by
from sft_jax.models.layers import Linear
from sft_jax.models.positions import Positions, resample
from sft_jax.models.transformer import Dense, EncoderBlock, LayerNorm, LayerScale, PatchEmbedding, token
from sft_jax.ops.collectives import own_rows

INCEPTION = (0.5, 0.5, 0.5)


@dataclasses.dataclass(frozen=True)
class Variant:
    """What distinguishes the networks.

    Attributes:
      patch: side of a patch in pixels.
      width: channels of a token.
      depth: number of blocks.
      heads: number of attention heads.
      layer_scale: initial LayerScale; None for networks without it.
      registers: number of register tokens.
      class_position: whether the class token (and registers) have position embeddings too.
      pool: whether the head sees the class token, or the mean of the patches, normalised afterwards.
    """

    patch: int
    width: int
    depth: int
    heads: int
    layer_scale: float | None = None
    registers: int = 0
    class_position: bool = True
    pool: Literal["token", "mean"] = "token"

    @property
    def prefix(self) -> int:
        """Number of tokens that are not patches; they come first."""
        return 1 + self.registers

    def positions(self, name: str) -> Positions:
        """Describes the position embeddings, the parameter `name`."""
        return Positions(name, self.patch, self.prefix if self.class_position else 0)


class TimmBlock(EncoderBlock):
    """`timm.models.vision_transformer.Block`."""

    def __init__(self, variant: Variant, *, dtype, rngs):
        width, self.heads = variant.width, variant.heads
        dense = functools.partial(Dense, dtype=dtype, rngs=rngs)
        scale = functools.partial(LayerScale, width, variant.layer_scale) if variant.layer_scale else lambda: None
        self.norm1 = LayerNorm(width)
        self.attn = nnx.Dict(qkv=dense(width, 3 * width), proj=dense(width, width))
        self.ls1 = scale()
        self.norm2 = LayerNorm(width)
        self.mlp = nnx.Dict(fc1=dense(width, 4 * width), fc2=dense(4 * width, width))
        self.ls2 = scale()

    def layers(self):
        """See `EncoderBlock`."""
        attention, mlp = (self.attn["qkv"], self.attn["proj"]), (self.mlp["fc1"], self.mlp["fc2"])
        return self.norm1, *attention, self.ls1, self.norm2, *mlp, self.ls2


class TorchvisionBlock(EncoderBlock):
    """`torchvision.models.vision_transformer.EncoderBlock`."""

    def __init__(self, variant: Variant, *, dtype, rngs):
        width, self.heads = variant.width, variant.heads
        dense = functools.partial(Dense, dtype=dtype, rngs=rngs)
        self.ln_1 = LayerNorm(width)
        self.self_attention = nnx.Dict(in_proj=dense(width, 3 * width), out_proj=dense(width, width))
        self.ln_2 = LayerNorm(width)
        self.mlp = nnx.Dict({"0": dense(width, 4 * width), "3": dense(4 * width, width)})

    def layers(self):
        """See `EncoderBlock`."""
        attention = self.self_attention["in_proj"], self.self_attention["out_proj"]
        return self.ln_1, *attention, None, self.ln_2, self.mlp["0"], self.mlp["3"], None


class Parts(NamedTuple):
    """The parts of a network, in the order of their use; `registers` may be None."""

    patches: PatchEmbedding
    class_token: nnx.Param
    registers: nnx.Param | None
    positions: nnx.Param
    blocks: list[tuple[str, EncoderBlock]]
    norm: LayerNorm


class VisionTransformer(nnx.Module):
    """A network of the family; subclasses have its layers under their reference's names.

    Images may also have another size than `size`, as with timm's dynamic_img_size: position embeddings are then
    resampled in every step.

    Args:
      variant: see `Variant`.
      num_classes: number of outputs.
      stem: unused; there is only one.
      size: side of the images in pixels, which determines the number of position embeddings.
      dtype: of the operands of matrix products; the residual stream is float32 or wider.
      axis_name: the mapped axis of the devices, over which random draws are split.
      stochastic_depth: drop rate of both branches of the last block in training (timm's drop_path_rate); it grows
        linearly from 0 in the first.
    """

    def __init__(
        self,
        variant: Variant,
        num_classes: int,
        *,
        stem: str = "imagenet",
        size: int,
        dtype: jax.typing.DTypeLike = jnp.float32,
        axis_name: str | None = None,
        stochastic_depth: float = 0.0,
        rngs: nnx.Rngs,
    ):
        self.variant, self.axis_name, self.stochastic_depth = variant, axis_name, stochastic_depth
        rows = (size // variant.patch) ** 2 + (variant.prefix if variant.class_position else 0)
        self._fill(rows, num_classes, dtype=dtype, rngs=rngs)

    def _fill(self, positions: int, num_classes: int, *, dtype, rngs) -> None:
        """Adds the layers and parameters, among them so many position embeddings."""
        raise NotImplementedError

    def parts(self) -> Parts:
        """Returns the parts of the network except its head."""
        raise NotImplementedError

    def __call__(self, x: jax.Array, train: bool = False, key: jax.Array | None = None) -> jax.Array:
        """Maps normalised images [batch, height, width, 3] to logits [batch, num_classes].

        `key` draws the branches that each image skips; without it none is skipped.
        """
        return self.head(self.features(x, train=train, key=key).pooled)

    def features(self, x: jax.Array, *, train: bool = False, key: jax.Array | None = None) -> Features:
        """Maps normalised images [batch, height, width, 3] to `Features`, with a map after each block."""
        parts, prefix = self.parts(), self.variant.prefix
        blocks = [tokens for _, tokens in self.stages(x, key=key)][1:]
        batch, rows, columns = x.shape[0], *(side // self.variant.patch for side in x.shape[1:3])
        maps = tuple(tokens[:, prefix:].reshape(batch, rows, columns, -1) for tokens in blocks)
        last = blocks[-1]
        # Normalisation is of each token alone: the others need none.
        pooled = last[:, 0] if self.variant.pool == "token" else last[:, prefix:].mean(1)
        return Features(parts.norm(pooled), maps)

    def stages(self, x: jax.Array, *, key: jax.Array | None = None) -> Iterator[tuple[str, jax.Array]]:
        """Yields (name, tokens [batch, tokens, channels]) after the embedding and after every block."""
        parts, variant, batch = self.parts(), self.variant, x.shape[0]
        grid = [side // variant.patch for side in x.shape[1:3]]
        patches = parts.patches(x).reshape(batch, -1, variant.width)
        positions = self._positions(*grid, parts.positions[...]).astype(patches.dtype)
        first = [parts.class_token[...]] if parts.registers is None else [parts.class_token[...], parts.registers[...]]
        prefix = jnp.concatenate(first, axis=1).astype(patches.dtype)
        if variant.class_position:
            prefix, positions = prefix + positions[:, : variant.prefix], positions[:, variant.prefix :]
        prefix = jnp.broadcast_to(prefix, (batch, *prefix.shape[1:]))
        tokens = jnp.concatenate([prefix, patches + positions], axis=1)
        yield "embedding", tokens
        count = tokens.shape[1]
        rows = tokens.reshape(batch * count, variant.width)
        for index, (name, block) in enumerate(parts.blocks):
            rows = block(rows, count, (self._skips(key, 2 * index, batch), self._skips(key, 2 * index + 1, batch)))
            yield name, rows.reshape(batch, count, variant.width)

    def _positions(self, rows: int, columns: int, positions: jax.Array) -> jax.Array:
        return resample(positions, rows, columns, self.variant.prefix if self.variant.class_position else 0)

    def _skips(self, key: jax.Array | None, branch: int, batch: int) -> jax.Array | None:
        """Returns the factor [batch] of a residual branch: 0 if skipped, otherwise 1 / survival probability."""
        rate = self.stochastic_depth * (branch // 2) / max(self.variant.depth - 1, 1)
        if key is None or not rate:
            return None
        own = jax.random.fold_in(key, branch)
        draws = own_rows(lambda total: jax.random.bernoulli(own, 1 - rate, (total,)), batch, self.axis_name)
        return draws.astype(jnp.float32) / (1 - rate)


class TimmTransformer(VisionTransformer):
    """`timm.models.VisionTransformer`."""

    def _fill(self, positions: int, num_classes: int, *, dtype, rngs) -> None:
        variant = self.variant
        self.cls_token = token(1, variant.width, rngs=rngs)
        self.reg_token = token(variant.registers, variant.width, rngs=rngs) if variant.registers else None
        self.pos_embed = token(positions, variant.width, rngs=rngs)
        self.patch_embed = nnx.Dict(proj=PatchEmbedding(variant.patch, variant.width, dtype=dtype, rngs=rngs))
        self.blocks = nnx.List([TimmBlock(variant, dtype=dtype, rngs=rngs) for _ in range(variant.depth)])
        setattr(self, "norm" if variant.pool == "token" else "fc_norm", LayerNorm(variant.width))
        self.head = Linear(variant.width, num_classes, rngs=rngs)

    def parts(self) -> Parts:
        """See `VisionTransformer`."""
        blocks = [(f"blocks.{index}", block) for index, block in enumerate(self.blocks)]
        norm = self.norm if self.variant.pool == "token" else self.fc_norm
        return Parts(self.patch_embed["proj"], self.cls_token, self.reg_token, self.pos_embed, blocks, norm)


class TorchvisionTransformer(VisionTransformer):
    """`torchvision.models.VisionTransformer`."""

    def _fill(self, positions: int, num_classes: int, *, dtype, rngs) -> None:
        variant = self.variant
        blocks = [TorchvisionBlock(variant, dtype=dtype, rngs=rngs) for _ in range(variant.depth)]
        layers = nnx.Dict({f"encoder_layer_{index}": block for index, block in enumerate(blocks)})
        self.class_token = token(1, variant.width, rngs=rngs)
        self.conv_proj = PatchEmbedding(variant.patch, variant.width, dtype=dtype, rngs=rngs)
        positions = token(positions, variant.width, rngs=rngs)
        self.encoder = nnx.Dict(pos_embedding=positions, layers=layers, ln=LayerNorm(variant.width))
        self.heads = nnx.Dict(head=Linear(variant.width, num_classes, rngs=rngs))

    def head(self, features: jax.Array) -> jax.Array:
        """Maps features [batch, channels] to logits [batch, num_classes]."""
        return self.heads["head"](features)

    def parts(self) -> Parts:
        """See `VisionTransformer`."""
        names = [f"encoder_layer_{index}" for index in range(self.variant.depth)]
        blocks = [(f"encoder.layers.{name}", self.encoder["layers"][name]) for name in names]
        return Parts(self.conv_proj, self.class_token, None, self.encoder["pos_embedding"], blocks, self.encoder["ln"])


def _pretrained(size: int = 224, resize: int = 248, **normalisation: tuple[float, float, float]) -> Pretrained:
    return Pretrained(size, resize, "bicubic", **normalisation)


AUGREG = _pretrained(mean=INCEPTION, std=INCEPTION)
TIMM_NAMES = (
    Rule(r"(cls_token|reg_token|pos_embed)", r"\1", (0, 1, 2)),
    Rule(r"(.+)\.gamma", r"\1.gamma", (0,)),
)
TORCHVISION_NAMES = (
    Rule(r"(class_token|encoder\.pos_embedding)", r"\1", (0, 1, 2)),
    Rule(r"(.+\.self_attention)\.in_proj\.kernel", r"\1.in_proj_weight", (1, 0)),
    Rule(r"(.+\.self_attention)\.in_proj\.bias", r"\1.in_proj_bias", (0,)),
)


def timm(name: str, variant: Variant, pretrained: Pretrained, weights: str) -> Architecture:
    """Describes a network of timm's; `weights` names those that `pretrained` belongs to."""
    depth = variant.depth
    return Architecture(
        name=name,
        family="vit",
        make=functools.partial(TimmTransformer, variant),
        head="head",
        channels=(variant.width,) * depth,
        strides=(variant.patch,) * depth,
        locate=located_by(
            [
                (r"(cls_token|reg_token|pos_embed)$|patch_embed\.", lambda match: (0, 0)),
                (r"blocks\.(\d+)\.", lambda match: (int(match[1]) + 1, 0)),
                (r"(fc_)?norm\.", lambda match: (depth, 0)),  # with the last block, as in timm
            ]
        ),
        pretrained=pretrained,
        reference="timm",
        rules=TIMM_NAMES,
        pretrained_by=weights,
        positions=variant.positions("pos_embed"),
    )


def torchvision(name: str, variant: Variant) -> Architecture:
    """Describes a network of torchvision's."""
    depth = variant.depth
    return Architecture(
        name=name,
        family="vit",
        make=functools.partial(TorchvisionTransformer, variant),
        head="heads.head",
        channels=(variant.width,) * depth,
        strides=(variant.patch,) * depth,
        locate=located_by(
            [
                (r"class_token$|encoder\.pos_embedding$|conv_proj\.", lambda match: (0, 0)),
                (r"encoder\.layers\.encoder_layer_(\d+)\.", lambda match: (int(match[1]) + 1, 0)),
                (r"encoder\.ln\.", lambda match: (depth, 0)),
            ]
        ),
        rules=TORCHVISION_NAMES,
        positions=variant.positions("encoder.pos_embedding"),
    )


def _all() -> dict[str, Architecture]:
    sizes = {"tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16)}
    imagenet = _pretrained()
    found = []
    for size, patch in (
        ("tiny", 16),
        ("small", 16),
        ("small", 32),
        ("base", 8),
        ("base", 16),
        ("base", 32),
        ("large", 16),
    ):
        variant = Variant(patch, *sizes[size])
        found.append(timm(f"vit_{size}_patch{patch}_224", variant, AUGREG, "timm's augreg_in21k_ft_in1k"))
    # timm has no name of its own for this: vit_*_patch16_224 with global_pool="avg".
    for size in ("base", "large"):
        variant = Variant(16, *sizes[size], pool="mean")
        found.append(timm(f"vit_{size}_patch16_224_avg", variant, imagenet, "MAE's"))
    for size in ("tiny", "small", "base"):
        found.append(timm(f"deit_{size}_patch16_224", Variant(16, *sizes[size]), imagenet, "DeiT's"))
    for size in ("small", "base", "large"):
        variant = Variant(16, *sizes[size], layer_scale=1e-6, class_position=False)
        found.append(timm(f"deit3_{size}_patch16_224", variant, imagenet, "DeiT III's"))
    dinov2 = _pretrained(518, 518)
    for size in ("small", "base", "large"):
        variant = Variant(14, *sizes[size], layer_scale=1e-5)
        found.append(timm(f"vit_{size}_patch14_dinov2", variant, dinov2, "DINOv2's"))
        variant = dataclasses.replace(variant, registers=4, class_position=False)
        found.append(timm(f"vit_{size}_patch14_reg4_dinov2", variant, dinov2, "DINOv2's"))
    for short, size in (("b", "base"), ("l", "large")):
        for patch in (16, 32):
            found.append(torchvision(f"vit_{short}_{patch}", Variant(patch, *sizes[size])))
    return {architecture.name: architecture for architecture in found}


ARCHITECTURES = _all()
