"""The PyTorch worker of the benchmark: torchvision's, timm's or transformers' network in a plain training script.

    python -m sft_jax.benchmark.torch_side ARCH BATCH SIZE PRECISION [channels_last] [compiled]

With precision bfloat16 it runs under autocast. `channels_last` is the memory format that PyTorch recommends for
convolutions; `compiled` compiles the network with CUDA graphs (`torch.compile`, mode "reduce-overhead"). SGD is the
fused one. On a GPU, cuDNN's algorithms are timed and chosen, and float32 is multiplied in TF32, as JAX does by default.

Beside `torch_input` the only file of the package that imports torch; it runs in its own process.
"""

import sys
from typing import Any

from sft_jax.runtime.allocator import keep_freed_memory

# `python -m sft_jax.benchmark` switches it off to time stock PyTorch.
keep_freed_memory()

import torch  # noqa: E402  # the allocator first
import torchvision  # noqa: E402
from PIL import Image  # noqa: E402
from torchvision import transforms  # noqa: E402
from torchvision.models import segmentation  # noqa: E402

from sft_jax import models  # noqa: E402
from sft_jax.benchmark import worker  # noqa: E402
from sft_jax.config.shipped import shipped  # noqa: E402
from sft_jax.errors import UserError, run_command  # noqa: E402
from sft_jax.models.dense_heads import HEADS  # noqa: E402
from sft_jax.models.segmentation import REFERENCES, DenseArchitecture, first_map  # noqa: E402


class _Images(torch.utils.data.Dataset):
    def __init__(self, count: int, size: int, transform):
        self.images, self.labels = worker.images(count, size)
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int):
        return self.transform(Image.fromarray(self.images[row])), int(self.labels[row])


class Segmenter(torch.nn.Module):
    """timm's backbone with a head of torchvision's or transformers', for outputs of pixels that neither has whole.

    Raises:
      UserError: a library is not installed, or none has the head for any backbone.
    """

    def __init__(self, architecture: DenseArchitecture):
        super().__init__()
        heads = {"fcn": segmentation.fcn.FCNHead, "deeplabv3": segmentation.deeplabv3.DeepLabHead}
        all_maps = HEADS[architecture.kind].reads == "all"
        if architecture.kind not in (*heads, "segformer"):
            raise UserError(f"PyTorch has no {architecture.name}; compare {' or '.join(sorted(REFERENCES))}")
        name, stride = architecture.backbone.name, architecture.strides[-1]
        count = len(architecture.strides) - first_map(architecture.backbone) if all_maps else 1
        places = tuple(range(-count, 0))
        backbone: Any = _timm(name, features_only=True, out_indices=places, output_stride=stride)
        channels = backbone.feature_info.channels()
        if all_maps:
            config = _transformers(architecture.name).SegformerConfig(
                num_encoder_blocks=count, hidden_sizes=channels, num_labels=worker.CLASSES
            )
            from transformers.models.segformer.modeling_segformer import SegformerDecodeHead

            head = SegformerDecodeHead(config)
        else:
            head = heads[architecture.kind](channels[-1], worker.CLASSES)
        self.backbone, self.classifier, self.all_maps = backbone, head, all_maps

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Maps images [batch, 3, height, width] to {"out": logits [batch, classes, height, width]}."""
        maps = self.backbone(images)
        logits = self.classifier(maps if self.all_maps else maps[0])
        return {"out": torch.nn.functional.interpolate(logits, images.shape[2:], mode="bilinear")}


class OfTransformers(torch.nn.Module):
    """transformers' network of images with random weights. Raises UserError if it is not installed."""

    def __init__(self, arch: str):
        super().__init__()
        self.reference, self.dense = _reference(arch), models.architecture(arch).dense
        self.network = _drawn(self.reference, arch)

    def forward(self, images: torch.Tensor) -> Any:
        """Maps images as a network of torchvision: to {"out": logits} of pixels, or logits of the whole images."""
        logits = self.reference.logits(self.network, {"images": images})
        return {"out": logits} if self.dense else logits


def _transformers(arch: str) -> Any:
    try:
        import transformers
    except ModuleNotFoundError:
        raise UserError(f"PyTorch's {arch} is transformers': pip install transformers") from None
    return transformers


def _reference(arch: str) -> Any:
    """Returns the converters' `Reference` of a network of transformers. Raises UserError if that is missing."""
    _transformers(arch)
    sys.path.insert(0, str(shipped("convert").parent))
    from convert.families import reference_of

    return reference_of(arch)


def _drawn(reference: Any, arch: str) -> Any:
    """Returns the network `arch` of transformers with random weights."""
    shapes = reference.empty(arch, worker.CLASSES).state_dict()
    weights = {name: 0.02 * torch.rand(tensor.shape) for name, tensor in shapes.items()}  # variances are positive
    network = reference.module(arch, worker.CLASSES, weights, "imagenet")
    network.config._attn_implementation = "sdpa"  # transformers' default, which the converter needs not use
    return network


def _timm(name: str, **settings: Any) -> torch.nn.Module:
    try:
        import timm
    except ModuleNotFoundError:
        raise UserError(f"PyTorch's {name} is timm's: pip install timm") from None
    return timm.create_model(name, **settings)


def reference_network(arch: str, size: int) -> torch.nn.Module:
    """Returns torchvision's network, or timm's or transformers' if it has none, for images of `size` pixels.

    Raises:
      UserError: it is of a library that is not installed.
    """
    architecture = models.architecture(arch)
    sized: dict[str, Any] = {}
    if architecture.reference == "transformers":
        return OfTransformers(arch)
    if isinstance(architecture, DenseArchitecture):
        if arch not in REFERENCES:
            return Segmenter(architecture)
        sized = {"weights_backbone": None}
    if architecture.reference == "torchvision":
        sized |= {} if architecture.positions is None else {"image_size": size}
        return torchvision.models.get_model(arch, weights=None, num_classes=worker.CLASSES, **sized)
    sized |= {} if architecture.positions is None else {"img_size": size}
    return _timm(arch, num_classes=worker.CLASSES, **sized)


def of_texts(arch: str, batch: int, length: int) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """Returns transformers' network with random weights, and inputs of it by name, [batch, length].

    Raises:
      UserError: transformers is not installed.
    """
    reference = _reference(arch)
    network = _drawn(reference, arch)
    tokens, segments = worker.texts(arch, batch, length)[0].values()
    return network, reference.given(network, tokens, segments)


def main() -> None:
    """Serves the tasks train, eval and epoch."""
    arch, batch, size, precision, *options = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:]
    memory_format = torch.channels_last if "channels_last" in options else torch.contiguous_format
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
    torch.manual_seed(0)
    inputs: Any
    known = models.architecture(arch)
    dense = known.dense
    if known.texts is None:
        network, inputs = reference_network(arch, size), torch.randn(batch, 3, size, size)
    else:
        network, inputs = of_texts(arch, batch, size)
    network.to(device, memory_format=memory_format)  # type: ignore[call-overload]
    if "compiled" in options:
        network.compile(mode="reduce-overhead")
    platform = "gpu" if device.type == "cuda" else "cpu"
    steps = worker.steps_per_call(platform)
    optimizer = torch.optim.SGD(network.parameters(), lr=worker.LEARNING_RATE, momentum=worker.MOMENTUM, fused=True)
    criterion = torch.nn.CrossEntropyLoss()

    def placed(inputs: Any) -> Any:
        if isinstance(inputs, dict):
            return {name: tensor.to(device) for name, tensor in inputs.items()}
        return inputs.to(device, memory_format=memory_format)

    def logits(inputs: Any) -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            found = network(**inputs) if isinstance(inputs, dict) else network(inputs)
        return found["out"] if dense else found.logits if isinstance(inputs, dict) else found

    inputs = placed(inputs)
    labels = torch.randint(0, worker.CLASSES, (batch, size, size) if dense else (batch,), device=device)

    def update(inputs, labels) -> None:
        optimizer.zero_grad()
        criterion(logits(inputs), labels).backward()
        optimizer.step()

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    def train(repeats: int) -> list[float]:
        network.train()

        def call() -> None:
            for _ in range(steps):
                update(inputs, labels)
            wait()

        return worker.milliseconds(call, repeats, steps)

    @torch.no_grad()
    def evaluate(repeats: int) -> list[float]:
        network.eval()

        def call() -> None:
            for _ in range(steps):
                logits(inputs)
            wait()

        return worker.milliseconds(call, repeats, steps)

    def epoch(repeats: int) -> list[float]:
        normalize = transforms.Normalize((0.5,) * 3, (0.5,) * 3)
        crop = transforms.RandomCrop(size, padding=worker.CROP_PADDING)
        augment = transforms.Compose([transforms.RandomHorizontalFlip(), crop, transforms.ToTensor(), normalize])
        plain = transforms.Compose([transforms.ToTensor(), normalize])
        loader = torch.utils.data.DataLoader
        training = loader(_Images(worker.EPOCH_TRAIN, size, augment), batch, shuffle=True, num_workers=2)
        validation = loader(_Images(worker.EPOCH_VALIDATION, size, plain), batch, num_workers=2)

        def whole() -> None:
            network.train()
            for inputs, labels in training:
                update(placed(inputs), labels.to(device))
            network.eval()
            with torch.no_grad():
                correct = sum((logits(placed(inputs)).argmax(1).cpu() == labels).sum() for inputs, labels in validation)
            assert 0 <= int(correct) <= worker.EPOCH_VALIDATION

        return worker.milliseconds(whole, repeats)

    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    facts = {"torch": torch.__version__, "device": name, "platform": platform}
    worker.serve(facts, {"train": train, "eval": evaluate, "epoch": epoch})


if __name__ == "__main__":
    sys.exit(run_command(main))
