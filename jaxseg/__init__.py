"""Image segmentation for JAX."""
