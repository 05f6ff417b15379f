"""Ranks: who they are, how they are started, and how a layer is split over them."""
