//! What was captured and recorded from real servers, in each form of exchanges: written, read, and written again.
#![cfg(feature = "recording")]

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use gatespan::recording::form::{ExchangeReader, ExchangeWriter, Form, cgi, curl, fastcgi, har, http, json, recognise};
use gatespan::recording::{
    CaptureReader, Checker, ConnectionId, Describer, Entry, EntryReader, Exchange, Exchanges, InRecords, LogReader,
    Spool, Summaries,
};

fn recordings() -> Vec<PathBuf> {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let mut files = Vec::new();
    for folder in ["captures", "recordings"] {
        let found = fs::read_dir(fixtures.join(folder)).unwrap().map(|entry| entry.unwrap().path());
        let is_one = |path: &PathBuf| {
            path.extension().is_some_and(|end| ["pcap", "pcapng", "recording"].map(OsStr::new).contains(&end))
        };
        let before = files.len();
        files.extend(found.filter(is_one));
        assert!(files.len() > before + 5, "{files:?}");
    }
    files.sort();
    files
}

fn entries(mut reader: impl EntryReader, file: &[u8]) -> Vec<Entry> {
    let mut entries = Vec::new();
    for (at, piece) in file.chunks(1000).chain([&b""[..]]).enumerate() {
        reader.receive(piece);
        if at == file.len().div_ceil(1000) {
            reader.end();
        }
        while let Ok(Some(entry)) = reader.next() {
            entries.push(entry);
        }
    }
    entries
}

fn captured(file: &[u8]) -> Vec<Entry> {
    match recognise(file) {
        Some(Form::Pcap | Form::Pcapng) => entries(InRecords::new(CaptureReader::default()), file),
        Some(Form::Tap) => entries(InRecords::new(LogReader::new()), file),
        other => panic!("expected a capture or a recording, got {other:?}"),
    }
}

fn exchanges(entries: &[Entry]) -> Vec<Exchange> {
    let mut exchanges = Exchanges::new(Spool::new(10_000, None));
    let mut found = Vec::new();
    for entry in entries {
        exchanges.receive(entry).unwrap();
        found.extend(std::iter::from_fn(|| exchanges.next()));
    }
    exchanges.end().unwrap();
    found.extend(std::iter::from_fn(|| exchanges.next()));
    found
}

fn wire<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> Vec<u8> {
    let mut bytes = Vec::new();
    entries.into_iter().for_each(|entry| fastcgi::write(entry, &mut bytes));
    bytes
}

fn written(writer: &mut dyn ExchangeWriter, exchanges: &[Exchange]) -> Vec<u8> {
    let mut bytes = Vec::new();
    exchanges.iter().for_each(|exchange| drop(writer.write(exchange, &mut bytes).unwrap()));
    writer.finish(&mut bytes).unwrap();
    bytes
}

fn read_http(bytes: &[u8]) -> Vec<Exchange> {
    let mut reader = http::Reader::new(Spool::default());
    reader.receive(bytes);
    reader.end();
    std::iter::from_fn(|| reader.next().unwrap()).collect()
}

#[test]
fn what_is_put_together_holds_as_many_bytes_as_what_passed() {
    for path in recordings() {
        let entries = captured(&fs::read(&path).unwrap());
        let (mut summaries, mut summed_up) = (Summaries::default(), Vec::new());
        for entry in &entries {
            summed_up.extend(summaries.receive(entry, 0).1);
        }
        summed_up.extend(summaries.end());
        let exchanges = exchanges(&entries);
        assert_eq!(exchanges.len(), summed_up.len(), "{}", path.display());
        for exchange in exchanges {
            let summary = summed_up
                .iter()
                .find(|summary| summary.id == exchange.id && summary.times.begun == exchange.times.begun)
                .unwrap_or_else(|| panic!("{}: no summary of {exchange:?}", path.display()));
            let bytes = (exchange.stdin.len(), exchange.stdout.len(), exchange.stderr.len());
            assert_eq!(bytes, (summary.stdin, summary.stdout, summary.stderr), "{}", path.display());
            assert_eq!(exchange.end, summary.end);
        }
    }
}

#[test]
fn recordings_stay_the_same_in_every_form_from_the_second_time_on() {
    let folder = tempfile::tempdir().unwrap();
    for (number, path) in recordings().iter().enumerate() {
        let all = exchanges(&captured(&fs::read(path).unwrap()));
        let messages = written(&mut http::Writer::default(), &all);
        let read = read_http(&messages);
        assert_eq!(read.len(), all.len(), "{}", path.display());
        assert!(written(&mut http::Writer::default(), &read) == messages, "{}", path.display());

        let archive: serde_json::Value = serde_json::from_slice(&written(&mut har::Writer::default(), &all)).unwrap();
        assert_eq!(archive["log"]["entries"].as_array().unwrap().len(), all.len());
        let commands = written(&mut curl::Writer::default(), &all);
        assert!(commands.is_empty() == all.is_empty());

        for (at, exchange) in all.iter().enumerate() {
            let [once, twice] = ["once", "twice"].map(|name| folder.path().join(format!("{number}-{at}-{name}")));
            cgi::write(exchange, &once).unwrap();
            let read = cgi::read(&once, ConnectionId(1), &Spool::default()).unwrap();
            cgi::write(&read, &twice).unwrap();
            for file in ["environment", "input", "output", "errors", "run"] {
                assert!(fs::read(once.join(file)).unwrap() == fs::read(twice.join(file)).unwrap(), "{file}");
            }
            // As records they are the same again, too.
            let of = |exchange: &Exchange| wire(&exchange.records().map(Result::unwrap).collect::<Vec<_>>());
            let again = exchanges(&entries(fastcgi::Reader::default(), &of(exchange)));
            assert!(again.len() == 1 && of(&again[0]) == of(exchange), "{}", path.display());
        }
    }
}

#[test]
fn the_records_of_recordings_cut_anywhere_are_never_wrong_in_any_form() {
    for path in recordings() {
        let all = captured(&fs::read(&path).unwrap());
        let bytes = wire(&all);
        let bytes = &bytes[..bytes.len().min(4000)];
        for cut in 0..bytes.len() {
            let cut_off = entries(fastcgi::Reader::default(), &bytes[..cut]);
            assert!(wire(&cut_off) == bytes[..cut], "{}: cut at {cut}", path.display());
            if cut % 16 != 0 {
                continue;
            }
            let (mut writer, mut lines) = (json::Writer::default(), Vec::new());
            let (mut checker, mut describer) = (Checker::default(), Describer::default());
            for entry in &cut_off {
                writer.write(entry, &mut lines);
                checker.check(entry);
                assert!(!describer.describe(entry).contains('\n'));
            }
            let again = entries(json::Reader::default(), &lines);
            assert!(wire(&again) == bytes[..cut], "{}: cut at {cut}", path.display());
            let messages = written(&mut http::Writer::default(), &exchanges(&cut_off));
            read_http(&messages);
        }
    }
}
