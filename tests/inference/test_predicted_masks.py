"""Tests masks at the size of the picture: their place for every way to make a square, and the files of predict."""

import json

import numpy as np
import pytest
from made_run import make_run
from mask_folders import NAMES, pictured
from PIL import Image

import sft_jax
from sft_jax import export, predict
from sft_jax.data.preprocess import Preprocess
from sft_jax.errors import UserError
from sft_jax.inference import masks
from sft_jax.inference.own_size import at_own_size

SIDE = 16
PLAIN = {"mean": (0.5,) * 3, "std": (0.5,) * 3}


def blocks(height, width, step):
    """Returns a picture of four colours in large blocks, and their numbers."""
    rows, columns = np.mgrid[:height, :width] // step
    values = ((rows % 2) * 2 + columns % 2).astype(np.uint8)
    return np.repeat((80 * values)[..., None], 3, -1), values


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
@pytest.mark.parametrize("shape", [(64, 64), (48, 96), (97, 40)])
@pytest.mark.parametrize("more", [{}, {"kept": 50, "crop_pct": 0.8}, {"kept": 40}, {"resize": 36}])
def test_a_mask_lies_where_its_picture_has_it(fit, shape, more):
    """A network that says what it sees: the outputs of a class are high where its square has the class's colour."""
    picture, values = blocks(*shape, step=16)
    preprocess = Preprocess(size=32, fit=fit, **PLAIN, **more)
    seen = np.asarray(preprocess.on_device(preprocess.of_array(picture)[None]))[0, ..., 0]
    outputs = -np.abs((seen[..., None] + 1) * 127.5 - 80 * np.arange(4)).astype(np.float32)
    mask = at_own_size(outputs, preprocess, shape)
    assert mask.shape == shape
    known = mask != 255
    # All but the pixels at borders, which are mixed as the picture is reduced.
    assert (mask == values)[known].mean() > 0.75
    rows, columns = np.flatnonzero(known.any(1)), np.flatnonzero(known.any(0))
    part = {"crop": min(shape)}.get(fit, 0) * more.get("crop_pct", 1) * 32 / more.get("resize", 32)
    if fit == "crop":
        assert (len(rows), len(columns)) == pytest.approx((part, part), abs=3)
        assert rows.mean() == pytest.approx((shape[0] - 1) / 2, abs=1.5)
    elif "crop_pct" not in more:
        assert known.all()
    else:
        assert not known.all()


@pytest.fixture
def run(tmp_path):
    preprocess = Preprocess(size=SIDE, fit="pad", **PLAIN)
    settings = {"task": "segmentation", "model__name": "fcn_tiny", "data__size": SIDE, "data__fit": "pad"}
    return make_run(tmp_path / "run", preprocess=preprocess, names=NAMES, **settings).folder


@pytest.mark.long
def test_predictions_of_python(run, tmp_path):
    clf = sft_jax.load(run)
    pictures = [pictured(seed, width, height)[0] for seed, width, height in ((0, 24, 20), (1, 31, 40), (2, 16, 16))]
    found = clf.predict(pictures)
    assert [mask.shape for mask in found] == [picture.shape[:2] for picture in pictures]
    assert all(mask.dtype == np.uint8 and mask.max() < 3 for mask in found)
    logits = clf.logits(pictures)
    assert logits.shape == (3, SIDE, SIDE, 3)
    np.testing.assert_array_equal(found[2], logits[2].argmax(-1))
    again = clf.model(clf.preprocess.on_device(pictures[2][None]), train=False)[0]
    np.testing.assert_allclose(again, logits[2], rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="top=2 ranks the classes of an image"):
        clf.predict(pictures, top=2)
    with pytest.raises(UserError, match="has outputs of pixels, and so no features"):
        clf.square_features([pictures[2]])


@pytest.mark.long
def test_files_and_lines_of_the_command(run, tmp_path, monkeypatch, capsys):
    (tmp_path / "in" / "more").mkdir(parents=True)
    picture = Image.fromarray(pictured(0)[0])
    names = [tmp_path / "in" / "a.png", tmp_path / "in" / "b.png", tmp_path / "in" / "more" / "a.png"]
    for name in names:
        picture.save(name)
    (tmp_path / "in" / "c.png").write_bytes(b"none")

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["predict", "--workdir", str(run), *map(str, arguments)])
        predict.main()

    with pytest.raises(UserError, match="unreadable inputs: 1, see above; images answered: 3"):
        call("--json", "--output", tmp_path / "out", *names, tmp_path / "in" / "c.png")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["file"] for line in lines] == list(map(str, names))
    assert [line["mask"] for line in lines] == [str(tmp_path / "out" / "masks" / f"{n}.png") for n in ("a", "b", "a_2")]
    (own,) = sft_jax.load(run).predict(names[0])
    for line in lines:
        with Image.open(line["mask"]) as image, Image.open(line["overlay"]) as over:
            assert image.mode == "P"
            np.testing.assert_array_equal(np.asarray(image), own)
            assert over.size == (24, 20)
        assert line["shares"] == {
            name: pytest.approx((own == label).mean()) for label, name in enumerate(NAMES) if (own == label).any()
        }
    call("--output", tmp_path / "again", names[0])
    out = capsys.readouterr().out
    assert out.splitlines()[0].split() == ["picture", "mask", "shares"]
    assert f"wrote {tmp_path / 'again'}: 1 images" in out
    for arguments, line in {
        (names[0],): "the network predicts a mask for each image: add --output FOLDER",
        ("--output", tmp_path / "x.csv", names[0]): "the network predicts a mask for each image: add --output FOLDER",
        ("--output", tmp_path / "x", "--top", 2, names[0]): "--top 2 ranks the classes of an image",
        ("--output", tmp_path / "x", "--explain", tmp_path / "why", names[0]): "--explain shows what speaks for",
    }.items():
        with pytest.raises(UserError, match=line):
            call(*arguments)


def test_a_folder_is_only_for_masks(tmp_path, monkeypatch):
    folder = make_run(tmp_path / "run").folder
    monkeypatch.setattr("sys.argv", ["predict", "--workdir", str(folder), "--output", str(tmp_path / "x"), "a.png"])
    with pytest.raises(UserError, match=r"--output .*x must end in .csv"):
        predict.main()


@pytest.mark.long
def test_an_export_gives_the_same_masks(run, tmp_path):
    export.export(run, "best", tmp_path / "net.stablehlo")
    picture = pictured(3, 40, 30)[0]
    ours, exported = sft_jax.load(run), sft_jax.load(tmp_path / "net.stablehlo")
    np.testing.assert_allclose(exported.logits(picture), ours.logits(picture), rtol=1e-4, atol=1e-4)
    assert (exported.predict(picture)[0] == ours.predict(picture)[0]).mean() > 0.99


def test_the_colours_are_pascal_vocs():
    known = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128)]
    assert list(map(tuple, masks.colours()[:5].tolist())) == known
    assert tuple(masks.colours()[20].tolist()) == (0, 64, 128)
    picture, mask = pictured(0)
    mask = np.where(mask == 200, np.uint8(255), mask)
    blended = masks.overlay(picture, mask)
    np.testing.assert_array_equal(blended[0], picture[0])
    assert blended.dtype == np.uint8
