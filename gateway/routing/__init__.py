"""Where a request goes: an immutable catalogue, a pure choice, and the tries that follow from it."""
