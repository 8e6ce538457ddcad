"""The cases, a file each family: `tfdist.repro.matrix` says what they are and what they show."""
