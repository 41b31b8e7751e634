"""Ray Data and Ray Train around the methods: sources, views, feed, training, checkpoints, evaluation, recipes."""
