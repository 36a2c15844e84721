"""Sparse dictionaries (SAEs and crosscoders): trained, read, scaled, kept, and exchanged with other tools."""
