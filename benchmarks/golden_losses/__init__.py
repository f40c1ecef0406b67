"""Losses of a few toy steps of both stages, bit for bit against another checkout's."""
