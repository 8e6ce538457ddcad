"""What a run leaves on disk: its folder, its tasks' notes, and how they ended."""
