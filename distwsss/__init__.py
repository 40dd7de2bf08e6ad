"""distwsss: weakly supervised semantic segmentation from image-level labels, from one machine to a cluster."""

__version__ = "0.1.0"
