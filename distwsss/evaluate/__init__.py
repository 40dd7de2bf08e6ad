"""Measuring: mIoU, label statistics, inference and prediction."""
