"""The questions. One file a question: its function, its answer type, its picture. Imported as `landscape.analysis`."""
