"""Network In Network (Lin, Chen, Yan 2013) in JAX/Flax: models, training, evaluation."""

__version__ = "0.1.0"
