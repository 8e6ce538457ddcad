"""The lab: jobs that hang as TensorFlow's parameter-server jobs do, the verdicts, and the fixes."""
