# A package, because some distributions install a top-level `tests` of their own, which would hide
# this folder from a child process that looks for tests.cluster.test_x.
