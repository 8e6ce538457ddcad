"""`tfdist doctor`: finds what would keep a job from starting, before it starts."""
