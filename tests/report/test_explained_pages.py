"""Tests of the heat maps in the reports of runs, for networks, tasks and sources of several kinds."""

import base64
import io
import re
import sys

import numpy as np
import pytest
import tiny_vit
from image_folders import fill
from PIL import Image
from table_runs import several
from test_report import Parsed
from tiny_runs import run
from toy_family import ARCHITECTURE
from toy_task import Toy

import sft_jax
from sft_jax.config import complete
from sft_jax.data.sampling import spread
from sft_jax.errors import UserError, run_command
from sft_jax.inference import explain
from sft_jax.main import observers_of
from sft_jax.models import ARCHITECTURES
from sft_jax.report import classification, reporter
from sft_jax.report.__main__ import main
from sft_jax.report.pictures import data_uri, images_of
from sft_jax.tasks import TASKS

SCRATCH = {"model.name": "tiny", "init": "scratch"}


def heat_maps(page):
    return [image for image in page.all("img") if image["alt"].startswith("heat map of ")]


def plain(page):
    return [image for image in page.all("img") if not image["alt"].startswith("heat map of ")]


@pytest.mark.long
def test_the_report_of_a_run_has_a_heat_map_beside_each_picture(tmp_path, monkeypatch):
    """On a source in arrays of another size than the network's. Only the report of the end waits for heat maps."""
    write, pages = reporter.write_text, []
    monkeypatch.setattr(reporter, "write_text", lambda path, page: pages.append(Parsed(page)) or write(path, page))
    run(tmp_path, observed=True, report__explain=True, epochs=1)
    early, _ = pages
    assert plain(early)
    assert not heat_maps(early)
    text = (tmp_path / "report.html").read_text()
    page = Parsed(text)
    assert len(heat_maps(page)) == len(plain(page)) > 15
    assert {image["alt"] for image in heat_maps(page)} == {f"heat map of {image['alt']}" for image in plain(page)}
    assert "They show what speaks for the predicted class, not the true one (Grad-CAM" in page.text
    assert f"{classification.RIGHT} of " in page.text
    assert "evenly spaced in the order of the classes" in page.text
    assert all(image["src"].startswith("data:image/") for image in page.all("img"))
    assert len(text) < 2_000_000


@pytest.mark.long
def test_a_heat_map_is_that_of_the_prediction_over_what_the_network_sees(tmp_path, monkeypatch):
    """A folder's pictures are kept at 20 px, of which the network sees 16; an existing run is explained afterwards."""
    fill(tmp_path / "flowers", ("ant", "bee"), 30)
    data = {"data__source": f"folder:{tmp_path / 'flowers'}", "data__keep_size": 20, "data__crop_pct": 0.8}
    run(tmp_path / "run", epochs=1, batch_size=16, **data)
    monkeypatch.setattr(sys, "argv", ["report", "--workdir", str(tmp_path / "run"), "--explain"])
    assert run_command(main) == 0
    shown = heat_maps(Parsed((tmp_path / "run" / "report.html").read_text()))[0]
    classifier = sft_jax.load(tmp_path / "run")
    square = classifier.preprocess.read(tmp_path / "flowers" / re.match(r"heat map of (.+?): ", shown["alt"])[1])
    assert square.shape == (20, 20, 3)
    (heat,) = classifier.explain([square], classifier.square_logits([square]).argmax(-1))
    drawn = np.asarray(Image.open(io.BytesIO(base64.b64decode(shown["src"].partition(",")[2]))))
    np.testing.assert_allclose(drawn, np.asarray(explain.overlay(square[2:18, 2:18], heat)), atol=1)


@pytest.mark.long
def test_labels_given_and_missed_are_explained_by_their_own_maps(tmp_path):
    table = several(tmp_path / "pictures", 60)
    run(
        tmp_path / "run",
        observed=True,
        report__explain=True,
        epochs=1,
        task="multilabel",
        data__source=f"csv:{table}",
        batch_size=16,
    )
    page = Parsed((tmp_path / "run" / "report.html").read_text())
    assert len(heat_maps(page)) == len(plain(page)) > 5
    assert "They show what speaks for the label that was given or missed (Grad-CAM" in page.text
    assert "Labels given rightly" in page.text
    by_name = {}
    for image in heat_maps(page):
        by_name.setdefault(image["alt"].split(": ")[0], set()).add(image["src"])
    assert any(len(maps) > 1 for maps in by_name.values()), "the maps of two labels of a picture differ"


@pytest.mark.long
def test_the_page_says_that_attention_depends_on_no_class(tmp_path, monkeypatch):
    tiny_vit.register(monkeypatch)
    run(tmp_path, observed=True, report__explain=True, epochs=1, model__name="tiny_plain")
    page = Parsed((tmp_path / "report.html").read_text())
    assert heat_maps(page)
    assert "what the network attends to, whatever its answer is (attention rollout)" in page.text


@pytest.mark.long
def test_without_the_key_there_are_none(whole):
    page = Parsed((whole[0] / "report.html").read_text())
    assert not heat_maps(page)
    assert "heat map" not in page.text
    assert "Right predictions" not in page.text


def test_what_has_no_heat_maps_is_refused_before_the_work_starts(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(TASKS, "toy", Toy)
    monkeypatch.setitem(ARCHITECTURES, "convnet", ARCHITECTURE)
    asked = SCRATCH | {"report.explain": True}
    for task in ("regression", "toy"):
        with pytest.raises(UserError, match=f"report.explain=True cannot be used with task={task}: a heat map shows"):
            observers_of(complete(asked | {"task": task}))
    monkeypatch.delattr("toy_family.ConvNet.pool", raising=False)
    with pytest.raises(UserError, match=r"explain=True cannot be used with model.name=convnet: .* cannot be explained"):
        run(tmp_path / "run", observed=True, report__explain=True, model__name="convnet")
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(sys, "argv", ["report", "--compare", "one", "two", "--explain"])
    with pytest.raises(SystemExit):
        main()
    assert "--explain needs --workdir" in capsys.readouterr().err


def test_a_sample_is_spread_from_the_first_to_the_last():
    np.testing.assert_array_equal(spread(np.arange(10, 20), 4), [10, 13, 16, 19])
    np.testing.assert_array_equal(spread(np.arange(3), 15), [0, 1, 2])
    assert len(spread(np.zeros(0, np.int64), 15)) == 0


@pytest.mark.long
def test_a_picture_is_read_once(whole):
    class Split:
        def batches(self, order):
            assert order.tolist() == [[1, 4]]
            yield {"image": np.arange(2, dtype=np.uint8)[:, None, None, None] * np.ones((2, 8, 8, 3), np.uint8)}

    images = images_of(Split(), [4, 1, 4])
    assert images[4].max() == 1
    assert data_uri(images[1]).startswith("data:image/png")
