"""Where training gets the target's features from: computed at each step, or read from a cache on disk."""

from deepspec.features.cached import CachedFeatures
from deepspec.features.source import FeatureSource, OnlineFeatures, SourceContext

__all__ = ["CachedFeatures", "FeatureSource", "OnlineFeatures", "SourceContext"]
