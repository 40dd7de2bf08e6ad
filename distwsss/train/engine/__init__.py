"""How ranks train together: Accelerate, DeepSpeed ZeRO, and what they leave behind when they fail."""
