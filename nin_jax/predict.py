"""A trained run as a function: pictures in, logits and maps out."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np

from nin_jax import evaluate, parallel, step, transfer


class Predictor:
    """The newest good checkpoint of a run directory, which may be a stranger's: nothing in it is executed.

    Args:
      workdir: the run directory.
      trust: whether modules outside the zoo that its config.json names by dotted path may be imported. Raises `Mistake`
        for such a name without it.

    Attributes:
      config: the run's config.
      params: its parameters; their average where the recipe takes one.
      step: the checkpoint's finished updates.
    """

    def __init__(self, workdir: str | Path, *, trust: bool = False):
        path = Path(workdir).expanduser()
        run = transfer.run_of(path, trust=trust)
        self.config = run.config
        recipe = run.recipe(1)
        self.step, state = evaluate.restore(run, recipe, path)
        self._variables, self._stats = state.variables, run.fitted(path, write=False)
        self.params = self._variables["params"]
        self._predict = jax.jit(lambda variables, stats, image: step.predict(recipe, variables, stats, image))

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Logits float32 `[B, K]` and every named map of uint8 pictures `[B, H, W, C]`, preprocessed as in training."""
        return parallel.host(self._predict(self._variables, self._stats, np.asarray(images, np.uint8)))
