"""Networks: backbones, the classifier that gives CAMs, the segmenters, and how their weights are stored."""
