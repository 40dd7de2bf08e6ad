"""Feature extractors that the classifier and the segmenters share."""
