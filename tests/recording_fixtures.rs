//! What was captured and recorded from real servers, read and converted. How it was made say the READMEs of `fixtures/captures` and `fixtures/recordings`.

#[path = "support/seen.rs"]
mod seen;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use gatespan::protocol::cgi::{Limits, ResponseHead};
use gatespan::recording::form::{fastcgi, json};
use gatespan::recording::{
    CaptureReader, Direction, Entry, EntryReader, Exchange, Exchanges, InRecords, Passed, Spool,
};
use seen::{bytes_of, cut_everywhere, read, told};

fn fixture(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name);
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn capture(name: &str) -> Vec<u8> {
    fixture(&format!("captures/{name}"))
}

/// The names of all files of a folder of fixtures that end like this.
fn names(folder: &str, ends: &[&str]) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(folder);
    let files = fs::read_dir(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|name| ends.iter().any(|end| name.ends_with(end))).collect();
    names.sort();
    names
}

/// A file's entries, read in pieces of so many bytes.
fn entries(mut reader: impl EntryReader, file: &[u8], len: usize) -> Vec<Entry> {
    let mut entries = Vec::new();
    let mut take = |reader: &mut dyn EntryReader| {
        while let Some(entry) = reader.next().unwrap() {
            entries.push(entry);
        }
    };
    for piece in file.chunks(len) {
        reader.receive(piece);
        take(&mut reader);
    }
    reader.end();
    take(&mut reader);
    entries
}

fn captured(name: &str) -> Vec<Entry> {
    entries(InRecords::new(CaptureReader::default()), &capture(name), 1000)
}

/// The records of each connection and direction, told shortly: `BEGIN_REQUEST/1 PARAMS/1:620 PARAMS/1 STDIN/1`, which are type, id and length.
fn records(entries: &[Entry]) -> BTreeMap<(u64, char), String> {
    let mut lines: BTreeMap<_, String> = BTreeMap::new();
    for entry in entries {
        let Some(direction) = entry.passed.direction() else { continue };
        let word = match &entry.passed {
            Passed::Record { record, .. } => {
                let header = record.header();
                let len = if header.content_len == 0 { String::new() } else { format!(":{}", header.content_len) };
                format!("{}/{}{len}", header.record_type, header.request_id)
            }
            Passed::Garbage { piece, .. } => format!("garbage:{}", piece.bytes.len()),
            Passed::Cut { piece, .. } => format!("cut:{}", piece.bytes.len()),
            Passed::Gap { len, .. } => len.map_or("gap".to_owned(), |len| format!("gap:{len}")),
            _ => continue,
        };
        let arrow = if direction == Direction::ToApplication { '>' } else { '<' };
        let line = lines.entry((entry.connection.0, arrow)).or_default();
        let separator = if line.is_empty() { "" } else { " " };
        line.push_str(&format!("{separator}{word}"));
    }
    lines
}

/// The exchanges in the order in which they end, told shortly: connection and id, request, answer.
fn exchanges(entries: &[Entry]) -> Vec<String> {
    let mut exchanges = Exchanges::new(Spool::default());
    let mut found = Vec::new();
    for entry in entries {
        exchanges.receive(entry).unwrap();
        found.extend(std::iter::from_fn(|| exchanges.next()));
    }
    exchanges.end().unwrap();
    found.extend(std::iter::from_fn(|| exchanges.next()));
    found.iter().map(line).collect()
}

fn line(exchange: &Exchange) -> String {
    let param = |name: &str| {
        let found = exchange.params.iter().find(|(own, _)| *own == name.as_bytes());
        String::from_utf8_lossy(found.map_or(b"-", |(_, value)| value)).into_owned()
    };
    let answer = exchange.stdout.first(1024 * 1024).unwrap();
    let answered = match ResponseHead::decode(&answer, &Limits::default()) {
        Ok(Some((head, len))) => format!("{} and {} bytes", head.status_or_default().0, answer.len() - len),
        _ => "no head".to_owned(),
    };
    let end = match &exchange.end {
        Some(end) if end.application_status != 0 => format!(", status {}", end.application_status),
        Some(_) => String::new(),
        None => ", no end".to_owned(),
    };
    let damaged = if exchange.is_damaged { ", damaged" } else { "" };
    let (connection, id) = (exchange.connection, exchange.id);
    let (method, uri, stdin) = (param("REQUEST_METHOD"), param("REQUEST_URI"), exchange.stdin.len());
    format!("{connection}/{id} {method} {uri} with {stdin} bytes: {answered}{end}{damaged}")
}

#[test]
fn show() {
    for name in names("captures", &[".pcap", ".pcapng"]) {
        let entries = captured(&name);
        println!("== {name}\n{:#?}\n{:#?}", records(&entries), exchanges(&entries));
    }
    if let Some(folder) = std::env::var_os("SHOW") {
        for file in fs::read_dir(folder).unwrap() {
            let path = file.unwrap().path();
            let entries = entries(InRecords::new(CaptureReader::default()), &fs::read(&path).unwrap(), 1000);
            println!("== {}\n{:#?}\n{:#?}", path.display(), records(&entries), exchanges(&entries));
        }
    }
}
