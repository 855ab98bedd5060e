"""Readers of the user's own files: streamed, bounded in memory, and strict with one clear line.

Every reader raises `gradatim.compare.errors.DataError` and nothing else for anything a file may hold.
"""
