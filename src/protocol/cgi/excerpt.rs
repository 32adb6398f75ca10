//! The first bytes of what came, fit for an error message.

use std::fmt;

/// The first bytes of what came, quoted and escaped, so that a message or a log line can hold them.
#[derive(Clone, PartialEq, Eq)]
pub struct Excerpt(Box<str>);

impl Excerpt {
    /// How many bytes are shown; what is longer ends with `…`.
    pub const MAX_LEN: usize = 64;

    /// Keeps the first [`Excerpt::MAX_LEN`] bytes.
    pub fn new(bytes: &[u8]) -> Self {
        let shown = &bytes[..bytes.len().min(Self::MAX_LEN)];
        let more = if shown.len() < bytes.len() { "…" } else { "" };
        Self(format!("\"{}\"{more}", shown.escape_ascii()).into())
    }
}

impl fmt::Display for Excerpt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Excerpt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_excerpt_is_escaped_and_cut() {
        assert_eq!(Excerpt::new(b"a\r\n\0\"\xff").to_string(), r#""a\r\n\x00\"\xff""#);
        assert_eq!(Excerpt::new(&[b'x'; 64]).to_string(), format!("\"{}\"", "x".repeat(64)));
        assert_eq!(Excerpt::new(&[b'x'; 65]).to_string(), format!("\"{}\"…", "x".repeat(64)));
    }
}
