"""The networks of the zoo. The file's name is the key: `nin.py` is the model "nin".

Every file has a Flax module `Model(num_classes, dtype=float32, **arguments)`, whose arguments a config may set; wrong
ones raise ValueError. All are called in the same way, `logits, maps = model.apply(variables, image, train=False)`:

Args:
  image: `[B, H, W, C]`, float32 or bfloat16; with head "gap", any H and W large enough for the pools.
  train: whether dropout is on (it then needs the rng "dropout"), and batch normalisation takes the batch's statistics.
  example: int32 `[B]`, index of each image in the global batch, which random numbers are keyed by. Default 0 to B - 1.

Returns:
  float32 logits `[B, num_classes]`, or with `num_classes=0` features `[B, D]`, the input of the classifier (the means of
  feature maps); and a dict of every named map `[B, H', W', C']`, among them "class_maps" in networks with a map for each
  class.

`NUM_CLASSES` and `IMAGE_SHAPE` of a file are what `nin_jax.create_model` makes it for unless told otherwise; the defaults are
10 and (32, 32, 3).

A model with batch normalisation also has the attribute `axis_name`: the mapped axis whose replicas share the
statistics. Whoever maps the model sets it.
"""
