//! What options' values look like: lengths of time, sizes, pairs, modes. Each mistake says what was expected and what came.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

/// `500ms`, `30s`, `2m`, `1h30m`, `1d`; a number alone is seconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("expected a length of time such as 30s, 500ms, 2m or 1h30m, got \"{text}\"");
    // Clocks end somewhere.
    const LONGEST: Duration = Duration::from_secs(10_000 * 24 * 60 * 60);
    let bounded = |time: Duration| match time <= LONGEST {
        true => Ok(time),
        false => Err(format!("expected a length of time of at most 10000d, got \"{text}\"")),
    };
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.parse().map(Duration::from_secs).map_err(|_| wrong()).and_then(bounded);
    }
    let mut total = Duration::ZERO;
    let mut rest = text;
    // From the longest unit to the shortest, each once, so that nobody reads `1s1m` in two ways.
    let mut last = u64::MAX;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, after) = rest.split_at(digits);
        let letters = after.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (unit, after) = after.split_at(letters);
        let milliseconds = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" | "min" => 60 * 1000,
            "h" => 60 * 60 * 1000,
            "d" => 24 * 60 * 60 * 1000,
            _ => return Err(wrong()),
        };
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let part = number.checked_mul(milliseconds).ok_or_else(wrong)?;
        if milliseconds >= last {
            return Err(wrong());
        }
        total = total.checked_add(Duration::from_millis(part)).ok_or_else(wrong)?;
        (rest, last) = (after, milliseconds);
    }
    if text.is_empty() { Err(wrong()) } else { bounded(total) }
}

/// `65536`, `64K`, `10M`, `1G`, `1T`, with `B` or `iB` behind it if one likes; K is 1,024.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let wrong = || format!("expected a size such as 65536, 64K, 10M or 1G, got \"{text}\"");
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit = unit.to_ascii_lowercase();
    let shift = match unit.strip_suffix("ib").or(unit.strip_suffix('b')).unwrap_or(&unit) {
        "" if !unit.starts_with('i') => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    number.checked_mul(1 << shift).ok_or_else(wrong)
}

/// As [`size`], for what is kept in memory.
pub(crate) fn memory(text: &str) -> Result<usize, String> {
    usize::try_from(size(text)?).map_err(|_| format!("expected a size that fits into memory, got \"{text}\""))
}

/// A number of at least one.
pub(crate) fn at_least_one(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|number| *number > 0).ok_or_else(|| format!("expected a number from 1 on, got \"{text}\""))
}

/// The mode of a socket, in octal digits.
pub(crate) fn mode(text: &str) -> Result<u32, String> {
    let digits = text.strip_prefix("0o").unwrap_or(text);
    let is_octal = (1..=4).contains(&digits.len()) && digits.bytes().all(|byte| matches!(byte, b'0'..=b'7'));
    let mode = is_octal.then(|| u32::from_str_radix(digits, 8).ok()).flatten().filter(|mode| *mode <= 0o777);
    mode.ok_or_else(|| format!("expected a mode in octal digits such as 660, got \"{text}\""))
}

/// `NAME=VALUE`, a variable.
pub(crate) fn variable(text: &str) -> Result<(OsString, OsString), String> {
    let (name, value) = pair(text, "NAME=VALUE, a variable")?;
    Ok((name.into(), value.into()))
}

/// `.ending=/path/of/interpreter`.
pub(crate) fn interpreter(text: &str) -> Result<(OsString, PathBuf), String> {
    let expected = ".ENDING=PROGRAM, such as .py=/usr/bin/python3";
    let (ending, program) = pair(text, expected)?;
    if !ending.starts_with('.') || ending.len() < 2 || !program.starts_with('/') {
        return Err(format!("expected {expected}, got \"{text}\""));
    }
    Ok((ending.into(), program.into()))
}

/// `/prefix=FOLDER`.
pub(crate) fn accel_root(text: &str) -> Result<(String, PathBuf), String> {
    let expected = "/PREFIX/=FOLDER, such as /protected/=/srv/files";
    let (prefix, folder) = pair(text, expected)?;
    if !prefix.starts_with('/') || folder.is_empty() {
        return Err(format!("expected {expected}, got \"{text}\""));
    }
    Ok((prefix.into(), folder.into()))
}

/// A part of paths: begins with a slash, and does not end with one.
pub(crate) fn prefix(text: &str) -> Result<String, String> {
    if !text.starts_with('/') || text.contains(['?', '#', '\0']) {
        return Err(format!("expected the beginning of a path, such as /app, got \"{text}\""));
    }
    Ok(text.trim_end_matches('/').into())
}

/// Something on both sides of the first `=`, the first of which is not empty.
pub(crate) fn pair<'a>(text: &'a str, expected: &str) -> Result<(&'a str, &'a str), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name, value)),
        _ => Err(format!("expected {expected}, got \"{text}\"")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time_are_read() {
        for (text, milliseconds) in [
            ("0", 0),
            ("30", 30_000),
            ("500ms", 500),
            ("2m", 120_000),
            ("2min", 120_000),
            ("1h30m", 5_400_000),
            ("1d", 86_400_000),
            ("1m5s250ms", 65_250),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        let wrong =
            ["", "s", "1x", "1.5s", "-1s", "+1", " 1s", "1 s", "1s1m", "1s1s", "1m30", "99999999999999999999", "1S"];
        for text in wrong.into_iter().chain(["18446744073709551615d", "18446744073709551615", "10001d"]) {
            let message = duration(text).expect_err(text);
            assert!(message.starts_with("expected a length of time") && message.ends_with(&format!("got \"{text}\"")));
        }
    }

    #[test]
    fn sizes_are_read() {
        for (text, bytes) in [
            ("0", 0),
            ("65536", 65_536),
            ("64K", 65_536),
            ("64k", 65_536),
            ("1KiB", 1024),
            ("10M", 10 << 20),
            ("10MB", 10 << 20),
            ("1g", 1 << 30),
            ("2T", 2 << 40),
            ("5B", 5),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "M", "1.5M", "-1", "+1", "1 M", "1iB", "1Ki", "1X", "16777216T", "99999999999999999999"] {
            let message = size(text).expect_err(text);
            assert!(message.starts_with("expected a size") && message.ends_with(&format!("got \"{text}\"")));
        }
    }

    #[test]
    fn modes_are_octal() {
        assert_eq!((mode("660"), mode("0600"), mode("0o777")), (Ok(0o660), Ok(0o600), Ok(0o777)));
        for text in ["", "888", "1000", "7777", "rw", "-660", "+660", "0x1ff"] {
            assert!(mode(text).unwrap_err().contains("such as 660"), "{text}");
        }
    }

    #[test]
    fn pairs_have_both_sides() {
        assert_eq!(variable("A=b=c"), Ok(("A".into(), "b=c".into())));
        assert_eq!(variable("A="), Ok(("A".into(), "".into())));
        assert!(variable("A").is_err() && variable("=b").is_err());
        assert_eq!(interpreter(".py=/usr/bin/python3"), Ok((".py".into(), "/usr/bin/python3".into())));
        for text in ["py=/usr/bin/python3", ".py=python3", ".=/bin/sh", ".py", ""] {
            assert!(interpreter(text).unwrap_err().contains(".py=/usr/bin/python3"), "{text}");
        }
        assert_eq!(accel_root("/p/=/srv/files"), Ok(("/p/".into(), "/srv/files".into())));
        assert!(accel_root("p=/srv").is_err() && accel_root("/p=").is_err());
    }

    #[test]
    fn a_prefix_begins_with_a_slash() {
        assert_eq!(
            (prefix("/"), prefix("/app/"), prefix("/a/b")),
            (Ok("".into()), Ok("/app".into()), Ok("/a/b".into()))
        );
        assert!(prefix("app").is_err() && prefix("").is_err() && prefix("/a?b").is_err());
    }
}
