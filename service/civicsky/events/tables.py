"""Tables of `events.db`, for its index and for whoever copies the file or looks it over; no statement is run here."""

from typing import Final

from civicsky.sqlite import Schema

_TABLES: Final = """
CREATE TABLE about (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE file (
  name TEXT PRIMARY KEY, size INTEGER NOT NULL, mtime INTEGER NOT NULL, articles INTEGER NOT NULL,
  doubled INTEGER NOT NULL, bad INTEGER NOT NULL, left_out INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE article (
  number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, title TEXT NOT NULL, text TEXT NOT NULL,
  event INTEGER NOT NULL, outlet TEXT NOT NULL, side TEXT NOT NULL, at INTEGER NOT NULL, url TEXT);
CREATE TABLE place (
  file TEXT NOT NULL, line INTEGER NOT NULL, article INTEGER NOT NULL, outlet TEXT NOT NULL, side TEXT NOT NULL,
  at INTEGER NOT NULL, url TEXT, PRIMARY KEY (file, line)) WITHOUT ROWID;
CREATE INDEX place_of ON place (article, file, line);
CREATE TABLE summary (
  event INTEGER NOT NULL, side TEXT NOT NULL, model TEXT NOT NULL, prompt TEXT NOT NULL, tries INTEGER NOT NULL,
  text TEXT, articles TEXT, at INTEGER, PRIMARY KEY (event, side, model, prompt)) WITHOUT ROWID;
CREATE TABLE paid (number INTEGER PRIMARY KEY, spend TEXT NOT NULL);
CREATE VIRTUAL TABLE word USING fts5(
  title, text, content='', contentless_delete=1, tokenize='porter unicode61 remove_diacritics 2');
"""
SCHEMA: Final = Schema(application_id=0x63737935, steps=(_TABLES,))  # "csy5"
"""Made by `index.Index` alone: only its SQLite knows all kinds of these tables. Any SQLite can copy and check them."""
VECTORS: Final = (
    "CREATE VIRTUAL TABLE vector USING vec0("
    "number INTEGER PRIMARY KEY, embedding FLOAT[{width}] distance_metric=cosine, at INTEGER)"
)
"""The table of vectors, which have so many numbers each."""
