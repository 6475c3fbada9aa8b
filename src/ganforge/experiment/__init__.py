"""From a config to objects: the data, the model, the trainer."""
