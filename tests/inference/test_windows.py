"""Tests masks of pictures that are seen through windows, and together with their mirror images."""

import types

import numpy as np
import pytest
from made_run import make_run
from mask_folders import NAMES, pictured
from PIL import Image
from test_predicted_masks import PLAIN, SIDE, blocks

import sft_jax
from sft_jax import evaluate, predict
from sft_jax.data.preprocess import Preprocess
from sft_jax.errors import UserError
from sft_jax.inference import masks, windows
from sft_jax.inference.windows import View, outputs_of, seen_in_windows, side_of, starts


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    preprocess = Preprocess(size=SIDE, fit="pad", **PLAIN)
    settings = {"task": "segmentation", "model__name": "fcn_tiny", "data__size": SIDE, "data__fit": "pad"}
    return make_run(tmp_path_factory.mktemp("runs") / "run", preprocess=preprocess, names=NAMES, **settings).folder


def what_it_sees(preprocess):
    """Returns a network whose outputs of a class are high where its square has the class's colour."""

    def square_logits(squares):
        assert len(squares) <= windows.BATCH
        seen = np.asarray(preprocess.on_device(np.stack(squares)))[..., 0]
        return -np.abs((seen[..., None] + 1) * 127.5 - 80 * np.arange(4)).astype(np.float32)

    return types.SimpleNamespace(preprocess=preprocess, class_names=tuple("abcd"), square_logits=square_logits)


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
@pytest.mark.parametrize("shape", [(64, 64), (64, 160), (131, 70), (20, 24)])
@pytest.mark.parametrize("more", [{}, {"kept": 50, "crop_pct": 0.8}, {"resize": 36}, {"keep_square": True}])
def test_a_mask_lies_where_its_picture_has_it(fit, shape, more):
    step = 5 if min(shape) < 32 else 8
    picture, values = blocks(*shape, step)
    preprocess = Preprocess(size=32, fit=fit, **PLAIN, **more)
    mask = seen_in_windows(what_it_sees(preprocess), picture, View(0))
    assert (mask.shape, mask.dtype) == (shape, np.uint8)
    known = mask != 255
    whole = (fit != "crop" or "resize" not in more) and "crop_pct" not in more
    assert known.all() == whole
    assert known.mean() > 0.6
    if whole and min(shape) >= 32:
        np.testing.assert_array_equal(mask, values)
    else:  # pixels at borders are mixed as a picture is enlarged, and those of its own borders are not seen
        assert (mask == values)[known].mean() > 0.7
        rows, columns = np.flatnonzero(known.any(1)), np.flatnonzero(known.any(0))
        assert rows.mean() == pytest.approx((shape[0] - 1) / 2, abs=1)
        assert columns.mean() == pytest.approx((shape[1] - 1) / 2, abs=1)


def test_a_picture_may_be_resized_before():
    picture, values = blocks(128, 96, 16)
    network = what_it_sees(Preprocess(size=32, fit="crop", **PLAIN))
    mask = seen_in_windows(network, picture, View(48))
    assert mask.shape == values.shape
    assert 0.8 < (mask == values).mean() < 1


@pytest.mark.parametrize(("length", "side"), [(32, 32), (33, 32), (48, 32), (49, 32), (300, 32), (1000, 224)])
def test_windows_cover_a_picture_and_share_half_of_it(length, side):
    found = starts(length, side)
    assert (found[0], found[-1]) == (0, length - side)
    steps = np.diff(found)
    assert (steps > 0).all()
    assert (steps <= side / 2 + 1).all()
    assert len(found) == 1 + -(-(length - side) // (side // 2))


def test_the_mirror_image_of_a_picture_has_the_mirror_image_of_its_outputs(run):
    network = sft_jax.load(run)
    squares = [pictured(seed, SIDE, SIDE)[0] for seed in range(3)]
    mirrored = [square[:, ::-1] for square in squares]
    ours, theirs = (outputs_of(network, each, View(flips=True)) for each in (squares, mirrored))
    np.testing.assert_allclose(ours, theirs[:, :, ::-1], rtol=1e-4, atol=1e-5)
    once = [network.square_logits(each) for each in (squares, mirrored)]
    np.testing.assert_allclose(ours, (once[0] + once[1][:, :, ::-1]) / 2, rtol=1e-4, atol=1e-5)
    assert np.abs(ours - once[0]).max() > 1e-3


@pytest.mark.long
def test_the_command_writes_masks_seen_in_windows(run, tmp_path, monkeypatch):
    picture = pictured(0, 70, 50)[0]
    Image.fromarray(picture).save(tmp_path / "a.png")

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["predict", "--workdir", str(run), str(tmp_path / "a.png"), *arguments])
        predict.main()
        return np.asarray(Image.open(tmp_path / "out" / "masks" / "a.png"))

    for flags, view in ((["--windows", "0"], View(0)), (["--windows=40", "--flips"], View(40, flips=True))):
        found = call("--output", str(tmp_path / "out"), *flags)
        network = sft_jax.load(run)
        np.testing.assert_array_equal(found, seen_in_windows(network, picture, view))
        for given in (tmp_path / "a.png", picture, Image.fromarray(picture), picture / np.float32(255)):
            (mask,) = network.predict(given, windows=view.windows, flips=view.flips)
            np.testing.assert_array_equal(mask, found)
    message = "--windows 15: a window has 16 pixels a side, as the network saw whole pictures; give a larger number"
    with pytest.raises(UserError, match=message):
        call("--output", str(tmp_path / "out"), "--windows=15")


def test_predictions_of_python_take_flips_alone_and_refuse_what_the_command_refuses(run, tmp_path):
    network, picture = sft_jax.load(run), pictured(0, 70, 50)[0]
    (mask,) = network.predict(picture, flips=True)
    (wanted,) = masks.of_block(
        network, [masks.Picture((50, 70), network.preprocess.of_array(picture))], View(None, True)
    )
    np.testing.assert_array_equal(mask, wanted)
    with pytest.raises(UserError, match="--windows 15: a window has 16 pixels a side"):
        network.predict(picture, windows=15)
    with pytest.raises(UserError, match="a.png cannot be read"):
        network.predict(tmp_path / "a.png", windows=0)
    with pytest.raises(UserError, match="windows and flips are for networks with a class per pixel"):
        sft_jax.load(make_run(tmp_path / "run").folder).predict(picture, flips=True)


def test_other_networks_and_splits_have_no_windows(tmp_path, monkeypatch, capsys):
    folder = make_run(tmp_path / "run").folder
    for flag in (["--windows", "32"], ["--flips"]):
        monkeypatch.setattr("sys.argv", ["predict", "--workdir", str(folder), "a.png", *flag])
        with pytest.raises(UserError, match=f"{flag[0]} is for networks with a class per pixel, which this one is not"):
            predict.main()
        with pytest.raises(SystemExit):
            evaluate.parse(["--workdir", str(folder), *flag])
        assert "--windows and --flips need pictures with masks; give them with --data" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        evaluate.parse(["--workdir", str(folder), "--data", "masks:x", "--windows", "-3"])
    assert "'-3' must be a whole number, 0 or more" in capsys.readouterr().err


def test_outputs_that_do_not_fit_into_memory_are_refused(monkeypatch):
    network = what_it_sees(Preprocess(size=32, fit="crop", **PLAIN))
    monkeypatch.setattr("sft_jax.runtime.memory.MEMORY_FRACTION", 0.0)
    with pytest.raises(
        UserError, match=r"the outputs of a picture of 96 x 64 pixels need .* use a smaller number with"
    ):
        seen_in_windows(network, np.zeros((64, 96, 3), np.uint8), View(0))


@pytest.mark.parametrize(
    ("settings", "side"),
    [({}, 32), ({"fit": "crop", "resize": 36}, 36), ({"fit": "pad", "kept": 50}, 50), ({"keep_square": True}, 32)],
)
def test_a_window_becomes_a_square_as_it_is(settings, side):
    preprocess = Preprocess(size=32, **PLAIN, **settings)
    assert side_of(preprocess) == side
    window = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    square = preprocess.of_array(window)
    edge = (side - len(square)) // 2
    np.testing.assert_array_equal(square, window[edge : edge + len(square), edge : edge + len(square)])
