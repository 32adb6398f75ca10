//! Conditional requests (RFC 9110 section 13) and ranges (section 14) for one file, whoever serves it.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::environ::Environ;

/// What tells one state of a file from another.
#[derive(Debug, Clone, Default)]
pub(crate) struct Validators {
    /// With its quotes, and W/ before them where it is weak.
    pub(crate) etag: Option<Vec<u8>>,
    /// In whole seconds, which is all that HTTP's dates hold.
    pub(crate) modified: Option<SystemTime>,
}

impl Validators {
    /// Of a file, or of its copy in some coding, whose name goes into the tag.
    pub(crate) fn of(metadata: &Metadata, coding: Option<&str>) -> Self {
        let (seconds, nanoseconds) = (metadata.mtime(), metadata.mtime_nsec());
        let suffix = coding.map(|coding| format!("-{coding}")).unwrap_or_default();
        let modified = u64::try_from(seconds).ok().map(|seconds| UNIX_EPOCH + Duration::from_secs(seconds));
        let etag = format!("\"{seconds:x}.{nanoseconds:x}-{:x}{suffix}\"", metadata.len());
        Self { etag: Some(etag.into_bytes()), modified }
    }

    /// As a response's fields have them.
    pub(crate) fn of_fields(etag: Option<&[u8]>, last_modified: Option<&[u8]>) -> Self {
        Self { etag: etag.map(|etag| etag.trim_ascii().to_vec()), modified: last_modified.and_then(date) }
    }

    /// The date for Last-Modified: none that lies in the future (RFC 9110 8.8.2.1).
    pub(crate) fn last_modified(&self) -> Option<String> {
        self.modified.filter(|modified| *modified <= SystemTime::now()).map(httpdate::fmt_http_date)
    }
}

/// What a request gets of a file that is there.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Whole,
    Part { offset: u64, len: u64 },
    NotModified,
    PreconditionFailed,
    NotSatisfiable,
}

/// In the order of RFC 9110 13.2.2.
pub(crate) fn outcome(environ: &Environ, validators: &Validators, len: u64) -> Outcome {
    let date = |name: &str| environ.get(name).and_then(date);
    if let Some(tags) = environ.get("HTTP_IF_MATCH") {
        // 13.1.1: strong comparison.
        if !lists(tags, validators.etag.as_deref(), false) {
            return Outcome::PreconditionFailed;
        }
    } else if let Some((since, modified)) = date("HTTP_IF_UNMODIFIED_SINCE").zip(validators.modified)
        && modified > since
    {
        return Outcome::PreconditionFailed;
    }
    if let Some(tags) = environ.get("HTTP_IF_NONE_MATCH") {
        // 13.1.2: weak comparison.
        if lists(tags, validators.etag.as_deref(), true) {
            return Outcome::NotModified;
        }
    } else if let Some((since, modified)) = date("HTTP_IF_MODIFIED_SINCE").zip(validators.modified)
        && modified <= since
    {
        return Outcome::NotModified;
    }
    // 14.2: a range is for GET alone.
    match environ.get("HTTP_RANGE").filter(|_| environ.method() == b"GET" && range_counts(environ, validators)) {
        Some(range) => part(range, len),
        None => Outcome::Whole,
    }
}

fn date(text: &[u8]) -> Option<SystemTime> {
    httpdate::parse_http_date(std::str::from_utf8(text).ok()?.trim()).ok()
}

/// Whether a list of entity tags has that one. Compared strongly, a tag that is weak on either side is like none.
fn lists(list: &[u8], etag: Option<&[u8]>, weakly: bool) -> bool {
    if list.trim_ascii() == b"*" {
        return true;
    }
    let Some((own, own_is_weak)) = etag.map(opaque) else { return false };
    let mut rest = list;
    while let Some(start) = memchr::memchr(b'"', rest)
        && let Some(len) = memchr::memchr(b'"', &rest[start + 1..])
    {
        let (tag, is_weak) = (&rest[start..start + len + 2], rest[..start].ends_with(b"W/"));
        if tag == own && (weakly || !(is_weak || own_is_weak)) {
            return true;
        }
        rest = &rest[start + len + 2..];
    }
    false
}

/// A tag without what makes it weak, and whether it was.
fn opaque(tag: &[u8]) -> (&[u8], bool) {
    match tag.strip_prefix(b"W/") {
        Some(tag) => (tag, true),
        None => (tag, false),
    }
}

/// If-Range (13.1.5): the range is of this state of the file, or not wanted.
fn range_counts(environ: &Environ, validators: &Validators) -> bool {
    let Some(condition) = environ.get("HTTP_IF_RANGE") else { return true };
    let condition = condition.trim_ascii();
    if condition.starts_with(b"\"") || condition.starts_with(b"W/") {
        // A weak one is never good enough for putting parts together.
        return validators.etag.as_deref() == Some(condition) && !opaque(condition).1;
    }
    let date = date(condition);
    // A date is a strong validator only once its second is over.
    let is_settled = |modified: &SystemTime| {
        SystemTime::now().duration_since(*modified).is_ok_and(|age| age > Duration::from_secs(1))
    };
    date.is_some() && date == validators.modified.filter(is_settled)
}

/// `bytes=first-last`, `bytes=first-` or `bytes=-length`. What is not of this form, or has several, is as if it were not there.
fn part(range: &[u8], len: u64) -> Outcome {
    let parsed = std::str::from_utf8(range).ok().and_then(|range| {
        let (unit, range) = range.split_once('=')?;
        let (first, last) = range.split_once('-')?;
        unit.trim().eq_ignore_ascii_case("bytes").then_some((first.trim(), last.trim()))
    });
    let Some((first, last)) = parsed else { return Outcome::Whole };
    // Digits alone: `parse` would take a sign. More of them than fit mean far behind the end.
    let number = |text: &str| match text.bytes().all(|byte| byte.is_ascii_digit()) && !text.is_empty() {
        true => Some(text.parse::<u64>().unwrap_or(u64::MAX)),
        false => None,
    };
    match (number(first), number(last)) {
        (None, Some(suffix)) if first.is_empty() => match suffix.min(len) {
            0 => Outcome::NotSatisfiable,
            part => Outcome::Part { offset: len - part, len: part },
        },
        (Some(first), None) if last.is_empty() => match first < len {
            true => Outcome::Part { offset: first, len: len - first },
            false => Outcome::NotSatisfiable,
        },
        (Some(first), Some(last)) if first <= last => match first < len {
            true => Outcome::Part { offset: first, len: last.min(len - 1) - first + 1 },
            false => Outcome::NotSatisfiable,
        },
        _ => Outcome::Whole,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::application::Variables;

    const MODIFIED: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    const BEFORE: &str = "Sun, 06 Nov 1994 08:49:36 GMT";

    fn validators() -> Validators {
        Validators { etag: Some("\"a-1\"".into()), modified: httpdate::parse_http_date(MODIFIED).ok() }
    }

    fn outcome_of(method: &str, pairs: &[(&str, &str)]) -> Outcome {
        let pairs = [("REQUEST_METHOD", method)].into_iter().chain(pairs.iter().copied());
        outcome(&Environ::new(Variables::from_iter(pairs)), &validators(), 10)
    }

    #[test]
    fn conditions_count_in_the_order_of_the_specification() {
        use Outcome::{NotModified, Part, PreconditionFailed, Whole};
        let first = Part { offset: 0, len: 1 };
        let table: [(&[(&str, &str)], Outcome); 22] = [
            (&[("HTTP_IF_NONE_MATCH", "\"a-1\"")], NotModified),
            (&[("HTTP_IF_NONE_MATCH", "\"x\", W/\"a-1\"")], NotModified),
            (&[("HTTP_IF_NONE_MATCH", "*")], NotModified),
            (&[("HTTP_IF_NONE_MATCH", "\"b\"")], Whole),
            (&[("HTTP_IF_NONE_MATCH", "a-1")], Whole),
            (&[("HTTP_IF_NONE_MATCH", "\"b\""), ("HTTP_IF_MODIFIED_SINCE", MODIFIED)], Whole),
            (&[("HTTP_IF_MODIFIED_SINCE", MODIFIED)], NotModified),
            (&[("HTTP_IF_MODIFIED_SINCE", BEFORE)], Whole),
            (&[("HTTP_IF_MODIFIED_SINCE", "yesterday")], Whole),
            (&[("HTTP_IF_MATCH", "\"a-1\"")], Whole),
            (&[("HTTP_IF_MATCH", "*")], Whole),
            (&[("HTTP_IF_MATCH", "W/\"a-1\"")], PreconditionFailed),
            (&[("HTTP_IF_MATCH", "\"b\"")], PreconditionFailed),
            (&[("HTTP_IF_MATCH", "\"a-1\""), ("HTTP_IF_UNMODIFIED_SINCE", BEFORE)], Whole),
            (&[("HTTP_IF_UNMODIFIED_SINCE", MODIFIED)], Whole),
            (&[("HTTP_IF_UNMODIFIED_SINCE", BEFORE)], PreconditionFailed),
            (&[("HTTP_RANGE", "bytes=0-0"), ("HTTP_IF_RANGE", "\"a-1\"")], first),
            (&[("HTTP_RANGE", "bytes=0-0"), ("HTTP_IF_RANGE", "W/\"a-1\"")], Whole),
            (&[("HTTP_RANGE", "bytes=0-0"), ("HTTP_IF_RANGE", "\"b\"")], Whole),
            (&[("HTTP_RANGE", "bytes=0-0"), ("HTTP_IF_RANGE", MODIFIED)], Part { offset: 0, len: 1 }),
            (&[("HTTP_RANGE", "bytes=0-0"), ("HTTP_IF_RANGE", BEFORE)], Whole),
            (&[("HTTP_RANGE", "bytes=0-0"), ("HTTP_IF_NONE_MATCH", "\"a-1\"")], NotModified),
        ];
        for (pairs, expected) in table {
            assert_eq!(outcome_of("GET", pairs), expected, "{pairs:?}");
        }
        assert_eq!(outcome_of("HEAD", &[("HTTP_RANGE", "bytes=0-0")]), Whole);
    }

    #[test]
    fn a_weak_tag_of_ones_own_is_good_for_weak_comparison_only() {
        let weak = Validators::of_fields(Some(b" W/\"a,b\""), None);
        let outcome_of = |name, value| {
            let pairs = [("REQUEST_METHOD", "GET"), ("HTTP_RANGE", "bytes=0-0"), (name, value)];
            outcome(&Environ::new(Variables::from_iter(pairs)), &weak, 10)
        };
        assert_eq!(outcome_of("HTTP_IF_NONE_MATCH", "\"x\", \"a,b\""), Outcome::NotModified);
        assert_eq!(outcome_of("HTTP_IF_MATCH", "W/\"a,b\", \"a,b\""), Outcome::PreconditionFailed);
        assert_eq!(outcome_of("HTTP_IF_RANGE", "W/\"a,b\""), Outcome::Whole);
    }

    #[test]
    fn a_range_is_read_byte_by_byte() {
        use Outcome::{NotSatisfiable, Part, Whole};
        for (range, expected) in [
            ("bytes=0-9", Part { offset: 0, len: 10 }),
            ("bytes=0-99", Part { offset: 0, len: 10 }),
            ("bytes=9-", Part { offset: 9, len: 1 }),
            ("BYTES = 3-4", Part { offset: 3, len: 2 }),
            ("bytes=-3", Part { offset: 7, len: 3 }),
            ("bytes=-99", Part { offset: 0, len: 10 }),
            ("bytes=0-99999999999999999999", Part { offset: 0, len: 10 }),
            ("bytes=-0", NotSatisfiable),
            ("bytes=10-", NotSatisfiable),
            ("bytes=99999999999999999999-", NotSatisfiable),
            ("bytes=10-10", NotSatisfiable),
            ("bytes=4-3", Whole),
            ("bytes=-", Whole),
            ("bytes=", Whole),
            ("bytes=+1-2", Whole),
            ("bytes=1-x", Whole),
            ("bytes=x-1", Whole),
            ("bytes=0-1,3-4", Whole),
            ("items=0-1", Whole),
            ("", Whole),
        ] {
            assert_eq!(part(range.as_bytes(), 10), expected, "{range}");
        }
        assert_eq!(part(b"bytes=0-", 0), NotSatisfiable);
        assert_eq!(part(b"bytes=-1", 0), NotSatisfiable);
    }
}
