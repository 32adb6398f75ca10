//! Conditional requests (RFC 9110 section 13) and ranges (section 14) for one file.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::Coding;
use crate::application::Environ;

/// What tells one state of a file from another.
#[derive(Debug, Clone)]
pub(super) struct Validators {
    etag: String,
    /// In whole seconds, which is all that HTTP's dates hold.
    modified: Option<SystemTime>,
}

impl Validators {
    /// Of a file, or of its copy in that coding.
    pub(super) fn of(metadata: &Metadata, coding: Option<Coding>) -> Self {
        let (seconds, nanoseconds) = (metadata.mtime(), metadata.mtime_nsec());
        let suffix = coding.map(|coding| format!("-{}", coding.name())).unwrap_or_default();
        let modified = u64::try_from(seconds).ok().map(|seconds| UNIX_EPOCH + Duration::from_secs(seconds));
        Self { etag: format!("\"{seconds:x}.{nanoseconds:x}-{:x}{suffix}\"", metadata.len()), modified }
    }

    pub(super) fn etag(&self) -> &str {
        &self.etag
    }

    pub(super) fn modified(&self) -> Option<SystemTime> {
        self.modified
    }
}

/// What a request gets of a file that is there.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Whole,
    Part { offset: u64, len: u64 },
    NotModified,
    PreconditionFailed,
    NotSatisfiable,
}

/// In the order of RFC 9110 13.2.2.
pub(super) fn outcome(environ: &Environ, validators: &Validators, len: u64) -> Outcome {
    let date = |name: &str| {
        let text = std::str::from_utf8(environ.get(name)?).ok()?;
        httpdate::parse_http_date(text).ok()
    };
    if let Some(tags) = environ.get("HTTP_IF_MATCH") {
        // 13.1.1: strong comparison.
        if !lists(tags, &validators.etag, false) {
            return Outcome::PreconditionFailed;
        }
    } else if let Some((since, modified)) = date("HTTP_IF_UNMODIFIED_SINCE").zip(validators.modified)
        && modified > since
    {
        return Outcome::PreconditionFailed;
    }
    if let Some(tags) = environ.get("HTTP_IF_NONE_MATCH") {
        // 13.1.2: weak comparison.
        if lists(tags, &validators.etag, true) {
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

/// Whether a list of entity tags has that one.
fn lists(list: &[u8], etag: &str, weakly: bool) -> bool {
    if list.trim_ascii() == b"*" {
        return true;
    }
    // A comma may be part of a tag, and none of ours has one: what is cut there is not ours.
    list.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).any(|tag| match tag.strip_prefix(b"W/") {
        Some(tag) => weakly && tag == etag.as_bytes(),
        None => tag == etag.as_bytes(),
    })
}

/// If-Range (13.1.5): the range is of this state of the file, or not wanted.
fn range_counts(environ: &Environ, validators: &Validators) -> bool {
    let Some(condition) = environ.get("HTTP_IF_RANGE") else { return true };
    let condition = condition.trim_ascii();
    if condition.starts_with(b"\"") || condition.starts_with(b"W/") {
        return condition == validators.etag.as_bytes();
    }
    let date = std::str::from_utf8(condition).ok().and_then(|text| httpdate::parse_http_date(text).ok());
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
        Validators { etag: "\"a-1\"".into(), modified: httpdate::parse_http_date(MODIFIED).ok() }
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
