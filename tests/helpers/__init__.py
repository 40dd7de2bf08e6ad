"""What tests share: builders of small runs, references written independently of the code, and launching of ranks."""
