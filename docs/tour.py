# %% [markdown]
# # nin_jax in ten minutes
#
# A percent script: run it as it is (`python docs/tour.py`), open it cell by cell in an editor, or make a notebook of it
# (`jupytext --to ipynb docs/tour.py`). It needs `nin_jax` and matplotlib (`pip install -e ".[plot]"`), and no data.

# %%
import jax
import matplotlib.pyplot as plt
import numpy as np
from flax.linen.initializers import he_normal

import nin_jax
from nin_jax.data.datasets import digits
from nin_jax.layers import Layer, MLPConv

print(nin_jax.list_pretrained())

# %% [markdown]
# ## A trained network, and where it looks
#
# The last layer has one feature map a class. The average of a map is the score of its class (global average pooling), so the map
# says where the evidence lies, though nobody ever told the network where anything is.

# %%
network = nin_jax.load("nin.cifar10")
pictures = nin_jax.samples()
shown = [name for name in network.class_names if name in pictures]
figure, axes = plt.subplots(2, len(shown), figsize=(1.6 * len(shown), 3.4), layout="constrained")
for column, name in enumerate(shown):
    best = network.classify(pictures[name])[0]
    axes[0, column].imshow(plt.imread(pictures[name]))
    axes[1, column].imshow(network.overlay(pictures[name], best.index))
    axes[0, column].set_title(f"{best.name}\n{best.probability:.0%}", fontsize=9)
for axis in axes.ravel():
    axis.axis("off")
figure.savefig("tour.png")

# %% [markdown]
# ## Equation 2: an mlpconv layer
#
# A convolution, then 1x1 convolutions: a small network that slides over the image, with one set of weights for every place.

# %%
image = jax.random.normal(jax.random.key(0), (1, 8, 8, 3))
perceptron = [Layer("conv1", 16, he_normal()), Layer("cccp1", 8, he_normal())]  # name, channels, initial weights
layer = MLPConv(perceptron, size=3)
variables = layer.init(jax.random.key(1), image)
print(jax.tree.map(lambda array: array.shape, variables["params"]))

# %% [markdown]
# ## Global average pooling is a fully connected layer with nothing to learn
#
# Its matrix is fixed: each logit takes the mean of its own map.

# %%
images, labels = digits.load("test[:200]")
small = nin_jax.load("nin.digits")
logits, maps = small(images)
np.testing.assert_allclose(maps["class_maps"].mean((1, 2)), logits, rtol=1e-4, atol=1e-4)
print(f"error on {len(labels)} digits: {100 * np.mean(logits.argmax(1) != labels):.1f} %")

# %% [markdown]
# ## Features, for a task of your own
#
# `num_classes=0` gives what the class maps are made of.

# %%
model, variables = nin_jax.create_model("nin.digits", pretrained=True, num_classes=0)
transform = nin_jax.create_transform(**nin_jax.resolve_model_data_config("nin.digits"))
features, _ = model.apply(variables, np.stack([transform(image) for image in images]), train=False)
print(features.shape)

# %% [markdown]
# Training is one command, `python -m nin_jax.main --config=experiments/digits.py`: docs/index.md goes on from here.
