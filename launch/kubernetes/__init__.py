"""A run as a JobSet on Kubernetes: jobset.yaml is the manifest, values.yaml what it is filled in with."""
