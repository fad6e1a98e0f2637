"""Launchers: `nin_jax.main` on several processes, hosts or clusters, once or as a sweep."""
