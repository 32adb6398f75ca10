//! Copies of files in other codings, made before and kept beside them.

/// A coding that a file may have a copy in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Coding {
    /// `br`, in files that end in `.br`.
    Brotli,
    /// `zstd`, in files that end in `.zst`.
    Zstd,
    /// `gzip`, in files that end in `.gz`.
    Gzip,
}

impl Coding {
    /// As Content-Encoding names it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Brotli => "br",
            Self::Zstd => "zstd",
            Self::Gzip => "gzip",
        }
    }

    pub(super) fn ending(self) -> &'static str {
        match self {
            Self::Brotli => ".br",
            Self::Zstd => ".zst",
            Self::Gzip => ".gz",
        }
    }
}

/// Which of them a client takes (RFC 9110 12.5.3), what it likes most first.
pub(super) fn accepted(accept_encoding: Option<&[u8]>, offered: &[Coding]) -> Vec<Coding> {
    let Some(Ok(list)) = accept_encoding.map(std::str::from_utf8) else { return Vec::new() };
    let quality = |name: &str| {
        let (mut named, mut others) = (None, None);
        for member in list.split(',') {
            let mut parts = member.split(';').map(str::trim);
            let coding = parts.next().unwrap_or_default();
            let quality = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
            // In thousandths, which is as fine as it gets; what is no number takes nothing.
            let quality = quality.map_or(1000, |text| {
                text.parse::<f32>().map_or(0, |quality| (quality.clamp(0.0, 1.0) * 1000.0) as u16)
            });
            match coding {
                "*" => others = Some(quality),
                _ if coding.eq_ignore_ascii_case(name) || (name == "gzip" && coding.eq_ignore_ascii_case("x-gzip")) => {
                    named = Some(quality);
                }
                _ => {}
            }
        }
        named.or(others).unwrap_or(0)
    };
    let mut accepted: Vec<_> =
        offered.iter().map(|coding| (quality(coding.name()), *coding)).filter(|(quality, _)| *quality > 0).collect();
    // The sort is stable: of those that are liked alike the first that is offered counts.
    accepted.sort_by_key(|(quality, _)| std::cmp::Reverse(*quality));
    accepted.into_iter().map(|(_, coding)| coding).collect()
}

#[cfg(test)]
mod tests {
    use super::Coding::{Brotli, Gzip, Zstd};
    use super::*;

    #[test]
    fn a_client_gets_what_it_likes_most_and_never_what_it_refuses() {
        for (accept, expected) in [
            ("gzip, deflate, br, zstd", &[Brotli, Zstd, Gzip][..]),
            ("gzip;q=1.0, br;q=0.5", &[Gzip, Brotli]),
            ("br;q=0, *", &[Zstd, Gzip]),
            ("*;q=0", &[]),
            ("GZIP", &[Gzip]),
            ("x-gzip", &[Gzip]),
            ("gzip;q=x", &[]),
            ("identity", &[]),
            ("", &[]),
        ] {
            assert_eq!(accepted(Some(accept.as_bytes()), &[Brotli, Zstd, Gzip]), expected, "{accept}");
        }
        assert_eq!(accepted(None, &[Gzip]), []);
        assert_eq!(accepted(Some(b"\xff"), &[Gzip]), []);
    }
}
