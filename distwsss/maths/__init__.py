"""Plain functions of arrays: no files, no configuration but the CRF's parameters, no torch but where said."""
