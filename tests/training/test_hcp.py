"""HCP from its data to its scores: pooling over hypotheses, the two stages, an interruption, fusion."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import nin_jax
from nin_jax import main, registry
from nin_jax.data.preprocess import hypotheses as drawn
from nin_jax.errors import Preempted, UserError
from nin_jax.page import report, samples
from nin_jax.paper import figures, translations
from nin_jax.training import fusion
from nin_jax.training.loop import Event, train
from nin_jax.weights import publish

TINY = "nin(kernels=(3, 3), widths=((4, 3), (6,)), pools=('max',), deviations=('he',), dropout=0.2, batch_norm=True)"
SCENES = "scenes(of='digits', train=24, test=10, side=24, size=8, smallest=30.0{})"
pytestmark = pytest.mark.usefixtures("one_device")


def test_gradients_flow_to_the_winning_hypotheses_alone():
    """Of each class's logit, the pixels of every other hypothesis have a gradient of 0; and logits are the largest ones."""
    network = TINY.replace("batch_norm=True", "relu_on_class_maps=False")
    model = registry.create("hcp", 4, network=network)
    image = jnp.asarray(np.random.default_rng(0).standard_normal((2, 5 * 8, 8, 3)), jnp.float32)
    variables = jax.jit(lambda: model.init(jax.random.key(0), image, train=False))()
    each = model.apply(variables, image.reshape(10, 8, 8, 3), train=False)[0].reshape(2, 5, 4)
    logits, maps = model.apply(variables, image, train=False)
    np.testing.assert_allclose(logits, each.max(1), rtol=1e-5)
    assert maps["conv1"].shape == (2, 5 * 8, 8, 4)
    gradient = jax.jit(jax.jacrev(lambda x: model.apply(variables, x, train=False)[0]))(image)  # [2, 4, 2, 40, 8, 3]
    felt = np.abs(np.asarray(gradient)).reshape(2, 4, 2, 5, -1).max(-1) > 0
    for picture in range(2):
        for k in range(4):
            assert np.flatnonzero(felt[picture, k, picture]).tolist() == [int(each[picture, :, k].argmax())]
            assert not felt[picture, k, 1 - picture].any()


def test_dropout_of_a_hypothesis_does_not_depend_on_the_devices():
    """A half of a batch has the masks that it has in the whole one."""
    model = registry.create("hcp", 4, network=TINY.replace("batch_norm=True", "relu_on_class_maps=False"))
    image = jnp.ones((4, 24, 8, 3))

    @jax.jit
    def run():
        variables = model.init(jax.random.key(0), image, train=False)
        call = {"train": True, "rngs": {"dropout": jax.random.key(1)}}
        half = model.apply(variables, image[2:], example=jnp.array([2, 3]), **call)[0]
        return model.apply(variables, image, **call)[0], half

    whole, half = run()
    np.testing.assert_allclose(whole[2:], half, rtol=1e-5)
    assert np.abs(whole[0] - whole[1]).max() > 1e-4


def test_one_hypothesis_of_each_cluster_is_drawn():
    bags = jnp.arange(2 * 6 * 4, dtype=jnp.float32).reshape(2, 6, 1, 4).repeat(4, 1).reshape(2, 24, 4, 1)
    found = drawn.apply(jax.random.split(jax.random.key(3), 2), bags, clusters=2)
    assert found.shape == (2, 8, 4, 1)
    values = np.asarray(found)[:, ::4, 0, 0] // 4  # the number of a hypothesis, 0 to 5 of the first bag
    assert ((values[:, 0] % 6 < 3) & (values[:, 1] % 6 >= 3)).all()
    with pytest.raises(ValueError, match="no bags of 5 clusters"):
        drawn.apply(jax.random.split(jax.random.key(3), 2), bags, clusters=5)


def words(folder: Path, *more: str, bags: bool) -> list[str]:
    recipe = "hcp_scenes" + ":images" * (not bags)
    dataset = SCENES.format(", clusters=3, each=2" if bags else "")
    augment = "('hypotheses(clusters=3)',)" if bags else "()"
    flags = {
        "dataset": dataset,
        "model.network": TINY,
        "augment": augment,
        "epochs": 3,
        "schedule.boundaries_epochs": "(2,)",
    }
    flags |= {"batch_size": 8, "eval_every_epochs": 1, "init_from": "None"}
    return [
        "nin_jax",
        f"--config={recipe}",
        f"--workdir={folder}",
        *(f"--config.{k}={v}" for k, v in flags.items()),
        *more,
    ]


def parameters(folder: Path) -> dict[str, np.ndarray]:
    return flatten_dict(jax.tree.map(np.asarray, dict(nin_jax.load(str(folder)).variables)), sep="/")


def test_what_knows_one_label_an_image_refuses_several(tmp_path):
    """In one line; a page of the network has no samples instead."""
    folder = tmp_path / "run"
    main.run(main.parse(words(folder, "--config.epochs=1", "--config.schedule.boundaries_epochs=()", bags=False)))
    classifier = nin_jax.load(folder)
    assert samples.of(classifier) == []
    refusing = (
        lambda: report.report(classifier),
        lambda: publish.publish(folder, tmp_path / "published"),
        lambda: figures.Examples(folder),
        lambda: translations.errors(folder, 5),
    )
    for call in refusing:
        with pytest.raises(UserError, match=r"(one label|several labels) an image"):
            call()


@pytest.mark.slow
def test_two_stages_an_interruption_and_fusion(tmp_path, capsys):
    """Images first; hypotheses from there, stopped within an epoch and resumed: bit for bit the run that was not."""
    main.run(main.parse(words(tmp_path / "images", bags=False)))
    start = f"--config.init_from={tmp_path / 'images'}"
    main.run(main.parse(words(tmp_path / "whole", start, bags=True)))
    assert "newly initialised: none; not used: none" in capsys.readouterr().err
    command = main.parse(words(tmp_path / "resumed", start, bags=True))

    def stop(event: Event, step: int) -> None:
        if event is Event.AFTER_UPDATES and step == 5:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Preempted):
        train(command.config, command.workdir, stop)
    main.run(command)
    one, other = parameters(tmp_path / "whole"), parameters(tmp_path / "resumed")
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[path], other[path]) for path in one)
    summaries = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("whole", "resumed")]
    assert summaries[0]["test_map_pct"] == summaries[1]["test_map_pct"] == 100 - summaries[0]["test_error_pct"]

    files = [str(tmp_path / f"{name}.json") for name in ("images", "whole")]
    for name, file in zip(("images", "whole"), files, strict=True):
        bags = name == "whole"
        more = ["--mode=eval", f"--scores={file}", *[start] * bags]
        main.run(main.parse(words(tmp_path / name, *more, bags=bags)))
    capsys.readouterr()
    fusion.main([*files, "--weight=1", "-o", str(tmp_path / "fused.json")])
    said = json.loads(capsys.readouterr().out)
    assert (
        said["fused"]
        == said["b"]
        == {"map_pct": pytest.approx(summaries[0]["test_map_pct"], abs=1e-6)}
        | {"area_map_pct": said["b"]["area_map_pct"]}
    )
    np.testing.assert_array_equal(fusion.read(tmp_path / "fused.json").labels, fusion.read(Path(files[0])).labels)
    picture = np.random.default_rng(0).integers(0, 256, (60, 50, 3), np.uint8)
    [seen] = nin_jax.load(str(tmp_path / "whole")).classify(picture)
    assert seen.name in map(str, range(10))


def test_fusion_is_a_weighted_mean_and_refuses_other_pictures(tmp_path):
    labels = np.array([[1, -1], [-1, 1], [0, 1]], np.int32)
    a, b = (fusion.Scores(("x", "y"), np.random.default_rng(i).random((3, 2)), labels) for i in (0, 1))
    np.testing.assert_allclose(fusion.fuse(a, b, 0.25).scores, 0.75 * a.scores + 0.25 * b.scores)
    with pytest.raises(UserError, match="labels differ"):
        fusion.fuse(a, b._replace(labels=labels[::-1]), 0.5)
    for text in (
        *("[]", "{", '{"classes": ["x"], "scores": [[1, 2]], "labels": [[1]]}'),
        '{"classes": ["x"], "scores": [[1]], "labels": [[0.5]]}',
        '{"classes": ["x", "x"], "scores": [[1, 2]], "labels": [[1, 1]]}',
    ):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(UserError, match=r"bad\.json is not a file of scores"):
            fusion.read(tmp_path / "bad.json")


@pytest.mark.parametrize(
    ("task", "dataset", "said"),
    [
        ("classify", SCENES.format(""), "several labels an image: use task='multilabel'"),
        ("multilabel", "digits", "one label an image: use task='classify'"),
    ],
)
def test_a_task_that_does_not_fit_the_labels_is_named(task, dataset, said, tmp_path):
    flags = [f"--config.task={task}", f"--config.dataset={dataset}"]
    with pytest.raises(UserError, match=said):
        main.run(main.parse(words(tmp_path / "run", *flags, bags=False)))
