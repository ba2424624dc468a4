"""Bags: recorder, writer, reader, message definitions."""
