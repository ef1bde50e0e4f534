"""Vision transformers (Dosovitskiy et al., 2020, arXiv:2010.11929), as in torchvision and timm.

They include DeiT (arXiv:2012.12877, without distillation), DeiT III (arXiv:2204.07118), networks for fine-tuning MAE
(arXiv:2111.06377) and DINOv2 (arXiv:2304.07193) without and with registers (arXiv:2309.16588). Attribute paths are the
keys of timm's state_dicts; only the leaves have JAX's names.
"""

import dataclasses
import functools
import re
from collections.abc import Iterator
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from sft_jax.models.architecture import Architecture, Features, Pretrained, Rule, located_by
from sft_jax.models.block_network import BlockNetwork
from sft_jax.models.layers import Linear
from sft_jax.models.positions import Positions, resample
from sft_jax.models.rotary import Rotation, rotation
from sft_jax.models.stochastic_depth import branch_factors
from sft_jax.models.transformer import Biases, EncoderBlock, LayerNorm, PatchEmbedding, normalised, token

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
      pool: whether the head sees the class token, or the mean of the patches, normalised afterwards ("mean") or before
        ("patches").
      rotary: whether queries and keys are rotated by position instead of adding position embeddings.
      biases: of queries, keys and values, see `EncoderBlock`.
      epsilon: of layer normalisation.
    """

    patch: int
    width: int
    depth: int
    heads: int
    layer_scale: float | None = None
    registers: int = 0
    class_position: bool = True
    pool: Literal["token", "mean", "patches"] = "token"
    rotary: bool = False
    biases: Biases = "qkv"
    epsilon: float = 1e-6

    @property
    def prefix(self) -> int:
        """Number of tokens that are not patches; they come first."""
        return 1 + self.registers

    @property
    def placed(self) -> int:
        """Number of these tokens that have position embeddings."""
        return self.prefix if self.class_position else 0


class VisionTransformer(BlockNetwork):
    """`timm.models.VisionTransformer`.

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
        width, patches = variant.width, (size // variant.patch) ** 2
        self.cls_token = token(1, width, rngs=rngs)
        self.reg_token = token(variant.registers, width, rngs=rngs) if variant.registers else None
        self.pos_embed = None if variant.rotary else token(patches + variant.placed, width, rngs=rngs)
        self.patch_embed = nnx.Dict(proj=PatchEmbedding(variant.patch, width, dtype=dtype, rngs=rngs))
        block = functools.partial(
            EncoderBlock,
            width,
            variant.heads,
            variant.layer_scale,
            epsilon=variant.epsilon,
            biases=variant.biases,
            dtype=dtype,
            rngs=rngs,
        )
        self.blocks = nnx.List([block() for _ in range(variant.depth)])
        # One of the two: all that follows the blocks is of each token alone, up to a mean over them.
        self.norm = LayerNorm(width, epsilon=variant.epsilon) if variant.pool != "mean" else None
        self.fc_norm = LayerNorm(width, epsilon=variant.epsilon) if variant.pool == "mean" else None
        self.head = Linear(width, num_classes, rngs=rngs)

    def features(self, x: jax.Array, *, train: bool = False, key: jax.Array | None = None) -> Features:
        """Maps normalised images [batch, height, width, 3] to `Features`, with a map after each block."""
        prefix = self.variant.prefix
        blocks = [tokens for _, tokens in self.stages(x, key=key)][1:]
        batch, rows, columns = x.shape[0], *(side // self.variant.patch for side in x.shape[1:3])
        maps = tuple(tokens[:, prefix:].reshape(batch, rows, columns, -1) for tokens in blocks)
        if self.variant.pool == "patches":
            return Features(normalised(self.norm, maps[-1]).mean((1, 2)), maps)
        norm, pooled = self.norm, blocks[-1][:, 0]
        if norm is None:
            norm, pooled = self.fc_norm, blocks[-1][:, prefix:].mean(1)
        assert norm is not None
        return Features(norm(pooled), maps)

    def attention(self, x: jax.Array) -> Iterator[jax.Array]:
        """Yields the attention weights of every block, [batch, heads, tokens, tokens], rows summing to 1."""
        tokens, turn = self._embedded(x)
        for block in self.blocks:
            count, y = tokens.shape[1], tokens.reshape(-1, self.variant.width)
            yield block.attention(y, count, turn)
            tokens = block(y, count, (None, None), turn).reshape(tokens.shape)

    def stages(self, x: jax.Array, *, key: jax.Array | None = None) -> Iterator[tuple[str, jax.Array]]:
        """Yields (name, tokens [batch, tokens, channels]) after the embedding and after every block."""
        tokens, turn = self._embedded(x)
        yield "embedding", tokens
        shape, (batch, count) = tokens.shape, tokens.shape[:2]
        y = tokens.reshape(-1, self.variant.width)
        for index, block in enumerate(self.blocks):
            y = self.run_block(block, y, tokens=count, factors=self._factors(key, index, batch), rotation=turn)
            yield f"blocks.{index}", y.reshape(shape)

    def _embedded(self, x: jax.Array) -> tuple[jax.Array, Rotation | None]:
        """Returns the first block's tokens, [batch, tokens, channels], and the rotation of queries and keys."""
        variant, batch = self.variant, x.shape[0]
        patches = self.patch_embed["proj"](x).reshape(batch, -1, variant.width)
        rows, columns = (side // variant.patch for side in x.shape[1:3])
        registers = [] if self.reg_token is None else [self.reg_token[...]]
        prefix = jnp.concatenate([self.cls_token[...], *registers], axis=1)
        turn = None
        if self.pos_embed is None:
            turn = rotation(rows, columns, variant.prefix, variant.width // variant.heads, patches.dtype)
        else:
            positions = resample(self.pos_embed[...], rows, columns, variant.placed)
            prefix = prefix + positions[:, : variant.prefix] if variant.class_position else prefix
            patches = patches + positions[:, variant.placed :]
        prefix = jnp.broadcast_to(prefix, (batch, *prefix.shape[1:]))
        return jnp.concatenate([prefix, patches], axis=1), turn

    def _factors(self, key: jax.Array | None, block: int, batch: int) -> list[jax.Array | None]:
        """Returns the factors of both residual branches of a block, see `skip_factor`."""
        rate = self.stochastic_depth * block / max(self.variant.depth - 1, 1)
        return branch_factors(key, rate, block, batch, self.axis_name)


def _pretrained(size: int = 224, resize: int = 248, **normalisation: tuple[float, float, float]) -> Pretrained:
    return Pretrained(size, resize, "bicubic", **normalisation)


AUGREG = _pretrained(mean=INCEPTION, std=INCEPTION)
RULES = (
    Rule(r"(cls_token|reg_token|pos_embed)", r"\1", (0, 1, 2)),
    Rule(r"(.+)\.gamma", r"\1.gamma", (0,)),
)
TORCHVISION_RULES = (
    Rule(r"cls_token", r"class_token", (0, 1, 2)),
    Rule(r"pos_embed", r"encoder.pos_embedding", (0, 1, 2)),
    Rule(r"blocks\.(\d+)\.attn\.qkv\.kernel", r"encoder.layers.encoder_layer_\1.self_attention.in_proj_weight", (1, 0)),
    Rule(r"blocks\.(\d+)\.attn\.qkv\.bias", r"encoder.layers.encoder_layer_\1.self_attention.in_proj_bias", (0,)),
)
TORCHVISION_MODULES = (
    (r"patch_embed\.proj", "conv_proj"),
    (r"blocks\.(\d+)\.norm([12])", r"encoder.layers.encoder_layer_\1.ln_\2"),
    (r"blocks\.(\d+)\.attn\.proj", r"encoder.layers.encoder_layer_\1.self_attention.out_proj"),
    (r"blocks\.(\d+)\.mlp\.fc1", r"encoder.layers.encoder_layer_\1.mlp.0"),
    (r"blocks\.(\d+)\.mlp\.fc2", r"encoder.layers.encoder_layer_\1.mlp.3"),
    (r"norm", "encoder.ln"),
    (r"head", "heads.head"),
)


def _torchvision_path(path: str) -> str:
    """Returns torchvision's path of a module."""
    return next(re.sub(ours, theirs, path) for ours, theirs in TORCHVISION_MODULES if re.fullmatch(ours, path))


def timm(name: str, variant: Variant, pretrained: Pretrained, weights: str) -> Architecture:
    """Describes a network of timm's; `weights` names those that `pretrained` belongs to."""
    depth = variant.depth
    return Architecture(
        name=name,
        family="vit",
        make=functools.partial(VisionTransformer, variant, size=pretrained.size),
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
        rules=RULES,
        pretrained_by=weights,
        positions=Positions("pos_embed", variant.patch, variant.placed),
    )


def torchvision(name: str, variant: Variant) -> Architecture:
    """Describes a network of torchvision's; its parameters have timm's names here, as those of all others."""
    pretrained = Pretrained(resize=242) if name == "vit_l_16" else Pretrained()
    return dataclasses.replace(
        timm(name, variant, pretrained, "torchvision's IMAGENET1K_V1"),
        reference="torchvision",
        module_path=_torchvision_path,
        rules=TORCHVISION_RULES,
    )


# Ends our names of networks that timm makes with global_pool="avg", as MAE is fine-tuned.
MEAN = "_avg"
SIZES = {"tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16)}


def _architectures() -> Iterator[Architecture]:
    imagenet, dinov2 = _pretrained(), _pretrained(518, 518)
    for size, patches in {"tiny": (16,), "small": (16, 32), "base": (8, 16, 32), "large": (16,)}.items():
        for patch in patches:
            name, variant = f"vit_{size}_patch{patch}_224", Variant(patch, *SIZES[size])
            yield timm(name, variant, AUGREG, "timm's augreg_in21k_ft_in1k")
    for size in ("small", "base", "large"):
        variant = Variant(16, *SIZES[size], pool="mean")
        yield timm(f"vit_{size}_patch16_224{MEAN}", variant, imagenet, "MAE")
    for size in ("tiny", "small", "base"):
        yield timm(f"deit_{size}_patch16_224", Variant(16, *SIZES[size]), imagenet, "DeiT")
    for size in ("small", "base", "large"):
        variant = Variant(16, *SIZES[size], layer_scale=1e-6, class_position=False)
        yield timm(f"deit3_{size}_patch16_224", variant, imagenet, "DeiT III")
    for size in ("small", "base", "large"):
        plain = Variant(14, *SIZES[size], layer_scale=1e-5)
        yield timm(f"vit_{size}_patch14_dinov2", plain, dinov2, "DINOv2")
        registers = dataclasses.replace(plain, registers=4, class_position=False)
        yield timm(f"vit_{size}_patch14_reg4_dinov2", registers, dinov2, "DINOv2")
    for size in ("base", "large"):
        for patch in (16, 32):
            yield torchvision(f"vit_{size[0]}_{patch}", Variant(patch, *SIZES[size]))


ARCHITECTURES = {architecture.name: architecture for architecture in _architectures()}
