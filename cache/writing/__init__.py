"""Writing a store: the writer, its staging files, how a store is begun and resumed, locks, and several workers."""
