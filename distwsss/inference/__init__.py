"""A trained segmenter on a photograph: views, upsampling, CRF, pictures."""
