"""After the convex program: exact counts and the values on a fixed support."""
