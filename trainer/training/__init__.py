"""From a manifest and a recipe to a run: plan, clips, loop, checkpoints, resume, and cross-validation."""
