"""Ablations: Ray Tune over recipes, a grid a table of a paper, the paper's figures beside ours."""
