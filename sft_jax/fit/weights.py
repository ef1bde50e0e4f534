"""The pretrained weights that there are: installed packages, converted files, and those that the user names."""

import dataclasses
import functools
from pathlib import Path

import safetensors

from sft_jax.data.preprocess import Preprocess
from sft_jax.errors import UserError
from sft_jax.models import ARCHITECTURES
from sft_jax.models.catalogue import row
from sft_jax.models.packages import PACKAGES, PREFIX, package_of
from sft_jax.models.weights import Weights, load_weights
from sft_jax.run.folder import Run
from sft_jax.runtime.cache import cache_folder
from sft_jax.training.start import load_named

# Where the README's commands write converted weights.
USUAL = Path("weights")


@dataclasses.dataclass(frozen=True)
class Candidate:
    """Weights to start from. They are loaded, and those of a package converted, when `stem` or `preprocess` is read.

    Attributes:
      init: the value of `config.init`.
      arch: the network's `model.name`.

    Raises:
      UserError: by `stem` and `preprocess`, if the weights cannot be loaded.
    """

    init: str
    arch: str

    @functools.cached_property
    def _weights(self) -> Weights:
        weights = load_named(self.init)
        return dataclasses.replace(weights, arrays={}, metadata=weights.metadata | {"stem": weights.stem})

    @property
    def stem(self) -> str:
        """The network's `model.stem`."""
        path = Path(self.init)
        return Run(path).config().model.stem if path.is_dir() else self._weights.stem

    @property
    def preprocess(self) -> Preprocess:
        """How images were prepared when the weights were trained."""
        usual = Preprocess.of_pretrained(ARCHITECTURES[self.arch].pretrained)
        return Preprocess.of_metadata(self._weights.metadata, usual)

    @property
    def top1(self) -> float | None:
        """The best published accuracy of the network on ImageNet in percent; None if it is not known."""
        return row(self.arch)["top1"]

    def __str__(self) -> str:
        known = "" if self.top1 is None else f", {self.top1:.1f}% on ImageNet"
        return f"{self.init} ({self.arch}{known})"


def candidates(named: Path | None, notices: list[str]) -> list[Candidate]:
    """Returns the weights to choose from, the network with the best published accuracy first.

    Args:
      named: a converted file, a run, a folder of converted files, or package:NAME; None for installed packages and the
        converted files in `USUAL` and in the cache.
      notices: receives a line about each file that cannot be used.

    Raises:
      UserError: there are none, or the one that is named is none.
    """
    if named is not None and str(named).startswith(PREFIX):
        arch = package_of(str(named)).arch
        ARCHITECTURES[arch].check_inputs(("image",), "classification")
        return [Candidate(str(named), arch)]
    if named is not None and Run(named).exists():
        return [Candidate(str(named.absolute()), Run(named).config().model.name)]
    if named is not None and not named.is_dir():
        load_weights(named)  # raises what is wrong with it
        return [_of_file(named)]
    usable = []
    if named is None:
        of_images = {name: package for name, package in PACKAGES.items() if ARCHITECTURES[package.arch].texts is None}
        installed = {name: package for name, package in of_images.items() if package.path() is not None}
        usable = [Candidate(f"{PREFIX}{name}", package.arch) for name, package in installed.items()]
    usable += _of_folder(USUAL if named is None else named, notices)
    kept = cache_folder("weights")
    if named is None and kept is not None:  # of packages that are no longer installed
        known = {candidate.arch for candidate in usable}
        usable += [candidate for candidate in _of_folder(kept, notices) if candidate.arch not in known]
    if not usable:
        where = "here" if named is None else f"in {named}"
        raise UserError(
            f"no pretrained weights {where}: install some with {PACKAGES['efficientnet-lite0'].install()}, convert "
            f"some into {USUAL}/ (README, Networks), name them with --weights, or train from random ones with "
            f"--config.init=scratch"
        )
    return sorted(usable, key=lambda candidate: -(candidate.top1 or 0))


def _of_folder(folder: Path, notices: list[str]) -> list[Candidate]:
    usable = []
    for path in sorted(folder.glob("*.safetensors")):
        try:
            usable.append(_of_file(path))
        except UserError as error:
            notices.append(f"not used: {error}")
    return usable


def _of_file(path: Path) -> Candidate:
    """Describes a converted file without reading its arrays. Raises UserError if it is none, or of another network."""
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            arch = (file.metadata() or {}).get("arch")
    except (safetensors.SafetensorError, OSError):
        arch = None
    if arch not in ARCHITECTURES:
        what = "is not a converted file" if arch is None else f"contains a {arch}, which is an unknown network"
        raise UserError(f"{path} {what}; see python -m sft_jax.models")
    ARCHITECTURES[arch].check_inputs(("image",), "classification")
    return Candidate(str(path.absolute()), arch)
