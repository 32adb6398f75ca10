//! The table: a line for each record, with what is wrong below it and a line for each request that is over.

use std::io::Write;

use gatespan::recording::{Direction, Entry, Finding, Passed, Summary};

/// Writes lines.
pub(super) struct Table {
    is_coloured: bool,
    /// How many characters fit in a line.
    width: Option<usize>,
    hex: bool,
    has_heading: bool,
}

const RED: &str = "31";
const GREEN: &str = "32";
const YELLOW: &str = "33";
const CYAN: &str = "36";
const BOLD: &str = "1";
const DIM: &str = "2";

impl Table {
    pub(super) fn new(is_coloured: bool, width: Option<usize>, hex: bool) -> Self {
        Self { is_coloured, width, hex, has_heading: false }
    }

    pub(super) fn entry(
        &mut self,
        entry: &Entry,
        request: Option<u64>,
        meaning: &str,
        findings: &[Finding],
        out: &mut Vec<u8>,
    ) {
        if !self.has_heading {
            self.has_heading = true;
            let heading = format!(
                "{:>9} {:>15} {:>4} {:>4} {:>2} {:<17} {:>5} {:>6} {:>3} MEANING",
                "OFFSET", "TIME", "CONN", "REQ", "", "TYPE", "ID", "LENGTH", "PAD"
            );
            self.line(&[(BOLD, &heading)], out);
        }
        let (arrow, colour) = match entry.passed.direction() {
            Some(Direction::ToApplication) => ("->", CYAN),
            Some(Direction::ToWebServer) => ("<-", GREEN),
            None => ("", DIM),
        };
        let what = match &entry.passed {
            Passed::Record { record, .. } => {
                let header = record.header();
                let (record_type, id) = (header.record_type.to_string(), header.request_id);
                format!("{record_type:<17} {id:>5} {:>6} {:>3}", header.content_len, header.padding_len)
            }
            other => {
                let (kind, len) = match other {
                    Passed::Opened { .. } => ("(opened)", None),
                    Passed::Garbage { piece, .. } => ("(garbage)", Some(piece.bytes.len() as u64)),
                    Passed::Cut { piece, .. } => ("(cut)", Some(piece.bytes.len() as u64)),
                    Passed::Gap { len, .. } => ("(gap)", *len),
                    Passed::Ended { .. } => ("(ended)", None),
                    _ => ("(broken)", None),
                };
                let len = len.map_or(String::new(), |len| len.to_string());
                format!("{kind:<17} {:>5} {len:>6} {:>3}", "", "")
            }
        };
        let is_error = matches!(
            &entry.passed,
            Passed::Record { record, .. } if u8::from(record.header().record_type) == 7 && !record.content().is_empty()
        );
        let request = request.map_or("-".into(), |number| number.to_string());
        let place = format!("{:>9} {:>15} {:>4} {request:>4} ", entry.offset, time_of_day(entry), entry.connection);
        let meaning = printable(meaning);
        self.line(
            &[(DIM, &place), (colour, &format!("{arrow:>2} {what} ")), (if is_error { YELLOW } else { "" }, &meaning)],
            out,
        );
        for finding in findings {
            let text = format!("{:>9} ! FastCGI {}: {}", "", finding.clause(), printable(&finding.to_string()));
            self.line(&[(RED, &text)], out);
        }
        if self.hex {
            self.dump(entry.passed.bytes(), out);
        }
    }

    pub(super) fn summary(&self, summary: &Summary, out: &mut Vec<u8>) {
        let text = format!("{:>9} = request {}: {}", "", summary.number, printable(&summary.to_string()));
        let is_bad = summary.status.is_some_and(|status| status >= 500) || summary.end.is_none();
        self.whole_line(if is_bad { RED } else { BOLD }, &text, out);
    }

    pub(super) fn total(&self, entries: u64, requests: u64, findings: u64, out: &mut Vec<u8>) {
        let plural = |number: u64, word: &str| match (number, word) {
            (1, "entry") => "1 entry".to_owned(),
            (number, "entry") => format!("{number} entries"),
            (1, word) => format!("1 {word}"),
            (number, word) => format!("{number} {word}s"),
        };
        let [entries, requests, findings] = [(entries, "entry"), (requests, "request"), (findings, "finding")]
            .map(|(number, word)| plural(number, word));
        self.whole_line(BOLD, &format!("{entries}, {requests}, {findings}"), out);
    }

    /// A line that is not cut: it is the last word on its request.
    fn whole_line(&self, colour: &str, text: &str, out: &mut Vec<u8>) {
        self.part(colour, text, out);
        out.push(b'\n');
    }

    /// A line of parts, cut where the terminal ends.
    fn line(&self, parts: &[(&str, &str)], out: &mut Vec<u8>) {
        let mut left = self.width.unwrap_or(usize::MAX);
        for (colour, text) in parts {
            let len = text.chars().count();
            if len <= left {
                self.part(colour, text, out);
                left -= len;
                continue;
            }
            let mut shown: String = text.chars().take(left.saturating_sub(1)).collect();
            shown.push('…');
            self.part(colour, &shown, out);
            break;
        }
        out.push(b'\n');
    }

    fn part(&self, colour: &str, text: &str, out: &mut Vec<u8>) {
        // Writing to memory does not fail.
        let _ = match self.is_coloured && !colour.is_empty() {
            true => write!(out, "\x1b[{colour}m{text}\x1b[0m"),
            false => write!(out, "{text}"),
        };
    }

    fn dump(&self, bytes: &[u8], out: &mut Vec<u8>) {
        for (at, row) in bytes.chunks(16).enumerate() {
            let mut hex = String::new();
            for (column, byte) in row.iter().enumerate() {
                hex.push_str(if column == 8 { "  " } else { " " });
                hex.push_str(&format!("{byte:02x}"));
            }
            let text: String =
                row.iter().map(|byte| if (b' '..0x7f).contains(byte) { char::from(*byte) } else { '.' }).collect();
            self.whole_line(DIM, &format!("{:>9} {:08x} {hex:<50} |{text}|", "", at * 16), out);
        }
    }
}

/// The time of day in UTC.
fn time_of_day(entry: &Entry) -> String {
    let Some(time) = entry.time else { return "-".into() };
    let microseconds = time.0 / 1000 % 86_400_000_000;
    let (seconds, microseconds) = (microseconds / 1_000_000, microseconds % 1_000_000);
    format!("{:02}:{:02}:{:02}.{microseconds:06}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

/// Without anything that a terminal obeys.
fn printable(text: &str) -> String {
    text.chars()
        .flat_map(|character| match character.is_control() {
            true => character.escape_default().collect::<Vec<_>>(),
            false => vec![character],
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use gatespan::recording::{ConnectionId, Piece, Timestamp};

    use super::*;

    #[test]
    fn a_line_ends_where_the_terminal_does_and_commands_it_nothing() {
        let piece = Piece { bytes: b"x"[..].into(), holes: Vec::new() };
        let passed = Passed::Cut { direction: Direction::ToApplication, piece };
        let time = Some(Timestamp(1_700_000_000_123_456_000));
        let entry = Entry { offset: 7, time, connection: ConnectionId(3), passed };
        let meaning = format!("\u{1b}[31m{}", "é".repeat(100));
        for (width, is_coloured) in [(Some(90), false), (Some(90), true), (None, false)] {
            let (mut table, mut out) = (Table::new(is_coloured, width, false), Vec::new());
            table.entry(&entry, Some(2), &meaning, &[], &mut out);
            let text = String::from_utf8(out).unwrap();
            let plain = [BOLD, DIM, CYAN].iter().fold(text.clone(), |text, colour| {
                text.replace(&format!("\u{1b}[{colour}m"), "").replace("\u{1b}[0m", "")
            });
            assert_eq!(plain == text, !is_coloured);
            let line = plain.lines().nth(1).unwrap();
            let start = "        7 22:13:20.123456    3    2 -> (cut)                        1     \\u{1b}[31mé";
            assert!(line.starts_with(start), "{line}");
            match width {
                Some(width) => assert!(line.chars().count() == width && line.ends_with('…'), "{line}"),
                None => assert!(line.ends_with(&"é".repeat(100)), "{line}"),
            }
        }
    }

    #[test]
    fn numbers_have_their_words() {
        let mut out = Vec::new();
        Table::new(false, None, false).total(1, 2, 0, &mut out);
        assert_eq!(out, b"1 entry, 2 requests, 0 findings\n");
    }
}
