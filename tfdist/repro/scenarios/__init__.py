"""The jobs of the cases, one file a family; `tfdist.repro.matrix` describes them."""
