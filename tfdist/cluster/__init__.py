"""Starting the tasks of a cluster: what one task runs, and whole clusters on this machine."""
