//! The forms of recordings: each is read, written, or both, in a file of its own.
//!
//! `fastcgi` and `json` hold records, the others exchanges. What each of them can't hold is listed in docs/recording.md.

pub mod fastcgi;
pub mod json;
