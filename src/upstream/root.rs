//! Paths below a folder.
