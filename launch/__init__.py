"""Starts `nin_jax.main` on many devices, processes and hosts, once or many times, on engines that exist."""
