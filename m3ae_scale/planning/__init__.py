"""What a run will need, worked out before it is submitted. Every figure of this room is projected, never measured."""
