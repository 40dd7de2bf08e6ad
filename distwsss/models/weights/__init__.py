"""Published weights: files of any make read without running them, and their names made ours."""
