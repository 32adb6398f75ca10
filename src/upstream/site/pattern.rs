//! Patterns of paths that are nobody's business.

use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;

/// A pattern such as `/.git/*`, `*.sql` or `/private`: `*` stands for any bytes, slashes too, and `?` for one. One that begins with a slash is
/// compared from the beginning of the path, any other from the beginning of any name in it. A pattern that covers a folder covers all
/// that is below it.
///
/// Compared with are decoded paths with one slash between names, byte by byte.
#[derive(Clone, PartialEq, Eq)]
pub struct Pattern {
    bytes: Vec<u8>,
}

impl Pattern {
    /// Whether it covers that path, which begins with a slash.
    pub fn matches(&self, path: &[u8]) -> bool {
        let is_anchored = self.bytes.first() == Some(&b'/');
        let starts = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
        match is_anchored {
            true => covers(&self.bytes, path),
            false => starts.into_iter().any(|slash| covers(&self.bytes, &path[slash + 1..])),
        }
    }
}

/// Whether the pattern matches the text, or the part of it before one of its slashes.
///
/// The last star is the only one that is ever tried again, so that the work is bounded by the product of both lengths.
fn covers(pattern: &[u8], text: &[u8]) -> bool {
    let (mut at, mut text_at) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    loop {
        if at == pattern.len() && matches!(text.get(text_at), None | Some(b'/')) {
            return true;
        }
        match (pattern.get(at), text.get(text_at)) {
            (Some(b'*'), _) => {
                star = Some((at, text_at));
                at += 1;
                continue;
            }
            (Some(b'?'), Some(_)) => {
                (at, text_at) = (at + 1, text_at + 1);
                continue;
            }
            (Some(expected), Some(found)) if expected == found => {
                (at, text_at) = (at + 1, text_at + 1);
                // A folder's pattern may be written with its slash.
                if at == pattern.len() && *expected == b'/' {
                    return true;
                }
                continue;
            }
            _ => {}
        }
        match &mut star {
            Some((star_at, from)) if *from < text.len() => {
                *from += 1;
                (at, text_at) = (*star_at + 1, *from);
            }
            _ => return false,
        }
    }
}

/// Any text is a pattern.
impl FromStr for Pattern {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self { bytes: text.as_bytes().to_vec() })
    }
}

impl From<&str> for Pattern {
    fn from(text: &str) -> Self {
        Self { bytes: text.as_bytes().to_vec() }
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.bytes.escape_ascii())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_cover_what_they_name_and_what_is_below_it() {
        for (pattern, covered, others) in [
            ("/.git/*", &["/.git/config", "/.git/hooks/x", "/.git/"][..], &["/a/.git/x", "/.gitignore"][..]),
            ("*.sql", &["/x.sql", "/a/b.sql", "/a.sql/b"], &["/x.sqlite", "/sql", "/x.SQL"]),
            ("/private", &["/private", "/private/", "/private/a/b"], &["/privateer", "/a/private"]),
            ("/private/", &["/private/", "/private/a"], &["/privateer"]),
            ("vendor", &["/vendor", "/vendor/x", "/a/vendor/x"], &["/vendors", "/myvendor"]),
            ("composer.*", &["/composer.json", "/a/composer.lock"], &["/composer"]),
            (
                "/uploads/*.php",
                &["/uploads/x.php", "/uploads/a/b.php", "/uploads/x.php/y"],
                &["/x.php", "/uploads/x.phpx"],
            ),
            ("a?c", &["/abc", "/x/abc/d"], &["/ac", "/abbc"]),
            ("*", &["/", "/a"], &[]),
            ("**a*", &["/xax"], &["/b"]),
        ] {
            let pattern = Pattern::from(pattern);
            for path in covered {
                assert!(pattern.matches(path.as_bytes()), "{pattern:?} {path}");
            }
            for path in others {
                assert!(!pattern.matches(path.as_bytes()), "{pattern:?} {path}");
            }
        }
    }

    #[test]
    fn many_stars_take_no_more_than_their_time() {
        let pattern = Pattern::from(&*format!("/{}b", "*a".repeat(200)));
        assert!(!pattern.matches(format!("/{}", "a".repeat(4000)).as_bytes()));
    }
}
