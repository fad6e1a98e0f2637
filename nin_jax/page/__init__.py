"""One HTML file with a trained network inside, which classifies pictures wherever there is a browser.

`network` folds a network into what the page's JavaScript computes, `samples` are the test images that it shows, `inline` puts
all into one file. What is put there lies in `static/`: network.js computes, picture.js reads files, page.js and events.js are
what one sees and touches.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nin_jax.training.predict import Classifier


def write(classifier: str | Path | Classifier, path: str | Path) -> Path:
    """Writes one HTML file in which a trained network classifies pictures, offline and wherever a browser is.

    Args:
      classifier: a name of `nin_jax.list_pretrained()` or a run directory, as `nin_jax.load` takes them, or what it returns.
      path: the file, such as "nin.html". What is there is replaced.

    Returns:
      the path.

    Raises:
      UserError: for a network or preprocessing that the page cannot compute, or that is too large for a page of 3 MB.
    """
    from nin_jax import storage
    from nin_jax.page.inline import html

    made, path = html(classifier), storage.expanded(path)
    storage.make_folder(path.parent)
    storage.write_whole(path, made)
    return path
