"""Small pieces of a training loop; the loop itself stays yours."""
