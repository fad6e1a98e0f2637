"""The networks of the zoo. The file's name is the key: `nin.py` is the model "nin".

Every file has a Flax module `Model(num_classes, dtype=float32, **arguments)`, whose arguments a config may set. Wrong ones
are a ValueError when it is made. All are called in the same way, `logits, maps = model.apply(variables, image, train=False)`:

Args:
  image: `[B, H, W, C]`, float32 or bfloat16; where the head is "gap", any H and W that the pools leave a position of.
  train: whether dropout is on (it then needs the rng "dropout"), and batch normalisation takes the batch's statistics.
  example: int32 `[B]`, index of each image in the global batch, which random numbers are keyed by. Default 0 to B - 1.

Returns:
  float32 logits `[B, num_classes]`, and a dict of every named map `[B, H', W', C']`, among them "class_maps" in networks with a
  map for each class.

A model that normalises over the batch has the attribute `axis_name` besides: the mapped axis whose replicas share its
statistics. It is set by whoever maps the model.
"""
