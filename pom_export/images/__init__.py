"""Sample images from an exported image model."""

from pom_export.images.sampling import Predict, sample_images

__all__ = ["Predict", "sample_images"]
