"""The one exception of the models that means: the user asked for something that cannot be built."""


class ModelError(ValueError):
    """A model that cannot be built as asked. Its message is one line: what, where, what to do."""
