"""Declared studies as data, and their committed results."""
