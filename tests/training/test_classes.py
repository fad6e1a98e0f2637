"""Classes are what their names say: data whose class names differ from a run's are matched by name, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

import nin_jax
from nin_jax import config as config_lib
from nin_jax import main
from nin_jax.data.splits import Info, match_classes
from nin_jax.errors import UserError
from nin_jax.training.build import Run
from nin_jax.training.load import by_class, variables_of

NIN = {"kernels": (3, 3), "widths": ((6,), (6,)), "pools": ("avg",), "deviations": ("he",)}
LOW = {"cat": 0, "dog": 80, "horse": 160}  # the darkest pixel of each class
SMALL = ("--config=folder", "--config.dataset=folder(size=8)", "--config.model.kernels=(3,3)", "--config.model.widths=((8,),(8,))",
         "--config.model.pools=('avg',)", "--config.model.dropout=0.0", "--config.augment=()", "--config.batch_size=8",
         "--config.schedule.boundaries_epochs=()", "--config.schedule.warmup_epochs=0")  # fmt: skip


def pictures(folder: Path, names: dict[str, str]) -> Path:
    """30 grey images of each class, in a folder of the name it is given."""
    for kind, name in names.items():
        (folder / name).mkdir(parents=True)
        rng = np.random.default_rng(LOW[kind])
        for i in range(30):
            pixels = rng.integers(LOW[kind], LOW[kind] + 80, (10, 10, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


def run(workdir: Path, data: Path, *words: str, epochs: int = 12) -> None:
    line = [*SMALL, f"--workdir={workdir}", f"--config.data_dir={data}", f"--config.epochs={epochs}", *words]
    main.run(main.parse(["nin_jax", *line]))


pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classes")
    run(folder / "run", pictures(folder / "data", {name: name for name in LOW}))
    return folder / "run"


def error_pct(workdir: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> float:
    capsys.readouterr()
    run(workdir, data, "--mode=eval")
    return json.loads(capsys.readouterr().out.splitlines()[-1])["error_pct"]


def test_the_run_knows_its_classes(trained: Path, tmp_path: Path) -> None:
    """Also where the data are not; a network that tells them apart names them."""
    (trained.parent / "data").rename(tmp_path / "elsewhere")
    try:
        predictor = nin_jax.load_run(str(trained))
        assert predictor.class_names == ("cat", "dog", "horse")
        images = np.stack([np.full((8, 8, 3), low + 40, np.uint8) for low in LOW.values()])
        logits, _ = predictor(images)
        assert [predictor.class_names[k] for k in logits.argmax(-1)] == list(LOW)
    finally:
        (tmp_path / "elsewhere").rename(trained.parent / "data")


def test_data_with_some_of_the_classes_are_matched_by_name(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Here "horse" has label 1 in the folder and 2 in the run."""
    assert error_pct(trained, trained.parent / "data", capsys) < 10
    assert error_pct(trained, pictures(tmp_path / "two", {"cat": "cat", "horse": "horse"}), capsys) < 10


def test_that_classes_are_matched_by_name_is_said_once(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By an evaluation, by that of an ensemble, and by training, which then finds that the examples are others."""
    data = pictures(tmp_path / "two", {"cat": "cat", "horse": "horse"})
    line = f"classes of dataset folder ({data}) are matched by name to the 3 of the run\n"

    def said() -> int:
        return capsys.readouterr().err.count(line)

    run(trained, data, "--mode=eval")
    assert said() == 1
    run(trained, data, "--mode=eval", f"--ensemble={trained},{trained}")
    assert said() == 1
    (trained / "summary.json").rename(tmp_path / "summary.json")
    try:
        with pytest.raises(UserError, match="other training examples"):
            run(trained, data)
    finally:
        (tmp_path / "summary.json").rename(trained / "summary.json")
    assert said() == 1


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ({"cat": "feline", "dog": "canine", "horse": "equine"}, "not trained on: canine, equine, feline: (valid: cat, dog, horse)"),
        ({"dog": "dog", "horse": "horse", "cat": "zebra"}, "not trained on: zebra: (valid: cat, dog, horse)"),
        ({"cat": "cats", "dog": "dog"}, "not trained on: cats: did you mean 'cat'?"),
    ],
)  # fmt: skip
def test_other_classes_are_refused(names: dict[str, str], said: str, trained: Path, tmp_path: Path) -> None:
    """In an evaluation, and where a run would be resumed."""
    data = pictures(tmp_path / "data", names)
    with pytest.raises(UserError) as caught:
        run(trained, data, "--mode=eval")
    assert said in str(caught.value)
    (trained / "summary.json").rename(tmp_path / "summary.json")
    try:
        with pytest.raises(UserError) as caught:
            run(trained, data)
        assert said in str(caught.value)
    finally:
        (tmp_path / "summary.json").rename(trained / "summary.json")


def test_fine_tuning_on_other_classes_starts_their_layer_anew(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As many classes, so that every shape fits; at rate 0 the rest is the first run's."""
    data = pictures(tmp_path / "data", {"cat": "a", "dog": "dog", "horse": "z"})
    words = (f"--config.init_from={trained}", "--config.optimizer.learning_rate=0.0")
    run(tmp_path / "tuned", data, *words, epochs=1)
    said = capsys.readouterr().err
    assert "that run has other classes (cat, dog, horse): the layer of the classes starts from random weights" in said
    old, new = nin_jax.load_run(str(trained)), nin_jax.load_run(str(tmp_path / "tuned"))
    assert new.class_names == ("a", "dog", "z")
    for block, layer, same in (("mlpconv1", "conv1", True), ("mlpconv2", "conv2", True), ("mlpconv2", "cccp1", False)):
        kernels = old.params[block][layer]["kernel"], new.params[block][layer]["kernel"]
        assert np.array_equal(*kernels) == same, layer


def test_by_class_reorders_the_classes(trained: Path) -> None:
    """A network of the same classes in another order gives each class the logit it had."""
    theirs, variables = variables_of(trained)
    info = theirs.info._replace(class_names=("horse", "cat", "dog"))
    mine = Run(theirs.config, info, info)
    image = np.full((1, 8, 8, 3), 0.3, np.float32)
    logits = jax.jit(lambda variables: theirs.model.apply(variables, image, train=False)[0])
    old, new = logits(variables), logits(by_class(variables, theirs.info, mine))
    np.testing.assert_allclose(new[0], old[0, np.array([2, 0, 1])], rtol=1e-6)


@pytest.mark.parametrize(
    "network",
    [
        {"name": "nin", **NIN, "head": "fc"},
        {"name": "nin", **NIN, "batch_norm": True},
        {"name": "alexnet", "layers": ("mlpconv(maps=(4,))", "max_pool()"), "hidden": (5,)},
        {"name": "alexnet", "layers": ("mlpconv(maps=(4,))", "max_pool()"), "hidden": (), "head": "fc"},
        {"name": "convnet", "widths": (4, 4), "pools": ("max", "avg")},
        {"name": "convnet", "widths": (4, 4), "pools": ("max", "avg"), "head": "fc"},
        {"name": "maxout", "widths": (4, 4, 4), "dense_width": 5},
        {"name": "stochastic_pooling", "widths": (4, 4, 4)},
    ],
    ids=lambda network: " ".join(str(network[key]) for key in ("name", "head", "batch_norm") if key in network),
)
def test_by_class_finds_the_classes_of_every_head(network: dict[str, Any]) -> None:
    """Also behind flattened class maps, and in a kernel for every position."""
    config = config_lib.experiment("digits").copy_and_resolve_references()
    config.model = network
    infos = [Info("d", 3, (8, 8, 1), {}, "", class_names=names) for names in (("a", "b", "c"), ("c", "a", "b"))]
    theirs, mine = (Run(config_lib.check(config), info, info) for info in infos)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda p: np.float32(rng.random(p.shape)), theirs.variables)
    image = np.full((1, 8, 8, 1), 0.3, np.float32)
    logits = jax.jit(lambda variables: theirs.model.apply(variables, image, train=False)[0])
    old, new = logits(variables), logits(by_class(variables, theirs.info, mine))
    assert len(np.unique(old)) == 3
    np.testing.assert_allclose(new[0], old[0, np.array([2, 0, 1])], rtol=1e-5)


@pytest.mark.parametrize("names", [("c", "a", "b"), ("c", "d", "e")], ids=["another order", "others"])
def test_by_class_says_which_argument_binds_the_number_of_classes(names: tuple[str, ...]) -> None:
    """A network with a map for each class by number tells its classes from the rest once that is left to its default."""
    config = config_lib.experiment("digits").copy_and_resolve_references()
    config.model = {"name": "convnet", "widths": (4, 4), "pools": ("max", "avg"), "local_maps": 3}
    infos = [Info("d", 3, (8, 8, 1), {}, "", class_names=n) for n in (("a", "b", "c"), names)]
    theirs, mine = (Run(config_lib.check(config), info, info) for info in infos)
    variables = jax.tree.map(lambda p: np.ones(p.shape, np.float32), theirs.variables)
    with pytest.raises(UserError) as caught:
        by_class(variables, theirs.info, mine)
    assert str(caught.value).startswith(
        "init_from: the classes of that run (a, b, c) are others, or in another order, and "
    )
    assert "local_maps=3" in str(caught.value)
    assert str(caught.value).endswith("; leave the argument out, if its default makes the same network")
    config.model.local_maps = None
    assert by_class(variables, theirs.info, Run(config_lib.check(config), infos[1], infos[1]))["params"]


@pytest.mark.parametrize(
    ("mine", "theirs", "labels"),
    [
        (("a", "b"), ("a", "b"), None),
        (("b", "a"), ("a", "b"), [1, 0]),
        (("b",), ("a", "b"), [1]),
        ((), (), None),
        (("1", "0"), (), [1, 0]),  # numbers are the names of those that have none
        ((), ("0", "1"), None),
    ],
)
def test_labels_by_name(mine: tuple[str, ...], theirs: tuple[str, ...], labels: list[int] | None) -> None:
    data, trained = (Info("d", len(n) or 2, (8, 8, 1), {}, "", class_names=n) for n in (mine, theirs))
    found = match_classes(data, trained)
    assert (found if found is None else found.tolist()) == labels


@pytest.mark.parametrize(("mine", "theirs"), [(("one", "zero"), ()), ((), ("cat", "dog"))])
def test_names_are_not_taken_for_numbers(mine: tuple[str, ...], theirs: tuple[str, ...]) -> None:
    """Such as digits in folders "one" and "zero", whose order is another."""
    data, trained = (Info("d", 2, (8, 8, 1), {}, "", class_names=names) for names in (mine, theirs))
    with pytest.raises(UserError, match=r"classes that the run was not trained on: (one, zero|0, 1)"):
        match_classes(data, trained)


def test_data_without_names_need_as_many_classes() -> None:
    with pytest.raises(UserError, match="has 3 classes; the run was trained on 2"):
        match_classes(Info("d", 3, (8, 8, 1), {}, ""), Info("d", 2, (8, 8, 1), {}, ""))
